package check

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/replypath/replypath/internal/netfilter"
	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/pkg/trace"
)

// filters asks whether a rule or policy at one of the hooks drops the packet.
// The state is that of the namespace with the packet's way out.
func (s *step) filters(hooks ...trace.NetfilterHook) (bool, trace.HostState) {
	q := s.question()
	q.Filters, q.Out, q.NextHop = hooks, s.out.Index, s.hop
	if s.at.in != 0 {
		q.In = s.at.in
	}
	state, err := s.read(q)
	if err != nil {
		return false, s.state
	}
	return s.judged(&state), state
}

// judged reports whether the verdicts are a drop that is sure to happen. What
// may happen is told.
func (s *step) judged(state *trace.HostState) bool {
	switch v := state.Filters; {
	case len(v) == 0:
		return false
	case len(v) == 1 && v[0].Queue:
		return s.queued(&v[0])
	case len(v) == 1 && v[0].Certain:
		return true
	default:
		s.run.unread("%s: whether %s (chain %s %s %s) drops the %s cannot be told from outside", s.run.name(s.place),
			ruleText(&v[0]), v[0].Family, v[0].Table, v[0].Chain, kindOf(s.packet))
	}
	return false
}

// queued reports whether a packet that a rule hands to a program is lost, as there is no program.
func (s *step) queued(v *trace.FilterVerdict) bool {
	var served, known bool
	if err := s.Inside(s.ctx, s.place, func() error { served, known = netfilter.Served(v); return nil }); err != nil {
		known = false
	}
	switch {
	case known && !served && v.Bypass:
		return false
	case known && !served && v.Certain:
		return true
	}
	s.run.unread("%s: %s (chain %s %s %s) hands the %s to a program, which may drop it: what it does is not judged", s.run.name(s.place),
		ruleText(v), v.Family, v.Table, v.Chain, kindOf(s.packet))
	return false
}

func ruleText(v *trace.FilterVerdict) string {
	if v.Policy {
		return "the policy"
	}
	return "rule " + v.Rule
}

func kindOf(p *packet) string {
	if p.direction == trace.Reply {
		return "reply"
	}
	return "request"
}

// filtered has the drop explained. The hook is the one that the packet is at
// when it is not known which.
func (s *step) filtered(state trace.HostState, hook trace.NetfilterHook) endKind {
	if h := state.Filters[0].Hook; h != "" {
		hook = h
	}
	c := s.lost(trace.SymptomDrop, "NETFILTER_DROP")
	ev := &c.Event
	if state.Filters[0].Queue {
		ev.Reason, ev.Symbol = "", "nf_queue"
	}
	switch hook {
	case trace.Ingress, trace.Prerouting:
		ev.HasRoute, ev.OutIndex = false, 0
	case trace.Input:
		ev.Input = "ip_local_deliver"
	case trace.Output:
		ev.Device = trace.Device{}
	case trace.Postrouting, trace.Egress:
		ev.Device = s.out
		ev.Input = "ip_forward"
	default:
		ev.Input = "ip_forward"
	}
	s.explain(&c, &state)
	return lost
}

// changeIn marks and rewrites the packet as the rules before routing do, or
// undoes what NAT did to the request. It reports false when its mark cannot be told.
func (s *step) changeIn() bool {
	hook := trace.Prerouting
	if s.at.in == 0 {
		hook = trace.Output
	}
	change, ok := s.changes(hook)
	if !ok {
		return true
	}
	if !change.MarkKnown && !s.marksRoute() {
		change.Mark, change.MarkKnown = s.packet.mark, true // it does not matter
	}
	if s.packet.mark = change.Mark; !change.MarkKnown {
		s.run.unread("%s: the mark that rules give the %s cannot be told from outside, and routing may depend on it", s.run.name(s.place), kindOf(s.packet))
	}
	switch {
	case change.Untracked && !s.packet.about.IsValid():
		s.untrack()
	case s.packet.about.IsValid():
		s.translateAbout()
	case s.restores() && s.track.Info == conntrackReply:
		s.packet.tuple.Dst = s.track.Original.Src
	case s.restores():
		s.packet.tuple.Dst = s.track.Reply.Src
	default:
		s.translateIn(change.Translations)
	}
	s.rewritten(&change)
	return change.MarkKnown
}

