package diagnose

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/replypath/replypath/pkg/trace"
)

// intoNowhere are the hosts that sent the packet into a tunnel, and were the last
// ones who saw it: what has no way to the tunnel's other end is dropped without a word.
func intoNowhere(c *trace.Case) []trace.Case {
	if c.Suspect || c.Asked || c.Symptom != trace.SymptomVanished || len(c.Path.Reply) == 0 {
		return nil // of a request, its last host is asked anyway
	}
	if h := &c.Path.Reply[len(c.Path.Reply)-1]; h.OutTunnel != "" && !h.Bridged {
		return []trace.Case{suspect(c, trace.SymptomVanished, h)}
	}
	return nil
}

// TunnelOut is the device of the tunnel by which the case's packet left its host, and
// was not seen again, or waits for an address; 0: there is none.
func TunnelOut(c *trace.Case) uint32 {
	hops := c.Path.Request
	if c.Direction == trace.Reply {
		hops = c.Path.Reply
	}
	switch {
	case c.Symptom == trace.SymptomDrop && isNeighborDrop(&c.Event) && !c.Event.Carried.Known():
		return c.Event.Device.Index
	case c.Symptom == trace.SymptomDeaf:
		return c.Event.Device.Index // the answer to who asks for this host's address has to go back by it
	case !c.Suspect || c.Symptom != trace.SymptomStray && c.Symptom != trace.SymptomVanished || len(hops) == 0:
		return 0
	}
	if h := &hops[len(hops)-1]; h.OutTunnel != "" && h.Place.Netns == c.Place.Netns {
		return h.Out.Index
	}
	return 0
}

// Outer is the packet that a tunnel makes.
func Outer(t *trace.Tunnel) trace.Tuple {
	local := t.Local
	if !local.IsValid() {
		local = netip.IPv4Unspecified()
		if t.Remote.Is6() {
			local = netip.IPv6Unspecified()
		}
	}
	return trace.Tuple{Protocol: trace.UDP, Src: netip.AddrPortFrom(local, 0), Dst: netip.AddrPortFrom(t.Remote, t.Port)}
}

// explainUnderlay tells of a host that has no way, or one that refuses, to the
// other end of the tunnel by which it sends the packet.
func explainUnderlay(c *trace.Case, s *trace.HostState, direction trace.Direction, refused bool) *explanation {
	u, on := &s.Underlay, c.Direction
	if c.Symptom == trace.SymptomDeaf {
		on = trace.Reply
	}
	if on != direction || TunnelOut(c) == 0 || !u.Way.Done || u.Way.Found() || u.Way.Rejected() != refused {
		return nil
	}
	here, what := name(c.Place), strings.ToLower(direction.String())
	if c.Symptom == trace.SymptomDeaf {
		what += ", and before it the answer to ARP,"
	}
	e := &explanation{
		confidence: trace.Certain,
		direction:  direction,
		device:     u.Device.Name,
		fault:      fmt.Sprintf("underlay %s", u.Remote),
		summary:    fmt.Sprintf("%s has no route to %s, the other end of its tunnel %s", here, u.Remote, u.Device.Name),
		cause: fmt.Sprintf("%s sends the %s into the tunnel %s (%s), whose packets go to %s. No route there matches that, and there is no default route: "+
			"what the tunnel is given is dropped, and nobody is told.", here, what, u.Device.Name, u.Kind, u.Remote),
		fix:      addWay(c, s, u.Remote),
		verify:   []string{at(c.Place, "%s route get %s", ipCommand(u.Remote), u.Remote)},
		evidence: []trace.Evidence{state(s, "route to %s in %s: none (%s)", u.Remote, here, missText(u.Way.Errno))},
	}
	if refused {
		r := explainRejection(c, s, u.Way, direction, u.Remote)
		e.summary = fmt.Sprintf("%s refuses what goes to %s, the other end of its tunnel %s: %s", here, u.Remote, u.Device.Name, showRejection(u.Way))
		e.cause = fmt.Sprintf("%s sends the %s into the tunnel %s (%s), whose packets go to %s, and %s covers that.", here, what, u.Device.Name, u.Kind, u.Remote, showRejection(u.Way))
		e.fix, e.evidence = r.fix, r.evidence
	}
	return e
}
