package netfilter

import (
	"slices"

	"github.com/replypath/replypath/pkg/trace"
	"golang.org/x/sys/unix"
)

// bridgeHooks are the hooks of family bridge that a frame may have met when its
// packet was dropped at a hook. A frame without route looks like one at
// PREROUTING wherever in the bridge it is.
var bridgeHooks = map[trace.NetfilterHook][]trace.NetfilterHook{
	trace.Ingress:     {trace.Prerouting, trace.Input, trace.Forward, trace.Postrouting},
	trace.Prerouting:  {trace.Prerouting, trace.Input, trace.Forward, trace.Postrouting},
	trace.Forward:     {trace.Forward, trace.Postrouting, trace.Input},
	trace.Output:      {trace.Output, trace.Postrouting},
	trace.Postrouting: {trace.Output, trace.Postrouting},
	trace.Egress:      {trace.Output, trace.Postrouting},
}

// intoBridge and outOfBridge are the hooks of a packet that the bridge's own host
// has routed to it, and of one that it is to route on.
var (
	intoBridge  = []trace.NetfilterHook{trace.Output, trace.Postrouting}
	outOfBridge = []trace.NetfilterHook{trace.Prerouting, trace.Input}
)

// hooksOf returns the bridge's hooks at which a packet may have been dropped. With
// br_netfilter it has a route at all of them: to the bridge, until its host has routed it.
func hooksOf(q trace.Question, out trace.Interface, routes routes) []trace.NetfilterHook {
	if q.Filters[0] == trace.Forward && q.Out != 0 {
		above, fromPort := bridgeAbove(q.In, routes)
		switch {
		case !fromPort && out.Kind == "bridge":
			return intoBridge
		case fromPort && q.Out != above.Index && !routes.isPort(q.Out):
			return outOfBridge
		}
	}
	return bridgeHooks[q.Filters[0]]
}

// hasBridge reports whether there are chains of family bridge.
func (s *ruleset) hasBridge() bool {
	return slices.ContainsFunc(s.tables, func(t *table) bool { return t.family == familyBridge })
}

// bridged walks the rules of family bridge, for a packet that no other rule drops.
func (s *ruleset) bridged(q trace.Question, in, out trace.Interface, routes routes) ([]trace.FilterVerdict, error) {
	hooks := hooksOf(q, out, routes)
	in, inside := port(in, q.In, routes)
	out, outside := port(out, q.Out, routes)
	if !inside && !outside {
		return nil, nil
	}
	q.In, q.Out = in.Index, out.Index
	q.Conntrack = trace.Conntrack{}
	for _, hook := range hooks {
		p := newPacket(q, in, out, hook, routes)
		p.bridged = true
		drops, err := s.drops(p)
		if len(drops) > 0 || err != nil {
			var found []trace.FilterVerdict
			for _, d := range drops {
				v := d.verdict(hook)
				v.Certain = v.Certain && p.wentBy(hook)
				found = append(found, v)
			}
			return found, err
		}
	}
	return nil, nil
}

// wentBy reports whether the frame is known to have come to a hook of its
// bridge: what it is for, or where it was to leave, tells which way it took.
func (p *packet) wentBy(hook trace.NetfilterHook) bool {
	switch hook {
	case trace.Input:
		t, ok := p.routes.addrType(p.tuple.Dst.Addr())
		return ok && t == unix.RTN_LOCAL
	case trace.Forward, trace.Postrouting:
		return p.out.index != 0
	}
	return true
}

// port returns the device if it is a port of a bridge. Of a packet that has come
// through a bridge, or is to leave by one, the port is not known any more.
func port(i trace.Interface, index uint32, routes routes) (trace.Interface, bool) {
	switch {
	case i.Kind == "bridge":
		return trace.Interface{}, true
	case index != 0 && routes.isPort(index):
		return i, true
	}
	return trace.Interface{}, false
}