// untrack exempts the packet from connection tracking, which then knows of a
// request's connection no more than its reply shows.
func (s *step) untrack() {
	s.track = trace.Conntrack{Info: conntrackUntracked}
	if s.packet.direction == trace.Request && !s.packet.outer && !s.packet.again && !s.packet.later {
		s.exempt[s.at.netns] = true
	}
}

// rewritten gives the packet the addresses that rules write to it, without NAT.
func (s *step) rewritten(change *netfilter.Change) {
	if change.Packet.IsValid() {
		s.packet.tuple = change.Packet
	}
}

// translateAbout gives an ICMP error the destination that NAT here gave to the
// sender of what it is about, as connection tracking does with what is RELATED.
func (s *step) translateAbout() {
	for _, t := range s.tracks[s.at.netns] {
		about := s.packet.about
		switch {
		case t.Reply == t.Original.Reverse():
			continue
		case about == t.Reply.Reverse():
			s.packet.about = t.Original
		case about == t.Original.Reverse():
			s.packet.about = t.Reply
		default:
			continue
		}
		s.packet.tuple.Dst = netip.AddrPortFrom(s.packet.about.Src.Addr(), 0)
		return
	}
}

// marksRoute reports whether a routing rule here looks at marks.
func (s *step) marksRoute() bool {
	family := netlink.FAMILY_V4
	if s.packet.tuple.Is6() {
		family = netlink.FAMILY_V6
	}
	marks := true
	err := s.Inside(s.ctx, s.place, func() error {
		rules, err := netlink.RuleList(family)
		marks = err != nil || slices.ContainsFunc(rules, func(r netlink.Rule) bool { return r.Mark != 0 || r.Mask != nil && *r.Mask != 0 })
		return err
	})
	return err != nil || marks
}

// translateIn rewrites the packet as destination NAT does.
func (s *step) translateIn(found []netfilter.Translation) {
	t, ok := s.chosen(found)
	if !ok || t.Kind != netfilter.DestinationNAT && t.Kind != netfilter.Redirect {
		return
	}
	addr := t.Addr
	if t.Kind == netfilter.Redirect {
		if s.at.in == 0 {
			// A mesh's proxy does that, and asks the same address itself, excepted from the rule.
			s.note("a rule of %s redirects the request to port %d of its own: it is taken that who listens there asks %s",
				s.run.name(s.place), t.Port, s.packet.tuple.Dst)
			return
		}
		addr = s.addressOn(s.at.in, netip.Addr{})
	}
	s.packet.tuple.Dst = rewritten(s.packet.tuple.Dst, addr, t.Port)
	s.track.Reply = s.packet.tuple.Reverse()
}

// translateOut rewrites the packet as source NAT does, or gives a reply the
// source that the client knows.
func (s *step) translateOut() {
	change, _ := s.changes(trace.Postrouting)
	s.noteClamp(&change)
	if s.restores() {
		if s.track.Info == conntrackReply {
			s.packet.tuple.Src = s.track.Original.Dst
		} else {
			s.packet.tuple.Src = s.track.Reply.Dst
		}
		s.rewritten(&change)
		return
	}
	s.rewritten(&change)
	if s.packet.about.IsValid() || s.track.Info == conntrackUntracked || !s.track.Known() {
		return
	}
	t, ok := s.chosen(change.Translations)
	if !ok || t.Kind != netfilter.SourceNAT && t.Kind != netfilter.Masquerade {
		return
	}
	addr := t.Addr
	if t.Kind == netfilter.Masquerade {
		addr = s.addressOn(s.out.Index, s.hop)
	}
	s.packet.tuple.Src = rewritten(s.packet.tuple.Src, addr, t.Port)
	s.track.Reply = s.packet.tuple.Reverse()
}

