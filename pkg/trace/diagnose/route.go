package diagnose

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/replypath/replypath/pkg/trace"
)

var replyNoRoute = Rule{
	ID:       "reply-no-route",
	Title:    "the host that must answer has no route back to the client",
	Severity: trace.Error,
	Doc: "The request was delivered, and the host that must answer (or a router on the way back) has no route to the client, so the answer is " +
		"never built and the kernel reports no drop. Recognised by the silence after the SYN (nothing left within 200 ms), the failed route lookup " +
		"towards the client, and the namespace's own answer to the same lookup; on a router by the drop with reason IP_INNOROUTES; and behind reverse-path " +
		"filtering, which drops the request first when there is no route to its source.",
	explain: explainNoRoute,
}

var replyRouteRejected = Rule{
	ID:       "reply-route-rejected",
	Title:    "a blackhole, unreachable or prohibit route, on the answering host or a router on the way back",
	Severity: trace.Error,
	Doc: "A route (or a routing rule) of type blackhole, unreachable or prohibit covers the packet's destination. On the answering host the answer is never " +
		"built and nothing is dropped; on a router the packet dies in ip_error or dst_discard. The route is named by its prefix and table, as the tables are read when the case opens.",
	explain: explainRouteRejected,
}

// client is the address that the reply must reach.
func client(c *trace.Case) netip.Addr {
	if c.Direction == trace.Reply && c.Symptom != trace.SymptomSilence {
		return c.Event.Tuple.Dst.Addr()
	}
	return c.Event.Tuple.Src.Addr()
}

// lookupBack returns the failed way back to the client that explains the case,
// as this host sees it: of the answer that it must build, of the reply that it
// must forward, or of the request that rp_filter refuses.
func lookupBack(c *trace.Case, s *trace.HostState) (l trace.Lookup, ok bool) {
	switch {
	case c.Symptom == trace.SymptomSilence:
		return s.Back, s.DstLocal && (hasListener(s) || c.Asked)
	case isRerouted(c, s):
		return s.Onward, c.Direction == trace.Reply
	case c.Symptom != trace.SymptomDrop || !isRoutingDrop(&c.Event):
		return l, false
	case c.Direction == trace.Reply && !isRPFilterDrop(&c.Event, s):
		return s.Onward, !s.DstLocal
	case c.Direction == trace.Request && isRPFilterDrop(&c.Event, s):
		return s.Back, true
	}
	return l, false
}

// lookupHook is the hook that showed the failed lookup, where one did.
func lookupHook(c *trace.Case) string {
	if c.Symptom == trace.SymptomSilence && c.Miss.Hook != trace.HookUnknown {
		return c.Miss.Hook.String()
	}
	return ""
}

func explainNoRoute(c *trace.Case, s *trace.HostState) *explanation {
	if c.Symptom == trace.SymptomAstray {
		return explainAstray(c, s)
	}
	if e := explainUnderlay(c, s, trace.Reply, false); e != nil {
		return e
	}
	l, ok := lookupBack(c, s)
	if !ok || !l.Done || l.Found() || l.Rejected() {
		return nil
	}
	to := client(c)
	here := name(c.Place)
	e := &explanation{
		confidence: trace.Certain,
		direction:  trace.Reply,
		hook:       lookupHook(c),
		summary:    fmt.Sprintf("%s has no route back to the client %s", here, to),
		verify:     []string{verifyRoute(c, s, to)},
		device:     c.Arrival.Device.Name,
		evidence:   []trace.Evidence{state(s, "route to %s in %s: none (%s)", to, here, missText(l.Errno))},
	}
	switch {
	case c.Direction == trace.Reply && c.Symptom == trace.SymptomDrop && c.Event.InIndex != 0:
		e.cause = fmt.Sprintf("The reply "+tense(c, "came", "comes")+" to %s to be sent on, but no route there matches %s, and there is no default route.", here, to)
	default:
		e.cause = fmt.Sprintf("No route in %s matches %s, and there is no default route, so the answer is never built.", here, to)
	}
	if isRPFilterDrop(&c.Event, s) {
		e.cause += " Reverse-path filtering shows it first: it drops what comes from a source without a route."
	}
	e.fix = []string{addRoute(c, s, to)}
	if l.Type == "throw" && l.Table == tableMain && l.Prefix.IsValid() {
		explainThrow(e, c, l, to)
	}
	return e
}

