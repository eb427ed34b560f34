package diagnose

import (
	"fmt"

	"github.com/replypath/replypath/pkg/trace"
)

var portNotListening = Rule{
	ID:       "port-not-listening",
	Title:    "nobody listens on the port",
	Severity: trace.Error,
	Doc: "The request was delivered to the host that owns its destination, and no socket took it, so the host answered with a reset, or with an ICMP error for UDP (reason NO_SOCKET). " +
		"Where a socket listens on the port, but on another address, that is said. A program that is refused over one IP version and served by the same host over the other within half a second " +
		"misses nothing, and a client that is refused on 16 ports of a host within two seconds is taken for a port scan: neither is told, though `explain --all` shows the refusals.",
	explain: explainPortNotListening,
}

// hasListener reports whether a socket would take the packet, were its destination local.
func hasListener(s *trace.HostState) bool {
	for _, l := range s.Listeners {
		if l.Matches {
			return true
		}
	}
	return false
}

func explainPortNotListening(c *trace.Case, s *trace.HostState) *explanation {
	if c.Symptom != trace.SymptomRefused || c.Direction != trace.Request {
		return nil
	}
	if s.Asked() && !s.DstLocal {
		return nil // a broadcast, or somebody else's: no reset can have left
	}
	dst, here := c.Event.Tuple.Dst, name(c.Place)
	e := &explanation{
		confidence: trace.Certain,
		device:     c.Arrival.Device.Name,
		summary:    fmt.Sprintf("nobody listens on %s in %s", dst, here),
		cause:      fmt.Sprintf("The request for %s "+tense(c, "reached", "comes to")+" %s, but no socket there takes it.", dst, here),
		fix:        []string{fmt.Sprintf("# start the server that is to listen on %s in %s, or send the traffic to the port where it does", dst, here)},
		verify:     []string{at(c.Place, "ss -Hln%s 'sport = :%d'", c.Event.Tuple.Protocol.String()[:1], dst.Port()) + fmt.Sprintf("   # must show a socket on %s or on all addresses", dst.Addr())},
	}
	if server := c.Path.Server; server != dst {
		e.cause += fmt.Sprintf(" The client asked %s; NAT on the way made it %s.", server, dst)
	}
	switch {
	case hasListener(s):
		e.confidence = trace.Likely
		e.cause += " By now a socket does: it may have started a moment ago."
	case len(s.Listeners) > 0:
		e.cause += fmt.Sprintf(" A socket listens on %s, which does not cover %s.", s.Listeners[0].Addr, dst.Addr())
		e.fix = []string{fmt.Sprintf("# let the server that listens on %s in %s listen on %s, or on all addresses", s.Listeners[0].Addr, here, dst)}
	case s.Asked():
		e.evidence = append(e.evidence, state(s, "no socket listens on port %d in %s", dst.Port(), here))
	}
	return e
}
