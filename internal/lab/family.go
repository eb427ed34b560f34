package lab

import "net/netip"

// Family is the IP version of a topology.
type Family int

// The families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// suffix marks the names of IPv6 labs.
func (f Family) suffix() string {
	if f == IPv6 {
		return "6"
	}
	return ""
}

// any is the default route's prefix.
func (f Family) any() netip.Prefix {
	if f == IPv6 {
		return netip.MustParsePrefix("::/0")
	}
	return netip.MustParsePrefix("0.0.0.0/0")
}

// network is one of the lab's subnets, in both families.
type network struct{ v4, v6 string }

// The networks that labs use: documentation prefixes (RFC 5737, RFC 3849) and
// private ones. They may repeat between labs, each has its own namespaces.
var (
	clients = network{"198.51.100.0/24", "2001:db8:1::/64"} // where clients live
	servers = network{"10.2.0.0/24", "2001:db8:2::/64"}     // LAN of load balancers and backends
	transit = network{"192.0.2.0/24", "2001:db8:3::/64"}    // between routers
	inner   = network{"10.9.0.0/24", "2001:db8:9::/64"}     // inside the tunnel, or behind the load balancer
	direct  = network{"10.3.0.0/24", "2001:db8:d::/64"}     // from a backend straight to a router
	public  = network{"203.0.113.0/24", "2001:db8:80::/64"} // the VIP's
)

// in returns the network's prefix.
func (n network) in(f Family) netip.Prefix {
	if f == IPv6 {
		return netip.MustParsePrefix(n.v6)
	}
	return netip.MustParsePrefix(n.v4)
}

// addr returns the network's address number i.
func (n network) addr(f Family, i byte) netip.Addr {
	raw := n.in(f).Addr().AsSlice()
	raw[len(raw)-1] = i
	a, _ := netip.AddrFromSlice(raw)
	return a
}

// on returns address number i as a device has it, with the network's length.
func (n network) on(f Family, device string, i byte) Address {
	return Address{Device: device, Prefix: netip.PrefixFrom(n.addr(f, i), n.in(f).Bits())}
}

// vip is the service address of the load balanced topologies.
func vip(f Family) netip.Addr { return public.addr(f, 80) }

// single returns the prefix of one address.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// loopback is the address of lo that every host has.
func loopback(f Family) netip.Addr {
	if f == IPv6 {
		return netip.IPv6Loopback()
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// anywhere is the unspecified address with a port: a service on all addresses.
func anywhere(f Family, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(f.any().Addr(), port)
}

// gateway is a default route.
func gateway(f Family, via netip.Addr) Route { return Route{To: f.any(), Via: via} }

func addrPort(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
