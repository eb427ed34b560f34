package check

import (
	"net/netip"
	"slices"

	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/pkg/trace"
)

// crossing is a bridge that a frame passes on its way.
type crossing struct {
	netns   trace.Netns
	in, out uint32 // ports; in 0: the frame is made by the bridge's own host, out 0: it is for it
}

// endpoint is a device that frames of a segment come to.
type endpoint struct {
	link    *netstate.Link
	bridges []crossing
	tunnel  *tunnel // that the frame goes through; nil: none
}

// tunnel is the outer way of a frame.
type tunnel struct{ near, far *netstate.Link }

// segment is what a frame that leaves a device may reach.
type segment struct {
	endpoints []endpoint
	open      bool // there is more that is not seen from here
	switched  bool // a switch of its own, such as Open vSwitch's in the kernel, has the frame
}

// maxFrames bounds the steps of a flood.
const maxFrames = 4096

// flood follows frames over cables and bridges.
type flood struct {
	topology *netstate.Topology
	segment  segment
	seen     map[frame]bool
}

// frame is a frame at a device: on its way out, or come in.
type frame struct {
	port    netstate.Port
	tag     int
	leaving bool
}

// segmentOf floods a frame out of a device.
func segmentOf(t *netstate.Topology, out netstate.Port) segment {
	f := &flood{topology: t, seen: make(map[frame]bool)}
	f.leave(out, 0, nil, nil)
	return f.segment
}

// visit reports whether a frame is new.
func (f *flood) visit(v frame) bool {
	if f.seen[v] || len(f.seen) >= maxFrames {
		return false
	}
	f.seen[v] = true
	return true
}

// leave sends a frame out of a device.
func (f *flood) leave(p netstate.Port, tag int, bridges []crossing, via *tunnel) {
	l := f.topology.Links[p]
	if l == nil {
		f.segment.open = true
		return
	}
	if !l.Up || !f.visit(frame{p, tag, true}) {
		return
	}
	switch l.Kind {
	case "veth":
		f.arrive(l.Lower, tag, bridges, via)
	case "bridge", "bond", "team":
		f.bridged(l, l, tag, bridges, via)
	case "vlan":
		if tag != 0 {
			f.segment.open = true // tags within tags
			return
		}
		f.leave(l.Lower, l.VLAN, bridges, via)
	case "macvlan", "ipvlan":
		f.below(l.Lower, p, tag, bridges, via)
		f.leave(l.Lower, tag, bridges, via)
	case "vxlan", "geneve", "gretap":
		f.tunnelled(l, tag, bridges)
	case "dummy":
	case "openvswitch":
		f.segment.open, f.segment.switched = true, true
	default:
		f.segment.open = true
	}
}

// ports are the devices that a bridge or bond has.
func (f *flood) ports(master *netstate.Link) []*netstate.Link {
	return slices.DeleteFunc(f.topology.Of(master.Netns), func(l *netstate.Link) bool { return l.Master != master.Index })
}

// arrive takes a frame in by a device.
func (f *flood) arrive(p netstate.Port, tag int, bridges []crossing, via *tunnel) {
	l := f.topology.Links[p]
	if l == nil {
		f.segment.open = true
		return
	}
	if !l.Up || !f.visit(frame{p, tag, false}) {
		return
	}
	master := f.topology.Links[netstate.Port{Netns: p.Netns, Index: l.Master}]
	switch {
	case l.Master != 0 && master == nil:
		f.segment.open = true
	case master != nil && master.Kind == "bridge":
		f.bridged(master, l, tag, bridges, via)
	case master != nil && master.Kind == "vrf":
		f.end(l, tag, bridges, via)
	case master != nil && (master.Kind == "bond" || master.Kind == "team"):
		f.end(master, tag, bridges, via)
	case l.Master != 0:
		f.segment.open, f.segment.switched = true, true // Open vSwitch and the like
	default:
		f.end(l, tag, bridges, via)
	}
}

// bridged sends a frame on from a port of a bridge or bond, or from its own host
// (from is the bridge itself then).
func (f *flood) bridged(bridge, from *netstate.Link, tag int, bridges []crossing, via *tunnel) {
	if from.Bridging.Blocked {
		return
	}
	filtering := bridge.Bridging.Filtering
	vlan, ok := from.Bridging.Enters(filtering, tag)
	if !ok {
		return
	}
	passed := crossing{netns: bridge.Netns}
	if from != bridge {
		passed.in = from.Index
	}
	for _, port := range f.ports(bridge) {
		b := &port.Bridging
		out, member := b.Leaves(filtering, vlan)
		if !member || b.Blocked || b.Isolated && from.Bridging.Isolated || port.Index == from.Index && !b.Hairpin {
			continue
		}
		passed.out = port.Index
		f.leave(port.Port, out, append(slices.Clone(bridges), passed), via)
	}
	if out, member := bridge.Bridging.Leaves(filtering, vlan); from != bridge && member {
		passed.out = 0
		f.end(bridge, out, append(slices.Clone(bridges), passed), via)
	}
}

