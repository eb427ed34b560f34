package trace

import (
	"net/netip"
	"syscall"
	"time"
)

// Question is what a diagnosis asks of one network namespace: how would it
// treat this packet, and the answer to it? Nothing is changed by asking.
type Question struct {
	Place     Place
	Packet    Tuple
	Flags     TCPFlags
	Direction Direction // of the packet
	In        uint32    // ifindex by which the packet came in; 0: made here
	Arrived   uint32    // ifindex by which it was seen to come in: below In where that is a VRF; 0: unknown
	Out       uint32    // ifindex by which it was to leave; 0: unknown
	Mark      uint32
	SourceMAC [6]byte
	NextHop   netip.Addr      // neighbour to look at; invalid: the one that the route names
	Filters   []NetfilterHook // hooks at which a filter dropped the packet, most likely first; nil: rules are not read
	Conntrack Conntrack
	Attached  uint32    // ifindex of the device whose tc filters and XDP programs are listed; 0: none
	Tracked   Conntrack // the entry that the packet would have if its connection were known: what would the filters do then?
	Limits    bool      // the state of connection tracking is read
	Receivers bool      // the sockets that take the packet are looked for
	Tunnels   bool      // the tunnel devices are listed
	Ahead     bool      // the packet has not come yet: what counters say is no evidence
	Policy    bool      // HostState.Policy is wanted
	Switched  uint32    // ifindex of the device that may be a port of Open vSwitch's kernel datapath, which is asked; 0: none
	ARP       uint16    // the packet is an ARP message about its addresses: 1 asks, 2 answers; 0: it is none
	ConnMark  ConnMark  // of the entry in connection tracking

	ICMPType, ICMPCode uint8 // of a packet that is an ICMP message; both zero: not known
	Fragment           bool  // the packet is not the first fragment of its datagram: it has no ports
	MoreFragments      bool  // others follow it
}

// ConnMark is the mark that rules gave a connection.
type ConnMark struct {
	Known bool
	Value uint32
}

// HostState is what one namespace said, at one time, in answer to a Question.
type HostState struct {
	ReadAt time.Time

	In       Interface // the device that the packet came in by
	Out      Interface // the device that it was to leave by
	DstLocal bool      // this host owns the packet's destination
	SrcLocal bool      // this host owns the packet's source

	Onward Lookup // route for the packet itself
	Back   Lookup // route for the packet that answers it: to the packet's source, from its destination

	NextHop Neighbor // neighbour of the onward route, or Question.NextHop

	Listeners []Listener // sockets of the packet's protocol that listen on its destination port
	// PreviousHop is the neighbour whose MAC the packet came from; invalid when it is not known.
	PreviousHop netip.Addr
	// Gateways are the gateways of the routes that this host has, in its main table, best first.
	Gateways []Gateway

	// Of other namespaces of this node, read only where the diagnosis depends on them:

	// PathGateways are addresses, on links of this host, of the namespaces that the
	// request came through, the one nearest to the client first.
	PathGateways []Gateway
	// Owners are the other namespaces that have the packet's destination among their addresses.
	Owners []Owner

	// NextHopOwner is the linked namespace that has the next hop's address, and NextHopDevice its device.
	NextHopOwner  Place
	NextHopDevice Device

	// Policy is what the routing rules make of the packet, where Question.Policy asks.
	Policy Policy
	// Circle are the hosts that the packet circles through, in its order.
	Circle []Turn
	// Contest is who else claims the packet's destination on the link that it came by.
	Contest Contest
	// NAT says which rules translate addresses here, where the mend depends on it.
	NAT NATRules
	// Sent is how the host that the packet came from sent it here.
	Sent Lookup
	// Narrow is the device that a packet was too big for, where nobody says so.
	Narrow Narrow

	// ReplyFilters are the rules or policies that would drop the answer to the packet at the same hook.
	ReplyFilters []FilterVerdict

	Filters []FilterVerdict // the rules or policies that drop the packet; more than one: candidates

	Forwarding bool // IPv4: of the in device; IPv6: of the namespace (conf/all/forwarding)

	ForwardingAll bool // IPv4: conf/all/forwarding (ip_forward); a device may still have it off

	Unread []string // what could not be read, and why

	Attachments []Attachment   // what may drop at the device Question.Attached
	Tracking    ConntrackState // with Question.Limits
	Sockets     []Socket       // with Question.Receivers: those that take the packet
	Tunnels     []Tunnel       // with Question.Tunnels: this namespace's
	FarTunnels  []FarTunnel    // those of the linked namespaces, where the diagnosis depends on them
	// Tracked says that IfTracked was asked: the rules that would drop the packet
	// if conntrack knew its connection.
	Tracked   bool
	IfTracked []FilterVerdict
	Switch    SwitchState // with Question.Switched
	// Believed is who takes the MAC that this host has for its next hop, and who should.
	Believed Belief
	// Onwards are addresses, on links of this host, of the namespaces that have the
	// packet's destination or know a way to it, the former first.
	Onwards []Gateway
	// Underlay is the tunnel that the packet left by, where nobody saw it again.
	Underlay Underlay
	// Virtual: the packet's address that this host owns is that of a service, which many hosts may have.
	Virtual bool
	// Redirect is what the rules make of a transparent proxy's traffic; nil: not asked.
	Redirect *Redirection
}

