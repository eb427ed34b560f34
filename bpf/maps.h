/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Maps and constants that every family shares. User space creates each map
 * once and hands it to all objects. */
#ifndef REPLYPATH_MAPS_H
#define REPLYPATH_MAPS_H

#include "event.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 << 20);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LOSS_MAX);
	__type(key, __u32);
	__type(value, __u64);
} losses SEC(".maps");

/* The handshake packet that this CPU received last: a route lookup that fails
 * within its processing has no namespace of its own to tell. */
struct last_packet {
	struct tuple tuple;
	__u64 time; /* CLOCK_MONOTONIC, nanoseconds */
	__u64 skb;
	__u32 netns;
	__u32 ifindex;
	__u32 seq;
	__u32 ack;
	__u8 tcp_flags;
	__u8 pad[7];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct last_packet);
} last_packets SEC(".maps");

/* The UDP packet that came last from an address and port: a lookup for the way back
 * to there, made by the server's process, has no packet of its own to tell. */
struct udp_peer {
	__u8 addr[16];
	__u16 port;
	__u8 family;
	__u8 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct udp_peer);
	__type(value, struct last_packet);
} udp_peers SEC(".maps");

/* The process that looked for a route for a socket's datagram: the datagram itself may
 * leave in another's context, when its neighbour has answered. */
struct udp_socket {
	__u32 netns;
	__u16 port;
	__u8 family;
	__u8 pad;
};

struct udp_sender {
	__u32 pid;
	__u32 pgid;
	char comm[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct udp_socket);
	__type(value, struct udp_sender);
} udp_senders SEC(".maps");

/* UDP has no beginning: the first packet of each flow in a second is told, at each
 * hook and device, and no more than so many a second of all flows. */
#define UDP_FLOWS 4096
#define UDP_FLOW_NS 1000000000ULL
#define UDP_FLOWS_A_SECOND 4000 /* on each CPU */

struct udp_flow {
	__u64 signature;
	__u64 time; /* CLOCK_MONOTONIC, nanoseconds */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, UDP_FLOWS);
	__type(key, __u32);
	__type(value, struct udp_flow);
} udp_flows SEC(".maps");

struct udp_rate {
	__u64 second; /* when it began: CLOCK_MONOTONIC, nanoseconds */
	__u64 flows;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct udp_rate);
} udp_rates SEC(".maps");

/* Ports that DNS is spoken on, one bit each. User space sets port 53 and what it is told;
 * ports that conntrack says port 53 is redirected to are added as they are met. */
struct dns_ports {
	__u64 bits[65536 / 64];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct dns_ports);
} dns_ports SEC(".maps");

/* The datagrams of DNS that were told last, with what is in them. Whoever reads the events
 * keeps as many, in the same places. */
#define DATAGRAMS 4096
#define DATAGRAM_NS 10000000ULL /* an skb's address is another packet's soon, which may be alike: sent again */

struct datagram {
	__u64 key; /* of what it holds: odd; even when it was not told, and is not to be */
	__u64 skb;
	__u64 time; /* when it was seen last: CLOCK_MONOTONIC, nanoseconds */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, DATAGRAMS);
	__type(key, __u32);
	__type(value, struct datagram);
} datagrams SEC(".maps");

/* Queries that were not told, because of their namespace's budget: nor are the responses to them. */
#define UNTOLD 8192
#define UNTOLD_NS 10000000000ULL

struct untold_query {
	__u64 key; /* of the client's port, the id and the question */
	__u64 time;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, UNTOLD);
	__type(key, __u32);
	__type(value, struct untold_query);
} untold_queries SEC(".maps");

/* Names of the kernel functions that addresses in events lie in, as the kernel's
 * own formatter writes them: "nft_do_chain [nf_tables]". */
#define SYMBOL_NAME_MAX 64

struct symbol_name {
	char name[SYMBOL_NAME_MAX];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct symbol_name);
} symbols SEC(".maps");

/* The packet that routing or Open vSwitch refused last on this CPU, and why: it is
 * dropped next, on kernels that give drop reasons without saying this one. */
struct refused_packet {
	__u64 skb;
	__s32 error; /* -errno */
	__u8 pad[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct refused_packet);
} refused_packets SEC(".maps");

static __always_inline void count_loss(__u32 cause)
{
	__u64 *n = bpf_map_lookup_elem(&losses, &cause);

	if (n)
		*n += 1;
}

/* What each namespace may tell: so many datagrams of DNS that are first seen there, and so many
 * drops, a second on each CPU, and a few more at once, so that one that floods leaves room in the
 * ring for all others. */
#define BUDGETS 1024
#define BUDGET_KINDS 4 /* that do not take from each other */
#define BUDGET_QUERIES 0
#define BUDGET_RESPONSES 1
#define BUDGET_SEGMENTS 2
#define BUDGET_DROPS 3

struct budget {
	__u64 due;     /* when all that it told would be right in time: CLOCK_MONOTONIC, nanoseconds */
	__u64 skipped; /* events that were not told */
	__u32 netns;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, BUDGETS);
	__type(key, __u32);
	__type(value, struct budget);
} budgets SEC(".maps");

/* Set before loading: the time between two events of a namespace, and how much of it may be
 * used in advance, in nanoseconds. */
const volatile __u64 budget_interval = 20000;
const volatile __u64 budget_ahead = 200000000;

/* is_over_budget counts what a namespace tells; true: it must not tell this. */
static __always_inline bool is_over_budget(__u32 netns, __u64 now, __u32 kind)
{
	__u32 slot = (netns + kind * (BUDGETS / BUDGET_KINDS)) % BUDGETS;
	struct budget *b = bpf_map_lookup_elem(&budgets, &slot);

	if (!b)
		return false;
	if (b->netns != netns && b->due <= now) { /* else two that share it, which is rare */
		b->netns = netns;
		b->skipped = 0;
	}
	if (b->due < now)
		b->due = now;
	if (b->due - now > budget_ahead) {
		b->skipped += 1;
		count_loss(LOSS_LIMIT);
		return true;
	}
	b->due += budget_interval;
	return false;
}

/* No wakeup per event: the reader polls. Only a ring that fills wakes it early. To look how
 * full it is costs as much as an event (the reader writes what is looked at), and a wakeup
 * more: neither is done for each one. */
#define WAKEUP_BYTES (256 << 10)
#define WAKEUP_EVENTS 64 /* on each CPU; a power of two */

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} told SEC(".maps");

static __always_inline __u64 wakeup_flags(void)
{
	__u32 zero = 0;
	__u64 *n = bpf_map_lookup_elem(&told, &zero);

	if (!n || ++*n & (WAKEUP_EVENTS - 1))
		return BPF_RB_NO_WAKEUP;
	if (bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) >= WAKEUP_BYTES)
		return BPF_RB_FORCE_WAKEUP;
	return BPF_RB_NO_WAKEUP;
}

#endif