// end delivers a frame to a device and to those that are stacked on it.
func (f *flood) end(l *netstate.Link, tag int, bridges []crossing, via *tunnel) {
	f.below(l.Port, netstate.Port{}, tag, bridges, via)
	if tag == 0 {
		f.segment.endpoints = append(f.segment.endpoints, endpoint{l, bridges, via})
	}
}

// below delivers to the VLANs and macvlans of a device, but for one.
func (f *flood) below(lower, but netstate.Port, tag int, bridges []crossing, via *tunnel) {
	for p, l := range f.topology.Links {
		switch {
		case l.Lower != lower || p == but:
		case l.Kind == "vlan" && l.VLAN == tag && tag != 0:
			f.arrive(p, 0, bridges, via)
		case (l.Kind == "macvlan" || l.Kind == "ipvlan") && tag == 0:
			f.arrive(p, 0, bridges, via)
		}
	}
}

// tunnelled delivers to the other end of a tunnel that carries frames.
func (f *flood) tunnelled(l *netstate.Link, tag int, bridges []crossing) {
	far := farEnds(f.topology, l)
	if len(far) == 0 && !f.deadEnd(l) || !l.Remote.IsValid() || l.Remote.IsMulticast() {
		f.segment.open = true // it leads to what is not seen from here, or learns its remote ends
	}
	for _, other := range far {
		f.arrive(other.Port, tag, bridges, &tunnel{l, other})
	}
}

// deadEnd reports a tunnel that leads to a host of this node where nobody takes
// what comes out of it.
func (f *flood) deadEnd(l *netstate.Link) bool {
	known := false
	for _, ns := range f.topology.Order {
		if ns == l.Netns || !l.Remote.IsValid() || !owns(f.topology, ns, l.Remote) {
			continue
		}
		known = true
		for _, other := range f.topology.Of(ns) {
			if other.External || other.Tapped {
				return false // a program may take it
			}
		}
	}
	return known
}

// farEnds are the tunnel devices of other namespaces that get what is sent into one.
func farEnds(t *netstate.Topology, l *netstate.Link) []*netstate.Link {
	var ends []*netstate.Link
	for _, other := range t.Links {
		if other.Netns == l.Netns || !takes(l, l.Local, other) {
			continue
		}
		if l.Remote.IsValid() && !l.Remote.IsMulticast() && !owns(t, other.Netns, l.Remote) {
			continue
		}
		ends = append(ends, other)
	}
	return ends
}

// takes reports whether a tunnel device takes what another sends to its host
// from an address; an invalid one is not known.
func takes(l *netstate.Link, source netip.Addr, other *netstate.Link) bool {
	if tunnelWord(l.Kind) == "" || tunnelWord(l.Kind) != tunnelWord(other.Kind) || other.Port4 != l.Port4 || !other.Up {
		return false
	}
	if other.External {
		return true
	}
	if other.VNI != l.VNI || l.Kind != other.Kind {
		return false
	}
	if l.Kind == "vxlan" {
		return true // from anybody, to any address
	}
	remote := !other.Remote.IsValid() || !source.IsValid() || other.Remote == source
	local := !other.Local.IsValid() || !l.Remote.IsValid() || l.Remote.IsMulticast() || other.Local == l.Remote
	return remote && local
}

// owns reports whether a device of a namespace has an address.
func owns(t *netstate.Topology, ns trace.Netns, a netip.Addr) bool {
	return slices.ContainsFunc(t.Of(ns), func(l *netstate.Link) bool { return hasAddress(l, a) })
}

func hasAddress(l *netstate.Link, a netip.Addr) bool {
	return slices.ContainsFunc(l.Addresses, func(p netip.Prefix) bool { return p.Addr() == a })
}

// answersFor reports whether the host of an endpoint answers ARP or ND for an
// address on it: IPv4 for any of its own addresses unless arp_ignore forbids
// that (arp_ignore, net/ipv4/arp.c), IPv6 for those of the device.
func answersFor(t *netstate.Topology, l *netstate.Link, a netip.Addr) bool {
	if hasAddress(l, a) {
		return true
	}
	return a.Is4() && l.ARPIgnore == 0 && owns(t, l.Netns, a)
}