// Asked reports whether the namespace could be asked at all.
func (s *HostState) Asked() bool { return s.Onward.Done }

// ConntrackState is how full the table of connection tracking is.
type ConntrackState struct {
	Known      bool
	Count, Max int    // nf_conntrack_count of the namespace, and nf_conntrack_max
	Drops      uint64 // packets dropped for want of an entry, since the namespace is there
	Invalid    uint64 // packets that belong to no connection
	// InsertFailed counts packets whose entry was refused at last, as another packet had made it meanwhile; Clashes those for which that was put right.
	InsertFailed, Clashes uint64
}

// Full reports whether a new connection finds no room, or hardly any.
func (c ConntrackState) Full() bool { return c.Known && c.Max > 0 && c.Count >= c.Max-c.Max/20 }

// Socket is one that receives: its buffer, and who owns it.
type Socket struct {
	Protocol Protocol
	Local    netip.AddrPort // unspecified address: all
	Remote   netip.AddrPort // invalid: not connected
	Used     uint32         // bytes of the receive buffer in use
	Buffer   uint32         // its size: twice what SO_RCVBUF asked for
	Drops    uint32         // packets that found it full
	Inode    uint64
	Process  Process // one that has it open; zero when not known
	UID      uint32  // with which it was opened
	V6Only   bool
	Device   uint32 // bound to it; 0: any
}

// Tunnel is a device that wraps packets into others.
type Tunnel struct {
	Device        Device
	Kind          string // as ip-link(8) says: "vxlan", "geneve", "ipip", "gre", …
	ID            uint32 // VNI, or key
	External      bool   // whoever sends chooses ID and addresses (collect metadata)
	Local, Remote netip.Addr
	Port          uint16 // UDP destination port; 0: none
	Up            bool
}

// Underlay is the tunnel that a host sent the packet into, with the remote that it
// has for it, and the way there.
type Underlay struct {
	Tunnel
	Way Lookup
}

// FarTunnel is a tunnel of another namespace.
type FarTunnel struct {
	Place Place
	Tunnel
	Addrs []netip.Addr // of that namespace
}

// Owner is a namespace that has an address.
type Owner struct {
	Place Place
	// Virtual says that the address shares no link with others (a prefix of one
	// address, a loopback or dummy device), as that of a service that many hosts may have at once.
	Virtual bool
}

// Interface is a network device and the settings of it that decide a packet's fate.
type Interface struct {
	Device
	Kind        string // as `ip link` says: "veth", "vxlan", "bridge"; "" for a physical device
	Up          bool
	RPFilter    int // effective: max(conf/all, conf/DEV); 0 off, 1 strict, 2 loose; IPv6 has none
	RPFilterAll int // conf/all/rp_filter
	ARPIgnore   int // effective: max(conf/all, conf/DEV); 0: the host answers for all its addresses on all its devices
}