// explainThrow tells of a route that ends the lookup in a table, before any
// shorter one there is tried, where no table is looked into after it.
func explainThrow(e *explanation, c *trace.Case, l trace.Lookup, to netip.Addr) {
	e.cause = fmt.Sprintf("%s has the throw route %s in table main, which covers %s: it ends the lookup there, whatever other route of the table matches, and no table after it has one.",
		name(c.Place), showPrefix(l.Prefix), to)
	e.fix = []string{
		at(c.Place, "%s route del throw %s", ipCommand(to), showPrefix(l.Prefix)) + "   # if nobody relies on it",
		"# and, if no other route matches then: " + strings.TrimPrefix(e.fix[0], "# "),
	}
	e.evidence[0].Text = strings.TrimSuffix(e.evidence[0].Text, "none (no match)") + "none (throw " + showPrefix(l.Prefix) + ", table main)"
}

// addRoute is the command that gives the host a way back to the client.
func addRoute(c *trace.Case, s *trace.HostState, to netip.Addr) string {
	gateway, dev, why := chooseGateway(c, s)
	if !gateway.IsValid() {
		device := c.Arrival.Device.Name
		if device == "" {
			device = "DEVICE"
		}
		return "# " + at(c.Place, "%s route add default via GATEWAY dev %s", ipCommand(to), device) + "   # GATEWAY: the router towards the client; this host knows none"
	}
	return at(c.Place, "%s route add default via %s dev %s", ipCommand(to), gateway, quote(dev)) + "   # " + why
}

// chooseGateway finds a router that this host can reach: on this node, the
// nearest to the client that the request came through; else one that the host
// already uses on the device that the request came in by; else the neighbour
// that handed it the request.
func chooseGateway(c *trace.Case, s *trace.HostState) (gateway netip.Addr, device, why string) {
	for _, g := range s.PathGateways {
		return g.Addr, g.Device.Name, fmt.Sprintf("%s is the router on the request's way", g.Addr)
	}
	inUse := fmt.Sprintf("is a gateway that %s uses already", name(c.Place))
	for _, g := range s.Gateways {
		if g.Device.Index == c.Arrival.Device.Index {
			return g.Addr, g.Device.Name, fmt.Sprintf("%s %s", g.Addr, inUse)
		}
	}
	if c.Direction == trace.Request || c.Symptom == trace.SymptomSilence {
		if s.PreviousHop.IsValid() && c.Arrival.Device.Name != "" {
			return s.PreviousHop, c.Arrival.Device.Name, fmt.Sprintf("%s is where the request came from", s.PreviousHop)
		}
	}
	for _, g := range s.Gateways {
		return g.Addr, g.Device.Name, fmt.Sprintf("%s %s", g.Addr, inUse)
	}
	return netip.Addr{}, "", ""
}

// verifyRoute is the lookup that must succeed once the fault is mended: as the
// host that answers makes it, or as a router does for the packet that came in.
func verifyRoute(c *trace.Case, s *trace.HostState, to netip.Addr) string {
	ev := &c.Event
	switch {
	case s.DstLocal && to == ev.Tuple.Src.Addr():
		from := ev.Tuple.Dst
		if back := c.Miss.Tuple; back.IsValid() && back.Dst.Addr() == to {
			from = back.Src
		}
		return at(c.Place, "%s route get %s from %s%s", ipCommand(to), to, from.Addr(), portArgs(s.Back.Rule, ev.Tuple.Protocol, from.Port()))
	case isRerouted(c, s) && ev.Mark != 0:
		return at(c.Place, "%s route get %s from %s mark %#x", ipCommand(to), to, ev.Tuple.Src.Addr(), ev.Mark)
	case to == ev.Tuple.Dst.Addr() && c.Arrival.Device.Name != "":
		mark := ""
		if ev.Mark != 0 {
			mark = fmt.Sprintf(" mark %#x", ev.Mark)
		}
		return at(c.Place, "%s route get %s from %s iif %s%s", ipCommand(to), to, ev.Tuple.Src.Addr(), quote(c.Arrival.Device.Name), mark)
	}
	return at(c.Place, "%s route get %s", ipCommand(to), to)
}

