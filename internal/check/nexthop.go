package check

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/diagnose"
)

// next finds the namespace that the packet comes to when it has left by s.out
// towards s.hop.
func (s *step) next(state *trace.HostState) (position, endKind) {
	out := s.topology.Links[netstate.Port{Netns: s.at.netns, Index: s.out.Index}]
	switch {
	case out == nil:
		return position{}, left
	case isPointToPoint(out.Kind):
		return s.throughTunnel(out)
	}
	reach := segmentOf(s.topology, out.Port)
	if known := state.NextHop.MAC != ""; known && out.Remote.IsValid() && !s.packet.outer && tunnelWord(out.Kind) != "" {
		if _, kind := s.tunnelEnd(out); kind == lost || kind == blind {
			return position{}, kind
		}
	}
	if reach.switched {
		s.run.unread("what Open vSwitch, or another switch, does with the %s behind %s of %s is not judged", kindOf(s.packet), s.out.Name, s.run.name(s.place))
	}
	to, kind := s.neighbor(reach, state)
	if kind != goesOn {
		return position{}, kind
	}
	if to.tunnel != nil {
		if _, kind := s.tunnelEnd(to.tunnel.near); kind == lost || kind == blind {
			return position{}, kind
		}
	}
	s.notePassed(to.bridges)
	s.measurePorts(out, to.bridges)
	if kind := s.bridges(to.bridges); kind != goesOn {
		return position{}, kind
	}
	return position{to.link.Netns, to.link.Index}, goesOn
}

// isPointToPoint reports whether a kind of device needs no neighbour.
func isPointToPoint(kind string) bool {
	switch kind {
	case "ipip", "gre", "sit", "ip6tnl", "ip6gre", "vti", "vti6":
		return true
	}
	return false
}

// throughTunnel brings the packet to the other end of a tunnel without frames.
func (s *step) throughTunnel(out *netstate.Link) (position, endKind) {
	end, kind := s.tunnelEnd(out)
	if kind != goesOn {
		return position{}, kind
	}
	return position{end.Netns, end.Index}, goesOn
}

// tunnelEnd walks the outer packet of a tunnel, and finds the device that takes it.
func (s *step) tunnelEnd(l *netstate.Link) (*netstate.Link, endKind) {
	outer, ok := s.outerPacket(l)
	if !ok {
		return nil, left
	}
	s.outerSizes = nil
	end := s.walk(outer, position{netns: s.at.netns})
	if end.kind != arrived {
		return nil, end.kind
	}
	s.narrowTunnel(l)
	var near []*netstate.Link
	for _, other := range s.topology.Of(end.at.netns) {
		if tunnelWord(other.Kind) != tunnelWord(l.Kind) {
			continue
		}
		if takes(l, end.packet.tuple.Src.Addr(), other) {
			return other, goesOn
		}
		near = append(near, other)
	}
	if s.programmed(end.at.netns) {
		return nil, left // a program may take it
	}
	s.refused(l, &end, near)
	return nil, lost
}

// outerPacket is the packet of a tunnel that carries this one.
func (s *step) outerPacket(l *netstate.Link) (packet, bool) {
	if !l.Remote.IsValid() || l.Remote.IsMulticast() || s.packet.outer {
		return packet{}, false
	}
	local := l.Local
	if !local.IsValid() {
		q := trace.Question{Place: s.place, Packet: trace.Tuple{Protocol: trace.UDP, Src: netip.AddrPortFrom(unspecified(l.Remote), 0), Dst: netip.AddrPortFrom(l.Remote, 0)}}
		state, err := s.read(q)
		if err != nil || !state.Onward.Found() {
			return packet{}, false
		}
		local = (&step{run: s.run, at: s.at, packet: &packet{tuple: q.Packet}}).addressOn(state.Onward.Device.Index, l.Remote)
	}
	if !local.IsValid() || local.Is4() != l.Remote.Is4() {
		return packet{}, false
	}
	outer := packet{direction: s.packet.direction, outer: true, tuple: trace.Tuple{
		Protocol: outerProtocol(l.Kind), Src: netip.AddrPortFrom(local, 0), Dst: netip.AddrPortFrom(l.Remote, uint16(l.Port4)),
	}}
	if outer.tuple.Protocol == trace.UDP {
		outer.tuple.Src = netip.AddrPortFrom(local, ephemeral)
	}
	return outer, true
}

