/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Route lookups that fail: fib:fib_table_lookup (net/ipv4/fib_trie.c) and
 * fib6:fib6_table_lookup (net/ipv6/route.c). Only those made while a handshake
 * packet is received are told: they decide whether it, or its answer, has a way. */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "skb.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define RT_TABLE_LOCAL 255
#define RTF_REJECT 0x0200
#define RTN_BLACKHOLE 6
#define RTN_UNREACHABLE 7
#define RTN_PROHIBIT 8

static __always_inline bool same_address(const __u8 *a, const __u8 *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1];
}

struct lookup {
	__u8 saddr[16] __attribute__((aligned(8)));
	__u8 daddr[16] __attribute__((aligned(8)));
	__u32 mark;
	__u32 table;
	__s32 reason;
	__u32 netns; /* 0: the hook does not tell */
	__u16 hook;
	__u16 sport; /* ports are 0 in lookups that forward a packet */
	__u16 dport;
	__u8 any[16] __attribute__((aligned(8))); /* the unspecified address */
};

/* How long after a datagram its answer may be looked for. */
#define UDP_PEER_NS 10000000000ULL

/* A packet is received, routed and answered within one softirq run. */
#define LAST_PACKET_NS 5000000

/* emit_miss sends the miss under the handshake packet that was received last on
 * this CPU, if the lookup is towards that packet's destination or back to its
 * source. The event's tuple is that of the packet to be sent; after a NAT its
 * source is not the address that the received packet named. */
static __always_inline int emit_miss(const struct lookup *l)
{
	__u32 zero = 0;
	struct last_packet *last = bpf_map_lookup_elem(&last_packets, &zero);
	bool onward, back;
	struct event *e;

	if (!last || !last->netns || (l->netns && l->netns != last->netns))
		return 0;
	onward = same_address(l->daddr, last->tuple.daddr);
	back = same_address(l->daddr, last->tuple.saddr);
	if ((!onward && !back) || bpf_ktime_get_ns() - last->time > LAST_PACKET_NS)
		return 0;
	e = reserve_event(l->hook);
	if (!e)
		return 0;
	e->netns = last->netns;
	e->in_ifindex = last->ifindex;
	e->skb = last->skb;
	e->seq = last->seq;
	e->ack = last->ack;
	e->tcp_flags = last->tcp_flags;
	e->mark = l->mark;
	e->table = l->table;
	e->reason = l->reason;
	e->tuple = last->tuple;
	if (back) {
		e->tuple.sport = last->tuple.dport;
		e->tuple.dport = last->tuple.sport;
	}
	if (l->sport || l->dport) {
		e->tuple.sport = l->sport;
		e->tuple.dport = l->dport;
	}
	__builtin_memcpy(e->tuple.saddr, l->saddr, 16);
	__builtin_memcpy(e->tuple.daddr, l->daddr, 16);
	bpf_ringbuf_submit(e, wakeup_flags());
	return 0;
}

/* Where there are rules of its own, a host looks into table local first. That an
 * answer was looked for there is told once for each datagram that is told: a rule
 * that refuses it, or suppresses the route that was found, shows no other way. */
static __always_inline bool is_told(struct last_packet *last, __u32 table)
{
	if (table != RT_TABLE_LOCAL)
		return false;
	if (last->seq)
		return true;
	last->seq = 1; /* a datagram has none of its own */
	return false;
}

/* emit_udp_miss sends the miss of a lookup for a datagram to somebody from whom one
 * has come: it is made by the process that answers, at any later time. */
