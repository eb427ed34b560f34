package trace

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
}

// Claim is a host that answers for an address on a link.
type Claim struct {
	Place   Place
	Device  Device
	MAC     string
	Listens bool // a socket there would take the packet
}

// Contest is an address that several hosts of one link claim.
type Contest struct {
	Own    Claim   // of the host that was asked
	Others []Claim // of others on the same link
	// Sender is the host on the link that sent the packet, and Believes the MAC of its neighbour entry; zero when not known.
	Sender   Place
	Believes string
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
