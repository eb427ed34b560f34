/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* DNS: which packets are, and what they hold. */
#ifndef REPLYPATH_DNS_H
#define REPLYPATH_DNS_H

#include "skb.h"

#define PORT_DNS 53

/* Set before loading, where the kernel lets a program at a tracepoint read what lies
 * in an skb's pages (6.12): TCP keeps all that it sends there. */
const volatile bool reads_pages = false;

/* The tracepoint's argument is a struct sk_buff, whatever the prototype says. */
extern int bpf_dynptr_from_skb(struct __sk_buff *skb, __u64 flags, struct bpf_dynptr *ptr__uninit) __ksym __weak;

static __always_inline __u64 mix(__u64 hash, __u64 value)
{
	hash = (hash ^ value) * 0x9e3779b97f4a7c15ULL;
	return hash ^ (hash >> 32);
}

static __always_inline bool has_bit(const struct dns_ports *ports, __u16 port)
{
	return ports->bits[port >> 6] & 1ULL << (port & 63);
}

static __always_inline struct dns_ports *known_ports(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&dns_ports, &zero);
}

/* is_dns: to or from a port that DNS is spoken on. */
static __always_inline bool is_dns(const struct headers *h)
{
	struct dns_ports *ports = known_ports();

	return ports && (has_bit(ports, load16(h->transport + 2)) || has_bit(ports, load16(h->transport)));
}

/* is_port: DNS is spoken on it. */
static __always_inline bool is_port(__u16 port)
{
	struct dns_ports *ports = known_ports();

	return ports && has_bit(ports, port);
}

/* is_redirected: conntrack says that the packet was meant for port 53, or answers one
 * that was. The port that it goes to instead is one of DNS from now on. */
static __always_inline bool is_redirected(const struct sk_buff *skb)
{
	struct nf_conn *ct = (struct nf_conn *)(READ_ARGUMENT(skb, _nfct) & ~7UL);
	struct dns_ports *ports;
	__u16 port;

	if (!ct || BPF_CORE_READ(ct, tuplehash[0].tuple.dst.u.all) != bpf_htons(PORT_DNS))
		return false;
	port = bpf_ntohs(BPF_CORE_READ(ct, tuplehash[1].tuple.src.u.all));
	ports = known_ports();
	if (!ports || port == PORT_DNS)
		return false;
	/* Two CPUs that set bits of one word at once may lose one: the next packet sets it again. */
	ports->bits[port >> 6] |= 1ULL << (port & 63);
	return true;
}

/* What a packet of DNS holds. */
struct dns_payload {
	const unsigned char *at;
	__u32 length;   /* as the headers say */
	__u32 linear;   /* of that, in the skb's linear part */
	__u32 readable; /* of that, can be read */
	__u32 offset;   /* of `at` from skb->data */
};

/* located is where a packet's headers and its data are, as numbers: 7.2 takes what is read
 * from skb->data for a pointer, and all that is reckoned from it for one too, lengths included. */
struct located {
	struct headers headers;
	const unsigned char *data;
};

/* ip_bytes returns how many bytes follow from the transport header on: the frame may be
 * padded, and the headers of the largest packets say nothing. */
static __always_inline __u32 ip_bytes(const struct sk_buff *skb, const struct located *l)
{
	const struct headers *h = &l->headers;
	__u32 before = h->transport - h->network;
	__u32 skb_bytes = READ_ARGUMENT(skb, len) - (__u32)(h->network - l->data);
	__u32 told = h->family == AF_INET ? load16(h->network + 2) : load16(h->network + 4);

	if (told && h->family == AF_INET6)
		told += 40;
	if (told && told < skb_bytes)
		skb_bytes = told;
	return skb_bytes > before ? skb_bytes - before : 0;
}

