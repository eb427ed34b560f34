package diagnose

import (
	"fmt"

	"github.com/replypath/replypath/pkg/trace"
)

var neighborUnresolved = Rule{
	ID:       "neighbor-unresolved",
	Title:    "the next hop (or a stale endpoint) does not answer ARP or ND",
	Severity: trace.Error,
	Doc: "The route is there, but its next hop does not answer, so the packet waits for a MAC address and is dropped when the kernel gives up (about 3 s by default). " +
		"Recognised by the drop reason NEIGH_FAILED, for IPv6 by the function neigh_invalidate, and by the entry in the neighbour table. " +
		"Or the entry has a MAC address that its owner does not have: then nobody drops anything, the packet is lost after it has left, and the linked namespaces are asked who has the address. " +
		"A request is told so only where the entry was made by hand (PERMANENT): of one that was learned, somebody else may answer for the address.",
	explain: explainNeighborOrBelief,
}

func explainNeighborOrBelief(c *trace.Case, s *trace.HostState) *explanation {
	if c.Symptom == trace.SymptomMisled {
		return explainBelief(c, s)
	}
	return explainNeighbor(c, s)
}

func explainNeighbor(c *trace.Case, s *trace.HostState) *explanation {
	if c.Symptom != trace.SymptomDrop || !isNeighborDrop(&c.Event) {
		return nil
	}
	if isQueueFull(&c.Event) && s.Asked() && s.NextHop.State != "FAILED" {
		return nil // it is still being asked; if it does not answer, what waits in the queue will tell
	}
	here := name(c.Place)
	hop, dev := s.NextHop.Addr, c.Event.Device.Name
	if !hop.IsValid() {
		hop = s.Onward.Gateway
	}
	onLink := !s.Onward.Gateway.IsValid()
	if !hop.IsValid() {
		hop = c.Event.Tuple.Dst.Addr()
	}
	if dev == "" {
		dev = s.Onward.Device.Name
	}
	protocol := "ARP"
	if hop.Is6() {
		protocol = "neighbour discovery"
	}
	e := &explanation{
		confidence: trace.Certain,
		device:     dev,
		summary:    fmt.Sprintf("%s gets no answer from the next hop %s on %s", here, hop, dev),
		verify:     []string{at(c.Place, "ip neigh show %s dev %s", hop, quote(dev)) + "   # must show a MAC address (REACHABLE, STALE, DELAY)"},
	}
	switch {
	case !s.Asked():
		e.summary = fmt.Sprintf("%s gets no answer from the next hop towards %s on %s", here, c.Event.Tuple.Dst.Addr(), dev)
		e.cause = fmt.Sprintf("The next hop towards %s on %s does not answer %s. Which one that is could not be read.", c.Event.Tuple.Dst.Addr(), dev, protocol)
		e.verify = []string{at(c.Place, "ip neigh show dev %s", quote(dev)) + "   # must show its MAC address"}
		e.fix = []string{"# " + at(c.Place, "%s route get %s", ipCommand(hop), c.Event.Tuple.Dst.Addr()) + "   # names the next hop: bring it back, or choose another"}
	case s.NextHopOwner.Netns != 0 && hop.Is6():
		e.confidence = trace.Likely
		e.cause = fmt.Sprintf("%s is there, on %s of %s, but does not answer %s: look at what filters ICMPv6 there, and at what is between the two.",
			hop, s.NextHopDevice.Name, name(s.NextHopOwner), protocol)
		e.fix = []string{"# " + at(s.NextHopOwner, "nft list ruleset") + "   # what keeps it from answering"}
	case s.NextHopOwner.Netns != 0:
		e.confidence = trace.Likely
		e.cause = fmt.Sprintf("%s is there, on %s of %s, but does not answer %s: look at its arp_ignore, arp_filter and rp_filter, at ARP filters, and at what is between the two.",
			hop, s.NextHopDevice.Name, name(s.NextHopOwner), protocol)
		e.fix = []string{"# " + at(s.NextHopOwner, "sysctl -a -r 'conf.(all|%s).(arp_|rp_filter)'", s.NextHopDevice.Name) + "   # what keeps it from answering"}
	case onLink:
		e.cause = fmt.Sprintf("%s is to be on the link %s of %s, but does not answer %s: it is down, gone, or not on this link.", hop, dev, here, protocol)
		e.fix = []string{fmt.Sprintf("# bring %s back on the link of %s, or take it out of the service that still sends to it", hop, dev)}
	default:
		e.cause = fmt.Sprintf("The way to %s goes via %s on %s, which does not answer %s: it is down, gone, or not on this link.", c.Event.Tuple.Dst.Addr(), hop, dev, protocol)
		e.fix = []string{"# " + at(c.Place, "%s route replace %s via GATEWAY dev %s%s", ipCommand(hop), showPrefix(s.Onward.Prefix), quote(dev), tableArg(s.Onward.Table)) +
			fmt.Sprintf("   # GATEWAY: a router that answers; or bring %s back", hop)}
	}
	if s.NextHop.State != "" {
		e.evidence = append(e.evidence, state(s, "neighbour %s dev %s is %s", hop, dev, s.NextHop.State))
	}
	return e
}
