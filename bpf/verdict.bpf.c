/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* What kernel functions decided over a packet: netfilter's verdicts, routing's, and Open vSwitch's.
 * These are functions and no tracepoints, so a hardened kernel may refuse them:
 * everything here makes an answer more exact, and none is needed for one.
 * Each function has a program for fexit; kprobe_enter and kprobe_leave do the
 * same for any of them where the kernel has kprobes alone. */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "skb.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

const enum function *abi_function __attribute__((unused));

/* Set before loading. */
const volatile __u32 probed_function = 0; /* kprobes: enum function; the fexit programs know theirs */
const volatile __u32 call_counter = 0; /* index in the map "calls" */
/* (priv, skb, state) from 5.15 on; (skb, state, table) before. */
const volatile bool table_first = false;

/* How often each function was called: what decides whether it is too busy to be followed. */
#define CALL_COUNTERS 16

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, CALL_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} calls SEC(".maps");

#define NF_DROP 0
#define NF_STOLEN 2
#define NF_VERDICT_MASK 0xff
#define NF_VERDICT_QBITS 16

static __always_inline void count_call(void)
{
	__u32 index = call_counter;
	__u64 *n = bpf_map_lookup_elem(&calls, &index);

	if (n)
		*n += 1;
}

/* is_drop: a verdict of a hook function. From 6.4 on one that has freed the packet
 * says "stolen", with an errno in its upper half (NF_DROP_REASON, include/linux/netfilter.h). */
static __always_inline bool is_drop(__u32 verdict)
{
	__u32 kind = verdict & NF_VERDICT_MASK;

	return kind == NF_DROP || (kind == NF_STOLEN && verdict >> NF_VERDICT_QBITS);
}

/* What a verdict is about. The packet may be freed by now: its address is all that is told of it. */
struct judged {
	__u64 skb;
	const struct nf_hook_state *state;
	const char *table;
	const char *chain;
	__s32 error; /* -errno, 0 when it is not told */
	__u8 function;
};

static __always_inline int emit_verdict(const struct judged *j)
{
	struct event_verdict *v = bpf_ringbuf_reserve(&events, sizeof(*v), 0);
	const struct nf_hook_state *state = j->state;
	struct event *e;

	if (!v) {
		count_loss(LOSS_RING_FULL);
		return 0;
	}
	__builtin_memset(v, 0, sizeof(*v));
	e = &v->event;
	e->time = bpf_ktime_get_ns();
	e->hook = HOOK_VERDICT;
	e->skb = j->skb;
	e->reason = j->error;
	e->netns = BPF_CORE_READ(state, net, ns.inum);
	e->nf_hook = BPF_CORE_READ(state, hook);
	e->function = j->function;
	e->nf_family = BPF_CORE_READ(state, pf);
	e->in_ifindex = BPF_CORE_READ(state, in, ifindex);
	e->out_ifindex = BPF_CORE_READ(state, out, ifindex);
	if (j->table)
		bpf_probe_read_kernel_str(v->table, sizeof(v->table), j->table);
	if (j->chain)
		bpf_probe_read_kernel_str(v->chain, sizeof(v->chain), j->chain);
	bpf_ringbuf_submit(v, wakeup_flags());
	return 0;
}

static __always_inline int hook_slow(__u64 skb, const void *state, __s32 result)
{
	struct judged j = { .skb = skb, .state = state, .error = result, .function = FUNCTION_HOOK_SLOW };

	return result < 0 ? emit_verdict(&j) : 0;
}

static __always_inline int nft_chain(const struct nft_pktinfo *pkt, const struct nft_chain *chain, __u32 verdict)
{
	struct judged j = { .function = FUNCTION_NFT_CHAIN };

	if (!is_drop(verdict))
		return 0;
	j.skb = (__u64)BPF_CORE_READ(pkt, skb);
	if (bpf_core_field_exists(pkt->state))
		j.state = BPF_CORE_READ(pkt, state);
	else
		j.state = BPF_CORE_READ((const struct nft_pktinfo___xt *)pkt, xt.state);
	j.chain = BPF_CORE_READ(chain, name);
	j.table = BPF_CORE_READ(chain, table, name);
	return emit_verdict(&j);
}

/* ip_table takes the three arguments in the order that the kernel has them. */
static __always_inline int ip_table(__u64 first, __u64 second, __u64 third, __u32 verdict)
{
	const struct xt_table *table = (const struct xt_table *)(table_first ? first : third);
	struct judged j = {
		.skb = table_first ? second : first,
		.state = (const struct nf_hook_state *)(table_first ? third : second),
		.table = table->name,
		.function = FUNCTION_IP_TABLE,
	};

	return is_drop(verdict) ? emit_verdict(&j) : 0;
}

static __always_inline int conntrack(__u64 skb, const void *state, __u32 verdict)
{
	struct judged j = { .skb = skb, .state = state, .function = FUNCTION_CONNTRACK };

	return verdict == NF_DROP ? emit_verdict(&j) : 0;
}