/* find_payload: false when there is none. */
static __always_inline bool find_payload(struct dns_payload *p, const struct sk_buff *skb, const struct headers *seen)
{
	struct located l = { .headers = *seen, .data = READ_ARGUMENT(skb, data) };
	const struct headers *h = &l.headers;
	__u32 header = 8, bytes;

	forget(&l, sizeof(l));
	bytes = ip_bytes(skb, &l);
	if (h->protocol == IPPROTO_TCP) {
		header = (load8(h->transport + 12) >> 4) * 4;
		if (header < 20)
			return false;
		p->length = bytes > header ? bytes - header : 0;
	} else {
		/* Of a fragmented datagram, more than this packet holds. */
		p->length = load16(h->transport + 4);
		p->length = p->length > header ? p->length - header : 0;
	}
	if (!p->length || bytes <= header)
		return false;
	bytes -= header;
	p->at = h->transport + header;
	p->offset = p->at - l.data;
	p->linear = h->left > header ? h->left - header : 0;
	p->readable = p->length < bytes ? p->length : bytes;
	if (p->linear > p->readable)
		p->linear = p->readable;
	if (!reads_pages)
		p->readable = p->linear;
	return true;
}

/* read_bytes copies n bytes of the payload; false when they cannot be read. */
static __always_inline bool read_bytes(void *to, __u32 n, const struct dns_payload *p, const struct sk_buff *skb)
{
	struct bpf_dynptr packet;

	if (p->readable <= p->linear || !reads_pages)
		return !bpf_probe_read_kernel(to, n, p->at);
	if (bpf_dynptr_from_skb((struct __sk_buff *)skb, 0, &packet))
		return false;
	return !bpf_dynptr_read(to, n, &packet, p->offset, 0);
}

/* read_payload copies up to max bytes, a power of two, and returns how many. */
static __always_inline __u32 read_payload(void *to, __u32 max, const struct dns_payload *p, const struct sk_buff *skb)
{
	__u32 n = p->readable;

	if (n >= max)
		return read_bytes(to, max, p, skb) ? max : 0;
	/* The verifier has to see the bound, and the compiler must not see that it is one already. */
	asm volatile("" : "+r"(n));
	n &= max - 1;
	return read_bytes(to, n, p, skb) ? n : 0;
}

static __always_inline __u32 netns_of(const struct net_device *dev)
{
	if (typed_arguments)
		return dev->nd_net.net->ns.inum;
	return BPF_CORE_READ(dev, nd_net.net, ns.inum);
}

#define TASK(p) ((struct task_struct *)bpf_rdonly_cast((p), bpf_core_type_id_kernel(struct task_struct)))

/* fill_asker: who sends a query. A socket's packet leaves in its process's context, but
 * for those that waited for a neighbour: then current may be anybody. */
static __always_inline void fill_asker(struct event *e, const struct sk_buff *skb)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	if (!READ_ARGUMENT(skb, sk) || READ_ARGUMENT(skb, skb_iif) || !e->netns)
		return;
	if (typed_arguments && bpf_ksym_exists(bpf_rdonly_cast)) {
		struct task_struct *t = TASK(task);

		if (!t->mm || t->nsproxy->net_ns->ns.inum != e->netns)
			return;
		e->pid = bpf_get_current_pid_tgid() >> 32;
		e->pgid = t->signal->pids[PIDTYPE_PGID]->numbers[0].nr;
		copy16(e->comm, &t->group_leader->comm);
		return;
	}
	if (!BPF_CORE_READ(task, mm) || BPF_CORE_READ(task, nsproxy, net_ns, ns.inum) != e->netns)
		return;
	fill_process(e);
}

/* fill_sender_or_asker: whoever looked for a datagram's route is its sender, also when
 * the datagram waited for a neighbour; a connected socket looks for none. */
static __always_inline void fill_sender_or_asker(struct event_conntrack *ec, const struct sk_buff *skb, bool tracked)
{
	struct event *e = &ec->event;

	if (e->tuple.protocol == IPPROTO_UDP && !READ_ARGUMENT(skb, skb_iif))
		fill_sender(e, tracked ? ec : NULL);
	if (!e->pid || e->pid == bpf_get_current_pid_tgid() >> 32)
		fill_asker(e, skb);
}

/* fill_lean is what is needed of a packet that is told for its payload alone. */
static __always_inline void fill_lean(struct event *e, const struct sk_buff *skb, const struct headers *h)
{
	struct net_device *dev = READ_ARGUMENT(skb, dev);

	e->skb = (__u64)skb;
	e->in_ifindex = READ_ARGUMENT(skb, skb_iif);
	if (packet_type(skb) == PACKET_OTHERHOST)
		e->flags |= EVENT_OTHERHOST;
	if (h->more)
		e->ip_flags |= IP_FLAG_MF;
	if (dev) {
		e->netns = netns_of(dev);
		e->ifindex = READ_ARGUMENT(dev, ifindex);
		copy16(e->device, &dev->name);
	}
	fill_addresses(&e->tuple, h);
	e->tuple.sport = load16(h->transport);
	e->tuple.dport = load16(h->transport + 2);
	if (h->protocol == IPPROTO_TCP) {
		e->seq = load32(h->transport + 4);
		e->ack = load32(h->transport + 8);
		e->tcp_flags = load8(h->transport + 13);
	}
}