// Lookup is the kernel's answer to one route lookup.
type Lookup struct {
	Done   bool          // the kernel was asked
	Errno  syscall.Errno // 0: there is a route
	Type   string        // "unicast", "local", "broadcast", "multicast", "blackhole", "unreachable", "prohibit", "throw"; "" no match
	Prefix netip.Prefix  // the route that matched, where it can be known; 0.0.0.0/0 or ::/0 is the default route
	Table  uint32
	// Gateway is invalid when the destination is on the link.
	Gateway netip.Addr
	Device  Device
	Source  netip.Addr // preferred source
	Rule    string     // routing rule that rejected, as `ip rule` prints it; "" when a route did
}

// Found reports whether the lookup gave a way to send (or deliver) the packet.
func (l Lookup) Found() bool { return l.Done && l.Errno == 0 }

// Rejected reports whether a route or rule refuses the destination on purpose.
func (l Lookup) Rejected() bool {
	switch l.Type {
	case "blackhole", "unreachable", "prohibit":
		return true
	}
	return false
}

// Neighbor is an entry of the ARP or ND table.
type Neighbor struct {
	Addr   netip.Addr
	Device Device
	State  string // "FAILED", "INCOMPLETE", "REACHABLE", …; "" when there is no entry
	MAC    string
}

// Listener is a listening TCP socket, or a UDP socket that is connected to nobody.
type Listener struct {
	Addr    netip.AddrPort // unspecified address: all
	Matches bool           // it would take the packet if the packet's destination were local
	Backlog int
	Queue   int
	V6Only  bool
}

// Gateway is a next hop that a host already uses.
type Gateway struct {
	Addr   netip.Addr
	Device Device
}

// NetfilterHook is one of netfilter's hooks, by the name that iptables users know.
type NetfilterHook string

// The netfilter hooks (include/uapi/linux/netfilter.h) and nftables' ingress and egress.
const (
	Prerouting  NetfilterHook = "PREROUTING"
	Input       NetfilterHook = "INPUT"
	Forward     NetfilterHook = "FORWARD"
	Output      NetfilterHook = "OUTPUT"
	Postrouting NetfilterHook = "POSTROUTING"
	Ingress     NetfilterHook = "INGRESS"
	Egress      NetfilterHook = "EGRESS"
)

// FilterVerdict is a rule or chain policy that would drop or reject a packet.
type FilterVerdict struct {
	Hook    NetfilterHook
	Backend string // "nft", "iptables-nft" or "iptables-legacy"
	Family  string // nft: "ip", "ip6", "inet", "netdev", "bridge", "arp"; legacy: "ip" or "ip6"
	Table   string
	Chain   string // the chain that holds the rule, or the base chain whose policy it is
	Policy  bool   // the base chain's policy, not a rule
	Handle  uint64 // nft rule handle; 0 for a policy and for legacy
	Line    int    // iptables rule number in its chain, from 1; 0 when unknown
	Rule    string // the rule as far as it can be written out
	Comment string
	Reject  bool   // it answers with an ICMP error or a reset
	Packets uint64 // its counter, where it has one
	Counted bool   // it has a counter
	Certain bool   // every match on the way was understood and fits the packet

	// Queue: it hands the packet to a program (NFQUEUE), which may drop it, or not be there.
	Queue bool
	// Queues are the first and the last queue that it may choose, and Bypass says
	// that the packet goes on where no program takes packets from it.
	Queues [2]uint16
	Bypass bool
	// Traced: netfilter's own tracing said that this one dropped the packet, or one like it.
	Traced bool
	// Earlier is what the counter said when it was first read, at EarlierAt; zero when this is the first time.
	Earlier   uint64
	EarlierAt time.Time
}

// NATRules says in which language, and where, a namespace's rules translate addresses.
type NATRules struct {
	Read   bool // the rest is what there is
	Legacy bool // there are tables of iptables-legacy
	Chains []NATChain
	// By are the rules that give the answer another source, or keep it from getting back the one that it had.
	By []FilterVerdict
}

// NATChain is a base chain that may translate packets of the question's family.
type NATChain struct {
	Hook                          NetfilterHook
	Backend, Family, Table, Chain string // as in FilterVerdict
}