// clampedHere asks the rules for forwarded packets whether they make TCP agree on
// smaller segments, and mark the connection.
func (s *step) clampedHere() {
	if s.at.in == 0 || s.packet.outer {
		return
	}
	change, _ := s.changes(trace.Forward)
	s.noteClamp(&change)
}

// noteClamp notes such a rule: what the other side sends fits then.
func (s *step) noteClamp(change *netfilter.Change) {
	if !change.Clamped || !s.packet.flags.Has(trace.SYN) || s.packet.outer || s.packet.again {
		return
	}
	if s.packet.direction == trace.Request {
		s.clamped[trace.Reply] = true
	} else {
		s.clamped[trace.Request] = true
	}
}

func rewritten(old netip.AddrPort, addr netip.Addr, port uint16) netip.AddrPort {
	if !addr.IsValid() {
		addr = old.Addr()
	}
	if port == 0 {
		port = old.Port()
	}
	return netip.AddrPortFrom(addr, port)
}

// changes asks what the rules at a hook make of the packet.
func (s *step) changes(hook trace.NetfilterHook) (change netfilter.Change, ok bool) {
	q := s.question()
	q.Out = s.out.Index
	err := s.Inside(s.ctx, s.place, func() (err error) {
		change, err = netfilter.Changes(q, s.interfaceOf(s.at.in), s.interfaceOf(s.out.Index), hook)
		return err
	})
	if err != nil {
		s.run.unread("%s: NAT rules and marks: %s", s.run.name(s.place), strings.ReplaceAll(err.Error(), "\n", "; "))
		return netfilter.Change{}, false
	}
	if !s.packet.outer && !s.packet.later && s.track.Known() {
		s.connMarks[s.at.netns] = change.ConnMark
	}
	return change, true
}

// chosen is what NAT makes of the packet. Of several backends it takes the one
// that is asked about.
func (s *step) chosen(found []netfilter.Translation) (netfilter.Translation, bool) {
	for _, t := range found {
		if t.Certain && !t.Unknown {
			return t, true
		}
		if t.Addr.IsValid() && !t.Unknown && s.run.owns(s.q.From.Netns, t.Addr) {
			return t, true
		}
	}
	if slices.ContainsFunc(found, func(t netfilter.Translation) bool { return t.Certain || t.Unknown }) {
		s.run.unread("%s: to which address NAT rewrites the request cannot be told from outside", s.run.name(s.place))
	}
	return netfilter.Translation{}, false
}

func (s *step) interfaceOf(index uint32) trace.Interface {
	l := s.topology.Links[netstate.Port{Netns: s.at.netns, Index: index}]
	if l == nil {
		return trace.Interface{}
	}
	return trace.Interface{Device: trace.Device{Index: index, Name: l.Name}, Kind: l.Kind, Up: l.Up}
}

// addressOn is the address of a device that source NAT or a redirect takes: one
// in the next hop's prefix, else the first (inet_select_addr, net/ipv4/devinet.c).
func (s *step) addressOn(index uint32, hop netip.Addr) netip.Addr {
	l := s.topology.Links[netstate.Port{Netns: s.at.netns, Index: index}]
	if l == nil {
		return netip.Addr{}
	}
	var first netip.Addr
	for _, p := range l.Addresses {
		a := p.Addr()
		if a.Is6() != s.packet.tuple.Is6() || a.IsLinkLocalUnicast() && !hop.IsLinkLocalUnicast() {
			continue
		}
		if hop.IsValid() && p.Masked().Contains(hop) {
			return a
		}
		if !first.IsValid() {
			first = a
		}
	}
	return first
}
