package redirect

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/internal/netfilter"
	"github.com/replypath/replypath/pkg/trace"
)

// byMark asks for a packet that is made here and that rules have marked: a route by mark may bring it back by
// lo, where TPROXY takes it. Without that route it leaves as if there were no rule.
func (h *half) byMark(leg *trace.RedirectLeg, s netfilter.Sample, mark uint32) {
	if mark == 0 || s.Out.Name == "lo" {
		return
	}
	back := s
	back.Hook, back.In, back.Out, back.Mark = trace.Prerouting, h.lo(), trace.Interface{}, mark
	met, err := h.rules.Meet(back)
	h.unreadRules(err)
	if !met.Taken || met.Diversion.Kind != netfilter.DivertTProxy {
		return
	}
	there := h.delivered(s.Tuple.Dst.Addr(), mark)
	if there == routeUnknown {
		return
	}
	leg.Excused, leg.Rule, leg.Chain = false, met.Rule, met.Chain
	leg.Handle, leg.Line, leg.Backend = met.Handle, met.Line, met.Backend
	leg.Family, leg.Table, leg.Base = met.Family, met.Table, met.Base
	if there == routeLacks {
		leg.Lacks = h.markRoute(mark)
		return
	}
	h.takenBy(leg, s, met.Diversion)
}

// answersByMark asks whether the answers of an application come back to a proxy that calls it from the address of
// the client: rules give them the mark of the proxy's connection, and a route has to lead them to lo.
func (h *half) answersByMark(leg *trace.RedirectLeg, s netfilter.Sample, mark uint32) {
	if mark == 0 || leg.Kind != string(netfilter.DivertTProxy) || s.Hook != trace.Prerouting {
		return
	}
	answer := netfilter.Sample{Hook: trace.Output, Tuple: s.Tuple.Reverse(), Original: s.Tuple.Reverse(), Out: h.outside(), Reply: true, Owner: h.app, ConnMark: mark}
	met, err := h.rules.Meet(answer)
	h.unreadRules(err)
	if met.Mark != mark || h.delivered(answer.Tuple.Dst.Addr(), mark) != routeLacks {
		return
	}
	leg.Lacks = h.markRoute(mark)
	leg.Lacks.Answers = true
}

// What routes make of a packet.
const (
	routeUnknown = iota
	routeThere   // it is delivered here
	routeLacks   // it leaves, or cannot
)

// delivered asks whether a packet that is made here, with a mark, is delivered here.
func (h *half) delivered(to netip.Addr, mark uint32) int {
	found, err := netlink.RouteGetWithOptions(to.AsSlice(), &netlink.RouteGetOptions{Mark: mark})
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return routeLacks
	case err != nil || len(found) == 0:
		return routeUnknown
	case found[0].Type == unix.RTN_LOCAL:
		return routeThere
	}
	return routeLacks
}

// markRoute finds what there is of a route by mark.
func (h *half) markRoute(mark uint32) *trace.MarkRoute {
	family := netlink.FAMILY_V4
	if h.six {
		family = netlink.FAMILY_V6
	}
	m := &trace.MarkRoute{Mark: mark}
	everywhere := make(map[uint32]bool) // tables with a route that takes all
	routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC, Type: unix.RTN_LOCAL}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
	if err != nil {
		h.unread("routes", err)
	}
	for _, r := range routes {
		if r.Dst == nil || isEverywhere(r.Dst.Mask) {
			everywhere[uint32(r.Table)] = true
			m.Table, m.Route = uint32(r.Table), true
		}
	}
	rules, err := netlink.RuleList(family)
	if err != nil {
		h.unread("routing rules", err)
	}
	for _, r := range rules {
		mask := uint32(0xffffffff)
		if r.Mask != nil {
			mask = *r.Mask
		}
		if r.Mark != 0 && mark&mask == r.Mark && r.Table > 0 {
			m.Table, m.Rule = uint32(r.Table), true
			m.Route = everywhere[m.Table]
			return m
		}
	}
	for m.Table == 0 || !m.Route && slices.ContainsFunc(rules, func(r netlink.Rule) bool { return uint32(r.Table) == m.Table }) {
		m.Table = max(m.Table+1, firstTable) // one that nobody uses
	}
	return m
}

// firstTable is Istio's.
const firstTable = 133

func isEverywhere(mask []byte) bool {
	for _, b := range mask {
		if b != 0 {
			return false
		}
	}
	return true
}
