/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Reading packets and sockets into an event. */
#ifndef REPLYPATH_SKB_H
#define REPLYPATH_SKB_H

#include "maps.h"

#define AF_INET 2
#define AF_INET6 10

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define ETH_P_8021Q 0x8100
#define ETH_P_8021AD 0x88a8

#define IPPROTO_HOPOPTS 0
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ROUTING 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_AH 51
#define IPPROTO_ICMPV6 58
#define IPPROTO_DSTOPTS 60

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04

#define PACKET_BROADCAST 1
#define PACKET_MULTICAST 2
#define PACKET_OTHERHOST 3

#define IPV6_EXTENSIONS_MAX 4

#define IP_CT_IS_REPLY 3 /* the first value of enum ip_conntrack_info that stands for reply direction */

/* bpf_rdonly_cast (6.2) reads packet bytes for a nanosecond each; where it is
 * missing bpf_probe_read_kernel does, at some thirty. */
extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym __weak;

/* libbpf has this from 1.2 on. */
#ifndef bpf_ksym_exists
#define bpf_ksym_exists(sym) (!!(sym))
#endif

#define PACKET_WORDS(p) ((struct in6_addr *)bpf_rdonly_cast((p), bpf_core_type_id_kernel(struct in6_addr)))

static __always_inline __u8 load8(const void *p)
{
	__u8 v = 0;

	if (bpf_ksym_exists(bpf_rdonly_cast))
		return PACKET_WORDS(p)->in6_u.u6_addr8[0];
	bpf_probe_read_kernel(&v, sizeof(v), p);
	return v;
}

static __always_inline __u16 load16(const void *p)
{
	__u16 v = 0;

	if (bpf_ksym_exists(bpf_rdonly_cast))
		return bpf_ntohs(PACKET_WORDS(p)->in6_u.u6_addr16[0]);
	bpf_probe_read_kernel(&v, sizeof(v), p);
	return bpf_ntohs(v);
}

static __always_inline __u32 load32(const void *p)
{
	__u32 v = 0;

	if (bpf_ksym_exists(bpf_rdonly_cast))
		return bpf_ntohl(PACKET_WORDS(p)->in6_u.u6_addr32[0]);
	bpf_probe_read_kernel(&v, sizeof(v), p);
	return bpf_ntohl(v);
}

/* copy16 copies sixteen bytes from anywhere in the kernel. */
static __always_inline void copy16(void *to, const void *from)
{
	if (bpf_ksym_exists(bpf_rdonly_cast)) {
		__u32 *words = to;

		words[0] = PACKET_WORDS(from)->in6_u.u6_addr32[0];
		words[1] = PACKET_WORDS(from)->in6_u.u6_addr32[1];
		words[2] = PACKET_WORDS(from)->in6_u.u6_addr32[2];
		words[3] = PACKET_WORDS(from)->in6_u.u6_addr32[3];
		return;
	}
	bpf_probe_read_kernel(to, 16, from);
}

static __always_inline void copy4(void *to, const void *from)
{
	if (bpf_ksym_exists(bpf_rdonly_cast)) {
		*(__u32 *)to = PACKET_WORDS(from)->in6_u.u6_addr32[0];
		return;
	}
	bpf_probe_read_kernel(to, 4, from);
}

/* Set before loading. With the kernel's own BTF the arguments of a tracepoint are
 * pointers of their type, which are read directly; on a kernel without they are numbers. */
const volatile bool typed_arguments = true;

#define READ_ARGUMENT(p, field) (typed_arguments ? (p)->field : BPF_CORE_READ((p), field))

/* READ_AS reads a field of what a plain address is known to point to. */
#define READ_AS(type, p, field)                                                                                      \
	(bpf_ksym_exists(bpf_rdonly_cast) ?                                                                          \
		 ((struct type *)bpf_rdonly_cast((p), bpf_core_type_id_kernel(struct type)))->field :                \
		 BPF_CORE_READ((struct type *)(p), field))

/* Set before loading, where the kernel has bpf_snprintf (5.13): it names functions
 * also when /proc/kallsyms hides them, and those of modules that were loaded since. */
const volatile bool names_symbols = false;

static const char symbol_format[] = "%ps";