// refused tells of a tunnel's packet that the host it came to does not take.
func (s *step) refused(l *netstate.Link, end *ending, near []*netstate.Link) {
	at := &step{run: s.run, packet: &end.packet, at: end.at, place: s.places.Place(end.at.netns), before: end.packet.tuple}
	c := at.lost(trace.SymptomDrop, "")
	c.Event.Carried = trace.Carried{Kind: tunnelWord(l.Kind), ID: uint32(l.VNI), Tuple: s.packet.tuple, Flags: s.packet.flags}
	samePort := slices.ContainsFunc(near, func(o *netstate.Link) bool { return o.Port4 == l.Port4 })
	switch {
	case l.Kind == "vxlan" && samePort:
		c.Event.Reason = "VXLAN_VNI_NOT_FOUND"
	case l.Port4 != 0 && !samePort:
		c.Event.Reason = "NO_SOCKET"
	case l.Kind == "geneve":
		c.Event.Symbol = "geneve_udp_encap_recv"
	case tunnelWord(l.Kind) == "gre":
		c.Event.Symbol = "gre_rcv"
	default:
		c.Event.Symbol = "tunnel4_rcv"
	}
	state, err := s.read(at.question())
	if err != nil {
		return
	}
	s.explain(&c, &state)
}

// programmed reports whether programs may take packets of tunnels in a
// namespace: a device that whoever sends and receives by decides all of, or a
// switch in a program.
func (s *step) programmed(ns trace.Netns) bool {
	return slices.ContainsFunc(s.topology.Of(ns), func(l *netstate.Link) bool { return l.External || l.Tapped })
}

// tunnelWord is what a kind of tunnel is called by its header.
func tunnelWord(kind string) string {
	switch kind {
	case "ipip", "ip6tnl", "sit":
		return "ip"
	case "gre", "gretap", "ip6gre", "ip6gretap":
		return "gre"
	case "vxlan", "geneve":
		return kind
	}
	return ""
}

// outerProtocol is the protocol of a tunnel's outer packets (IANA).
func outerProtocol(kind string) trace.Protocol {
	switch kind {
	case "ipip", "ip6tnl":
		return 4
	case "sit":
		return 41
	case "gre", "gretap", "ip6gre":
		return 47
	}
	return trace.UDP
}

