package netstate

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// nexthop is one way that a route sends packets.
type nexthop struct {
	gateway netip.Addr // invalid: on the link; IPv6 for an IPv4 route that has "via inet6"
	device  uint32
	dead    bool
}

// route is a route of the kernel (struct rtmsg and its attributes).
type route struct {
	kind      uint8 // RTN_UNICAST and so on
	table     uint32
	tos       uint8
	metric    uint32
	prefix    netip.Prefix
	from      netip.Prefix // IPv6 source-specific routes; all zeroes otherwise
	preferred netip.Addr
	hops      []nexthop
	dead      bool
	cloned    bool
}

// routeKinds are the names that `ip route` gives (include/uapi/linux/rtnetlink.h).
var routeKinds = map[uint8]string{
	unix.RTN_UNICAST:     "unicast",
	unix.RTN_LOCAL:       "local",
	unix.RTN_BROADCAST:   "broadcast",
	unix.RTN_ANYCAST:     "anycast",
	unix.RTN_MULTICAST:   "multicast",
	unix.RTN_BLACKHOLE:   "blackhole",
	unix.RTN_UNREACHABLE: "unreachable",
	unix.RTN_PROHIBIT:    "prohibit",
	unix.RTN_THROW:       "throw",
	unix.RTN_NAT:         "nat",
	unix.RTN_XRESOLVE:    "xresolve",
}

// kindErrors are the errors of a lookup that ends at such a route (fib_props in
// net/ipv4/fib_semantics.c, fib6_prop in net/ipv6/route.c).
var kindErrors = map[uint8]unix.Errno{
	unix.RTN_BLACKHOLE:   unix.EINVAL,
	unix.RTN_UNREACHABLE: unix.EHOSTUNREACH,
	unix.RTN_PROHIBIT:    unix.EACCES,
	unix.RTN_THROW:       unix.EAGAIN,
}

// parseRoute reads a struct rtmsg with its attributes.
func parseRoute(b []byte) (route, error) {
	if len(b) < unix.SizeofRtMsg {
		return route{}, errTruncated
	}
	family, bits, sourceBits := b[0], b[1], b[2]
	flags := binary.NativeEndian.Uint32(b[8:])
	r := route{
		tos: b[3], table: uint32(b[4]), kind: b[7],
		dead:   flags&unix.RTNH_F_DEAD != 0,
		cloned: flags&unix.RTM_F_CLONED != 0,
	}
	var dst, src []byte
	var direct nexthop
	for kind, value := range attributes(b[unix.SizeofRtMsg:]) {
		switch kind {
		case unix.RTA_DST:
			dst = value
		case unix.RTA_SRC:
			src = value
		case unix.RTA_TABLE:
			r.table = uint32Of(value)
		case unix.RTA_PRIORITY:
			r.metric = uint32Of(value)
		case unix.RTA_PREFSRC:
			r.preferred = addressOf(value)
		case unix.RTA_OIF:
			direct.device = uint32Of(value)
		case unix.RTA_GATEWAY:
			direct.gateway = addressOf(value)
		case unix.RTA_VIA:
			direct.gateway = parseVia(value)
		case unix.RTA_MULTIPATH:
			r.hops = parseMultipath(value)
		}
	}
	r.prefix = prefixOf(family, dst, bits)
	r.from = prefixOf(family, src, sourceBits)
	if len(r.hops) == 0 && (direct.device != 0 || direct.gateway.IsValid()) {
		direct.dead = r.dead
		r.hops = []nexthop{direct}
	}
	return r, nil
}

// parseVia reads struct rtvia: a gateway of another family than the route.
func parseVia(b []byte) netip.Addr {
	if len(b) < 2 {
		return netip.Addr{}
	}
	return addressOf(b[2:])
}

// parseMultipath reads the struct rtnexthop entries of RTA_MULTIPATH.
func parseMultipath(b []byte) []nexthop {
	var hops []nexthop
	for len(b) >= unix.SizeofRtNexthop {
		length := int(binary.NativeEndian.Uint16(b))
		if length < unix.SizeofRtNexthop || length > len(b) {
			break
		}
		hop := nexthop{device: binary.NativeEndian.Uint32(b[4:]), dead: b[2]&unix.RTNH_F_DEAD != 0}
		for kind, value := range attributes(b[unix.SizeofRtNexthop:length]) {
			switch kind {
			case unix.RTA_GATEWAY:
				hop.gateway = addressOf(value)
			case unix.RTA_VIA:
				hop.gateway = parseVia(value)
			}
		}
		hops = append(hops, hop)
		b = b[min((length+3)&^3, len(b)):]
	}
	return hops
}

// usable returns the first next hop that the kernel may choose. A route that
// only delivers or rejects needs none.
func (r route) usable() (nexthop, bool) {
	if _, rejects := kindErrors[r.kind]; rejects || len(r.hops) == 0 {
		return nexthop{}, !r.dead
	}
	for _, hop := range r.hops {
		if !hop.dead {
			return hop, true
		}
	}
	return nexthop{}, false
}