/* name_symbol makes sure that user space can name the function that address lies in. */
static __always_inline void name_symbol(__u64 address)
{
	struct symbol_name name = {};

	if (!names_symbols || !address || bpf_map_lookup_elem(&symbols, &address))
		return;
	bpf_snprintf(name.name, sizeof(name.name), symbol_format, &address, sizeof(address));
	bpf_map_update_elem(&symbols, &address, &name, 0 /* BPF_ANY */);
}

/* Where a packet's headers are. */
struct headers {
	const unsigned char *network;
	const unsigned char *transport;
	__u32 left; /* linear bytes from the transport header on */
	__u8 family;
	__u8 protocol;
	__u8 fragment; /* not the first fragment */
	__u8 more;     /* more fragments follow */
	__u16 id;      /* of the datagram that fragments belong to: of IPv6's 32 bits the lower half */
};

/* find_transport fills h from the IP header at network, of which `linear` bytes
 * can be read. Returns false for what is not IP. */
static __always_inline bool find_transport(struct headers *h, const unsigned char *network, __u32 linear)
{
	__u8 version;
	__u32 off;

	if (linear < 20)
		return false;
	version = load8(network);
	h->network = network;
	if (version >> 4 == 4) {
		off = (version & 15) * 4;
		if (off < 20 || off > linear)
			return false;
		h->family = AF_INET;
		h->protocol = load8(network + 9);
		h->fragment = (load16(network + 6) & 0x1fff) != 0;
		h->more = (load16(network + 6) & 0x2000) != 0;
		h->id = load16(network + 4);
		h->transport = network + off;
		h->left = linear - off;
		return true;
	}
	if (version >> 4 != 6 || linear < 40)
		return false;
	h->family = AF_INET6;
	h->protocol = load8(network + 6);
	h->fragment = 0;
	h->more = 0;
	h->id = 0;
	off = 40;
#pragma unroll
	for (int i = 0; i < IPV6_EXTENSIONS_MAX; i++) {
		__u8 next;
		__u32 size;

		if (h->protocol != IPPROTO_HOPOPTS && h->protocol != IPPROTO_ROUTING && h->protocol != IPPROTO_FRAGMENT &&
		    h->protocol != IPPROTO_DSTOPTS && h->protocol != IPPROTO_AH)
			break;
		if (off + 8 > linear)
			return false;
		next = load8(network + off);
		size = load8(network + off + 1);
		if (h->protocol == IPPROTO_FRAGMENT) {
			if (load16(network + off + 2) & 0xfff8)
				h->fragment = 1;
			h->more = load16(network + off + 2) & 1;
			h->id = load16(network + off + 6);
			size = 8;
		} else if (h->protocol == IPPROTO_AH) {
			size = (size + 2) * 4;
		} else {
			size = (size + 1) * 8;
		}
		h->protocol = next;
		off += size;
		if (off > linear)
			return false;
		if (h->fragment)
			break;
	}
	h->transport = network + off;
	h->left = linear - off;
	return true;
}

static __always_inline void fill_addresses(struct tuple *t, const struct headers *h)
{
	t->family = h->family;
	t->protocol = h->protocol;
	if (h->family == AF_INET) {
		copy4(t->saddr, h->network + 12);
		copy4(t->daddr, h->network + 16);
	} else {
		copy16(t->saddr, h->network + 8);
		copy16(t->daddr, h->network + 24);
	}
}

static __always_inline bool is_icmp(const struct headers *h)
{
	return (h->family == AF_INET && h->protocol == IPPROTO_ICMP) ||
	       (h->family == AF_INET6 && h->protocol == IPPROTO_ICMPV6);
}

/* is_icmp_error: RFC 792 (unreachable, time exceeded, parameter problem); RFC 4443, section 2.1. */
static __always_inline bool is_icmp_error(const struct headers *h, __u8 type)
{
	if (h->family == AF_INET)
		return type == 3 || type == 11 || type == 12;
	return type > 0 && type < 128;
}

