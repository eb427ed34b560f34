package filter

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/replypath/replypath/pkg/trace"
)

// sctp has ports as TCP and UDP have; pcap-filter(7) counts it in "port".
const sctp trace.Protocol = 132

// direction says which end of a tuple must match.
type direction uint8

const (
	either direction = iota
	source
	destination
	both
)

var directionWords = [...]string{either: "", source: "src ", destination: "dst ", both: "src and dst "}

// valueType says what the identifier of a primitive is.
type valueType uint8

const (
	typeDefault   valueType = iota // none written: host or net, as the identifier looks
	typeHost                       // one address
	typeNet                        // a prefix or masked address
	typePort                       // one port
	typePortRange                  // first to last port
)

var typeWords = [...]string{typeDefault: "", typeHost: "host", typeNet: "net", typePort: "port", typePortRange: "portrange"}

// scope is a protocol qualifier: of the network layer (ip, ip6) or above it.
type scope struct {
	word     string
	family   uint8          // 4 or 6; 0 any
	protocol trace.Protocol // 0 any
}

var scopes = map[string]scope{
	"ip":    {word: "ip", family: 4},
	"ip6":   {word: "ip6", family: 6},
	"tcp":   {word: "tcp", protocol: trace.TCP},
	"udp":   {word: "udp", protocol: trace.UDP},
	"icmp":  {word: "icmp", protocol: trace.ICMP},
	"icmp6": {word: "icmp6", protocol: trace.ICMPv6},
}

// qualifiers precede an identifier, and are kept for the identifiers after it.
type qualifiers struct {
	scope     scope
	direction direction
	valueType valueType
	last      string // the qualifier written last, for errors
}

// primitive is one test of a tuple.
type primitive struct {
	qualifiers  // valueType is never typeDefault, save for a protocol alone
	network     network
	first, last uint16
}

// matches reports whether a tuple passes the test.
func (p *primitive) matches(t *trace.Tuple) bool {
	if p.scope.protocol != 0 && t.Protocol != p.scope.protocol {
		return false
	}
	switch p.scope.family {
	case 4:
		if !t.Dst.Addr().Is4() {
			return false
		}
	case 6:
		if !t.Is6() {
			return false
		}
	}
	switch p.valueType {
	case typeHost, typeNet:
		return p.ends(p.network.contains, t)
	case typePort, typePortRange:
		switch t.Protocol {
		case trace.TCP, trace.UDP, sctp:
			return p.portEnds(t)
		}
		return false
	}
	return true
}

func (p *primitive) ends(contains func(netip.Addr) bool, t *trace.Tuple) bool {
	switch p.direction {
	case source:
		return contains(t.Src.Addr())
	case destination:
		return contains(t.Dst.Addr())
	case both:
		return contains(t.Src.Addr()) && contains(t.Dst.Addr())
	}
	return contains(t.Src.Addr()) || contains(t.Dst.Addr())
}

func (p *primitive) portEnds(t *trace.Tuple) bool {
	src := t.Src.Port() >= p.first && t.Src.Port() <= p.last
	dst := t.Dst.Port() >= p.first && t.Dst.Port() <= p.last
	switch p.direction {
	case source:
		return src
	case destination:
		return dst
	case both:
		return src && dst
	}
	return src || dst
}

// String returns the primitive with all its qualifiers.
func (p *primitive) String() string {
	var b strings.Builder
	b.WriteString(p.scope.word)
	if p.valueType == typeDefault {
		return b.String()
	}
	if p.scope.word != "" {
		b.WriteByte(' ')
	}
	b.WriteString(directionWords[p.direction])
	b.WriteString(typeWords[p.valueType])
	switch p.valueType {
	case typePort:
		fmt.Fprintf(&b, " %d", p.first)
	case typePortRange:
		fmt.Fprintf(&b, " %d-%d", p.first, p.last)
	default:
		fmt.Fprintf(&b, " %s", p.network)
	}
	return b.String()
}

// network is a set of addresses: a prefix, or an IPv4 address under a mask with holes.
type network struct {
	prefix netip.Prefix
	mask   uint32 // not 0: match prefix.Addr under this mask instead
}

func (n *network) contains(a netip.Addr) bool {
	switch {
	case n.mask != 0:
		return a.Is4() && bits4(a)&n.mask == bits4(n.prefix.Addr())
	case n.prefix.IsSingleIP():
		return a == n.prefix.Addr()
	}
	return n.prefix.Contains(a)
}

// single reports whether the network is one address.
func (n *network) single() bool { return n.mask == 0 && n.prefix.IsSingleIP() }

// is6 reports whether it holds IPv6 addresses.
func (n *network) is6() bool { return n.prefix.Addr().Is6() }

// String returns the address, the prefix, or "10.0.0.0 mask 255.0.255.0".
func (n network) String() string {
	switch {
	case n.mask != 0:
		return fmt.Sprintf("%s mask %s", n.prefix.Addr(), addr4(n.mask))
	case n.single():
		return n.prefix.Addr().String()
	}
	return n.prefix.String()
}

func bits4(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func addr4(bits uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], bits)
	return netip.AddrFrom4(b)
}