static __always_inline void fill_dns(struct event_conntrack *ec, const struct observation *seen, const struct sk_buff *skb, const struct headers *h,
				      bool alone)
{
	unsigned long nfct = READ_ARGUMENT(skb, _nfct);
	struct nf_conn *ct = (struct nf_conn *)(nfct & ~7UL);
	struct event *e = &ec->event;

	__builtin_memset(ec, 0, sizeof(*ec));
	e->time = seen->time ? seen->time : bpf_ktime_get_ns();
	e->hook = seen->hook;
	e->reason = seen->reason;
	e->symbol = seen->hook == HOOK_DROP ? seen->symbol : seen->datagram;
	e->ct_info = nfct & 7;
	e->dns = DNS_MESSAGE;
	if (ct) {
		e->flags = EVENT_HAS_CONNTRACK;
		fill_ct_tuple(&ec->conntrack.original, &ct->tuplehash[0].tuple);
		fill_ct_tuple(&ec->conntrack.reply, &ct->tuplehash[1].tuple);
	}
	if (alone) {
		e->dns |= DNS_ALONE;
		fill_lean(e, skb, h);
	} else {
		fill_place(e, skb);
		fill_skb(e, skb, h);
	}
	if (seen->hook == HOOK_DROP)
		name_symbol(e->input);
	/* Without a device it is dropped where it was made. */
	if ((seen->hook == HOOK_TRANSMIT || (seen->hook == HOOK_DROP && !READ_ARGUMENT(skb, dev))) && !is_port(e->tuple.sport))
		fill_sender_or_asker(ec, skb, ct != NULL);
}

/* remember_datagram: its payload has been told, and need not be at the hooks that it comes to
 * next; or nothing was, and nothing is to be. */
static __always_inline void remember_datagram(const struct sk_buff *skb, const struct observation *seen, bool told)
{
	__u32 slot = (seen->datagram >> 8) % DATAGRAMS;
	struct datagram *d = bpf_map_lookup_elem(&datagrams, &slot);

	if (!d)
		return;
	d->key = told ? seen->datagram : seen->datagram & ~1ULL;
	d->skb = (__u64)skb;
	d->time = seen->time;
}

/* emit_dns sends one event about skb, with its payload. */
static __always_inline int emit_dns(const struct observation *seen, const struct sk_buff *skb, const struct headers *h, const struct dns_payload *p,
				    bool alone)
{
	if (p->readable <= DNS_SHORT) {
		struct event_dns *ed = bpf_ringbuf_reserve(&events, sizeof(*ed), 0);

		if (!ed) {
			count_loss(LOSS_RING_FULL);
			return 0;
		}
		fill_dns(&ed->base, seen, skb, h, alone);
		ed->length = p->length;
		ed->captured = read_payload(ed->payload, DNS_SHORT, p, skb);
		bpf_ringbuf_submit(ed, wakeup_flags());
	} else {
		struct event_dns_long *ed = bpf_ringbuf_reserve(&events, sizeof(*ed), 0);

		if (!ed) {
			count_loss(LOSS_RING_FULL);
			return 0;
		}
		fill_dns(&ed->base, seen, skb, h, alone);
		ed->length = p->length;
		ed->captured = read_payload(ed->payload, DNS_LONG, p, skb);
		bpf_ringbuf_submit(ed, wakeup_flags());
	}
	if (seen->datagram)
		remember_datagram(skb, seen, true);
	return 0;
}

/* What a datagram is known by needs as much of its linear part: UDP's header, and of DNS the
 * header and the first letters of the question. */
#define DATAGRAM_LEFT (8 + 16)

/* datagram_key is the same for a datagram of DNS at all hooks, and another for most others. */
static __always_inline __u64 datagram_key(const struct headers *h)
{
	__u64 key = mix(load16(h->transport + 4), (__u64)load32(h->transport + 8) << 32 | load32(h->transport + 20));

	return mix(key, load32(h->transport + 16)) | 1;
}

