package trace

import (
	"net/netip"
	"time"
)

// Redirection is what the rules of one network namespace make of the traffic
// that a transparent proxy is there for. It was asked with sample packets, so it
// does not matter in which words the rules are written.
type Redirection struct {
	Place  Place
	ReadAt time.Time
	// Mesh is whose chains they are: "Kuma", "Istio", …; "" when nobody's by name.
	Mesh     string
	Families []RedirectFamily // IPv4 and IPv6, as far as they were asked
	Loopback Interface        // lo
	// Localnet are the devices by which packets from and to 127/8 may pass (route_localnet).
	Localnet []string
	// Proxy is the process that listens where traffic is redirected to.
	Proxy ProxyIdentity
	// Before: the proxy has not been started yet, so that nobody has to listen.
	Before bool
	// Setup is how the rules come to be there.
	Setup RedirectSetup
	// Strays are sockets that listen on a port that a mesh's proxy is known for, and to which nothing is redirected.
	Strays []RedirectStray
	Unread []string // what could not be read or judged
	// Asked are packets that were really seen, and Twins what the other IP version makes of their like.
	Asked, Twins []RedirectLeg
}

// ProxyIdentity is who the proxy is, as rules see it.
type ProxyIdentity struct {
	Known bool // UID is that of a process that listens, or was named by the user
	Named bool // by the user
	// Root: the process that listens runs as root, which the rules do not let go, but others: it may
	// be a stand-in, or drop its privileges later. UID is one that the rules let go.
	Root    bool
	UID     uint32 // else a guess: what the rules exclude
	GID     uint32
	HasGID  bool
	Process Process // zero when not known
}

// RedirectSetup is what can write rules: a CNI plugin, and a kernel that has netfilter.
type RedirectSetup struct {
	// CNI are configuration files that name a mesh's plugin, and CNIPlugin the plugin.
	CNI       []string
	CNIPlugin string
	CNIDir    string // where it was looked for; "" when it could not be
	CNISeen   bool   // there is CNI configuration at all
	// Missing are kernel features that redirection takes and that this kernel has neither built in nor loaded.
	Missing []string
	Asked   bool // Missing is known
}

// RedirectStray is a socket of a proxy that nothing is redirected to.
type RedirectStray struct {
	Role RedirectRole
	Socket
}

// RedirectFamily is the half of a redirection that is for one IP version.
type RedirectFamily struct {
	Six bool
	// Used: the namespace has an address of this version beside its loopback.
	Used     bool
	Address  netip.Addr // the first of them
	Legs     []RedirectLeg
	Excluded RedirectExclusions
	// Dangling are chains that would divert packets, but that nothing leads to, or that lead nowhere.
	Dangling []RedirectChain
	// Distinguished: rules tell the proxy's own packets by something (an owner, a mark, a cgroup).
	Distinguished bool
	UIDs, GIDs    []uint32 // whose packets go past the outbound redirect
	Marks         []uint32 // with which the proxy's packets would go past it, where its owner does not tell
	Opaque        bool     // rules ask for what is not understood
	Unread        bool     // not all rules could be read
	Passes        bool     // rules know the address from which a mesh's proxy calls its application
	// IdleChains are chains of the mesh that redirect nothing and are not led to.
	IdleChains []string
	// ResolversKnown: the legs of DNS are about the name servers of the application.
	ResolversKnown bool
	KnowsDNS       bool   // rules mention port 53
	DNSPort        uint16 // to which DNS to any server is redirected; 0: none
}

// RedirectExclusions are what rules let go past a redirect.
type RedirectExclusions struct {
	InboundPorts, OutboundPorts []uint16
	Destinations                []netip.Addr
	Devices                     []string
}

// RedirectChain is a chain of rules that should be led to.
type RedirectChain struct {
	Name, Table, Backend, Family string
	Ports                        []uint16 // to which it diverts; none: it lacks its rule
	Role                         RedirectRole
	// Hooked: packets come through it, but nothing in it diverts them.
	Hooked bool
	// Unmatched: rules lead to it, but none of them fits the traffic of its role.
	Unmatched bool
	Base      bool // packets come through it without a jump
	// Shadowed: a rule before those that divert lets all of it go; the leg of the role says which.
	Shadowed bool
}

