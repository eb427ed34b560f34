/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* TCP: state changes, retransmissions and resets (include/trace/events/sock.h, tcp.h). */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "skb.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Set before loading, from the tracepoint's type in the kernel's BTF. */
const volatile bool has_reset_reason = false;

#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(trace_socket_state, const struct sock *sk, int old_state, int new_state)
{
	struct event *e;

	if (new_state != TCP_SYN_SENT && new_state != TCP_ESTABLISHED)
		return 0;
	if (!sk || BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	e = reserve_event(HOOK_SOCKET_STATE);
	if (!e)
		return 0;
	fill_sock(e, &sk->__sk_common);
	e->old_state = old_state;
	e->new_state = new_state;
	/* connect() runs in process context, the rest may be in softirq. The local port is not chosen yet. */
	if (new_state == TCP_SYN_SENT)
		fill_process(e);
	bpf_ringbuf_submit(e, wakeup_flags());
	return 0;
}

static __always_inline int emit_sock(__u16 hook, const struct sock_common *sk, const struct sock *place)
{
	struct event *e = reserve_event(hook);

	if (!e)
		return 0;
	fill_sock(e, sk);
	e->netns = BPF_CORE_READ(place, __sk_common.skc_net.net, ns.inum);
	bpf_ringbuf_submit(e, wakeup_flags());
	return 0;
}

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(trace_retransmit, const struct sock *sk)
{
	return sk ? emit_sock(HOOK_RETRANSMIT, &sk->__sk_common, sk) : 0;
}

SEC("tp_btf/tcp_retransmit_synack")
int BPF_PROG(trace_retransmit_synack, const struct sock *sk, const struct request_sock *req)
{
	return sk && req ? emit_sock(HOOK_RETRANSMIT_SYNACK, &req->__req_common, sk) : 0;
}

SEC("tp_btf/tcp_receive_reset")
int BPF_PROG(trace_reset_received, const struct sock *sk)
{
	return sk ? emit_sock(HOOK_RESET_RECEIVED, &sk->__sk_common, sk) : 0;
}

/* Arguments: socket (none when nobody took the packet), the packet that is answered
 * with the reset (none when the socket resets by itself), reason (from 6.10 on). */
SEC("tp_btf/tcp_send_reset")
int trace_reset_sent(__u64 *ctx)
{
	const struct sock *sk = (const struct sock *)ctx[0];
	const struct sk_buff *skb = (const struct sk_buff *)ctx[1];
	struct observation seen = { .hook = HOOK_RESET_SENT, .reason = -1 };
	struct headers h = {};

	if (has_reset_reason)
		seen.reason = (__u32)ctx[2];
	/* A socket told the reason on kernels that have none: nobody took the packet. */
	else if (!sk)
		seen.reason = -2;
	if (!skb || !find_headers(&h, skb, false))
		return sk ? emit_sock(HOOK_RESET_SENT, &sk->__sk_common, sk) : 0;
	forget(&h, sizeof(h));
	return emit_skb(&seen, skb, &h);
}
