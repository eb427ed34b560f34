package trace

import (
	"fmt"
	"net/netip"
)

// Protocol is an IP protocol number (IANA "Assigned Internet Protocol Numbers").
type Protocol uint8

// The protocols that replypath knows by name.
const (
	ICMP   Protocol = 1
	TCP    Protocol = 6
	UDP    Protocol = 17
	ICMPv6 Protocol = 58
)

// String returns the lower-case name that pcap-filter(7) uses, or the number.
func (p Protocol) String() string {
	switch p {
	case ICMP:
		return "icmp"
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case ICMPv6:
		return "icmp6"
	}
	return fmt.Sprintf("proto-%d", uint8(p))
}

// Tuple is protocol, addresses and ports of one packet, as seen at one place.
// An IPv4 address that a socket shows in its ::ffff: form is unmapped; on the wire that form is IPv6.
type Tuple struct {
	Protocol Protocol
	Src, Dst netip.AddrPort
}

// IsValid reports whether both addresses are set.
func (t Tuple) IsValid() bool { return t.Src.Addr().IsValid() && t.Dst.Addr().IsValid() }

// Reverse returns the tuple of the packet that answers this one.
func (t Tuple) Reverse() Tuple {
	return Tuple{Protocol: t.Protocol, Src: t.Dst, Dst: t.Src}
}

// Is6 reports whether the packet is IPv6.
func (t Tuple) Is6() bool { return t.Dst.Addr().Is6() }

// String returns "tcp 198.51.100.7:41822 -> 203.0.113.10:80".
func (t Tuple) String() string {
	return fmt.Sprintf("%s %s -> %s", t.Protocol, t.Src, t.Dst)
}

// TCPFlags are the low eight flag bits of a TCP header (RFC 9293, section 3.1).
type TCPFlags uint8

// The flags that replypath looks at.
const (
	FIN TCPFlags = 0x01
	SYN TCPFlags = 0x02
	RST TCPFlags = 0x04
	PSH TCPFlags = 0x08
	ACK TCPFlags = 0x10
)

// Has reports whether all of the given flags are set.
func (f TCPFlags) Has(flags TCPFlags) bool { return f&flags == flags }

// IsSYN reports a connection request: SYN without ACK.
func (f TCPFlags) IsSYN() bool { return f&(SYN|ACK|RST) == SYN }

// IsSYNACK reports the answer to a connection request.
func (f TCPFlags) IsSYNACK() bool { return f&(SYN|ACK|RST) == SYN|ACK }

// String returns the name that operators use: "SYN", "SYN-ACK", "RST", "FIN", "ACK" or "-".
func (f TCPFlags) String() string {
	switch {
	case f.Has(RST):
		return "RST"
	case f.Has(SYN | ACK):
		return "SYN-ACK"
	case f.Has(SYN):
		return "SYN"
	case f.Has(FIN):
		return "FIN"
	case f.Has(ACK):
		return "ACK"
	}
	return "-"
}
