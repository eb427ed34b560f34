/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* ICMP errors that this host sends: icmp:icmp_send (net/ipv4/icmp.c). IPv6 has
 * no such tracepoint; its errors are seen as packets. */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "skb.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("tp_btf/icmp_send")
int BPF_PROG(trace_icmp_sent, const struct sk_buff *skb, int type, int code)
{
	struct observation seen = { .hook = HOOK_ICMP_SENT, .icmp_type = type, .icmp_code = code };
	struct headers h = {};

	if (!skb || !find_headers(&h, skb, false))
		return 0;
	forget(&h, sizeof(h));
	return emit_skb(&seen, skb, &h);
}