static __always_inline void fill_transport(struct event *e, const struct headers *h)
{
	if (h->fragment) {
		e->flags |= EVENT_FRAGMENT;
		return;
	}
	if (is_icmp(h)) {
		if (h->left < 2) {
			e->flags |= EVENT_SHORT;
			return;
		}
		e->icmp_type = load8(h->transport);
		e->icmp_code = load8(h->transport + 1);
		return;
	}
	if (h->protocol != IPPROTO_TCP && h->protocol != IPPROTO_UDP)
		return;
	if (h->left < 4) {
		e->flags |= EVENT_SHORT;
		return;
	}
	e->tuple.sport = load16(h->transport);
	e->tuple.dport = load16(h->transport + 2);
	if (h->protocol == IPPROTO_UDP)
		return;
	if (h->left < 14) {
		e->flags |= EVENT_SHORT;
		return;
	}
	e->seq = load32(h->transport + 4);
	e->ack = load32(h->transport + 8);
	e->tcp_flags = load8(h->transport + 13);
}

/* fill_packet writes addresses, ports and TCP fields; of an ICMP error, those
 * of the packet that it complains about, with the error's own type and code. */
static __always_inline void fill_packet(struct event *e, const struct headers *h)
{
	struct headers inner = {};

	fill_addresses(&e->tuple, h);
	fill_transport(e, h);
	if (h->fragment || !is_icmp(h) || h->left < 8 + 20 || !is_icmp_error(h, e->icmp_type))
		return;
	if (!find_transport(&inner, h->transport + 8, h->left - 8))
		return;
	if (is_icmp(&inner))
		return;
	e->flags |= EVENT_INNER;
	__builtin_memcpy(e->reporter, e->tuple.saddr, sizeof(e->reporter));
	fill_addresses(&e->tuple, &inner);
	fill_transport(e, &inner);
}

static __always_inline void fill_device(struct event *e, struct net_device *dev)
{
	struct net *net = READ_AS(net_device, dev, nd_net.net);
	const char *kind;

	e->netns = READ_AS(net, net, ns.inum);
	e->ifindex = READ_AS(net_device, dev, ifindex);
	copy16(e->device, &dev->name);
	kind = BPF_CORE_READ(dev, rtnl_link_ops, kind);
	if (kind)
		bpf_probe_read_kernel_str(e->kind, sizeof(e->kind), kind);
}

/* fill_place finds namespace and devices: skb->dev, else the socket, else the route. */
static __always_inline void fill_place(struct event *e, const struct sk_buff *skb)
{
	unsigned long refdst = READ_ARGUMENT(skb, _skb_refdst) & ~7UL;
	struct net_device *dev = READ_ARGUMENT(skb, dev);
	struct sock *sk = READ_ARGUMENT(skb, sk);
	struct dst_entry *dst = (struct dst_entry *)refdst;
	struct net_device *out = NULL;

	if (dst) {
		e->flags |= EVENT_HAS_ROUTE;
		e->input = (__u64)READ_AS(dst_entry, dst, input);
		out = READ_AS(dst_entry, dst, dev);
		if (out)
			e->out_ifindex = READ_AS(net_device, out, ifindex);
	}
	if (dev)
		fill_device(e, dev);
	if (!e->netns && sk)
		e->netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	if (!e->netns && out)
		e->netns = BPF_CORE_READ(out, nd_net.net, ns.inum);
}

/* fill_ip: what fragmentation and loops are told by. */
static __always_inline void fill_ip(struct event *e, const struct headers *h)
{
	e->ip_id = h->id;
	if (h->more)
		e->ip_flags |= IP_FLAG_MF;
	if (h->family == AF_INET) {
		e->ttl = load8(h->network + 8);
		if (load16(h->network + 6) & 0x4000)
			e->ip_flags |= IP_FLAG_DF;
		return;
	}
	e->ttl = load8(h->network + 7);
	e->ip_flags |= IP_FLAG_DF; /* no router may fragment IPv6 */
}

/* packet_type is skb->pkt_type, a bit field. */
static __always_inline __u8 packet_type(const struct sk_buff *skb)
{
	__u64 value;

	if (!bpf_ksym_exists(bpf_rdonly_cast) || __CORE_RELO(skb, pkt_type, BYTE_SIZE) != 1)
		return BPF_CORE_READ_BITFIELD_PROBED(skb, pkt_type);
	value = load8((const void *)skb + __CORE_RELO(skb, pkt_type, BYTE_OFFSET));
	value <<= __CORE_RELO(skb, pkt_type, LSHIFT_U64);
	return value >> __CORE_RELO(skb, pkt_type, RSHIFT_U64);
}

