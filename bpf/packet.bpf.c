/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Packets that come in and go out: net:netif_receive_skb (net/core/dev.c, before
 * tc ingress and netfilter) and net:net_dev_queue (after tc egress). They leave
 * at once for all but TCP handshakes, resets, ends, and ICMP errors. */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "skb.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

static __always_inline int trace_packet(const struct sk_buff *skb, __u16 hook)
{
	struct observation seen = { .hook = hook };
	struct headers h = {};
	__u8 flags;

	if (!skb)
		return 0;
	if (!find_headers(&h, skb, hook == HOOK_RECEIVE)) {
		if (is_hidden(skb))
			count_loss(LOSS_NOT_LINEAR);
		return 0;
	}
	if (h.fragment)
		return 0;
	if (h.protocol == IPPROTO_TCP) {
		if (h.left < 14) {
			if (is_hidden(skb))
				count_loss(LOSS_NOT_LINEAR);
			return 0;
		}
		flags = load8(h.transport + 13);
		if (!(flags & (TCP_SYN | TCP_RST | TCP_FIN)))
			return 0;
	} else if (is_icmp(&h)) {
		if (h.left < 8 || !is_icmp_error(&h, load8(h.transport)))
			return 0;
	} else {
		return 0;
	}
	if (hook == HOOK_RECEIVE && h.protocol == IPPROTO_TCP) {
		__u32 zero = 0;
		struct last_packet *last = bpf_map_lookup_elem(&last_packets, &zero);

		if (last) {
			__builtin_memset(last, 0, sizeof(*last));
			fill_addresses(&last->tuple, &h);
			last->tuple.sport = load16(h.transport);
			last->tuple.dport = load16(h.transport + 2);
			last->seq = load32(h.transport + 4);
			last->ack = load32(h.transport + 8);
			last->tcp_flags = flags;
			last->time = bpf_ktime_get_ns();
			last->skb = (__u64)skb;
			last->netns = BPF_CORE_READ(skb, dev, nd_net.net, ns.inum);
			last->ifindex = BPF_CORE_READ(skb, dev, ifindex);
		}
	}
	return emit_skb(&seen, skb, &h);
}

SEC("tp_btf/netif_receive_skb")
int BPF_PROG(trace_receive, struct sk_buff *skb)
{
	return trace_packet(skb, HOOK_RECEIVE);
}

SEC("tp_btf/net_dev_queue")
int BPF_PROG(trace_transmit, struct sk_buff *skb)
{
	return trace_packet(skb, HOOK_TRANSMIT);
}
