/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Drops: skb:kfree_skb (net/core/skbuff.c). Its arguments are skb and location, with a reason from 5.17 on. */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "dns.h"
#include "tunnel.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Set before loading, from the tracepoint's type in the kernel's BTF. */
const volatile bool has_drop_reason = false;

/* Bit n: reason n is never a fault (the packet was consumed, or belongs to somebody else). */
#define REASON_WORDS 8
const volatile __u64 ignored_reasons[REASON_WORDS] = {};

/* bpf2go makes the Go types of the ABI from this. */
const struct event_conntrack *abi_event __attribute__((unused));
const struct event_verdict *abi_verdict __attribute__((unused));
const struct event_tunnel *abi_tunnel __attribute__((unused));
const struct event_dns *abi_dns __attribute__((unused));
const struct event_dns_long *abi_dns_long __attribute__((unused));
const struct event_hop *abi_hop __attribute__((unused));
const enum dns_flag *abi_dns_flag __attribute__((unused));
const enum tunnel_kind *abi_tunnel_kind __attribute__((unused));
const enum event_flag *abi_flag __attribute__((unused));
const enum ip_flag *abi_ip_flag __attribute__((unused));
const enum loss *abi_loss __attribute__((unused));
const enum hook *abi_hook __attribute__((unused));

/* drop_unbuilt tells of a packet that a TCP socket could not send, so that it
 * never got an IP header: its tuple is the socket's. */
static __always_inline int drop_unbuilt(const struct observation *seen, const struct sk_buff *skb)
{
	const struct sock *sk = BPF_CORE_READ(skb, sk);
	struct event *e;
	__u16 family;

	if (!sk)
		return 0;
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if ((family != AF_INET && family != AF_INET6) || BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	e = reserve_event(HOOK_DROP);
	if (!e)
		return 0;
	fill_sock(e, &sk->__sk_common);
	e->flags |= EVENT_UNBUILT;
	e->reason = seen->reason;
	e->symbol = seen->symbol;
	e->skb = (__u64)skb;
	e->mark = BPF_CORE_READ(skb, mark);
	bpf_ringbuf_submit(e, wakeup_flags());
	return 0;
}

/* may_tell: as far as the budget of the namespace goes that the packet is dropped in. */
static __always_inline bool may_tell(const struct sk_buff *skb)
{
	const struct net_device *dev = READ_ARGUMENT(skb, dev);
	const struct sock *sk = READ_ARGUMENT(skb, sk);
	__u32 netns = 0;

	if (dev)
		netns = netns_of(dev);
	if (!netns && sk)
		netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	return !netns || !is_over_budget(netns, bpf_ktime_get_ns(), BUDGET_DROPS);
}

/* refusal is why routing or Open vSwitch refused this packet a moment ago on this CPU: -errno, or 0. */
static __always_inline __s32 refusal(const struct sk_buff *skb)
{
	__u32 zero = 0;
	struct refused_packet *refused = bpf_map_lookup_elem(&refused_packets, &zero);

	if (!refused || refused->skb != (__u64)skb)
		return 0;
	refused->skb = 0;
	return refused->error;
}

/* is_untold: a datagram of DNS of which nothing is told. */
static __always_inline bool is_untold(struct observation *seen, const struct sk_buff *skb, const struct headers *h)
{
	struct datagram *d;

	if (h->left < DATAGRAM_LEFT)
		return false;
	seen->datagram = datagram_key(h);
	seen->time = bpf_ktime_get_ns();
	d = find_datagram(seen, skb);
	return d && d->key != seen->datagram;
}

SEC("tp_btf/kfree_skb")
int trace_drop(__u64 *ctx)
{
	const struct sk_buff *skb = (const struct sk_buff *)ctx[0];
	struct observation seen = { .hook = HOOK_DROP };
	struct dns_payload message = {};
	struct headers h = {};
	__s32 refused;

	if (has_drop_reason) {
		__u32 reason = ctx[2];
		__u32 word = reason / 64;

		if (word < REASON_WORDS && ignored_reasons[word & (REASON_WORDS - 1)] & (1ULL << (reason % 64)))
			return 0;
		seen.reason = reason;
	}
	if (!skb)
		return 0;
	refused = refusal(skb);
	if (refused)
		seen.reason = refused;
	if (!may_tell(skb))
		return 0;
	seen.symbol = ctx[1];
	name_symbol(seen.symbol);
	if (!find_headers(&h, skb, false) && !find_headers(&h, skb, true))
		return drop_unbuilt(&seen, skb);
	forget(&h, sizeof(h));
	if (emit_tunnel(&seen, skb, &h))
		return 0;
	/* With its question: a query that is dropped before it leaves was seen nowhere else. */
	if (!h.fragment && h.protocol == IPPROTO_UDP && h.left >= 8 && is_dns(&h)) {
		if (is_untold(&seen, skb, &h))
			return 0;
		seen.datagram = 0;
		if (find_payload(&message, skb, &h) && message.readable)
			return emit_dns(&seen, skb, &h, &message, false);
	}
	return emit_skb(&seen, skb, &h);
}