static __always_inline void fill_skb(struct event *e, const struct sk_buff *skb, const struct headers *h)
{
	unsigned char *head = READ_ARGUMENT(skb, head);
	__u16 mac = READ_ARGUMENT(skb, mac_header);
	__u8 kind;

	e->skb = (__u64)skb;
	e->ip_len = READ_ARGUMENT(skb, len) + (READ_ARGUMENT(skb, data) - h->network);
	fill_ip(e, h);
	e->mark = READ_ARGUMENT(skb, mark);
	e->in_ifindex = READ_ARGUMENT(skb, skb_iif);
	kind = packet_type(skb);
	if (kind == PACKET_OTHERHOST)
		e->flags |= EVENT_OTHERHOST;
	if (kind == PACKET_BROADCAST || kind == PACKET_MULTICAST)
		e->ip_flags |= IP_FLAG_GROUP;
	if (mac != 0xffff && head + mac + 14 <= h->network)
		bpf_probe_read_kernel(e->source_mac, sizeof(e->source_mac), head + mac + 6);
	fill_packet(e, h);
}

static __always_inline void fill_ct_tuple(struct tuple *t, const struct nf_conntrack_tuple *ct)
{
	copy16(t->saddr, &ct->src.u3);
	copy16(t->daddr, &ct->dst.u3);
	t->sport = load16(&ct->src.u.all);
	t->dport = load16(&ct->dst.u.all);
	t->family = load8(&ct->src.l3num); /* the lower half of a little-endian number */
	t->protocol = load8(&ct->dst.protonum);
}

/* find_headers locates the IP header: at skb->data where the stack has just
 * received the packet (at_data), else at network_header. VLAN tags that still
 * stand in the packet are stepped over. */
static __always_inline bool find_headers(struct headers *h, const struct sk_buff *skb, bool at_data)
{
	unsigned char *head = READ_ARGUMENT(skb, head), *data = READ_ARGUMENT(skb, data);
	__u32 linear = READ_ARGUMENT(skb, len) - READ_ARGUMENT(skb, data_len);
	__u16 protocol = bpf_ntohs(READ_ARGUMENT(skb, protocol));
	const unsigned char *p = data;

	if (at_data) {
#pragma unroll
		for (int i = 0; i < 2; i++) {
			if (protocol != ETH_P_8021Q && protocol != ETH_P_8021AD)
				break;
			if (linear < 4)
				return false;
			protocol = load16(p + 2);
			p += 4;
			linear -= 4;
		}
	} else {
		p = head + READ_ARGUMENT(skb, network_header);
		/* Bytes between data and the network header are behind us, or ahead (MAC header). */
		linear = (__u32)(data + linear - p);
		if (linear > 65536)
			return false;
	}
	if (protocol != ETH_P_IP && protocol != ETH_P_IPV6)
		return false;
	return find_transport(h, p, linear);
}

/* forget makes the verifier forget what it knows of a value: it looked at all that
 * follows once for each way that a header can be found by, of which there are many. */
static __always_inline void forget(void *value, __u32 size)
{
	bpf_probe_read_kernel(value, size, value);
}

/* The most that headers take, with options and extensions, as far as they are followed. */
#define HEADERS_MAX 256

/* is_hidden: an IP packet whose headers go on beyond the skb's linear part, where they cannot be read. */
static __always_inline bool is_hidden(const struct sk_buff *skb)
{
	__u16 protocol = bpf_ntohs(READ_ARGUMENT(skb, protocol));
	__u32 paged = READ_ARGUMENT(skb, data_len);

	return paged && READ_ARGUMENT(skb, len) - paged < HEADERS_MAX && (protocol == ETH_P_IP || protocol == ETH_P_IPV6);
}

#define PIDTYPE_PGID 2

/* fill_process: only where the kernel acts for the current task. Programs name their
 * threads; people know the process, whose name its first thread has. */
static __always_inline void fill_process(struct event *e)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	e->pid = bpf_get_current_pid_tgid() >> 32;
	e->pgid = BPF_CORE_READ(task, signal, pids[PIDTYPE_PGID], numbers[0].nr);
	BPF_CORE_READ_STR_INTO(&e->comm, task, group_leader, comm);
}

/* fill_sender names the process of the socket that sent a datagram: the one that
 * looked for its route (route.bpf.c). */
