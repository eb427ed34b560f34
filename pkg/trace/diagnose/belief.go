package diagnose

import (
	"fmt"
	"net/netip"

	"github.com/replypath/replypath/pkg/trace"
)

// misled returns the case of the host that sent the case's packet to where it was
// lost: the MAC address that it has for its next hop may be another's.
func misled(c *trace.Case) []trace.Case {
	if c.Asked || intoTunnel(c) {
		return nil
	}
	switch {
	case c.Symptom == trace.SymptomVanished:
		s := *c
		s.Suspect, s.Symptom = true, trace.SymptomMisled
		return []trace.Case{s}
	case (c.Symptom == trace.SymptomStray || c.Symptom == trace.SymptomSwallowed && c.Direction == trace.Request) && c.Path.Requests <= strayRepeats:
		if h := lastSender(&c.Path); h != nil {
			return []trace.Case{suspect(c, trace.SymptomMisled, h)}
		}
	case c.Symptom == trace.SymptomDrop && isRoutingDrop(&c.Event) && c.Event.InIndex != 0:
		if h := cameFrom(c); h != nil {
			return []trace.Case{suspect(c, trace.SymptomMisled, h)}
		}
	}
	return nil
}

// intoTunnel reports whether the packet was sent into a tunnel: what becomes of
// it there the outer packet tells.
func intoTunnel(c *trace.Case) bool {
	hops := c.Path.Request
	if c.Direction == trace.Reply {
		hops = c.Path.Reply
	}
	for i := range hops {
		if hops[i].OutTunnel != "" {
			return true
		}
	}
	return false
}

// mute is Deaf for IPv6: a host sends its neighbour advertisement by its own
// entry for who asks (ndisc_send_na, net/ipv6/ndisc.c), and that may be wrong.
func mute(c *trace.Case, s *trace.HostState) trace.Case {
	m := *c
	m.Suspect, m.Symptom, m.Place = true, trace.SymptomMisled, s.NextHopOwner
	m.Direction = trace.Reply
	if c.Direction == trace.Reply {
		m.Direction = trace.Request
	}
	m.Event.Netns, m.Event.Device = s.NextHopOwner.Netns, s.NextHopDevice
	m.Event.InIndex, m.Event.OutIndex, m.Event.Mark = 0, s.NextHopDevice.Index, 0
	m.Event.Tuple = c.Event.Tuple.Reverse()
	m.Event.Tuple.Src = netip.AddrPortFrom(s.NextHop.Addr, m.Event.Tuple.Src.Port())
	m.Arrival, m.Miss = trace.Event{}, trace.Event{}
	return m
}

// lastSender returns the hop that a request left last, and came nowhere after it; nil: it ended somewhere.
func lastSender(p *trace.Path) *trace.Hop {
	for i := len(p.Request) - 1; i >= 0; i-- {
		if h := &p.Request[i]; !h.Bridged {
			if h.Out.Index == 0 {
				return nil
			}
			return h
		}
	}
	return nil
}

// cameFrom returns the hop from which the case's packet came to its host, past bridges; nil: not known.
func cameFrom(c *trace.Case) (from *trace.Hop) {
	hops := c.Path.Request
	if c.Direction == trace.Reply {
		hops = c.Path.Reply
	}
	for i := range hops {
		h := &hops[i]
		if h.Place.Netns == c.Place.Netns {
			return from
		}
		if !h.Bridged && h.Out.Index != 0 {
			from = h
		}
	}
	return nil
}

// DependsOnBelief reports whether the cause depends on who has the MAC of this
// host's neighbour entry: then HostState.Believed has to be filled.
func DependsOnBelief(c *trace.Case, s *trace.HostState) bool {
	hop := &s.NextHop
	return c.Symptom == trace.SymptomMisled && hop.Addr.IsValid() && hop.MAC != "" && hop.MAC != noMAC && hop.State != "NOARP" &&
		c.Event.OutIndex != 0 && s.Onward.Device.Index == hop.Device.Index
}

// noMAC is what devices without link addresses have.
const noMAC = "00:00:00:00:00:00"

// rightful returns the host that has the address of the next hop and should have
// got the packet; false: the entry leads to it, or it cannot be told. For an
// answer it is a host that the request came through; for a request nobody but
// the entry itself says that somebody set it by hand.
func rightful(c *trace.Case, s *trace.HostState) (holder trace.Claim, ok bool) {
	if !DependsOnBelief(c, s) || taken(s, func(t trace.Place) bool { return passed(c, t) && holds(s, t) }) {
		return holder, false
	}
	for _, h := range s.Believed.Holders {
		if c.Direction == trace.Reply && passed(c, h.Place) || c.Direction == trace.Request && len(s.Believed.Holders) == 1 && s.NextHop.State == permanent {
			return h, !taken(s, func(t trace.Place) bool { return t.Netns == h.Place.Netns })
		}
	}
	return holder, false
}

const permanent = "PERMANENT"

