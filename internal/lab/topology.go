package lab

import (
	"net/netip"
	"time"
)

// Topology is a network without faults: hosts, the cables between them, and who talks to whom.
type Topology struct {
	Name     string
	Family   Family
	Hosts    []Host
	Links    []Link
	Services []Service
	Client   Client
}

// Host is one network namespace and its configuration.
type Host struct {
	Name      string
	Bridge    string // name of a bridge that all links of this host are ports of; "" for none
	Forward   bool   // it forwards packets of the topology's family
	Addresses []Address
	Tunnels   []Tunnel
	Routes    []Route
	Sysctls   []Sysctl // set before the devices are made
	Chains    []Chain
	Switch    *Switch  // an Open vSwitch of its own; nil for none
	Checksums []string // devices by which it sends with checksums of its own
}

// Port is one end of a cable.
type Port struct{ Host, Device string }

// Link is a pair of veth devices.
type Link struct{ A, B Port }

// Address is an address of a device.
type Address struct {
	Device string
	Prefix netip.Prefix
}

// Tunnel is a VXLAN device between two hosts, on UDP port 4789.
type Tunnel struct {
	Device        string
	VNI           int
	Local, Remote netip.Addr
	Port          int // 0: 4789
}

// Route is a route of a host.
type Route struct {
	To     netip.Prefix
	Via    netip.Addr // invalid: on the link
	Device string
	Type   string // "blackhole", "unreachable", "prohibit" or "local"; "" for unicast
	Table  int    // 0: main
}

// Rule is a routing policy rule.
type Rule struct {
	Priority int
	From     netip.Prefix // invalid: any
	To       netip.Prefix // invalid: any
	Table    int
	Type     string // "blackhole", "unreachable" or "prohibit" instead of a table
	Mark     uint32 // of the packet; 0: any
}

// Sysctl is a kernel setting of one namespace, by its dotted name.
type Sysctl struct{ Name, Value string }

// Service is a server that answers from a host.
type Service struct {
	Host    string
	Address netip.AddrPort
	Dual    bool          // an unspecified IPv6 address takes IPv4 too
	UDP     bool          // instead of TCP
	Deaf    bool          // UDP: it does not read, and has the smallest buffer that there is
	Again   time.Duration // UDP: it sends each answer once more after this time
	DNS     *Resolver     // it answers DNS instead of echoing; nil: it does not
}

// Client makes the lab's connections, or asks with datagrams.
type Client struct {
	Host     string
	Server   netip.AddrPort
	First    netip.AddrPort // called before Server each time, as by who tries both IP versions; what becomes of that is ignored
	Connects int            // started one after another, 50 ms apart
	Timeout  time.Duration  // of each connect
	Payload  int            // bytes of the line that is echoed; 0: a short one
	Abort    bool           // close with a reset, as health checks do
	UDP      bool           // datagrams, sent again each second, instead of connections
	Lines    int            // exchanged on each connection; 0: one
	Open     bool           // datagrams: from a socket that is connected to nobody
	Burst    int            // datagrams sent at once, before the first answer is waited for; 0: one
	Lookup   *Lookup        // it asks DNS instead; nil: it does not
}

// host returns the host of that name.
func (t Topology) host(name string) (Host, bool) {
	for _, h := range t.Hosts {
		if h.Name == name {
			return h, true
		}
	}
	return Host{}, false
}
