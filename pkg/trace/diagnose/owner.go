package diagnose

import (
	"fmt"

	"github.com/replypath/replypath/pkg/trace"
)

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
	Doc: "A request reached the host that should serve it, but its destination is not an address of this host, so it is dropped (IP_INADDRERRORS, IP_INNOROUTES) or sent on, " +
		"and circles or is not seen again; the latter counts only where the host before has a route to this one for that address alone. Certain when a socket here listens on that port, else likely.",
	explain: explainVIPNotLocal,
}

// wasNotTaken reports a packet that this host neither owns nor sent on.
func wasNotTaken(c *trace.Case, s *trace.HostState) bool {
	return c.Symptom == trace.SymptomDrop && isRoutingDrop(&c.Event) && !isRPFilterDrop(&c.Event, s) && !isMartian(&c.Event) &&
		c.Event.InIndex != 0 && !s.DstLocal && s.Onward.Done && !s.Onward.Rejected()
}

func explainVIPNotLocal(c *trace.Case, s *trace.HostState) *explanation {
	if c.Direction != trace.Request || s.DstLocal {
		return nil
	}
	vip, here := c.Event.Tuple.Dst, name(c.Place)
	listens := hasListener(s)
	switch {
	case c.Symptom == trace.SymptomAsked:
	case wasLetGo(c):
		if !listens || hasOwnRoute(s) || livesElsewhere(s) {
			return nil
		}
		if c.Symptom == trace.SymptomStray && !isAppointed(s) {
			return nil // a gateway that serves the port, too, and whatever its clients ask beyond it
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
		cause:      fmt.Sprintf("The request for %s "+tense(c, "reached", "comes to")+" %s, but %s is not one of its addresses.", vip, here, vip.Addr()),
		fix:        []string{at(c.Place, "%s addr add %s dev lo", ipCommand(vip.Addr()), host(vip.Addr())) + fmt.Sprintf("   # if %s is to serve it; else send the traffic to its owner", here)},
		verify:     []string{at(c.Place, "%s route get %s", ipCommand(vip.Addr()), vip.Addr()) + "   # must say local"},
		evidence:   []trace.Evidence{state(s, "%s is not local in %s", vip.Addr(), here)},
	}
	if c.Asked {
		e.summary = fmt.Sprintf("%s does not own %s, with which it is to answer", here, vip.Addr())
		for _, o := range s.Owners {
			e.cause += fmt.Sprintf(" %s has it.", name(o.Place))
		}
	}
	if s.Forwarding && !listens && c.Symptom != trace.SymptomAsked {
		e.confidence = trace.Possible // it may as well be a router without a route
		e.summary = fmt.Sprintf("%s has no route to %s, and does not own it", here, vip.Addr())
		e.fix[0] = "# " + e.fix[0]
	}
	if listens {
		// What it sent on by another device, and died there, may have come through a
		// gateway that serves the same port itself.
		h := requestAt(&c.Path, c.Place.Netns)
		circles := c.Event.ICMPType != 0 || h != nil && h.Rounds > 0
		passed := c.Symptom == trace.SymptomStray || wasLetGo(c) && !circles && s.Onward.Device.Index != s.In.Index
		if !passed {
			e.confidence = trace.Certain
		}
		e.cause += fmt.Sprintf(" A socket here listens on port %d and would take it.", vip.Port())
		e.evidence = append(e.evidence, state(s, "a socket listens on %s", s.Listeners[0].Addr))
	}
	if c.Symptom == trace.SymptomStray {
		e.cause += fmt.Sprintf(" The host before has a route for %s alone, and it leads here.", vip.Addr())
		e.evidence = append(e.evidence, state(s, "the host before sends %s here by its route %s", vip.Addr(), showPrefix(s.Sent.Prefix)))
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
	return c.Symptom == trace.SymptomLoop || c.Symptom == trace.SymptomStray && c.Suspect ||
		c.Symptom == trace.SymptomDrop && isNeighborDrop(ev) && ev.InIndex != 0 && ev.InIndex == ev.OutIndex
}

// DependsOnSender reports whether the cause depends on why the packet was sent to
// this host: then HostState.Sent has to be filled.
func DependsOnSender(c *trace.Case, s *trace.HostState) bool {
	if l, ok := lookupOnward(c, s); ok && !l.Rejected() {
		return c.Event.InIndex != 0
	}
	return c.Symptom == trace.SymptomStray && c.Suspect && !s.DstLocal && hasListener(s)
}

// isAppointed reports whether the host before has a route to this one for the
// packet's destination alone: so a service's address is led to who serves it.
func isAppointed(s *trace.HostState) bool {
	return s.Sent.Found() && s.Sent.Prefix.IsValid() && s.Sent.Prefix.IsSingleIP()
}

// mustForward decides, for a host that has a route to a request's destination
// and neither owns the destination nor forwards, whether it is a router with
// forwarding off or a server that has lost an address. Another host of this node
// that has the address on a link makes it a router. Else a socket on the port
// makes it a server, unless there is a route of its own for the destination and
// somebody else serves it. Without a socket, a way on by another device makes it
// a router; but what came out of a tunnel was meant for this host.
func mustForward(c *trace.Case, s *trace.HostState) bool {
	switch {
	case s.Onward.Device.Name == "lo":
		return false // an IPv6 address that is not usable yet
	case livesElsewhere(s):
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
	return !trace.IsTunnel(s.In.Kind) || ownedElsewhere(c, s)
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
	dev := s.In.Name // a VLAN's or VRF's, where the arrival was seen below it
	if dev == "" {
		dev = c.Arrival.Device.Name
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
		cause: fmt.Sprintf("The %s for %s "+tense(c, "came", "comes")+" to %s by %s. It is not for this host, and its route leads on by %s, but %s is 0.",
			what, dst, here, dev, s.Onward.Device.Name, key),
		fix:      []string{at(c.Place, "sysctl -w %s=1", key)},
		verify:   []string{at(c.Place, "sysctl %s", key)},
		evidence: []trace.Evidence{state(s, "%s = 0; route to %s: dev %s%s", key, dst, s.Onward.Device.Name, viaText(s.Onward))},
	}
}
