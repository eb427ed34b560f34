package diagnose

import (
	"fmt"
	"syscall"

	"github.com/replypath/replypath/pkg/trace"
)

// A service network with direct server return tunnels the request unchanged to
// the node of the endpoint. That node translates, and so it is the one that has
// to answer the client, with the service's address.

// directHop returns the hop of a place that got the request out of a tunnel,
// translated it, and so has to answer for the service. What comes out of a
// tunnel that is made in user space comes in by no device.
func directHop(c *trace.Case) (at *trace.Hop, ingress *trace.Place) {
	for i := range c.Path.Request {
		h := &c.Path.Request[i]
		if h.Place.Netns != c.Place.Netns {
			if at == nil && h.In.Index != 0 && h.Out.Index != 0 && h.Tuple.Dst == c.Path.Server {
				ingress = &h.Place
			}
			continue
		}
		if c.Direction == trace.Reply && h.In.Index == 0 && h.Out.Index != 0 && h.Tuple.Dst != c.Path.Server && ingress != nil {
			return h, ingress
		}
	}
	return nil, nil
}

// directAnswer says why this host must know the way to the client; "" when it
// only stands on the way, or is an ordinary server.
func directAnswer(c *trace.Case, s *trace.HostState) string {
	h, ingress := directHop(c)
	if h == nil {
		return ownAnswer(c, s)
	}
	return fmt.Sprintf(" %s only tunnelled the request here, with %s still its destination, and %s itself translated that to %s: "+
		"so %s has to answer the client directly, with %s as source (DSR).",
		name(*ingress), c.Path.Server, name(c.Place), h.Tuple.Dst, name(c.Place), c.Path.Server)
}

// ownAnswer tells of a host that has a service's address among its own, and got
// the request from a load balancer, as it was: one that is seen, or on another node.
func ownAnswer(c *trace.Case, s *trace.HostState) string {
	at := requestAt(&c.Path, c.Place.Netns)
	if at == nil || !s.Virtual || at.Out.Index != 0 {
		return ""
	}
	var balancer *trace.Hop
	for i := range c.Path.Request {
		h := &c.Path.Request[i]
		if translates(h) {
			return "" // and has to see the reply
		}
		if h.In.Index != 0 && h.Out.Index != 0 && !h.Bridged {
			balancer = h
		}
	}
	here, asked := name(c.Place), at.Tuple.Dst
	switch {
	case balancer != nil:
		return fmt.Sprintf(" %s has the service's address itself, so %s answers the client directly, with %s as source: "+
			"the reply does not go back through %s, from which the request came (DSR).", here, here, asked, name(balancer.Place))
	case c.Path.Request[0].In.Index != 0: // from another node
		return fmt.Sprintf(" %s has the service's address itself, so %s answers the client directly, with %s as source (DSR).", here, here, asked)
	}
	return ""
}

// astray returns the case of the host that sent a reply to a router which has no
// way to the client and which the request did not come through: it may be the
// router's fault, or that of the host which chose it.
func astray(c *trace.Case) (trace.Case, bool) {
	if c.Direction != trace.Reply || c.Symptom != trace.SymptomDrop || !foundNothing(c) ||
		requestHop(c, c.Place.Netns) != nil {
		return trace.Case{}, false
	}
	var from *trace.Hop
	for i := range c.Path.Reply {
		h := &c.Path.Reply[i]
		if h.Place.Netns == c.Place.Netns {
			break
		}
		if h.Out.Index != 0 && requestHop(c, h.Place.Netns) != nil {
			from = h
		}
	}
	if from == nil || from.Tuple.Dst.Addr() != c.Event.Tuple.Dst.Addr() {
		return trace.Case{}, false
	}
	a := *c
	a.Symptom, a.Place = trace.SymptomAstray, from.Place
	a.Event.Netns, a.Event.Device, a.Event.InIndex, a.Event.OutIndex = from.Place.Netns, from.Out, from.In.Index, from.Out.Index
	a.Event.Tuple, a.Event.Hook = from.Tuple, trace.HookTransmit
	a.Arrival, a.Miss = trace.Event{}, trace.Event{}
	return a, true
}

// foundNothing reports the drop of a packet that no route matched. IPv6 says so
// by the function that the lookup gave the packet to (which some kernels have
// inlined into one that it shares with others), and its last failed lookup may
// be that for the ICMP error.
func foundNothing(c *trace.Case) bool {
	if c.Event.Tuple.Is6() {
		return isRoutingDrop(&c.Event) && (hasPrefix(c.Event.Input, "ip6_pkt_discard") || hasPrefix(c.Event.Symbol, "ip6_pkt_discard"))
	}
	return isRoutingDrop(&c.Event) && c.Miss.Hook != trace.HookUnknown && (c.Miss.Errno == syscall.EAGAIN || c.Miss.Errno == syscall.ENETUNREACH)
}

// requestHop returns the last hop of the request in a namespace.
func requestHop(c *trace.Case, ns trace.Netns) *trace.Hop {
	var last *trace.Hop
	for i := range c.Path.Request {
		if h := &c.Path.Request[i]; h.Place.Netns == ns {
			last = h
		}
	}
	return last
}

// explainAstray blames the host that chose the router, where it got the request
// from elsewhere (a tunnel, a load balancer's own link) and has on yet another
// link a router that the request came through: that one knows the client.
func explainAstray(c *trace.Case, s *trace.HostState) *explanation {
	h := requestHop(c, c.Place.Netns)
	l := s.Onward
	if h == nil || !l.Found() || l.Type != "unicast" || l.Table != tableMain || len(s.PathGateways) == 0 {
		return nil
	}
	g := s.PathGateways[0]
	if g.Device.Index == l.Device.Index || h.In.Index == g.Device.Index || h.In.Index == l.Device.Index {
		return nil
	}
	to, here := client(c), name(c.Place)
	prefix := l.Prefix
	if !prefix.IsValid() {
		prefix = host(to)
	}
	e := &explanation{
		confidence: trace.Likely,
		summary:    fmt.Sprintf("%s sends the reply to %s the wrong way: by %s, where no router knows the client", here, to, l.Device.Name),
		cause: fmt.Sprintf("Route %s of %s leads%s by %s, to a router that has no route to %s. The request came through %s, which is on %s.",
			showPrefix(prefix), here, viaText(l), l.Device.Name, to, g.Addr, g.Device.Name),
		fix: []string{at(c.Place, "%s route replace %s via %s dev %s", ipCommand(to), showPrefix(prefix), g.Addr, quote(g.Device.Name)) +
			fmt.Sprintf("   # %s is the router on the request's way", g.Addr)},
		verify:   []string{at(c.Place, "%s route get %s from %s", ipCommand(to), to, c.Event.Tuple.Src.Addr())},
		device:   l.Device.Name,
		evidence: []trace.Evidence{state(s, "route to %s: %s%s dev %s", to, showPrefix(prefix), viaText(l), l.Device.Name)},
	}
	if !s.SrcLocal || h.In.Index != 0 && c.Event.InIndex != 0 {
		e.verify = []string{at(c.Place, "%s route get %s", ipCommand(to), to)}
	}
	return e
}
