package check

import (
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/diagnose"
)

// size is how big a packet may be that leaves a namespace.
type size struct {
	place  trace.Place
	device trace.Device
	mtu    int
	tuple  trace.Tuple // as it leaves
	silent bool        // below IP: what is too big is dropped without an ICMP error
}

// measure notes the MTU of the device by which the packet leaves; where it is
// made, the route may say less.
func (s *step) measure() {
	l := s.topology.Links[netstate.Port{Netns: s.at.netns, Index: s.out.Index}]
	if l != nil && s.packet.outer && !s.packet.about.IsValid() {
		s.outerSizes = append(s.outerSizes, size{place: s.place, device: s.out, mtu: l.MTU, tuple: s.packet.tuple})
	}
	if l == nil || l.MTU == 0 || s.packet.outer || s.packet.again || s.packet.later {
		return
	}
	mtu := l.MTU
	if s.at.in == 0 {
		mtu = min(mtu, s.routeMTU(mtu))
	}
	s.sizes[s.packet.direction] = append(s.sizes[s.packet.direction], size{place: s.place, device: s.out, mtu: mtu, tuple: s.packet.tuple})
}

// measurePorts notes the MTUs of what the packet passes below IP: the other end of
// the cable, and the ports of bridges with the other ends of theirs.
func (s *step) measurePorts(out *netstate.Link, bridges []crossing) {
	if s.packet.outer || s.packet.again || s.packet.later {
		return
	}
	passed := []size{{device: trace.Device{Index: out.Index}, place: s.place}}
	for _, b := range bridges {
		if l := s.topology.Links[netstate.Port{Netns: b.netns, Index: b.out}]; l != nil {
			passed = append(passed, size{device: trace.Device{Index: l.Index}, place: s.places.Place(b.netns), mtu: l.MTU})
		}
	}
	for _, p := range passed {
		l := s.topology.Links[netstate.Port{Netns: p.place.Netns, Index: p.device.Index}]
		if far := s.topology.Links[l.Lower]; l.Kind == "veth" && far != nil && (p.mtu == 0 || far.MTU < p.mtu) {
			p.mtu = far.MTU
		}
		if p.mtu != 0 {
			p.device.Name, p.tuple, p.silent = l.Name, s.packet.tuple, true
			s.sizes[s.packet.direction] = append(s.sizes[s.packet.direction], p)
		}
	}
}

// routeMTU is the MTU that the route of a packet made here says, or was taught
// (RFC 1191); other where it says none.
func (s *step) routeMTU(other int) int {
	err := s.Inside(s.ctx, s.place, func() error {
		found, err := netlink.RouteGetWithOptions(s.packet.tuple.Dst.Addr().AsSlice(), &netlink.RouteGetOptions{
			SrcAddr: s.packet.tuple.Src.Addr().AsSlice(), Mark: s.packet.mark,
		})
		for _, r := range found {
			if r.MTU > 0 {
				other = min(other, r.MTU)
			}
			if r.AdvMSS > 0 {
				other = min(other, r.AdvMSS+headers(s.packet.tuple))
			}
		}
		return err
	})
	_ = err // then what the device says has to do
	return other
}

// headers is the size of TCP's and IP's headers.
func headers(t trace.Tuple) int {
	if t.Is6() {
		return 60
	}
	return 40
}

// tooBig looks for a hop that is narrower than the packets that the two sides
// would send (RFC 9293, section 3.7.1), and whose ICMP error would not reach the
// sender, so that it never hears of it.
func (r *run) tooBig() {
	request, reply := r.sizes[trace.Request], r.sizes[trace.Reply]
	if len(request) == 0 || len(reply) == 0 || !r.known {
		return
	}
	tcp := r.q.Protocol == trace.TCP
	for _, way := range []struct {
		direction trace.Direction
		hops      []size
	}{{trace.Request, request}, {trace.Reply, reply}} {
		if tcp && r.clamped[way.direction] {
			continue
		}
		largest := way.hops[0].mtu
		if tcp {
			largest = min(request[0].mtu, reply[0].mtu)
		}
		for i := range way.hops[1:] {
			hop := &way.hops[i+1]
			if hop.silent {
				if diagnose.TooBigFor(hop.mtu, uint32(largest)) {
					r.swallowed(way.direction, hop, largest)
					return
				}
				continue
			}
			if hop.mtu < largest && r.unheard(way.direction, hop) {
				return
			}
			largest = min(largest, hop.mtu) // smaller ones come from there on, once it is heard
		}
	}
}

