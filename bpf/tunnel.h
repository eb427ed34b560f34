/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Packets within packets: what a dropped VXLAN, Geneve, GRE or IPIP packet carried. */
#ifndef REPLYPATH_TUNNEL_H
#define REPLYPATH_TUNNEL_H

#include "skb.h"

#define IPPROTO_IPIP 4
#define IPPROTO_IPV6 41
#define IPPROTO_GRE 47

#define ETH_P_ARP 0x0806
#define ETH_P_TEB 0x6558
#define ETH_LEN 14

/* Where the carried packet is, and what the tunnel's header says. */
struct carried {
	const unsigned char *at;
	__u32 left;
	__u32 id;
	__u16 ethertype; /* ETH_P_TEB: an Ethernet frame */
	__u8 kind;
};

/* find_in_udp: VXLAN (RFC 7348, draft-ietf-nvo3-vxlan-gpe) and Geneve (RFC 8926). UDP ports are
 * whatever people choose; the headers tell, and what they carry must be an IP packet. */
static __always_inline bool find_in_udp(struct carried *c, const unsigned char *p, __u32 left)
{
	__u32 options = (load8(p) & 0x3f) * 4;
	__u16 type = load16(p + 2);

	if (load8(p + 7))
		return false;
	c->id = load32(p + 4) >> 8;
	if (!(load8(p) >> 6) && (type == ETH_P_TEB || type == ETH_P_IP || type == ETH_P_IPV6)) {
		c->kind = TUNNEL_GENEVE;
		c->ethertype = type;
		if (left < 8 + options)
			return false;
		c->at = p + 8 + options;
		c->left = left - 8 - options;
		return true;
	}
	if (!(load8(p) & 0x08))
		return false;
	c->kind = TUNNEL_VXLAN;
	c->ethertype = ETH_P_TEB;
	if (load8(p) & 0x04) {
		__u8 next = load8(p + 3);

		c->ethertype = next == 1 ? ETH_P_IP : next == 2 ? ETH_P_IPV6 : ETH_P_TEB;
	}
	c->at = p + 8;
	c->left = left - 8;
	return true;
}

/* find_in_gre: RFC 2784, RFC 2890. */
static __always_inline bool find_in_gre(struct carried *c, const unsigned char *p, __u32 left)
{
	__u8 flags = load8(p);
	__u32 off = 4;

	if (flags & 0x4f || load8(p + 1)) /* routing, or another version */
		return false;
	c->kind = TUNNEL_GRE;
	c->ethertype = load16(p + 2);
	if (flags & 0x80)
		off += 4;
	if (flags & 0x20) {
		c->id = load32(p + off);
		off += 4;
	}
	if (flags & 0x10)
		off += 4;
	if (left < off)
		return false;
	c->at = p + off;
	c->left = left - off;
	return true;
}

/* find_carried reports a tunnel's packet, and fills h from the TCP or UDP packet
 * that it carries; of another (ARP, ICMP) nothing is told but that. */
static __always_inline bool find_carried(struct headers *h, struct carried *c, const struct headers *outer)
{
	if (outer->left < 8 + 20)
		return false;
	switch (outer->protocol) {
	case IPPROTO_UDP:
		if (outer->left < 16 + 20 || !find_in_udp(c, outer->transport + 8, outer->left - 8))
			return false;
		break;
	case IPPROTO_GRE:
		if (!find_in_gre(c, outer->transport, outer->left))
			return false;
		break;
	case IPPROTO_IPIP:
	case IPPROTO_IPV6:
		c->kind = TUNNEL_IP;
		c->at = outer->transport;
		c->left = outer->left;
		c->ethertype = outer->protocol == IPPROTO_IPIP ? ETH_P_IP : ETH_P_IPV6;
		break;
	default:
		return false;
	}
	if (c->ethertype == ETH_P_TEB) {
		if (c->left < ETH_LEN)
			return false;
		c->ethertype = load16(c->at + 12);
		c->at += ETH_LEN;
		c->left -= ETH_LEN;
	}
	if (c->ethertype == ETH_P_ARP)
		return true;
	if (c->ethertype != ETH_P_IP && c->ethertype != ETH_P_IPV6)
		return false;
	return find_transport(h, c->at, c->left) && (h->family == AF_INET) == (c->ethertype == ETH_P_IP);
}

/* is_followed: the carried packet is one of an exchange. */
static __always_inline bool is_followed(const struct headers *h)
{
	return !h->fragment && ((h->protocol == IPPROTO_TCP && h->left >= 14) || (h->protocol == IPPROTO_UDP && h->left >= 8));
}

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tunnel);
} carried_packets SEC(".maps");

/* keep_carried puts what a packet carries into the map; false when it carries none. It must not be a
 * function of its own: before Linux 6.5 (0108a4e9f358), and in many a kernel of a distribution, a program
 * that has any may panic when it reads from a NULL pointer, as its table of such reads is not found. */
static __always_inline bool keep_carried(const struct headers *outer)
{
	struct {
		struct headers h;
		struct carried c;
		__u32 found;
	} in = {};
	__u32 zero = 0;
	struct tunnel *t;

	in.found = find_carried(&in.h, &in.c, outer);
	forget(&in, sizeof(in));
	if (!in.found)
		return false;
	t = bpf_map_lookup_elem(&carried_packets, &zero);
	if (!t)
		return false;
	__builtin_memset(t, 0, sizeof(*t));
	t->kind = in.c.kind;
	t->id = in.c.id;
	if (!is_followed(&in.h))
		return true;
	fill_addresses(&t->packet, &in.h);
	t->packet.sport = load16(in.h.transport);
	t->packet.dport = load16(in.h.transport + 2);
	if (in.h.protocol == IPPROTO_TCP) {
		t->seq = load32(in.h.transport + 4);
		t->ack = load32(in.h.transport + 8);
		t->tcp_flags = load8(in.h.transport + 13);
	}
	return true;
}

/* emit_tunnel tells of a dropped packet and of the one that it carried; false when it carried none. */
static __always_inline bool emit_tunnel(const struct observation *seen, const struct sk_buff *skb, const struct headers *outer)
{
	struct event_tunnel *et;
	struct nf_conn *ct;
	unsigned long nfct;
	struct tunnel *t;
	struct event *e;
	__u32 zero = 0;

	if (outer->fragment)
		return false;
	if (!keep_carried(outer))
		return false;
	t = bpf_map_lookup_elem(&carried_packets, &zero);
	if (!t)
		return false;
	et = bpf_ringbuf_reserve(&events, sizeof(*et), 0);
	if (!et) {
		count_loss(LOSS_RING_FULL);
		return true;
	}
	__builtin_memset(et, 0, sizeof(*et));
	et->tunnel = *t;
	e = &et->base.event;
	nfct = BPF_CORE_READ(skb, _nfct);
	ct = (struct nf_conn *)(nfct & ~7UL);
	e->flags = EVENT_TUNNEL;
	if (ct) {
		e->flags |= EVENT_HAS_CONNTRACK;
		fill_ct_tuple(&et->base.conntrack.original, &ct->tuplehash[0].tuple);
		fill_ct_tuple(&et->base.conntrack.reply, &ct->tuplehash[1].tuple);
	}
	e->time = bpf_ktime_get_ns();
	e->hook = seen->hook;
	e->reason = seen->reason;
	e->symbol = seen->symbol;
	e->ct_info = nfct & 7;
	fill_place(e, skb);
	fill_skb(e, skb, outer);
	name_symbol(e->input);
	bpf_ringbuf_submit(et, wakeup_flags());
	return true;
}

#endif