/* refuse keeps an error for the drop that follows it. */
static __always_inline int refuse(__u64 skb, __s32 error)
{
	__u32 zero = 0;
	struct refused_packet *refused;

	if (error >= 0)
		return 0;
	refused = bpf_map_lookup_elem(&refused_packets, &zero);
	if (refused) {
		refused->skb = skb;
		refused->error = error;
	}
	return 0;
}

#define OVS_PACKET_CMD_MISS 1 /* include/uapi/linux/openvswitch.h: no flow; others are copies of packets that go on */
#define EINTR 4
#define EAGAIN 11
#define ERESTARTSYS 512

/* is_quiet: errors after which the packet that found no flow is freed as if it had been
 * used up (ovs_dp_process_packet): the queue to the daemon is full. Older kernels drop for
 * these too, and tell it twice. */
static __always_inline bool is_quiet(__s32 error)
{
	return error == -EAGAIN || error == -EINTR || error == -ERESTARTSYS;
}

static __always_inline int upcall(const struct sk_buff *skb, const struct dp_upcall_info *info, __s32 error)
{
	struct observation seen = { .hook = HOOK_DROP, .reason = error, .function = FUNCTION_UPCALL };
	struct headers h = {};

	if (error >= 0 || BPF_CORE_READ(info, cmd) != OVS_PACKET_CMD_MISS)
		return 0;
	if (!is_quiet(error))
		return refuse((__u64)skb, error);
	if (find_headers(&h, skb, false) || find_headers(&h, skb, true))
		return emit_skb(&seen, skb, &h);
	return 0;
}

SEC("fexit/nf_hook_slow")
int BPF_PROG(exit_hook_slow, __u64 skb, const void *state, const void *entries, __u32 from, int result)
{
	count_call();
	return hook_slow(skb, state, result);
}

SEC("fexit/nft_do_chain")
int BPF_PROG(exit_nft_chain, const void *pkt, const void *chain, __u32 verdict)
{
	count_call();
	return nft_chain(pkt, chain, verdict);
}

SEC("fexit/ipt_do_table")
int BPF_PROG(exit_ip_table, __u64 first, __u64 second, __u64 third, __u32 verdict)
{
	count_call();
	return ip_table(first, second, third, verdict);
}

SEC("fexit/nf_conntrack_in")
int BPF_PROG(exit_conntrack, __u64 skb, const void *state, __u32 verdict)
{
	count_call();
	return conntrack(skb, state, verdict);
}

SEC("fexit/ip_route_input_noref")
int BPF_PROG(exit_route_input, __u64 skb, __u32 daddr, __u32 saddr, __u8 tos, const void *dev, int error)
{
	count_call();
	return refuse(skb, error);
}

SEC("fexit/ovs_dp_upcall")
int BPF_PROG(exit_upcall, const void *dp, const struct sk_buff *skb, const void *key, const struct dp_upcall_info *info, __u32 cutlen,
	     int result)
{
	count_call();
	return upcall(skb, info, result);
}

/* The arguments of the calls that are under way, by the stack pointer at their beginning. */
struct arguments {
	__u64 first;
	__u64 second;
	__u64 third;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct arguments);
} under_way SEC(".maps");

SEC("kprobe")
int kprobe_enter(struct pt_regs *ctx)
{
	struct arguments a = { PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx) };
	__u64 sp = PT_REGS_SP(ctx);

	count_call();
	bpf_map_update_elem(&under_way, &sp, &a, 0 /* BPF_ANY */);
	return 0;
}

/* Some architectures have popped the return address by then: their stack pointer is a word higher. */
static __always_inline bool take_arguments(__u64 sp, struct arguments *a)
{
	struct arguments *saved;

	sp -= sizeof(__u64);
	saved = bpf_map_lookup_elem(&under_way, &sp);
	if (!saved) {
		sp += sizeof(__u64);
		saved = bpf_map_lookup_elem(&under_way, &sp);
	}
	if (!saved)
		return false;
	*a = *saved;
	bpf_map_delete_elem(&under_way, &sp);
	return true;
}

SEC("kretprobe")
int kprobe_leave(struct pt_regs *ctx)
{
	__u64 result = PT_REGS_RC(ctx);
	struct arguments a;

	if (!take_arguments(PT_REGS_SP(ctx), &a))
		return 0;
	if (probed_function == FUNCTION_HOOK_SLOW)
		return hook_slow(a.first, (const void *)a.second, result);
	if (probed_function == FUNCTION_NFT_CHAIN)
		return nft_chain((const void *)a.first, (const void *)a.second, result);
	if (probed_function == FUNCTION_IP_TABLE)
		return ip_table(a.first, a.second, a.third, result);
	if (probed_function == FUNCTION_CONNTRACK)
		return conntrack(a.first, (const void *)a.second, result);
	if (probed_function == FUNCTION_UPCALL)
		return refuse(a.second, result);
	return refuse(a.first, result);
}
