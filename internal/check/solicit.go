package check

import (
	"context"
	"net/netip"

	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/pkg/trace"
)

// Types of neighbour discovery (RFC 4861), and of ARP (RFC 826).
const (
	solicitation  = 135
	advertisement = 136
	arpRequest    = 1
	arpReply      = 2
)

// unheard reports whether a rule keeps the next hop, which is there, from being
// asked for its MAC address, or from answering.
func (s *step) unheard(to *netstate.Link) bool {
	source := s.solicitor()
	if !source.IsValid() {
		return false
	}
	near, far := position{s.at.netns, s.out.Index}, position{to.Netns, to.Index}
	asks := trace.Tuple{Protocol: trace.ICMPv6, Src: netip.AddrPortFrom(source, 0), Dst: netip.AddrPortFrom(solicited(s.hop), 0)}
	answers := trace.Tuple{Protocol: trace.ICMPv6, Src: netip.AddrPortFrom(s.hop, 0), Dst: netip.AddrPortFrom(source, 0)}
	if s.hop.Is4() {
		asks.Dst = netip.AddrPortFrom(s.hop, 0)
	}
	return s.muted(near, asks, trace.Output, solicitation, arpRequest) || s.muted(far, asks, trace.Input, solicitation, arpRequest) ||
		s.muted(far, answers, trace.Output, advertisement, arpReply) || s.muted(near, answers, trace.Input, advertisement, arpReply)
}

// solicitor is the address that asks: the packet's own source where it is this
// host's, else one of the link (arp_solicit, ndisc_solicit).
func (s *step) solicitor() netip.Addr {
	if source := s.packet.tuple.Src.Addr(); s.state.SrcLocal {
		return source
	}
	return s.addressOn(s.out.Index, s.hop)
}

// solicited is the multicast address that a neighbour's solicitation goes to (RFC 4291, section 2.7.1).
func solicited(a netip.Addr) netip.Addr {
	if a.Is4() {
		return a
	}
	b := a.As16()
	return netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]})
}

// muted reports whether a rule of one host takes a message about neighbours.
func (s *step) muted(at position, message trace.Tuple, hook trace.NetfilterHook, kind uint8, arp uint16) bool {
	q := trace.Question{Place: s.places.Place(at.netns), Packet: message, Ahead: true, Conntrack: trace.Conntrack{Info: conntrackUntracked}, Filters: []trace.NetfilterHook{hook}}
	if message.Is6() {
		q.ICMPType = kind
	} else {
		q.ARP = arp
	}
	if hook == trace.Input {
		q.In = at.in
		if message.Is6() {
			q.Filters = []trace.NetfilterHook{trace.Prerouting, trace.Input}
		}
	} else {
		q.Out = at.in
	}
	ctx, cancel := context.WithTimeout(s.ctx, readTimeout)
	defer cancel()
	state, err := s.reader.Read(ctx, q) // what else it cannot tell, as the route to a multicast address, is not asked
	if err != nil || len(state.Filters) == 0 {
		return false
	}
	if len(state.Filters) == 1 && state.Filters[0].Certain && !state.Filters[0].Queue {
		return true
	}
	s.run.unread("%s: whether %s keeps neighbours from being found cannot be told from outside", s.run.name(q.Place), ruleText(&state.Filters[0]))
	return false
}
