package probe

import (
	"github.com/cilium/ebpf"

	"github.com/replypath/replypath/pkg/trace"
)

// family is one eBPF object: the hooks of one kind of observation.
type family struct {
	load  func() (*ebpf.CollectionSpec, error)
	hooks []hook
}

// hook is one program and the tracepoint that it attaches to.
type hook struct {
	program    string // in the object
	tracepoint string // in the kernel: what a `btf_trace_` type is named after
	group      string // the tracepoint's subsystem, as in /sys/kernel/tracing/events
	kind       trace.Hook
	reasonArg  int // index of the reason among the tracepoint's arguments, where kernels differ in having one; 0: none
}

// families is the attach table of the base tier: tracepoints alone.
var families = []family{
	{loadDrop, []hook{
		{dropProgTraceDrop, "kfree_skb", "skb", trace.HookDrop, 2},
	}},
	{loadPacket, []hook{
		{packetProgTraceReceive, "netif_receive_skb", "net", trace.HookReceive, 0},
		{packetProgTraceTransmit, "net_dev_queue", "net", trace.HookTransmit, 0},
	}},
	{loadRoute, []hook{
		{routeProgTraceRouteMiss4, "fib_table_lookup", "fib", trace.HookRouteMiss4, 0},
		{routeProgTraceRouteMiss6, "fib6_table_lookup", "fib6", trace.HookRouteMiss6, 0},
	}},
	{loadTcp, []hook{
		{tcpProgTraceSocketState, "inet_sock_set_state", "sock", trace.HookSocketState, 0},
		{tcpProgTraceRetransmit, "tcp_retransmit_skb", "tcp", trace.HookRetransmit, 0},
		{tcpProgTraceRetransmitSynack, "tcp_retransmit_synack", "tcp", trace.HookRetransmitSYNACK, 0},
		{tcpProgTraceResetReceived, "tcp_receive_reset", "tcp", trace.HookResetReceived, 0},
		{tcpProgTraceResetSent, "tcp_send_reset", "tcp", trace.HookResetSent, 2},
	}},
	{loadNeighbor, []hook{
		{neighborProgTraceNeighborTimer, "neigh_timer_handler", "neigh", trace.HookNeighborFailed, 0},
		{neighborProgTraceNeighborUpdate, "neigh_update", "neigh", trace.HookNeighborFailed, 0},
	}},
	{loadIcmp, []hook{
		{icmpProgTraceIcmpSent, "icmp_send", "icmp", trace.HookICMPSent, 0},
	}},
}
