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

var rpFilterDrop = Rule{
	ID:       "rp-filter-drop",
	Title:    "reverse-path filtering dropped the packet: which sysctl, which device was expected",
	Severity: trace.Error,
	Doc: "The packet came in by another device than the one by which the host would send to its source, and rp_filter (the larger of conf/all and conf/DEV) forbids that. " +
		"Recognised by the drop reason IP_RPFILTER. When there is no route at all back to the client, the missing route is reported instead (reply-no-route). IPv4 only: IPv6 has no such sysctl.",
	explain: explainRPFilter,
}

var forwardingDisabled = Rule{
	ID:       "forwarding-disabled",
	Title:    "a hop must forward and `ip_forward` (or IPv6 forwarding) is off",
	Severity: trace.Error,
	Doc: "The packet is for another host, this one has a route to it, and forwarding is off, so it is dropped with IP_INADDRERRORS. A reply is always meant to be forwarded " +
		"where its destination is not local; a request could also be for an address that this host has lost (vip-not-local): listeners and the kind of route decide.",
	explain: explainForwardingDisabled,
}

var vipNotLocal = Rule{
	ID:       "vip-not-local",
	Title:    "traffic for the VIP reached a host that does not own it",
	Severity: trace.Error,
	Doc: "A request reached the host that should serve it, but its destination is not an address of this host, so it is dropped (IP_INADDRERRORS, IP_INNOROUTES) or sent on " +
		"and circles. Certain when a socket here listens on that port, else likely.",
	explain: explainVIPNotLocal,
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
		return s.Back, s.DstLocal && hasListener(s)
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
		e.cause = fmt.Sprintf("The reply came to %s to be sent on, but no route there matches %s, and there is no default route.", here, to)
	case isDSR(c):
		e.cause = fmt.Sprintf("%s answers the client directly: the reply does not go back through the hosts that the request came through (DSR). "+
			"No route there matches %s, and there is no default route, so the answer is never built.", here, to)
	default:
		e.cause = fmt.Sprintf("No route in %s matches %s, and there is no default route, so the answer is never built.", here, to)
	}
	if isRPFilterDrop(&c.Event, s) {
		e.cause += " Reverse-path filtering shows it first: it drops what comes from a source without a route."
	}
	e.fix = []string{addRoute(c, s, to)}
	return e
}

// isDSR reports whether the request passed a host that would have to see the reply too, had it done NAT.
func isDSR(c *trace.Case) bool {
	n := 0
	for i := range c.Path.Request {
		if h := &c.Path.Request[i]; h.In.Index != 0 && h.Out.Index != 0 {
			n++
		}
	}
	return n > 1
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
		return at(c.Place, "%s route get %s from %s%s", ipCommand(to), to, from.Addr(), portArgs(s.Back.Rule, from.Port()))
	case to == ev.Tuple.Dst.Addr() && c.Arrival.Device.Name != "":
		return at(c.Place, "%s route get %s from %s iif %s", ipCommand(to), to, ev.Tuple.Src.Addr(), quote(c.Arrival.Device.Name))
	}
	return at(c.Place, "%s route get %s", ipCommand(to), to)
}

// portArgs adds to `ip route get` what a rule that looks at ports has to see.
func portArgs(rule string, port uint16) string {
	if !strings.Contains(rule, "ipproto") && !strings.Contains(rule, "port") {
		return ""
	}
	return fmt.Sprintf(" ipproto tcp sport %d", port)
}

