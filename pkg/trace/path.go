package trace

import (
	"net/netip"
	"time"
)

// Place names a network namespace for people.
type Place struct {
	Node     string // where paths are joined over several nodes; "" within one
	Netns    Netns
	Name     string // under /run/netns; "" when it has none
	Host     bool   // it is the node's own namespace
	PID      int    // a process in it, to reach it by when it has no name; 0 when unknown
	Workload string // Kubernetes "namespace/pod"; "" when unknown
}

// Hop is one namespace that a packet of a path was seen in.
type Hop struct {
	Place Place
	In    Device // where it came in; zero when it was made here
	Out   Device // where it left; zero when it was not seen to leave
	Tuple Tuple  // as seen here, after this host's NAT where it left
	// Arrived is the tuple with which it came in, before this host's NAT; invalid when it was made here.
	Arrived Tuple
	Rounds  uint32 // how many times one packet came by again, with fewer hops left to live: it circles
	Bridged bool   // it was addressed to another MAC: a bridge sent it on
	Mark    uint32 // skb->mark: as it came in, or where it was made here as it left
	First   time.Time
	Count   uint32 // packets of the handshake seen here, retransmissions included
	TTL     uint8  // hops left to live as it came in, or where it was made as it left; 0: not told
	// InTunnel and OutTunnel are the kinds of In and Out where they are tunnels: "vxlan".
	InTunnel, OutTunnel string
}

// Path is one exchange joined across the namespaces of a node: the hops of the
// request and those of the reply.
type Path struct {
	Protocol       Protocol
	Client, Server netip.AddrPort // what the client meant: before any NAT
	Request, Reply []Hop
	First, Last    time.Time
	Requests       uint32 // SYNs sent or first seen, retransmissions included
	Answered       bool   // the reply came back to where the request was first seen
	Reset          bool
	Process        Process // the client's, where it is on this node
	Guessed        bool    // it began before we looked: its client is the side with the higher port
	Connection     Tuple   // the same as Client and Server, as a tuple
	Sequence       uint32  // of its SYN, which neither NAT nor tunnels change; 0: not seen
	Established    bool    // a socket here said that both sides have heard of each other
	// Joined: a proxy goes on from where the path ended with a connection of its own, whose hops
	// follow. How sure that is: nothing in the packets says so. 0: it has one leg.
	Joined Confidence
}