/* find_datagram returns what is remembered of a datagram; NULL: nothing, or it was long ago. */
static __always_inline struct datagram *find_datagram(const struct observation *seen, const struct sk_buff *skb)
{
	__u32 slot = (seen->datagram >> 8) % DATAGRAMS;
	struct datagram *d = bpf_map_lookup_elem(&datagrams, &slot);

	if (!d || (d->key | 1) != seen->datagram || d->skb != (__u64)skb || seen->time - d->time >= DATAGRAM_NS)
		return NULL;
	return d;
}

static __always_inline struct untold_query *untold_slot(__u64 key)
{
	__u32 slot = (key >> 8) % UNTOLD;

	return bpf_map_lookup_elem(&untold_queries, &slot);
}

/* may_tell_datagram: as far as the budget goes of the namespace where it is seen first. A
 * response is told if its query was. */
static __always_inline bool may_tell_datagram(const struct observation *seen, const struct sk_buff *skb, const struct headers *h)
{
	const struct net_device *dev = READ_ARGUMENT(skb, dev);
	bool response = load8(h->transport + 10) & 0x80;
	__u16 client = load16(response ? h->transport + 2 : h->transport);
	__u64 key = mix(client, (__u64)load16(h->transport + 8) << 32 | load32(h->transport + 20));
	struct untold_query *query;

	if (response) {
		query = untold_slot(key);
		if (query && query->key == key && seen->time - query->time < UNTOLD_NS)
			return false;
	}
	if (!dev || !is_over_budget(netns_of(dev), seen->time, response ? BUDGET_RESPONSES : BUDGET_QUERIES))
		return true;
	if (!response) {
		query = untold_slot(key);
		if (query) {
			query->key = key;
			query->time = seen->time;
		}
	}
	return false;
}

enum hop {
	HOP_NEW = 0,    /* the datagram was not seen before, or long ago */
	HOP_TOLD = 1,   /* it was, and that it comes here is told now */
	HOP_UNTOLD = 2, /* it was, and nothing of it is told */
};

/* emit_hop sends one event about a datagram whose payload was told. */
static __always_inline enum hop emit_hop(const struct observation *seen, const struct sk_buff *skb, const struct headers *h)
{
	__u32 in_ifindex = READ_ARGUMENT(skb, skb_iif);
	struct net_device *dev = READ_ARGUMENT(skb, dev);
	struct datagram *d;
	struct event_hop *e;

	if (!dev || (seen->hook == HOOK_TRANSMIT && !in_ifindex)) /* it is made here: another, perhaps, that is alike */
		return HOP_NEW;
	d = find_datagram(seen, skb);
	if (!d)
		return HOP_NEW;
	d->time = seen->time;
	if (d->key != seen->datagram)
		return HOP_UNTOLD;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		count_loss(LOSS_RING_FULL);
		return HOP_TOLD;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->time = seen->time;
	e->skb = (__u64)skb;
	e->key = seen->datagram;
	e->netns = netns_of(dev);
	e->ifindex = READ_ARGUMENT(dev, ifindex);
	e->in_ifindex = in_ifindex;
	e->hook = seen->hook;
	if (packet_type(skb) == PACKET_OTHERHOST)
		e->flags = EVENT_OTHERHOST;
	if (h->more)
		e->ip_flags = IP_FLAG_MF;
	fill_addresses(&e->tuple, h);
	e->tuple.sport = load16(h->transport);
	e->tuple.dport = load16(h->transport + 2);
	copy16(e->device, &dev->name);
	bpf_ringbuf_submit(e, wakeup_flags());
	return HOP_TOLD;
}

/* tell_datagram tells of a datagram that was told before; otherwise it says whether it is to be told whole. */
static __always_inline enum hop tell_datagram(struct observation *seen, const struct sk_buff *skb, const struct headers *h)
{
	enum hop hop;

	seen->datagram = datagram_key(h);
	hop = emit_hop(seen, skb, h);
	if (hop != HOP_NEW || may_tell_datagram(seen, skb, h))
		return hop;
	remember_datagram(skb, seen, false);
	return HOP_UNTOLD;
}

#endif