static __always_inline int emit_udp_miss(const struct lookup *l)
{
	struct last_packet *last;
	struct udp_peer peer = {};
	struct event *e;

	__builtin_memcpy(peer.addr, l->daddr, sizeof(peer.addr));
	peer.port = l->dport;
	peer.family = l->hook == HOOK_ROUTE_MISS4 ? AF_INET : AF_INET6;
	last = bpf_map_lookup_elem(&udp_peers, &peer);
	if (!last || (l->netns && l->netns != last->netns) || bpf_ktime_get_ns() - last->time > UDP_PEER_NS)
		return 0;
	if (is_told(last, l->table))
		return 0;
	e = reserve_event(l->hook);
	if (!e)
		return 0;
	e->netns = last->netns;
	e->in_ifindex = last->ifindex;
	e->mark = l->mark;
	e->table = l->table;
	e->reason = l->reason;
	e->tuple.family = peer.family;
	e->tuple.protocol = IPPROTO_UDP;
	e->tuple.sport = l->sport;
	e->tuple.dport = l->dport;
	__builtin_memcpy(e->tuple.daddr, l->daddr, 16);
	__builtin_memcpy(e->tuple.saddr, l->saddr, 16);
	/* A socket that is bound to no address gets one from the route that it does not find. */
	if (same_address(l->saddr, l->any))
		__builtin_memcpy(e->tuple.saddr, last->tuple.daddr, 16);
	bpf_ringbuf_submit(e, wakeup_flags());
	return 0;
}

/* Servers answer from ports below this; who they are is not asked. */
#define CLIENT_PORTS 1024

/* keep_sender remembers who looks for a route for a datagram of its socket. In
 * softirq the current task is a bystander; but lookups with ports are made there
 * for tunnels alone, and a socket's own lookup comes before its first datagram. */
static __always_inline void keep_sender(__u16 port, __u8 family)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	__u32 pid = bpf_get_current_pid_tgid() >> 32;
	struct udp_socket key = { .port = port, .family = family };
	struct udp_sender sender = {}, *known;

	if (port < CLIENT_PORTS || !BPF_CORE_READ(task, mm))
		return;
	key.netns = BPF_CORE_READ(task, nsproxy, net_ns, ns.inum);
	known = bpf_map_lookup_elem(&udp_senders, &key);
	if (known && known->pid == pid)
		return;
	sender.pid = pid;
	sender.pgid = BPF_CORE_READ(task, signal, pids[PIDTYPE_PGID], numbers[0].nr);
	BPF_CORE_READ_STR_INTO(&sender.comm, task, group_leader, comm);
	bpf_map_update_elem(&udp_senders, &key, &sender, 0 /* BPF_ANY */);
}

/* Sockets look for routes as if their packets came in by lo (ip_route_output_key_hash
 * in net/ipv4/route.c, ip6_route_output_flags in net/ipv6/route.c). */
#define LOOPBACK_IFINDEX 1
#define RT_SCOPE_NOWHERE 255

/* is_own reports the lookup of a TCP or UDP socket of this namespace. Those made to send an
 * ICMP error about a packet look alike, but for the device that they name (icmpv6_route_lookup). */
static __always_inline bool is_own(const struct flowi_common *common)
{
	__u8 protocol = BPF_CORE_READ(common, flowic_proto);

	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return false;
	return BPF_CORE_READ(common, flowic_iif) == LOOPBACK_IFINDEX && !BPF_CORE_READ(common, flowic_oif);
}

/* emit_astray sends what fails before there is a packet: connect() or sendto() from or to a
 * loopback address, whose way leads by another device than lo, or nowhere. */
static __always_inline int emit_astray(const struct lookup *l, __u8 family, __u8 protocol, const struct net_device *dev)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct event *e;

	if (!BPF_CORE_READ(task, mm))
		return 0;
	e = reserve_event(HOOK_ASTRAY);
	if (!e)
		return 0;
	e->netns = l->netns;
	if (!e->netns)
		e->netns = BPF_CORE_READ(task, nsproxy, net_ns, ns.inum);
	if (dev) {
		e->out_ifindex = BPF_CORE_READ(dev, ifindex);
		e->ifindex = e->out_ifindex;
		BPF_CORE_READ_INTO(&e->device, dev, name);
	}
	e->mark = l->mark;
	e->table = l->table;
	e->reason = l->reason;
	e->tuple.family = family;
	e->tuple.protocol = protocol;
	e->tuple.sport = l->sport;
	e->tuple.dport = l->dport;
	__builtin_memcpy(e->tuple.saddr, l->saddr, 16);
	__builtin_memcpy(e->tuple.daddr, l->daddr, 16);
	fill_process(e);
	bpf_ringbuf_submit(e, wakeup_flags());
	return 0;
}

