/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Neighbours that do not answer: neigh:neigh_timer_handler and neigh:neigh_update (net/core/neighbour.c). */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "skb.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define NUD_FAILED 0x20

static __always_inline int trace_neighbor(const struct neighbour *n)
{
	struct net_device *dev = BPF_CORE_READ(n, dev);
	int family = BPF_CORE_READ(n, tbl, family);
	struct event *e;

	if (!dev || (family != AF_INET && family != AF_INET6))
		return 0;
	e = reserve_event(HOOK_NEIGHBOR_FAILED);
	if (!e)
		return 0;
	fill_device(e, dev);
	e->tuple.family = family;
	bpf_probe_read_kernel(e->tuple.daddr, family == AF_INET ? 4 : 16,
			      (void *)n + bpf_core_field_offset(struct neighbour, primary_key));
	bpf_ringbuf_submit(e, wakeup_flags());
	return 0;
}

SEC("tp_btf/neigh_timer_handler")
int BPF_PROG(trace_neighbor_timer, struct neighbour *n)
{
	return n && BPF_CORE_READ(n, nud_state) & NUD_FAILED ? trace_neighbor(n) : 0;
}

SEC("tp_btf/neigh_update")
int BPF_PROG(trace_neighbor_update, struct neighbour *n, const u8 *address, u8 state)
{
	return n && state & NUD_FAILED ? trace_neighbor(n) : 0;
}
