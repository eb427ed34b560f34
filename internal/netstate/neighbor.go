package netstate

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// neighbor is an entry of the ARP or ND table (struct ndmsg and its attributes).
type neighbor struct {
	addr   netip.Addr
	device uint32
	state  uint16
	router bool
	mac    net.HardwareAddr
}

// parseNeighbor reads a struct ndmsg with its attributes.
func parseNeighbor(b []byte) (neighbor, error) {
	if len(b) < unix.SizeofNdMsg {
		return neighbor{}, errTruncated
	}
	n := neighbor{
		device: binary.NativeEndian.Uint32(b[4:]),
		state:  binary.NativeEndian.Uint16(b[8:]),
		router: b[10]&unix.NTF_ROUTER != 0,
	}
	for kind, value := range attributes(b[unix.SizeofNdMsg:]) {
		switch kind {
		case unix.NDA_DST:
			n.addr = addressOf(value)
		case unix.NDA_LLADDR:
			n.mac = net.HardwareAddr(append([]byte(nil), value...))
		}
	}
	return n, nil
}

// stateName names a NUD state as `ip neigh` does (include/uapi/linux/neighbour.h).
func stateName(state uint16) string {
	switch state {
	case unix.NUD_INCOMPLETE:
		return "INCOMPLETE"
	case unix.NUD_REACHABLE:
		return "REACHABLE"
	case unix.NUD_STALE:
		return "STALE"
	case unix.NUD_DELAY:
		return "DELAY"
	case unix.NUD_PROBE:
		return "PROBE"
	case unix.NUD_FAILED:
		return "FAILED"
	case unix.NUD_NOARP:
		return "NOARP"
	case unix.NUD_PERMANENT:
		return "PERMANENT"
	}
	return "NONE"
}

// resolved reports whether the entry's MAC is worth believing.
func (n neighbor) resolved() bool {
	return n.state&(unix.NUD_INCOMPLETE|unix.NUD_FAILED|unix.NUD_NOARP) == 0 && len(n.mac) > 0
}

// betterSource orders neighbours that have the same MAC: a global address
// before a link-local one, a lately confirmed one before a stale one, then the
// lower address, so that the answer is stable.
func betterSource(a, b neighbor) bool {
	if x, y := a.addr.IsLinkLocalUnicast(), b.addr.IsLinkLocalUnicast(); x != y {
		return !x
	}
	if x, y := a.state&unix.NUD_STALE == 0, b.state&unix.NUD_STALE == 0; x != y {
		return x
	}
	return a.addr.Less(b.addr)
}
