package trace

import "net/netip"

// Policy is what routing rules make of a packet.
type Policy struct {
	Rule string // the rule that sent it to a table other than main, as `ip rule` prints it; "" when none did
	Way  Lookup // where that table sends it
	Main Lookup // where table main would have sent it
}

// Turn is a host of a circle, and where it sends the packet that circles.
type Turn struct {
	Place Place
	In    Device
	Way   Lookup
	// Near is a gateway to the packet's destination on a link of this host: the
	// destination itself where that is on the link, or another address of its
	// owner. The zero value says that neither is known to be near.
	Near Gateway
	Link netip.Prefix // that holds the destination, where Near is the destination itself
}

// Claim is a host that answers for an address on a link.
type Claim struct {
	Place   Place
	Device  Device
	MAC     string
	Listens bool // a socket there would take the packet
	// Holder is the device that has the address, and Prefix the address there; of a
	// host that answers for an address of another device, that one.
	Holder Device
	Prefix netip.Prefix
}

// Drop is what `ip address del` has to be told: the address as it was added.
func (c *Claim) Drop(a netip.Addr) (address, device string) {
	if !c.Prefix.IsValid() {
		return netip.PrefixFrom(a, a.BitLen()).String(), c.Device.Name
	}
	return c.Prefix.String(), c.Holder.Name
}

// Contest is an address that several hosts of one link claim.
type Contest struct {
	Own    Claim   // of the host that was asked
	Others []Claim // of others on the same link
	// Sender is the host on the link that sent the packet, and Believes the MAC of its neighbour entry; zero when not known.
	Sender   Place
	Believes string
}

// Belief is what a neighbour entry says, compared with the linked namespaces.
type Belief struct {
	Holders []Claim // those that have the address on a link
	Takers  []Claim // those with a device that has the entry's MAC
}

// Narrow is a device with a smaller MTU than what hands it packets.
type Narrow struct {
	Place  Place // zero: not known
	Device Device
	Kind   string // as `ip link` says
	MTU    int
	// Sender is the device that hands it packets, where that is another one: the other end of a cable.
	Sender      Device
	SenderPlace Place
	SenderMTU   int
}