// swallowed tells of a device that drops what is too big for it. A packet that is
// still to be cut into segments would pass; so this is possible, not more.
func (r *run) swallowed(d trace.Direction, hop *size, length int) {
	ev := trace.Event{
		Time: r.now, Hook: trace.HookDrop, Netns: hop.place.Netns, Device: hop.device, Tuple: hop.tuple, Length: uint32(length), Symbol: "__dev_forward_skb",
	}
	if hop.tuple.Protocol == trace.TCP {
		ev.Flags = trace.ACK
	}
	defer func(was trace.Confidence) { r.most = was }(r.most)
	r.most = trace.Possible
	r.explain(&trace.Case{Symptom: trace.SymptomDrop, Direction: d, Place: hop.place, Event: ev}, &trace.HostState{})
}

// unheard follows the ICMP error of a narrow hop to the sender, and reports
// whether it is lost. It tells where.
func (r *run) unheard(d trace.Direction, hop *size) bool {
	confidence := trace.Likely
	if r.q.Protocol != trace.TCP {
		confidence = trace.Possible // if datagrams are that big at all
	}
	p := r.errorAbout(hop)
	if d == trace.Reply {
		p.direction = trace.Request
	}
	if end := r.try(p, position{netns: hop.place.Netns}); end.kind != lost || r.tried == nil {
		return false
	}
	c := trace.Case{Symptom: trace.SymptomTooBig, Direction: d, Place: r.tried.Place, Event: r.tried.Event, TooBigPlace: hop.place}
	c.Event.Tuple, c.Event.Flags, c.Event.Inner, c.Event.Conntrack = hop.tuple, trace.ACK, true, trace.Conntrack{}
	c.TooBig = trace.Event{Time: r.now, Hook: trace.HookICMPSent, Netns: hop.place.Netns, Device: hop.device, Tuple: hop.tuple}
	state, err := r.read(trace.Question{Place: c.Place, Packet: hop.tuple})
	if err != nil {
		return false
	}
	defer func(was trace.Confidence) { r.most = was }(r.most)
	r.most = confidence
	r.explain(&c, &state)
	return true
}

// narrowTunnel tells of a hop on a tunnel's own way that is narrower than the
// tunnel's packets, where these may not be fragmented and the error about them is lost.
func (s *step) narrowTunnel(l *netstate.Link) {
	overhead := map[string]int{"ipip": 20, "sit": 20, "gre": 24, "gretap": 38, "ip6tnl": 40, "ip6gre": 44}[l.Kind]
	if overhead == 0 || s.trying || s.packet.again || s.packet.later {
		return // VXLAN and Geneve let their packets be fragmented, if nobody says otherwise
	}
	for i, hop := range s.outerSizes {
		if i == 0 || hop.mtu >= l.MTU+overhead {
			continue // the tunnel's own host tells the sender itself
		}
		if s.unreachable(&hop) {
			s.run.unread("packets of more than %d bytes in the tunnel %s of %s do not fit through %s of %s, and the ICMP error that says so to %s does not arrive",
				hop.mtu-overhead, l.Name, s.run.name(s.place), hop.device.Name, s.run.name(hop.place), hop.tuple.Src.Addr())
			return
		}
	}
}

// unreachable reports whether the ICMP error of a narrow hop is lost on its way to the sender.
func (r *run) unreachable(hop *size) bool {
	p := r.errorAbout(hop)
	end := r.try(p, position{netns: hop.place.Netns})
	return end.kind == lost && r.tried != nil
}

// errorAbout is the ICMP error of a narrow hop.
func (r *run) errorAbout(hop *size) packet {
	sender := hop.tuple.Src.Addr()
	p := packet{direction: trace.Reply, outer: true, about: hop.tuple, icmp: [2]uint8{3, 4}, tuple: trace.Tuple{Protocol: trace.ICMP,
		Src: netip.AddrPortFrom(r.anyAddress(hop.place.Netns, sender), 0), Dst: netip.AddrPortFrom(sender, 0)}}
	if sender.Is6() {
		p.tuple.Protocol, p.icmp = trace.ICMPv6, [2]uint8{2, 0}
	}
	return p
}

// try walks a packet without telling of anything but what becomes of it.
func (r *run) try(p packet, at position) ending {
	answer := r.answer
	r.answer, r.tried = &Answer{}, nil
	r.trying = true
	defer func() { r.answer, r.trying = answer, false }()
	return r.walk(p, at)
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