// taken reports whether a host of that kind takes what is sent to the entry's MAC.
func taken(s *trace.HostState, kind func(trace.Place) bool) bool {
	for i := range s.Believed.Takers {
		if kind(s.Believed.Takers[i].Place) {
			return true
		}
	}
	return false
}

// passed reports whether the request came through a host, or from it.
func passed(c *trace.Case, p trace.Place) bool { return requestAt(&c.Path, p.Netns) != nil }

// holds reports whether a host has the address of the entry.
func holds(s *trace.HostState, p trace.Place) bool {
	for i := range s.Believed.Holders {
		if s.Believed.Holders[i].Place.Netns == p.Netns {
			return true
		}
	}
	return false
}

// forget is the command that makes a host ask again who has an address.
func forget(c *trace.Case, s *trace.HostState) string {
	return at(c.Place, "ip neigh del %s dev %s", s.NextHop.Addr, quote(s.NextHop.Device.Name)) + "   # so that it asks again"
}

func packetKind(c *trace.Case) string {
	if c.Direction == trace.Reply {
		return "reply"
	}
	return "request"
}

// explainBelief: the packet went to a MAC that its next hop does not have.
func explainBelief(c *trace.Case, s *trace.HostState) *explanation {
	right, ok := rightful(c, s)
	if !ok {
		return nil
	}
	entry, here := &s.NextHop, name(c.Place)
	if len(s.Believed.Takers) > 0 && entry.State != permanent {
		return nil // who takes it may have answered for the other (proxy ARP)
	}
	e := &explanation{
		confidence: trace.Likely,
		device:     entry.Device.Name,
		summary:    fmt.Sprintf("%s sends to %s at a MAC address that is not its own", here, entry.Addr),
		cause: fmt.Sprintf("The neighbour entry of %s for %s on %s says %s (%s), so the %s went there and was lost. %s has %s, on %s, with the MAC %s.",
			here, entry.Addr, entry.Device.Name, entry.MAC, entry.State, packetKind(c), name(right.Place), entry.Addr, right.Device.Name, right.MAC),
		fix:    []string{forget(c, s)},
		verify: []string{at(c.Place, "ip neigh show %s dev %s", entry.Addr, quote(entry.Device.Name)) + fmt.Sprintf("   # must show %s, or nothing", right.MAC)},
		evidence: []trace.Evidence{
			state(s, "neighbour %s dev %s has the MAC %s (%s)", entry.Addr, entry.Device.Name, entry.MAC, entry.State),
			state(s, "%s has %s on %s, MAC %s", name(right.Place), entry.Addr, right.Device.Name, right.MAC),
		},
	}
	switch {
	case len(s.Believed.Takers) > 0:
		e.cause += fmt.Sprintf(" %s is the MAC of %s.", entry.MAC, name(s.Believed.Takers[0].Place))
	case c.Direction == trace.Reply:
		e.cause += " No namespace linked to it has that MAC."
	}
	if entry.State == permanent && c.Direction == trace.Reply {
		e.confidence = trace.Certain
	}
	return e
}

// explainAttraction: another host has the next hop's address too, and got the answer.
func explainAttraction(c *trace.Case, s *trace.HostState) *explanation {
	right, ok := rightful(c, s)
	if !ok || c.Direction != trace.Reply {
		return nil
	}
	var wrong *trace.Claim
	for i := range s.Believed.Holders {
		h := &s.Believed.Holders[i]
		if h.Place.Netns != right.Place.Netns && taken(s, func(t trace.Place) bool { return t.Netns == h.Place.Netns }) {
			wrong = h
		}
	}
	if wrong == nil {
		return nil
	}
	addr, here, there := s.NextHop.Addr, name(wrong.Place), name(right.Place)
	return &explanation{
		confidence: trace.Certain,
		place:      wrong.Place,
		device:     wrong.Device.Name,
		fault:      addr.String(),
		summary:    fmt.Sprintf("%s and %s both have %s, and the reply went to %s", here, there, addr, here),
		cause: fmt.Sprintf("%s (MAC %s, on %s) and %s (MAC %s, on %s) both have %s. %s sends the reply to %s by way of that address, and has the MAC of %s for it; the request had come through %s.",
			here, wrong.MAC, wrong.Device.Name, there, right.MAC, right.Device.Name, addr, name(c.Place), c.Event.Tuple.Dst.Addr(), here, there),
		fix: []string{
			at(wrong.Place, "%s", disclaim(wrong, addr)) + fmt.Sprintf("   # if it is the address of %s", there),
			forget(c, s),
		},
		verify: []string{at(c.Place, "ip neigh show %s dev %s", addr, quote(s.NextHop.Device.Name)) + fmt.Sprintf("   # must show %s, the MAC of %s, or nothing", right.MAC, there)},
		evidence: []trace.Evidence{
			state(s, "%s has the MAC %s for %s (%s)", name(c.Place), s.NextHop.MAC, addr, s.NextHop.State),
			state(s, "%s has %s on %s, MAC %s", here, addr, wrong.Device.Name, wrong.MAC),
			state(s, "%s has %s on %s, MAC %s", there, addr, right.Device.Name, right.MAC),
		},
	}
}
