package diagnose

import (
	"fmt"

	"github.com/replypath/replypath/pkg/trace"
)

var rpFilterDrop = Rule{
	ID:       "rp-filter-drop",
	Title:    "reverse-path filtering dropped the packet: which sysctl, which device was expected",
	Severity: trace.Error,
	Doc: "The packet came in by another device than the one by which the host would send to its source, and rp_filter (the larger of conf/all and conf/DEV) forbids that. " +
		"Recognised by the drop reason IP_RPFILTER. When there is no route at all back to the client, the missing route is reported instead (reply-no-route). IPv4 only: IPv6 has no such sysctl.",
	explain: explainRPFilter,
}

func explainRPFilter(c *trace.Case, s *trace.HostState) *explanation {
	deaf := c.Symptom == trace.SymptomDeaf
	if !deaf && (c.Symptom != trace.SymptomDrop || !isRPFilterDrop(&c.Event, s)) || deaf && !refusesSource(s) {
		return nil
	}
	in := s.In
	if in.Name == "" {
		in.Name = c.Arrival.Device.Name
	}
	source, here := c.Event.Tuple.Src.Addr(), name(c.Place)
	dev := in.Name
	confidence, what := trace.Certain, "the "+packetName(&c.Event)
	switch {
	case deaf:
		confidence, what = trace.Likely, "the ARP request"
	case c.Event.Reason == "":
		confidence = trace.Likely
	}
	e := &explanation{
		confidence: confidence,
		device:     dev,
		summary:    fmt.Sprintf("reverse-path filtering on %s of %s %s %s from %s", dev, here, tense(c, "dropped", "would drop"), what, source),
		verify: []string{at(c.Place, "sysctl net.ipv4.conf.all.rp_filter %s", sysctlKey("ipv4", dev, "rp_filter")),
			at(c.Place, "ip route get %s", source)},
	}
	if in.RPFilter != 0 {
		e.evidence = append(e.evidence, state(s, "rp_filter of %s is %d (the larger of conf/all=%d and its own)", dev, in.RPFilter, in.RPFilterAll))
	}
	loosen := at(c.Place, "sysctl -w %s=2", sysctlKey("ipv4", dev, "rp_filter"))
	if s.Back.Found() {
		expected := s.Back.Device.Name
		e.cause = fmt.Sprintf("The packet from %s "+tense(c, "came", "comes")+" in by %s, but %s would send to %s by %s; with rp_filter=%d (strict) such a packet is dropped.",
			source, dev, here, source, expected, in.RPFilter) + directAnswer(c, s)
		e.evidence = append(e.evidence, state(s, "route to %s: dev %s%s", source, expected, viaText(s.Back)))
		e.fix = []string{loosen + fmt.Sprintf("   # loose: any route to the source will do (or route %s by %s)", source, dev)}
		return e
	}
	e.cause = fmt.Sprintf("The packet from %s "+tense(c, "came", "comes")+" in by %s, and %s has no route to %s at all; with rp_filter=%d such a packet is dropped.", source, dev, here, source, in.RPFilter)
	e.evidence = append(e.evidence, state(s, "route to %s: none (%s)", source, missText(s.Back.Errno)))
	e.fix = []string{at(c.Place, "ip route add %s dev %s", host(source), quote(dev)) + "   # the filter then sees where the packet comes from"}
	return e
}