// portArgs adds to `ip route get` what a rule that looks at ports has to see.
func portArgs(rule string, protocol trace.Protocol, port uint16) string {
	if !strings.Contains(rule, "ipproto") && !strings.Contains(rule, "port") {
		return ""
	}
	return fmt.Sprintf(" ipproto %s sport %d", protocol, port)
}

func explainRouteRejected(c *trace.Case, s *trace.HostState) *explanation {
	if e := explainUnderlay(c, s, trace.Reply, true); e != nil {
		return e
	}
	l, ok := lookupBack(c, s)
	if !ok || !l.Done || !l.Rejected() {
		return nil
	}
	return explainRejection(c, s, l, trace.Reply, client(c))
}

// explainRejection tells of a route or rule that refuses what goes to an address.
func explainRejection(c *trace.Case, s *trace.HostState, l trace.Lookup, direction trace.Direction, to netip.Addr) *explanation {
	here := name(c.Place)
	e := &explanation{
		confidence: trace.Certain,
		direction:  direction,
		hook:       lookupHook(c),
		device:     c.Arrival.Device.Name,
		verify:     []string{verifyRoute(c, s, to)},
		evidence:   []trace.Evidence{state(s, "route to %s in %s: %s", to, here, showRejection(l))},
	}
	what := "the reply"
	if direction == trace.Request {
		what = "the request"
	}
	e.summary = fmt.Sprintf("%s refuses %s to %s: %s", here, what, to, showRejection(l))
	e.cause = fmt.Sprintf("%s has %s, which covers %s, so %s ends there on purpose.", here, showRejection(l), to, what)
	if l.Rule != "" {
		e.fix = []string{at(c.Place, "%s rule del %s", ipCommand(to), ruleArgs(l.Rule)) + "   # if nobody relies on it"}
		return e
	}
	if !l.Prefix.IsValid() {
		e.confidence = trace.Likely
		e.fix = []string{"# " + at(c.Place, "%s route show table all type %s", ipCommand(to), l.Type) + "   # find the route that covers " + to.String() + " and delete it"}
		return e
	}
	if gateway, dev, why := chooseGateway(c, s); direction == trace.Reply && isDefault(l.Prefix) && gateway.IsValid() {
		// What ends a table (a VRF's above all) stands there for want of a default route.
		e.fix = []string{at(c.Place, "%s route replace default via %s dev %s%s", ipCommand(to), gateway, quote(dev), tableArg(l.Table)) + "   # " + why}
		return e
	}
	e.fix = []string{
		at(c.Place, "%s route del %s %s%s", ipCommand(to), l.Type, showPrefix(l.Prefix), tableArg(l.Table)) + "   # if nobody relies on it",
		fmt.Sprintf("# and, if no other route of %s matches %s then, give it one", here, to),
	}
	if direction == trace.Request {
		e.fix = append(e.fix[:1], "# and, if no other route matches then: "+strings.TrimPrefix(addWay(c, s, to)[0], "# "))
	}
	return e
}

// ruleArgs turns a rule as `ip rule` prints it ("60: from all prohibit") into
// what `ip rule del` takes.
func ruleArgs(rule string) string {
	if pref, rest, ok := strings.Cut(rule, ":"); ok && !strings.ContainsAny(pref, " .") {
		return "pref " + pref + " " + strings.TrimSpace(rest)
	}
	return rule
}

// showRejection names the route or rule that refuses.
func showRejection(l trace.Lookup) string {
	switch {
	case l.Rule != "":
		return "the routing rule " + strings.TrimSpace(l.Rule)
	case l.Prefix.IsValid():
		return fmt.Sprintf("the %s route %s in table %s", l.Type, showPrefix(l.Prefix), showTable(l.Table))
	}
	article := "a "
	if l.Type == "unreachable" {
		article = "an "
	}
	return article + l.Type + " route"
}

func viaText(l trace.Lookup) string {
	if l.Gateway.IsValid() {
		return " via " + l.Gateway.String()
	}
	return ""
}
