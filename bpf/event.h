/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The one ABI between kernel and user space: what a ring buffer record holds.
 * bpf2go makes the Go types from it; internal/probe's layout test compares both.
 * Padding is explicit. Numbers are in host byte order, addresses in network order. */
#ifndef REPLYPATH_EVENT_H
#define REPLYPATH_EVENT_H

/* Hooks. Same numbers as trace.Hook. */
enum hook {
	HOOK_DROP = 1,
	HOOK_RECEIVE = 2,
	HOOK_TRANSMIT = 3,
	HOOK_ROUTE_MISS4 = 4,
	HOOK_ROUTE_MISS6 = 5,
	HOOK_SOCKET_STATE = 6,
	HOOK_RETRANSMIT = 7,
	HOOK_RETRANSMIT_SYNACK = 8,
	HOOK_RESET_SENT = 9,
	HOOK_RESET_RECEIVED = 10,
	HOOK_NEIGHBOR_FAILED = 11,
	HOOK_ICMP_SENT = 12,
	HOOK_VERDICT = 13,
	HOOK_ASTRAY = 14, /* a socket's own route lookup from or to a loopback address leads off lo, or nowhere */
};

/* Bits of event.flags. */
enum event_flag {
	EVENT_HAS_ROUTE = 1,     /* skb_dst(skb) is set */
	EVENT_FRAGMENT = 2,      /* not the first fragment: no ports, no TCP header */
	EVENT_HAS_CONNTRACK = 4, /* struct conntrack follows */
	EVENT_SHORT = 8,         /* the packet ends within its transport header */
	EVENT_INNER = 16,        /* an ICMP error; tuple and TCP fields are those of the packet that it is about */
	EVENT_OTHERHOST = 32,    /* addressed to another MAC: bridged, or flooded here */
	EVENT_UNBUILT = 64,      /* dropped before it had an IP header: the tuple is its socket's */
	EVENT_TUNNEL = 128,      /* it carries another packet: struct event_tunnel */
};

/* Kinds of tunnels, by what their headers look like. */
enum tunnel_kind {
	TUNNEL_VXLAN = 1,
	TUNNEL_GENEVE = 2,
	TUNNEL_GRE = 3,
	TUNNEL_IP = 4, /* IP in IP */
};

/* The functions whose verdicts are told. Same order as probe.functions. */
enum function {
	FUNCTION_HOOK_SLOW = 0,   /* nf_hook_slow(skb, state, ...), net/netfilter/core.c: 1, or -errno when dropped */
	FUNCTION_NFT_CHAIN = 1,   /* nft_do_chain(pkt, priv), net/netfilter/nf_tables_core.c: NF_* */
	FUNCTION_IP_TABLE = 2,    /* ipt_do_table, ip6t_do_table (net/ipv4/netfilter/ip_tables.c): NF_* */
	FUNCTION_CONNTRACK = 3,   /* nf_conntrack_in(skb, state), net/netfilter/nf_conntrack_core.c: NF_* */
	FUNCTION_ROUTE_INPUT = 4, /* ip_route_input_noref(skb, ...), net/ipv4/route.c: 0, or -errno */
	FUNCTION_UPCALL = 5,      /* ovs_dp_upcall(dp, skb, ...), net/openvswitch/datapath.c: 0, or -errno */
};

/* Bits of event.ip_flags. */
enum ip_flag {
	IP_FLAG_DF = 1,    /* must not be fragmented */
	IP_FLAG_MF = 2,    /* more fragments follow */
	IP_FLAG_GROUP = 4, /* addressed to a broadcast or multicast MAC */
};

/* Bits of event.dns. */
enum dns_flag {
	DNS_MESSAGE = 1, /* struct event_dns or event_dns_long */
	DNS_ALONE = 2,   /* told for its payload alone: not for the table of paths */
};

/* Causes of loss, indices of the map "losses". Same order as probe.LossCauses. */
enum loss {
	LOSS_RING_FULL = 0,  /* no room in the ring buffer: an event was not delivered */
	LOSS_NOT_LINEAR = 1, /* headers are not in the skb's linear part: packet not looked at */
	LOSS_UDP_RATE = 2,   /* too many new UDP flows a second: flow not looked at */
	LOSS_DNS_PAGED = 3,  /* a DNS message lies in pages that this kernel does not let be read */
	LOSS_LIMIT = 4,      /* a namespace gave more events than it may: map "budgets" says which */
	LOSS_MAX = 5,
};

