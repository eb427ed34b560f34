package diagnose

import (
	"fmt"
	"net/netip"

	"github.com/replypath/replypath/pkg/trace"
)

var requestNoRoute = Rule{
	ID:       "request-no-route",
	Title:    "a hop has no route towards the server",
	Severity: trace.Error,
	Doc: "A router, load balancer or node that has to send the request on finds no route for its destination (after NAT, for what it was rewritten to), and drops it (IP_INNOROUTES); " +
		"its ICMP error may reach the client, or be filtered. A host that does not forward, or on which a socket listens, is rather one that has lost the address (vip-not-local). " +
		"Certain when another namespace of this node has the address, likely when it is seen that a route for more than that address leads here, else possible. A client whose own host has no route sends nothing, and connect() says so at once: as programs try " +
		"addresses that they cannot reach on purpose (IPv6 before IPv4), that is told by `check reply` alone.",
	explain: explainRequestNoRoute,
}

var requestRouteRejected = Rule{
	ID:       "request-route-rejected",
	Title:    "a blackhole, unreachable or prohibit route on a hop towards the server",
	Severity: trace.Error,
	Doc: "A route (or a routing rule) of type blackhole, unreachable or prohibit covers the request's destination on a hop that has to send it on, so that it dies there, in ip_error or " +
		"dst_discard. The route is named by its prefix and table, as the tables are read when the case opens.",
	explain: explainRequestRejected,
}

// lookupOnward returns the failed way to the server that explains the case: of a
// request that this host must forward, or that its own rules sent elsewhere.
func lookupOnward(c *trace.Case, s *trace.HostState) (l trace.Lookup, ok bool) {
	ev := &c.Event
	if c.Direction != trace.Request || s.DstLocal || c.Symptom != trace.SymptomDrop || !s.Onward.Done || s.Onward.Found() {
		return l, false
	}
	forwarded := isRoutingDrop(ev) && !isRPFilterDrop(ev, s) && !isMartian(ev)
	return s.Onward, forwarded || isRerouted(c, s)
}

// lacksWay reports whether this host should have a route for the request, and
// has none; it is not one that should own the destination.
func lacksWay(c *trace.Case, s *trace.HostState) bool {
	l, ok := lookupOnward(c, s)
	switch {
	case !ok || l.Rejected():
		return false
	case c.Event.InIndex == 0:
		return isRerouted(c, s) || c.Asked
	case !s.Forwarding:
		return false
	case hasListener(s):
		return livesElsewhere(s) && s.Sent.Found() && !isAppointed(s)
	}
	return ownedElsewhere(c, s) || !isAppointed(s)
}

func explainRequestNoRoute(c *trace.Case, s *trace.HostState) *explanation {
	if e := explainUnderlay(c, s, trace.Request, false); e != nil {
		return e
	}
	if !lacksWay(c, s) {
		return nil
	}
	to, here := c.Event.Tuple.Dst.Addr(), name(c.Place)
	e := &explanation{
		confidence: trace.Certain,
		direction:  trace.Request,
		device:     c.Arrival.Device.Name,
		summary:    fmt.Sprintf("%s has no route for the request to %s", here, to),
		cause:      fmt.Sprintf("The request "+tense(c, "came", "comes")+" to %s to be sent on to %s, but no route there matches, and there is no default route.", here, to),
		fix:        addWay(c, s, to),
		verify:     []string{verifyRoute(c, s, to)},
		evidence:   []trace.Evidence{state(s, "route to %s in %s: none (%s)", to, here, missText(s.Onward.Errno))},
	}
	asked := c.Path.Server.Addr()
	rewritten := asked.IsValid() && asked != to && !c.Event.Carried.Known()
	switch {
	case c.Event.InIndex == 0 && rewritten:
		e.cause = fmt.Sprintf("%s made the request for %s, and its own rules (NAT, or a mark) lead it to %s, for which it has no route.", here, asked, to)
	case c.Event.InIndex == 0:
		e.cause = fmt.Sprintf("No route in %s matches %s, and there is no default route, so the request is never sent.", here, to)
	case rewritten:
		e.cause = fmt.Sprintf("%s translates the request for %s to %s (NAT), for which no route there matches, and there is no default route.", here, asked, to)
	}
	if s.Onward.Type == "throw" && s.Onward.Table == tableMain && s.Onward.Prefix.IsValid() {
		explainThrow(e, c, s.Onward, to)
	}
	switch owners := s.Owners; {
	case c.Event.InIndex == 0:
	case len(owners) == 0 || !ownedElsewhere(c, s):
		e.confidence = trace.Likely
		e.cause += fmt.Sprintf(" Nobody on this node has %s.", to)
		if !s.Sent.Found() {
			e.confidence = trace.Possible // who knows whether this host is the one that should have it
			e.fix = append(e.fix, fmt.Sprintf("# or, if %s is to serve it: ", here)+at(c.Place, "%s addr add %s dev lo", ipCommand(to), host(to)))
		}
	default:
		e.cause += fmt.Sprintf(" %s has that address.", name(owners[0].Place))
		if !livesElsewhere(s) && isAppointed(s) {
			e.confidence = trace.Likely // it may be led here to be served here
		}
	}
	return e
}

// addWay is the command that gives the host a way to the server.
func addWay(c *trace.Case, s *trace.HostState, to netip.Addr) []string {
	for _, g := range s.Onwards {
		if g.Addr == to {
			continue
		}
		return []string{at(c.Place, "%s route add %s via %s dev %s", ipCommand(to), host(to), g.Addr, quote(g.Device.Name)) +
			fmt.Sprintf("   # %s is on that link, and knows the way", g.Addr)}
	}
	return []string{"# " + at(c.Place, "%s route add %s via GATEWAY", ipCommand(to), host(to)) + fmt.Sprintf("   # GATEWAY: the next router towards %s, or `dev DEVICE` where it is on a link of this host", to)}
}

func explainRequestRejected(c *trace.Case, s *trace.HostState) *explanation {
	if e := explainUnderlay(c, s, trace.Request, true); e != nil {
		return e
	}
	l, ok := lookupOnward(c, s)
	if !ok || !l.Rejected() {
		return nil
	}
	return explainRejection(c, s, l, trace.Request, c.Event.Tuple.Dst.Addr())
}

// DependsOnWay reports whether the mend depends on who knows the way to the
// packet's destination: then HostState.Onwards has to be filled.
func DependsOnWay(c *trace.Case, s *trace.HostState) bool {
	_, ok := lookupOnward(c, s)
	return ok
}