func unspecified(a netip.Addr) netip.Addr {
	if a.Is6() {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// neighbor finds the endpoint that answers for the next hop.
func (s *step) neighbor(reach segment, state *trace.HostState) (endpoint, endKind) {
	entry := state.NextHop
	resolved := entry.MAC != "" && entry.State != "FAILED" && entry.State != "INCOMPLETE"
	var have []endpoint
	for _, e := range reach.endpoints {
		if e.link.Netns == s.at.netns && e.link.Index == s.out.Index {
			continue
		}
		if resolved && e.link.MAC == entry.MAC {
			if entry.State == "PERMANENT" && !answersFor(s.topology, e.link, s.hop) && s.misled() {
				return endpoint{}, lost
			}
			return e, goesOn
		}
		if answersFor(s.topology, e.link, s.hop) {
			have = append(have, e)
		}
		reach.open = reach.open || e.link.ProxyARP || e.link.Tapped
		s.run.switched = s.run.switched || e.link.Tapped
	}
	switch {
	case entry.State == "PERMANENT" && !reach.open && s.misled():
		return endpoint{}, lost
	case entry.State == "PERMANENT" && !reach.open:
		s.run.unread("%s has the MAC %s for %s (%s), and nobody on %s has that MAC", s.run.name(s.place), entry.MAC, s.hop, entry.State, s.out.Name)
		return endpoint{}, blind
	case resolved && reach.open && len(have) == 0:
		return endpoint{}, left // to a machine that is not seen from here
	case len(have) == 0 && (!reach.open || entry.State == "FAILED"):
		return endpoint{}, s.unresolved(state)
	case len(have) == 0:
		return endpoint{}, left
	}
	if slices.ContainsFunc(have, func(e endpoint) bool { return e.link.Netns != have[0].link.Netns }) {
		return s.contested(have)
	}
	if s.deaf(have[0], state) {
		return endpoint{}, lost
	}
	if !resolved && s.unheard(have[0].link) {
		return endpoint{}, s.unresolved(state)
	}
	return have[0], goesOn
}

// misled tells of an entry, made by hand, that leads to another machine than the
// next hop, or to none.
func (s *step) misled() bool {
	if s.trying || s.packet.outer {
		return false
	}
	c := s.lost(trace.SymptomMisled, "")
	c.Event.Hook, c.Event.Device, c.Suspect = trace.HookTransmit, s.out, true
	f, ok := s.foretell(&c)
	if ok {
		s.tell(f)
	}
	return ok
}

// contested chooses among those that answer for the next hop: which one is
// believed nobody knows before. The packet is followed to the one that is to
// answer, else to the first; that another would lose it is told first.
func (s *step) contested(have []endpoint) (endpoint, endKind) {
	to := have[0]
	for _, e := range have {
		if e.link.Netns == s.q.From.Netns {
			to = e
		}
	}
	for _, e := range have {
		if e.link.Netns != to.link.Netns && s.hop == s.packet.tuple.Dst.Addr() && s.packet.direction == trace.Request && !s.packet.outer && s.usurps(e) {
			return endpoint{}, lost
		}
	}
	s.run.unread("several namespaces answer for %s on %s of %s: which one gets the packet cannot be told", s.hop, s.out.Name, s.run.name(s.place))
	return to, goesOn
}

// usurps reports whether a claimant of the packet's destination would lose it, and another not.
func (s *step) usurps(e endpoint) bool {
	at := &step{run: s.run, packet: s.packet, at: position{e.link.Netns, e.link.Index}, place: s.places.Place(e.link.Netns), before: s.packet.tuple, track: s.track}
	state, err := s.read(at.question())
	if err != nil || !state.DstLocal || diagnose.HasListener(&state) {
		return false
	}
	at.state = state
	c := at.lost(trace.SymptomRefused, "NO_SOCKET")
	defer func(was trace.Confidence) { s.most = was }(s.most)
	s.most = trace.Possible // if it is believed
	hops := s.hops()
	*hops = append(*hops, trace.Hop{Place: at.place, In: at.device(e.link.Index), Tuple: s.packet.tuple, Arrived: s.packet.tuple, First: s.now})
	before := len(s.answer.Findings)
	s.explain(&c, &state)
	return len(s.answer.Findings) > before
}

// unresolved tells of a next hop that nobody has.
func (s *step) unresolved(state *trace.HostState) endKind {
	c := s.lost(trace.SymptomDrop, "NEIGH_FAILED")
	c.Event.Device = s.out
	if !state.NextHop.Addr.IsValid() {
		state.NextHop = trace.Neighbor{Addr: s.hop, Device: s.out}
	}
	s.explain(&c, state)
	return lost
}

// deaf reports a next hop that is there and would not answer the ARP request:
// its reverse-path filter drops it.
func (s *step) deaf(to endpoint, state *trace.HostState) bool {
	if s.hop.Is6() || state.NextHop.MAC != "" || !state.SrcLocal {
		return false
	}
	out := s.topology.Links[netstate.Port{Netns: s.at.netns, Index: s.out.Index}]
	if out == nil || out.ARPAnnounce != 0 {
		return false // the request's sender is an address of the link
	}
	c := s.lost(trace.SymptomDrop, "NEIGH_FAILED")
	c.Event.Device, c.Asked = s.out, true
	state.NextHopOwner, state.NextHopDevice = s.places.Place(to.link.Netns), trace.Device{Index: to.link.Index, Name: to.link.Name}
	d, ok := diagnose.Deaf(&c, state)
	if !ok {
		return false
	}
	q, ok := diagnose.Question(&d)
	if !ok {
		return false
	}
	there, err := s.read(q)
	if err != nil || !diagnose.RefusesSource(&there) {
		return false
	}
	s.explain(&d, &there)
	return true
}

// bridges asks the filters of the bridges that the frame passes.
func (s *step) bridges(passed []crossing) endKind {
	for _, b := range passed {
		on := &step{run: s.run, packet: s.packet, at: position{b.netns, b.in}, place: s.places.Place(b.netns), before: s.packet.tuple}
		on.out = on.device(b.out)
		if kind := on.crosses(); kind != goesOn {
			return kind
		}
		if b.in == 0 {
			continue
		}
		q := on.question()
		q.Out, q.Filters = b.out, []trace.NetfilterHook{trace.Ingress}
		state, err := s.read(q)
		if err != nil || !on.judged(&state) {
			continue
		}
		c := on.lost(trace.SymptomDrop, "NETFILTER_DROP")
		c.Event.HasRoute, c.Event.OutIndex = false, 0
		if b.out != 0 {
			c.Event.OtherHost, c.Event.Device = true, on.out
		}
		s.explain(&c, &state)
		return lost
	}
	return goesOn
}

// crosses takes the frame past the programs at a bridge's ports.
func (s *step) crosses() endKind {
	if kind := s.passes(s.at.in, sidesIn); kind != goesOn {
		return kind
	}
	return s.passes(s.out.Index, sidesOut)
}

// notePassed notes the bridges as hops, as they are seen when frames pass.
func (s *step) notePassed(passed []crossing) {
	for _, b := range passed {
		if b.in == 0 || b.out == 0 || s.packet.outer || b.netns == s.at.netns {
			continue
		}
		on := &step{run: s.run, at: position{b.netns, b.in}}
		hops := s.hops()
		*hops = append(*hops, trace.Hop{Place: s.places.Place(b.netns), In: on.device(b.in), Out: on.device(b.out), Tuple: s.packet.tuple, Arrived: s.packet.tuple, Bridged: true, First: s.now})
	}
}

// owns reports whether a namespace delivers an address to itself.
func (r *run) owns(ns trace.Netns, a netip.Addr) bool {
	if owns(r.topology, ns, a) {
		return true
	}
	s, err := r.read(trace.Question{Place: r.places.Place(ns), Packet: trace.Tuple{
		Protocol: r.q.Protocol, Src: r.q.Client, Dst: netip.AddrPortFrom(a, 0),
	}})
	return err == nil && s.DstLocal && strings.EqualFold(s.Onward.Type, "local")
}