func explainRouteRejected(c *trace.Case, s *trace.HostState) *explanation {
	l, ok := lookupBack(c, s)
	direction, to := trace.Reply, client(c)
	if !ok && c.Symptom == trace.SymptomDrop && isRoutingDrop(&c.Event) && c.Direction == trace.Request && !s.DstLocal {
		l, ok, direction, to = s.Onward, true, trace.Request, c.Event.Tuple.Dst.Addr()
	}
	if !ok || !l.Done || !l.Rejected() {
		return nil
	}
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
	e.fix = []string{at(c.Place, "%s route del %s %s%s", ipCommand(to), l.Type, showPrefix(l.Prefix), tableArg(l.Table)) + "   # if nobody relies on it"}
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

func explainRPFilter(c *trace.Case, s *trace.HostState) *explanation {
	if c.Symptom != trace.SymptomDrop || !isRPFilterDrop(&c.Event, s) {
		return nil
	}
	in := s.In
	if in.Name == "" {
		in.Name = c.Arrival.Device.Name
	}
	source, here := c.Event.Tuple.Src.Addr(), name(c.Place)
	dev := in.Name
	confidence := trace.Certain
	if c.Event.Reason == "" {
		confidence = trace.Likely
	}
	e := &explanation{
		confidence: confidence,
		device:     dev,
		summary:    fmt.Sprintf("reverse-path filtering on %s of %s dropped the %s from %s", dev, here, packetName(&c.Event), source),
		verify: []string{at(c.Place, "sysctl net.ipv4.conf.all.rp_filter %s", sysctlKey("ipv4", dev, "rp_filter")),
			at(c.Place, "ip route get %s", source)},
	}
	if in.RPFilter != 0 {
		e.evidence = append(e.evidence, state(s, "rp_filter of %s is %d (the larger of conf/all=%d and its own)", dev, in.RPFilter, in.RPFilterAll))
	}
	loosen := at(c.Place, "sysctl -w %s=2", sysctlKey("ipv4", dev, "rp_filter"))
	if s.Back.Found() {
		expected := s.Back.Device.Name
		e.cause = fmt.Sprintf("The packet from %s came in by %s, but %s would send to %s by %s; with rp_filter=%d (strict) such a packet is dropped.",
			source, dev, here, source, expected, in.RPFilter)
		e.evidence = append(e.evidence, state(s, "route to %s: dev %s%s", source, expected, viaText(s.Back)))
		e.fix = []string{loosen + fmt.Sprintf("   # loose: any route to the source will do (or route %s by %s)", source, dev)}
		return e
	}
	e.cause = fmt.Sprintf("The packet from %s came in by %s, and %s has no route to %s at all; with rp_filter=%d such a packet is dropped.", source, dev, here, source, in.RPFilter)
	e.evidence = append(e.evidence, state(s, "route to %s: none (%s)", source, missText(s.Back.Errno)))
	e.fix = []string{at(c.Place, "ip route add %s dev %s", host(source), quote(dev)) + "   # the filter then sees where the packet comes from"}
	return e
}

func viaText(l trace.Lookup) string {
	if l.Gateway.IsValid() {
		return " via " + l.Gateway.String()
	}
	return ""
}

// wasNotTaken reports a packet that this host neither owns nor sent on.
func wasNotTaken(c *trace.Case, s *trace.HostState) bool {
	return c.Symptom == trace.SymptomDrop && isRoutingDrop(&c.Event) && !isRPFilterDrop(&c.Event, s) &&
		c.Event.InIndex != 0 && !s.DstLocal && s.Onward.Done && !s.Onward.Rejected()
}

func explainVIPNotLocal(c *trace.Case, s *trace.HostState) *explanation {
	if c.Direction != trace.Request || s.DstLocal {
		return nil
	}
	vip, here := c.Event.Tuple.Dst, name(c.Place)
	listens := hasListener(s)
	switch {
	case wasLetGo(c):
		if !listens || hasOwnRoute(s) || livesElsewhere(s) {
			return nil
		}
	case !wasNotTaken(c, s) || s.Onward.Found() && (s.Forwarding || mustForward(c, s)):
		return nil
	case !s.Onward.Found() && !listens && ownedElsewhere(c, s):
		return nil // a router that has no route to where the owner is
	}
	e := &explanation{
		confidence: trace.Likely,
		device:     c.Arrival.Device.Name,
		summary:    fmt.Sprintf("%s does not own %s, to which the request was sent", here, vip.Addr()),
		cause:      fmt.Sprintf("The request for %s reached %s, but %s is not one of its addresses.", vip, here, vip.Addr()),
		fix:        []string{at(c.Place, "%s addr add %s dev lo", ipCommand(vip.Addr()), host(vip.Addr())) + fmt.Sprintf("   # if %s is to serve it; else send the traffic to its owner", here)},
		verify:     []string{at(c.Place, "%s route get %s", ipCommand(vip.Addr()), vip.Addr()) + "   # must say local"},
		evidence:   []trace.Evidence{state(s, "%s is not local in %s", vip.Addr(), here)},
	}
	if s.Forwarding && !listens {
		e.confidence = trace.Possible // it may as well be a router without a route
		e.fix[0] = "# " + e.fix[0]
	}
	if listens {
		// What it sent on by another device, and died there, may have come through a
		// gateway that serves the same port itself.
		if passed := wasLetGo(c) && c.Event.ICMPType == 0 && s.Onward.Device.Index != s.In.Index; !passed {
			e.confidence = trace.Certain
		}
		e.cause += fmt.Sprintf(" A socket here listens on port %d and would take it.", vip.Port())
		e.evidence = append(e.evidence, state(s, "a socket listens on %s", s.Listeners[0].Addr))
	}
	if s.Onward.Found() && s.Forwarding {
		e.cause += fmt.Sprintf(" It sends it on, by %s.", s.Onward.Device.Name)
	}
	return e
}

// wasLetGo reports a request that the case's host sent on, or tried to send back
// where it came from.
func wasLetGo(c *trace.Case) bool {
	ev := &c.Event
	return c.Symptom == trace.SymptomLoop ||
		c.Symptom == trace.SymptomDrop && isNeighborDrop(ev) && ev.InIndex != 0 && ev.InIndex == ev.OutIndex
}

// mustForward decides, for a host that has a route to a request's destination
// and neither owns the destination nor forwards, whether it is a router with
// forwarding off or a server that has lost an address. Another host of this node
// that has the address on a link makes it a router. Else a socket on the port
// makes it a server, unless there is a route of its own for the destination and
// somebody else serves it. Without a socket, a way on by another device makes it
// a router; but what came out of a tunnel was meant for this host.
func mustForward(c *trace.Case, s *trace.HostState) bool {
	if livesElsewhere(s) {
		return true
	}
	own := hasOwnRoute(s)
	switch {
	case hasListener(s):
		return own && ownedElsewhere(c, s)
	case own:
		return true
	case s.Onward.Device.Index == s.In.Index:
		return false
	}
	return !isTunnel(s.In.Kind) || ownedElsewhere(c, s)
}

// isTunnel reports whether a kind of device, as ip-link(8) names it, decapsulates.
func isTunnel(kind string) bool {
	switch kind {
	case "vxlan", "geneve", "gre", "gretap", "ip6gre", "ip6gretap", "ipip", "ip6tnl", "sit", "erspan", "ip6erspan", "vti", "vti6", "wireguard", "tun":
		return true
	}
	return false
}

// livesElsewhere reports whether another namespace has the destination as its address on a link.
func livesElsewhere(s *trace.HostState) bool {
	for _, o := range s.Owners {
		if !o.Virtual {
			return true
		}
	}
	return false
}

// hasOwnRoute reports whether the way on is more than the default route, and
// more than the link on which the packet came in.
func hasOwnRoute(s *trace.HostState) bool {
	l := &s.Onward
	if isDefault(l.Prefix) {
		return false
	}
	back := l.Device.Index == s.In.Index && !l.Gateway.IsValid()
	return !back || l.Prefix.IsValid() && l.Prefix.IsSingleIP()
}

// ownedElsewhere reports whether a namespace that the request has not passed yet owns its destination.
func ownedElsewhere(c *trace.Case, s *trace.HostState) bool {
	for _, owner := range s.Owners {
		passed := false
		for i := range c.Path.Request {
			passed = passed || c.Path.Request[i].Place.Netns == owner.Place.Netns
		}
		if !passed {
			return true
		}
	}
	return false
}

func explainForwardingDisabled(c *trace.Case, s *trace.HostState) *explanation {
	if !wasNotTaken(c, s) || s.Forwarding || !s.Onward.Found() {
		return nil
	}
	dst, here := c.Event.Tuple.Dst.Addr(), name(c.Place)
	dev := c.Arrival.Device.Name
	if dev == "" {
		dev = s.In.Name
	}
	key := "net.ipv4.ip_forward"
	if dst.Is6() {
		key = "net.ipv6.conf.all.forwarding"
	} else if s.ForwardingAll {
		key = sysctlKey("ipv4", dev, "forwarding")
	}
	what := "reply"
	if c.Direction == trace.Request {
		what = "request"
	}
	return &explanation{
		confidence: trace.Certain,
		device:     dev,
		summary:    fmt.Sprintf("%s must forward the %s to %s, and forwarding is off", here, what, dst),
		cause: fmt.Sprintf("The %s for %s came to %s by %s. It is not for this host, and its route leads on by %s, but %s is 0.",
			what, dst, here, dev, s.Onward.Device.Name, key),
		fix:      []string{at(c.Place, "sysctl -w %s=1", key)},
		verify:   []string{at(c.Place, "sysctl %s", key)},
		evidence: []trace.Evidence{state(s, "%s = 0; route to %s: dev %s%s", key, dst, s.Onward.Device.Name, viaText(s.Onward))},
	}
}
