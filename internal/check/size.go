package check

import (
	"net/netip"

	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/pkg/trace"
)

// size is how big a packet may be that leaves a namespace.
type size struct {
	netns  trace.Netns
	device string
	mtu    int
}

// measure notes the MTU of the device by which the packet leaves.
func (s *step) measure() {
	l := s.topology.Links[netstate.Port{Netns: s.at.netns, Index: s.out.Index}]
	if l == nil || l.MTU == 0 || s.packet.outer {
		return
	}
	s.sizes[s.packet.direction] = append(s.sizes[s.packet.direction], size{s.at.netns, l.Name, l.MTU})
}

// tooBig looks for a hop that is narrower than the packets that the two sides
// would send (RFC 9293, section 3.7.1), and whose ICMP error would not reach the
// sender, so that it never hears of it. Whether somebody clamps the segment size is not known.
func (r *run) tooBig() {
	request, reply := r.sizes[trace.Request], r.sizes[trace.Reply]
	if len(request) == 0 || len(reply) == 0 || !r.known || r.translates() {
		return
	}
	largest := min(request[0].mtu, reply[0].mtu)
	for _, way := range []struct {
		hops   []size
		sender netip.AddrPort
	}{{request, r.q.Client}, {reply, r.q.Server}} {
		for _, hop := range way.hops[1:] {
			if hop.mtu >= largest {
				continue
			}
			end := r.try(packet{tuple: trace.Tuple{Protocol: errorProtocol(way.sender.Addr()),
				Src: netip.AddrPortFrom(r.anyAddress(hop.netns, way.sender.Addr()), 0), Dst: netip.AddrPortFrom(way.sender.Addr(), 0)},
				outer: true, direction: trace.Reply}, position{netns: hop.netns})
			if end.kind == left || end.kind == arrived && end.at.netns == way.hops[0].netns {
				continue
			}
			r.unread("packets of more than %d bytes do not fit through %s of %s, and the ICMP error that says so to %s would not get further than %s",
				hop.mtu, hop.device, r.name(r.places.Place(hop.netns)), way.sender.Addr(), r.name(r.places.Place(end.at.netns)))
			return
		}
	}
}

// try walks a packet without telling of anything.
func (r *run) try(p packet, at position) ending {
	answer := r.answer
	r.answer = &Answer{}
	r.trying = true
	defer func() { r.answer, r.trying = answer, false }()
	return r.walk(p, at)
}

// translates reports whether NAT changed the request on its way.
func (r *run) translates() bool {
	for _, tracks := range r.tracks {
		for _, t := range tracks {
			if t.Reply != t.Original.Reverse() {
				return true
			}
		}
	}
	return false
}

func errorProtocol(a netip.Addr) trace.Protocol {
	if a.Is6() {
		return trace.ICMPv6
	}
	return trace.ICMP
}

// anyAddress is an address of a namespace, of the family of another.
func (r *run) anyAddress(ns trace.Netns, like netip.Addr) netip.Addr {
	for _, l := range r.topology.Of(ns) {
		for _, p := range l.Addresses {
			if a := p.Addr(); a.Is6() == like.Is6() && !a.IsLinkLocalUnicast() && !l.Loopback {
				return a
			}
		}
	}
	return unspecified(like)
}