/* is_loopback4: 127/8. */
static __always_inline bool is_loopback4(__be32 address)
{
	return (address & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
}

/* watch_loopback4 looks at a socket's lookup from or to 127/8. */
static __always_inline void watch_loopback4(__u32 table, const struct flowi4 *fl, const struct fib_nh_common *nhc, int err)
{
	__be32 s = READ_ARGUMENT(fl, saddr), d = READ_ARGUMENT(fl, daddr);
	const struct net_device *dev = NULL;
	struct lookup l = {};

	if (!is_loopback4(d) && (err || !is_loopback4(s)))
		return;
	if (!is_own(&fl->__fl_common))
		return;
	if (!err) {
		if (!nhc || BPF_CORE_READ(nhc, nhc_scope) == RT_SCOPE_NOWHERE)
			return; /* an address of this host */
		dev = BPF_CORE_READ(nhc, nhc_dev);
		if (!dev || BPF_CORE_READ(dev, ifindex) == LOOPBACK_IFINDEX)
			return;
		l.netns = BPF_CORE_READ(dev, nd_net.net, ns.inum);
	}
	__builtin_memcpy(l.saddr, &s, 4);
	__builtin_memcpy(l.daddr, &d, 4);
	l.mark = BPF_CORE_READ(fl, __fl_common.flowic_mark);
	l.sport = bpf_ntohs(BPF_CORE_READ(fl, uli.ports.sport));
	l.dport = bpf_ntohs(BPF_CORE_READ(fl, uli.ports.dport));
	l.table = table;
	l.reason = err;
	emit_astray(&l, AF_INET, BPF_CORE_READ(fl, __fl_common.flowic_proto), dev);
}

/* is_low6: ::1, and ::6 and its like, that a mesh puts on lo. */
static __always_inline bool is_low6(const __u8 *address)
{
	const __u64 *a = (const __u64 *)address;

	return !a[0] && address[15] && !(a[1] & bpf_cpu_to_be64(0xffffffffffffff00ULL));
}

/* watch_loopback6 looks at a socket's lookup from ::1 and its like to elsewhere, or to ::1:
 * what lo has is found in table local. */
static __always_inline void watch_loopback6(struct lookup *l, const struct net *net, const struct flowi6 *fl, bool rejected)
{
	bool to, from;

	if (l->table == RT_TABLE_LOCAL)
		return;
	if (READ_ARGUMENT(fl, saddr.in6_u.u6_addr32[0]) && READ_ARGUMENT(fl, daddr.in6_u.u6_addr32[0]))
		return;
	BPF_CORE_READ_INTO(&l->saddr, fl, saddr);
	BPF_CORE_READ_INTO(&l->daddr, fl, daddr);
	to = is_low6(l->daddr) && l->daddr[15] == 1;
	from = is_low6(l->saddr) && !is_low6(l->daddr) && !rejected;
	if ((!to && !from) || !is_own(&fl->__fl_common))
		return;
	l->netns = BPF_CORE_READ(net, ns.inum);
	l->mark = BPF_CORE_READ(fl, __fl_common.flowic_mark);
	l->sport = bpf_ntohs(BPF_CORE_READ(fl, uli.ports.sport));
	l->dport = bpf_ntohs(BPF_CORE_READ(fl, uli.ports.dport));
	if (!rejected)
		l->reason = 0;
	emit_astray(l, AF_INET6, BPF_CORE_READ(fl, __fl_common.flowic_proto), NULL);
}

SEC("tp_btf/fib_table_lookup")
int BPF_PROG(trace_route_miss4, u32 table, const struct flowi4 *fl, const struct fib_nh_common *nhc, int err)
{
	struct lookup l = { .hook = HOOK_ROUTE_MISS4 };
	bool udp = READ_ARGUMENT(fl, __fl_common.flowic_proto) == IPPROTO_UDP;
	__be32 s, d;

	if (udp)
		keep_sender(bpf_ntohs(READ_ARGUMENT(fl, uli.ports.sport)), AF_INET);
	if (table != RT_TABLE_LOCAL)
		watch_loopback4(table, fl, nhc, err);
	if (!err || (table == RT_TABLE_LOCAL && !udp))
		return 0;
	s = BPF_CORE_READ(fl, saddr);
	d = BPF_CORE_READ(fl, daddr);
	__builtin_memcpy(l.saddr, &s, 4);
	__builtin_memcpy(l.daddr, &d, 4);
	l.mark = BPF_CORE_READ(fl, __fl_common.flowic_mark);
	l.sport = bpf_ntohs(BPF_CORE_READ(fl, uli.ports.sport));
	l.dport = bpf_ntohs(BPF_CORE_READ(fl, uli.ports.dport));
	l.table = table;
	l.reason = err;
	if (udp)
		return emit_udp_miss(&l);
	return emit_miss(&l);
}

struct netns_ipv6 {
	bool fib6_has_custom_rules;
} __attribute__((preserve_access_index));
struct net___rules {
	struct netns_ipv6 ipv6;
} __attribute__((preserve_access_index));

/* has_rules reports IPv6 routing rules other than the kernel's own. */
static __always_inline bool has_rules(const struct net *net)
{
	const struct net___rules *rules = (const void *)net;

	if (!bpf_core_field_exists(rules->ipv6.fib6_has_custom_rules))
		return false;
	return BPF_CORE_READ(rules, ipv6.fib6_has_custom_rules);
}

SEC("tp_btf/fib6_table_lookup")
int BPF_PROG(trace_route_miss6, const struct net *net, const struct fib6_result *res, struct fib6_table *table,
	     const struct flowi6 *fl)
{
	bool udp = READ_ARGUMENT(fl, __fl_common.flowic_proto) == IPPROTO_UDP;
	struct lookup l = { .hook = HOOK_ROUTE_MISS6 };
	bool rejected;

	if (udp)
		keep_sender(bpf_ntohs(READ_ARGUMENT(fl, uli.ports.sport)), AF_INET6);
	l.table = BPF_CORE_READ(table, tb6_id);
	if (l.table == RT_TABLE_LOCAL && !(udp && has_rules(net)))
		return 0;
	l.reason = BPF_CORE_READ(res, fib6_type);
	rejected = l.reason == RTN_BLACKHOLE || l.reason == RTN_UNREACHABLE || l.reason == RTN_PROHIBIT ||
		   (BPF_CORE_READ(res, fib6_flags) & RTF_REJECT);
	watch_loopback6(&l, net, fl, rejected);
	if (!rejected)
		return 0;
	l.netns = BPF_CORE_READ(net, ns.inum);
	l.reason = BPF_CORE_READ(res, fib6_type);
	BPF_CORE_READ_INTO(&l.saddr, fl, saddr);
	BPF_CORE_READ_INTO(&l.daddr, fl, daddr);
	l.mark = BPF_CORE_READ(fl, __fl_common.flowic_mark);
	l.sport = bpf_ntohs(BPF_CORE_READ(fl, uli.ports.sport));
	l.dport = bpf_ntohs(BPF_CORE_READ(fl, uli.ports.dport));
	if (udp)
		return emit_udp_miss(&l);
	return emit_miss(&l);
}