// RedirectRole is the part that a leg plays.
type RedirectRole string

// The roles.
const (
	RoleOutbound    RedirectRole = "outbound"    // the application calls another host
	RoleInbound     RedirectRole = "inbound"     // another host calls the application
	RoleDNS         RedirectRole = "DNS"         // the application asks its resolver by UDP
	RoleDNSTCP      RedirectRole = "DNS by TCP"  // the same by TCP
	RoleProxy       RedirectRole = "proxy"       // the proxy calls another host
	RoleProxyDNS    RedirectRole = "proxy DNS"   // the proxy asks its own resolver
	RolePassthrough RedirectRole = "passthrough" // the proxy calls the application, from 127.0.0.6 or ::6
	RoleSelf        RedirectRole = "self"        // the proxy calls an address of this very namespace: back to its inbound port
)

// RedirectLeg is one sample packet and what becomes of it.
type RedirectLeg struct {
	Role   RedirectRole
	Packet Tuple // as it is sent
	UID    uint32
	Device string // by which it comes in, or was to leave

	Taken  bool
	Kind   string         // "redirect", "dnat" or "tproxy"
	Target netip.AddrPort // where it is sent instead
	Rule   string         // that takes it, or lets it go on purpose
	// Chain holds Rule; Handle and Line name it there.
	Chain   string
	Handle  uint64
	Line    int
	Excused bool
	Chains  []string
	Backend string // "nft", "iptables-nft" or "iptables-legacy"
	// Family, Table and Base are of the base chain that the packet came through last.
	Family, Table, Base string
	Zone                uint16 // of connection tracking
	// AnswerZone is that of its answer, which makes them two connections where it is another: its source is not restored.
	AnswerZone uint16
	// Untracked: a rule exempts it from that, so that it is not redirected.
	Untracked bool
	Doubts    []string

	// Sockets listen where it ends; Others on the port, but not so that they would get it.
	Sockets, Others []Socket
	// LocalnetOff: it comes from outside, is sent to 127/8, and route_localnet is off.
	LocalnetOff bool
	// Drop is the rule or policy that drops it, and whether on the loopback device.
	Drop       *FilterVerdict
	DropAnswer bool // it is the answer that is dropped
	OnLoopback bool

	// Lacks is the route by mark without which it does not get to its socket, or what is to be sent back to
	// that does not; nil: it needs none, or has it.
	Lacks *MarkRoute

	Probe RedirectProbe
}

// MarkRoute is how a namespace has packets with a mark delivered to itself: a routing rule leads
// to a table, in which a route of type local takes all addresses.
type MarkRoute struct {
	Mark  uint32
	Table uint32 // that a rule, or a route, is there for; else one that nobody uses
	Rule  bool   // there is a rule for the mark, to that table
	Route bool   // there is such a route in that table
	// Answers: it is what the application answers that needs it. The proxy calls it from the address of the client.
	Answers bool
}

// RedirectProbe is a real handshake.
type RedirectProbe struct {
	Done     bool
	Arrived  bool
	Failure  string // what the socket said
	TimedOut bool
	Tries    int
	Own      bool // a listener of our own took it, as nobody else listened
}

// Leg returns the leg of a role, the first that was taken if there are several; nil when it was not asked.
func (f *RedirectFamily) Leg(role RedirectRole) *RedirectLeg {
	var first *RedirectLeg
	for i := range f.Legs {
		if f.Legs[i].Role != role {
			continue
		}
		if f.Legs[i].Taken {
			return &f.Legs[i]
		}
		if first == nil {
			first = &f.Legs[i]
		}
	}
	return first
}

// Takes reports whether any traffic of the role is redirected.
func (f *RedirectFamily) Takes(role RedirectRole) bool {
	l := f.Leg(role)
	return l != nil && l.Taken
}

// Redirects reports whether anything that applications send or get is redirected.
func (f *RedirectFamily) Redirects() bool {
	return f.Takes(RoleOutbound) || f.Takes(RoleInbound) || f.Takes(RoleDNS) || f.Takes(RoleDNSTCP)
}