static __always_inline void fill_sender(struct event *e, const struct event_conntrack *ec)
{
	struct udp_socket key = { .netns = e->netns, .port = e->tuple.sport, .family = e->tuple.family };
	struct udp_sender *sender;

	if (ec) {
		if (e->ct_info >= IP_CT_IS_REPLY)
			return;
		key.port = ec->conntrack.original.sport;
	}
	sender = bpf_map_lookup_elem(&udp_senders, &key);
	if (!sender)
		return;
	e->pid = sender->pid;
	e->pgid = sender->pgid;
	__builtin_memcpy(e->comm, sender->comm, sizeof(e->comm));
}

/* What the hook knows beside the packet. */
struct observation {
	__u64 symbol;
	__s32 reason;
	__u16 hook;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 function;
	__u64 datagram; /* of DNS: its key; 0: none */
	__u64 time;     /* of DNS: CLOCK_MONOTONIC, nanoseconds; 0: not asked for yet */
};

/* emit_skb sends one event about skb, with conntrack's tuples where it has them. */
static __always_inline int emit_skb(const struct observation *seen, const struct sk_buff *skb, const struct headers *h)
{
	unsigned long nfct = BPF_CORE_READ(skb, _nfct);
	struct nf_conn *ct = (struct nf_conn *)(nfct & ~7UL);
	struct event_conntrack *ec = NULL;
	struct event *e;

	if (ct) {
		ec = bpf_ringbuf_reserve(&events, sizeof(*ec), 0);
		if (!ec) {
			count_loss(LOSS_RING_FULL);
			return 0;
		}
		__builtin_memset(ec, 0, sizeof(*ec));
		e = &ec->event;
		e->flags = EVENT_HAS_CONNTRACK;
		fill_ct_tuple(&ec->conntrack.original, &ct->tuplehash[0].tuple);
		fill_ct_tuple(&ec->conntrack.reply, &ct->tuplehash[1].tuple);
	} else {
		e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
		if (!e) {
			count_loss(LOSS_RING_FULL);
			return 0;
		}
		__builtin_memset(e, 0, sizeof(*e));
	}
	e->time = bpf_ktime_get_ns();
	e->hook = seen->hook;
	e->reason = seen->reason;
	e->symbol = seen->symbol;
	e->function = seen->function;
	e->ct_info = nfct & 7;
	fill_place(e, skb);
	fill_skb(e, skb, h);
	/* A socket's own SYN leaves in connect()'s context, unless it waited for a neighbour
	 * or is a retransmission: user space compares with the socket's state change. */
	if (seen->hook == HOOK_TRANSMIT && e->tcp_flags == TCP_SYN && BPF_CORE_READ(skb, sk))
		fill_process(e);
	if ((seen->hook == HOOK_TRANSMIT || seen->hook == HOOK_DROP) && e->tuple.protocol == IPPROTO_UDP && !e->in_ifindex && BPF_CORE_READ(skb, sk))
		fill_sender(e, ec);
	if (seen->hook == HOOK_DROP)
		name_symbol(e->input);
	if (seen->hook == HOOK_ICMP_SENT) {
		e->icmp_type = seen->icmp_type;
		e->icmp_code = seen->icmp_code;
	}
	bpf_ringbuf_submit(e, wakeup_flags());
	return 0;
}

static __always_inline struct event *reserve_event(__u16 hook)
{
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e) {
		count_loss(LOSS_RING_FULL);
		return NULL;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->time = bpf_ktime_get_ns();
	e->hook = hook;
	return e;
}

/* fill_sock: local address to remote address. IPv4-mapped addresses stay mapped; user space unmaps. */
static __always_inline void fill_sock(struct event *e, const struct sock_common *sk)
{
	struct tuple *t = &e->tuple;

	e->netns = BPF_CORE_READ(sk, skc_net.net, ns.inum);
	t->family = BPF_CORE_READ(sk, skc_family);
	t->protocol = IPPROTO_TCP;
	t->sport = BPF_CORE_READ(sk, skc_num);
	t->dport = bpf_ntohs(BPF_CORE_READ(sk, skc_dport));
	if (t->family == AF_INET) {
		__be32 s = BPF_CORE_READ(sk, skc_rcv_saddr), d = BPF_CORE_READ(sk, skc_daddr);

		__builtin_memcpy(t->saddr, &s, 4);
		__builtin_memcpy(t->daddr, &d, 4);
	} else {
		BPF_CORE_READ_INTO(&t->saddr, sk, skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO(&t->daddr, sk, skc_v6_daddr);
	}
}

#endif
