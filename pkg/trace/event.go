package trace

import (
	"net/netip"
	"syscall"
	"time"
)

// Netns identifies a network namespace by the inode number of its nsfs file,
// as `ls -i /run/netns` shows it. Zero means unknown.
type Netns uint32

// Hook is the place in the kernel where an event was seen. The values are the
// ABI of bpf/event.h.
type Hook uint16

// The hooks. Each is one tracepoint, but for verdicts, which kernel functions give, and for the last one,
// which is what the tracepoints of route misses tell of sockets.
const (
	HookUnknown          Hook = iota
	HookDrop                  // skb:kfree_skb
	HookReceive               // net:netif_receive_skb
	HookTransmit              // net:net_dev_queue
	HookRouteMiss4            // fib:fib_table_lookup, failed
	HookRouteMiss6            // fib6:fib6_table_lookup, failed
	HookSocketState           // sock:inet_sock_set_state
	HookRetransmit            // tcp:tcp_retransmit_skb
	HookRetransmitSYNACK      // tcp:tcp_retransmit_synack
	HookResetSent             // tcp:tcp_send_reset
	HookResetReceived         // tcp:tcp_receive_reset
	HookNeighborFailed        // neigh:neigh_timer_handler, neigh:neigh_update
	HookICMPSent              // icmp:icmp_send
	HookVerdict               // a function of netfilter dropped the packet: nf_hook_slow, nft_do_chain, …
	HookAstray                // fib:fib_table_lookup, fib6:fib6_table_lookup, of a socket from or to a loopback address: off lo, or nowhere
	HookCount                 // how many there are
)

var hookNames = [HookCount]string{
	"unknown", "kfree_skb", "netif_receive_skb", "net_dev_queue", "fib_table_lookup", "fib6_table_lookup",
	"inet_sock_set_state", "tcp_retransmit_skb", "tcp_retransmit_synack", "tcp_send_reset", "tcp_receive_reset",
	"neigh_timer_handler", "icmp_send", "netfilter_verdict", "socket_route_lookup",
}

// String returns the tracepoint's name, or for verdicts "netfilter_verdict".
func (h Hook) String() string {
	if h >= HookCount {
		return "unknown"
	}
	return hookNames[h]
}

// Device is a network device within its namespace.
type Device struct {
	Index uint32 // ifindex; unique only within one namespace
	Name  string
}

// Conntrack is the connection tracking entry that a packet carried
// (skb->_nfct, include/linux/skbuff.h). The zero value means that it carried none.
type Conntrack struct {
	Original, Reply Tuple
	Info            uint8 // enum ip_conntrack_info; 7 is untracked
}

// Known reports whether the packet carried an entry.
func (c Conntrack) Known() bool { return c.Original.IsValid() }

// Process is the task that acted. It is set only where the kernel was in
// process context; in softirq "current" is a bystander.
type Process struct {
	PID  uint32 // process (tgid) in the initial PID namespace
	PGID uint32 // its process group
	Comm string
}

// Event is one observation at a kernel Hook. Which fields are set depends on the hook.
type Event struct {
	Time   time.Time
	Hook   Hook
	Netns  Netns
	Device Device // skb->dev, or the device that the hook is about
	Kind   string // of the device, as ip-link(8) says: "vxlan", "veth"; "" for a physical one, and where it was not read
	Tuple  Tuple  // the packet, or for a socket hook local -> remote

	SKB       uint64 // kernel address: joins hops within a millisecond, not longer
	Flags     TCPFlags
	Seq, Ack  uint32
	Fragment  bool   // not the first fragment: the tuple has no ports
	Short     bool   // the packet ends within its transport header
	Inner     bool   // the packet is an ICMP error; Tuple, Flags, Seq and Ack are those of the packet it is about
	Unbuilt   bool   // dropped by the socket that made it, before it had an IP header
	Group     bool   // addressed to a broadcast or multicast MAC
	OtherHost bool   // addressed to another MAC: bridged, or flooded here
	TTL       uint8  // IPv4 time to live, IPv6 hop limit; 0: not told
	Mark      uint32 // skb->mark, or the lookup's flowi_mark
	SourceMAC [6]byte
	InIndex   uint32 // skb->skb_iif: device that it came in by; 0 when it was made here
	OutIndex  uint32 // ifindex of the device of its route (dst->dev)
	HasRoute  bool   // a route was attached already (skb_dst is set)
	Input     string // function of the attached route: dst->input, "" when unknown
	Conntrack Conntrack

	Reason string // drop or reset reason without its prefix: "IP_RPFILTER"
	Symbol string // kernel function that dropped: "nft_do_chain"

	Table uint32        // route miss: table
	Errno syscall.Errno // route miss: ENETUNREACH and so on; EAGAIN is a miss in this table only. Drop: why Open vSwitch could not ask its daemon

	OldState, NewState uint8 // socket state: enum in include/net/tcp_states.h
	Process            Process

	NextHop netip.Addr // neighbour: the address that did not answer

	ICMPType, ICMPCode uint8      // ICMP error sent; Tuple is the packet that it complains about
	Reporter           netip.Addr // Inner: where the ICMP error comes from

	Length        uint32 // bytes from the IP header on; a GSO packet's is more than its device's MTU
	ID            uint16 // of IPv4: what fragments of one datagram have in common
	DontFragment  bool
	MoreFragments bool
	Carried       Carried // by a dropped packet of a tunnel: Tuple is the outer packet's

	// Payload is what was read of a DNS message over UDP, or of a TCP segment of DNS. It is
	// valid only while the event is handed on; PayloadLength is how long it was as sent.
	Payload       []byte
	PayloadLength uint32
	PayloadOnly   bool // told for its payload alone: it says nothing new of a path
	// Datagram tells a datagram of DNS from others for some milliseconds. Where there is no payload with
	// it, that was told where the datagram was seen first.
	Datagram uint64

	Verdict Verdict // of netfilter; there is no tuple then, SKB tells which packet
}

// Carried is the packet that a packet of a tunnel carries. The zero value means none.
type Carried struct {
	Kind     string // of the tunnel, by its header: "vxlan", "geneve", "gre", "ip"
	ID       uint32 // VNI, or GRE's key
	Tuple    Tuple
	Flags    TCPFlags
	Seq, Ack uint32
}

// Known reports whether there is one.
func (c Carried) Known() bool { return c.Kind != "" }

// Verdict is what the kernel itself said when netfilter dropped a packet: not
// inferred from rules. The zero value means that it was not asked, or not allowed to tell.
type Verdict struct {
	By     VerdictBy
	Hook   NetfilterHook
	Family string // of the hook: "ip", "ip6", "inet", "netdev", "bridge", "arp"
	Table  string // ByChain, ByTable
	Chain  string // ByChain: the base chain
}

// Known reports whether there is one.
func (v Verdict) Known() bool { return v.By != 0 }

// VerdictBy is the kind of function that gave a verdict.
type VerdictBy uint8

// The kinds, from the least exact to the most exact.
const (
	ByHook      VerdictBy = iota + 1 // some function at the hook: nf_hook_slow
	ByConntrack                      // connection tracking: nf_conntrack_in
	ByTable                          // a table of iptables-legacy: ipt_do_table
	ByChain                          // a base chain of nftables: nft_do_chain
)