struct tuple {
	__u8 saddr[16]; /* IPv4 in the first four bytes */
	__u8 daddr[16];
	__u16 sport;
	__u16 dport;
	__u8 family; /* AF_INET, AF_INET6; 0: not IP */
	__u8 protocol;
	__u8 pad[2];
};

/* The tuples of skb->_nfct. */
struct conntrack {
	struct tuple original;
	struct tuple reply;
};

struct event {
	__u64 time; /* CLOCK_MONOTONIC, nanoseconds */
	__u64 skb;
	__u64 symbol; /* drop: address in the function that dropped; DNS elsewhere: the datagram's key, or 0 */
	__u64 input;  /* dst->input */
	__u32 netns;  /* inode of the network namespace; 0: unknown */
	__u32 ifindex;
	__u32 in_ifindex;  /* skb->skb_iif */
	__u32 out_ifindex; /* dst->dev */
	__u32 seq;
	__u32 ack;
	__u32 mark;
	__s32 reason; /* drop or reset reason, or what decided a drop: -errno (routing's, Open vSwitch's); IPv4 route miss: -errno; IPv6: enum RTN_* */
	__u32 table;  /* route miss */
	__u32 pid;    /* socket state and astray only, where the kernel is in process context */
	__u32 pgid;
	__u16 hook;
	__u8 tcp_flags;
	__u8 flags;
	__u8 old_state;
	__u8 new_state;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 source_mac[6];
	__u8 ct_info; /* enum ip_conntrack_info */
	__u8 dns;     /* enum dns_flag */
	struct tuple tuple; /* the packet; sockets: local to remote; neighbour: daddr is the next hop */
	char device[16];
	char comm[16];
	__u8 nf_hook;   /* verdict: enum nf_inet_hooks, nf_dev_hooks */
	__u8 nf_family; /* verdict: NFPROTO_* */
	__u8 function;  /* verdict: enum function; drop: FUNCTION_UPCALL where that told it */
	__u8 ttl;       /* or hop limit */
	__u32 ip_len;   /* from the IP header to the packet's end: more than its device's MTU for a GSO packet */
	__u16 ip_id;    /* IPv4, or of an IPv6 fragment */
	__u8 ip_flags;  /* enum ip_flag */
	__u8 pad3;
	char kind[16]; /* of the device, as ip-link(8) says: "vxlan"; empty for a physical one */
	__u8 reporter[16]; /* EVENT_INNER: the address that the ICMP error comes from */
};

/* The second form of a record: with conntrack's tuples. */
struct event_conntrack {
	struct event event;
	struct conntrack conntrack;
};

/* The third form: with the chain that gave the verdict, where a chain did. */
struct event_verdict {
	struct event event;
	char table[64];
	char chain[64]; /* the base chain; empty for iptables-legacy, whose tables have one for each hook */
};

/* What a tunnel's packet carries. */
struct tunnel {
	struct tuple packet;
	__u32 seq;
	__u32 ack;
	__u32 id; /* VNI, or GRE's key */
	__u8 kind; /* enum tunnel_kind */
	__u8 tcp_flags;
	__u8 pad[2];
};

/* The fourth form, of drops: with the packet that the dropped one carried. */
struct event_tunnel {
	struct event_conntrack base;
	struct tunnel tunnel;
};

/* The fifth form, in two sizes: with what a UDP datagram or a TCP segment of DNS holds. Most
 * queries fit the short one. */
#define DNS_SHORT 128
#define DNS_LONG 512

struct event_dns {
	struct event_conntrack base;
	__u32 length;   /* of the payload, as sent */
	__u32 captured; /* of that, bytes that follow */
	__u8 payload[DNS_SHORT];
};

struct event_dns_long {
	struct event_conntrack base;
	__u32 length;
	__u32 captured;
	__u8 payload[DNS_LONG];
};

/* The sixth form, shorter than any other: a datagram of DNS whose payload was told where it
 * was seen first, a moment ago, is seen again. event.symbol of that record was its key. */
struct event_hop {
	__u64 time;
	__u64 skb;
	__u64 key;
	__u32 netns;
	__u32 ifindex;
	__u32 in_ifindex;
	__u16 hook;
	__u8 flags;    /* of enum event_flag: EVENT_OTHERHOST */
	__u8 ip_flags; /* of enum ip_flag: IP_FLAG_MF */
	struct tuple tuple;
	char device[16];
};

#endif
