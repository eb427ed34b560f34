/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Packets that come in and go out: net:netif_receive_skb (net/core/dev.c, before
 * tc ingress and netfilter) and net:net_dev_queue (after tc egress). They leave
 * at once for all but TCP handshakes, resets, ends, the first datagram of a UDP flow
 * in a second, DNS, and ICMP errors. */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "dns.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* udp_signature is the same for packets of one direction of a flow at one hook of one device. */
static __always_inline __u64 udp_signature(const struct sk_buff *skb, const struct headers *h, __u16 hook)
{
	const struct net_device *dev = READ_ARGUMENT(skb, dev);
	__u64 hash;

	if (!dev)
		return 0;
	/* Beside the index, not over it: device 2 received and device 3 transmitted by are two. */
	hash = mix((__u64)netns_of(dev) << 32 | READ_ARGUMENT(dev, ifindex), (__u64)hook << 24);
	hash = mix(hash, load32(h->transport));

	if (h->family == AF_INET)
		return mix(hash, (__u64)load32(h->network + 12) << 32 | load32(h->network + 16)) | 1;
#pragma unroll
	for (int i = 8; i < 40; i += 8)
		hash = mix(hash, (__u64)load32(h->network + i) << 32 | load32(h->network + i + 4));
	return hash | 1;
}

/* Ports of tunnels (VXLAN, Geneve, and Linux' own older one for VXLAN): what is
 * inside is followed, and nobody answers the outer packet. */
#define PORT_VXLAN 4789
#define PORT_VXLAN_LINUX 8472
#define PORT_GENEVE 6081

static __always_inline bool is_tunnel(const struct headers *h)
{
	__u16 port = load16(h->transport + 2);

	return port == PORT_VXLAN || port == PORT_VXLAN_LINUX || port == PORT_GENEVE;
}

/* is_group: multicast and broadcast are no exchange. */
static __always_inline bool is_group(const struct sk_buff *skb, const struct headers *h)
{
	__u8 kind = packet_type(skb);

	if (kind == PACKET_BROADCAST || kind == PACKET_MULTICAST)
		return true;
	if (h->family == AF_INET)
		return load8(h->network + 16) >= 224;
	return load8(h->network + 24) == 0xff;
}

/* is_first reports the first packet of a UDP flow in a second. */
static __always_inline bool is_first(const struct sk_buff *skb, const struct headers *h, __u16 hook, __u64 now)
{
	__u64 signature;
	struct udp_flow *flow;
	struct udp_rate *rate;
	__u32 slot, zero = 0;

	if (is_tunnel(h))
		return false;
	signature = udp_signature(skb, h, hook);
	slot = (signature >> 16) % UDP_FLOWS;
	flow = bpf_map_lookup_elem(&udp_flows, &slot);
	if (!flow)
		return false;
	if (flow->signature == signature && now - flow->time < UDP_FLOW_NS)
		return false;
	flow->signature = signature;
	flow->time = now;
	if (is_group(skb, h))
		return false;
	rate = bpf_map_lookup_elem(&udp_rates, &zero);
	if (!rate)
		return false;
	if (now - rate->second >= 1000000000ULL) {
		rate->second = now;
		rate->flows = 0;
	}
	if (++rate->flows > UDP_FLOWS_A_SECOND) {
		count_loss(LOSS_UDP_RATE);
		return false;
	}
	return true;
}

/* fill_last keeps what a failed route lookup may belong to. */
static __always_inline void fill_last(struct last_packet *last, const struct sk_buff *skb, const struct headers *h)
{
	__builtin_memset(last, 0, sizeof(*last));
	fill_addresses(&last->tuple, h);
	last->tuple.sport = load16(h->transport);
	last->tuple.dport = load16(h->transport + 2);
	last->time = bpf_ktime_get_ns();
	last->skb = (__u64)skb;
	last->netns = BPF_CORE_READ(skb, dev, nd_net.net, ns.inum);
	last->ifindex = BPF_CORE_READ(skb, dev, ifindex);
}

/* keep_peer remembers where a UDP packet came to, under the address that it came from. */
static __always_inline void keep_peer(const struct sk_buff *skb, const struct headers *h)
{
	struct last_packet last;
	struct udp_peer peer = {};

	if (packet_type(skb) == PACKET_OTHERHOST)
		return;
	fill_last(&last, skb, h);
	__builtin_memcpy(peer.addr, last.tuple.saddr, sizeof(peer.addr));
	peer.port = last.tuple.sport;
	peer.family = last.tuple.family;
	bpf_map_update_elem(&udp_peers, &peer, &last, 0 /* BPF_ANY */);
}

/* may_tell: of DNS that nothing is remembered of, as far as its namespace's budget goes. */
static __always_inline bool may_tell(const struct sk_buff *skb)
{
	const struct net_device *dev = READ_ARGUMENT(skb, dev);

	return !dev || !is_over_budget(netns_of(dev), bpf_ktime_get_ns(), BUDGET_SEGMENTS);
}

static __always_inline int trace_packet(const struct sk_buff *skb, __u16 hook)
{
	struct observation seen = { .hook = hook };
	struct dns_payload message = {};
	struct headers h = {};
	bool alone = false, dns;
	__u8 flags = 0;

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
		alone = !(flags & (TCP_SYN | TCP_RST | TCP_FIN));
		dns = is_dns(&h);
		if (flags & TCP_SYN && !dns)
			dns = is_redirected(skb);
		dns = dns && find_payload(&message, skb, &h) && may_tell(skb);
		if (alone && !dns)
			return 0;
	} else if (h.protocol == IPPROTO_UDP) {
		if (h.left < 8) {
			if (is_hidden(skb))
				count_loss(LOSS_NOT_LINEAR);
			return 0;
		}
		dns = is_dns(&h);
		seen.time = bpf_ktime_get_ns();
		if (dns && h.left >= DATAGRAM_LEFT) {
			enum hop hop = tell_datagram(&seen, skb, &h);

			if (hop == HOP_TOLD)
				return 0;
			dns = hop == HOP_NEW;
		} else if (dns) {
			dns = may_tell(skb);
		}
		alone = !is_first(skb, &h, hook, seen.time);
		if (alone && !dns)
			return 0;
		if (!dns && !seen.datagram)
			dns = is_redirected(skb);
		dns = dns && !is_group(skb, &h) && find_payload(&message, skb, &h);
		if (alone && !dns)
			return 0;
	} else if (is_icmp(&h)) {
		if (h.left < 8 || !is_icmp_error(&h, load8(h.transport)))
			return 0;
		dns = false;
	} else {
		return 0;
	}
	forget(&h, sizeof(h));
	if (hook == HOOK_RECEIVE && h.protocol == IPPROTO_TCP && !alone) {
		__u32 zero = 0;
		struct last_packet *last = bpf_map_lookup_elem(&last_packets, &zero);

		if (last) {
			fill_last(last, skb, &h);
			last->seq = load32(h.transport + 4);
			last->ack = load32(h.transport + 8);
			last->tcp_flags = flags;
		}
	}
	if (hook == HOOK_RECEIVE && h.protocol == IPPROTO_UDP && !alone)
		keep_peer(skb, &h);
	if (dns && !message.readable) {
		count_loss(LOSS_DNS_PAGED);
		dns = false;
		if (alone)
			return 0;
	}
	if (dns) {
		/* What is followed as a path, too, is told whole at each hook. */
		if (!alone)
			seen.datagram = 0;
		return emit_dns(&seen, skb, &h, &message, alone);
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
