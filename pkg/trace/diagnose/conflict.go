package diagnose

import (
	"fmt"
	"net/netip"

	"github.com/replypath/replypath/pkg/trace"
)

var neighborConflict = Rule{
	ID:       "neighbor-conflict",
	Title:    "two machines claim the VIP; traffic went to the wrong one",
	Severity: trace.Error,
	Doc: "A host refused, dropped or did not answer a request for an address that it has, and another host on the same link claims the same address and serves the port. Who gets the traffic " +
		"is then decided by who answered ARP or ND last. Or a reply went to a host that the request had not come through, as it has the address of the next hop, too. Hosts that have the address without claiming it (on lo with arp_ignore, or reached through a route) are not in conflict.",
	explain: explainConflict,
}

// disclaim is the command that takes an address from a host.
func disclaim(c *trace.Claim, a netip.Addr) string {
	address, device := c.Drop(a)
	return fmt.Sprintf("%s addr del %s dev %s", ipCommand(a), address, quote(device))
}

// DependsOnContest reports whether the cause depends on who else on the link
// claims the packet's destination: then HostState.Contest has to be filled.
func DependsOnContest(c *trace.Case, s *trace.HostState) bool {
	if c.Suspect || !s.DstLocal || c.Event.InIndex == 0 && c.Arrival.InIndex == 0 && c.Symptom != trace.SymptomUnmatched || s.In.Name == "lo" {
		return false
	}
	switch c.Symptom {
	case trace.SymptomRefused, trace.SymptomSilence:
		return true
	case trace.SymptomUnmatched, trace.SymptomDrop:
		return c.Direction == trace.Request
	}
	return false
}

func explainConflict(c *trace.Case, s *trace.HostState) *explanation {
	if c.Symptom == trace.SymptomMisled {
		return explainAttraction(c, s)
	}
	if !DependsOnContest(c, s) {
		return nil
	}
	var other *trace.Claim
	for i := range s.Contest.Others {
		if o := &s.Contest.Others[i]; o.Listens {
			other = o
			break
		}
	}
	if other == nil {
		return nil
	}
	own, vip := &s.Contest.Own, c.Event.Tuple.Dst
	here, there := name(c.Place), name(other.Place)
	e := &explanation{
		confidence: trace.Certain,
		direction:  trace.Request,
		device:     own.Device.Name,
		fault:      vip.Addr().String(),
		summary:    fmt.Sprintf("%s and %s both claim %s, and the request went to %s", here, there, vip.Addr(), here),
		cause: fmt.Sprintf("%s (MAC %s, on %s) and %s (MAC %s, on %s) both answer for %s on the same link. The request for %s went to %s",
			here, own.MAC, own.Device.Name, there, other.MAC, other.Device.Name, vip.Addr(), vip, here),
		fix: []string{at(c.Place, "%s", disclaim(own, vip.Addr())) + fmt.Sprintf("   # if %s is to serve it", there)},
	}
	if hasListener(s) {
		e.confidence = trace.Likely
		e.cause += fmt.Sprintf("; %s serves it too.", there)
	} else {
		e.cause += fmt.Sprintf(", where no socket takes it; %s serves it.", there)
	}
	if sender := s.Contest.Sender; sender.Netns != 0 {
		if s.Contest.Believes != "" {
			e.evidence = append(e.evidence, state(s, "%s has the MAC %s for %s", name(sender), s.Contest.Believes, vip.Addr()))
		}
		e.fix = append(e.fix, at(sender, "ip neigh flush to %s", vip.Addr())+"   # so that it asks again")
		e.verify = []string{at(sender, "ip neigh show %s", vip.Addr()) + fmt.Sprintf("   # must show %s, the MAC of %s", other.MAC, there)}
	} else {
		e.fix = append(e.fix, fmt.Sprintf("# then, where the request comes from: ip neigh flush to %s   # or wait a minute, until its old MAC is forgotten", vip.Addr()))
		e.verify = []string{at(c.Place, "ip addr show to %s", vip.Addr()) + "   # must be empty on one of the two"}
	}
	e.evidence = append(e.evidence,
		state(s, "%s has %s on %s, MAC %s", here, vip.Addr(), own.Device.Name, own.MAC),
		state(s, "%s has %s on %s, MAC %s, and a socket there listens on port %d", there, vip.Addr(), other.Device.Name, other.MAC, vip.Port()))
	return e
}
