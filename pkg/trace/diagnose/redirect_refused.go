package diagnose

import (
	"fmt"

	"github.com/replypath/replypath/pkg/trace"
)

// redirectedHere reports a packet to which the case's namespace itself had given the
// destination that it died at, and returns the one that it had before.
func redirectedHere(c *trace.Case) (before trace.Tuple, ok bool) {
	dst := c.Event.Tuple.Dst
	for i := range c.Path.Request {
		h := &c.Path.Request[i]
		if h.Place.Netns != c.Place.Netns {
			continue
		}
		switch {
		case h.In.Index == 0 && i == 0: // made here
			before = c.Path.Connection
		case h.Arrived.IsValid() && !h.Bridged && !(i > 0 && c.Path.Request[i-1].Place.Netns == c.Place.Netns):
			before = h.Arrived
		default:
			continue
		}
		return before, before.Dst != dst && before.Dst.IsValid()
	}
	return trace.Tuple{}, false
}

func explainRefusedRedirect(c *trace.Case, s *trace.HostState) *explanation {
	if c.Symptom != trace.SymptomRefused || c.Direction != trace.Request || c.Asked {
		return nil
	}
	before, ok := redirectedHere(c)
	if !ok || s.Asked() && !s.DstLocal {
		return nil
	}
	dst, here := c.Event.Tuple.Dst, name(c.Place)
	what := "connections to"
	if c.Event.Tuple.Protocol == trace.UDP {
		what = "datagrams to"
	}
	if c.DNS != "" || before.Dst.Port() == 53 {
		what = "DNS queries to"
	}
	e := &explanation{
		confidence: trace.Certain, device: c.Event.Device.Name, fault: fmt.Sprintf("redirect to %s %d", c.Event.Tuple.Protocol, dst.Port()),
		summary: fmt.Sprintf("%s redirects %s %s to %s, where nobody listens", here, what, before.Dst, dst),
		cause: fmt.Sprintf("A rule of %s sends %s %s on to %s in the same namespace, and no socket takes them there: the proxy is not started, not ready or has ended, or listens on another port or for the other IP version.",
			here, what, before.Dst, dst),
		fix: []string{
			fmt.Sprintf("# start the proxy that is to listen on %s port %d in %s", c.Event.Tuple.Protocol, dst.Port(), here),
			"# or take the redirect away: " + listRules(c, s, ""),
		},
		verify: []string{at(c.Place, "ss -Hln%s 'sport = :%d'", c.Event.Tuple.Protocol.String()[:1], dst.Port()) + fmt.Sprintf("   # must show a socket that takes %s", dst.Addr())},
	}
	if hasListener(s) {
		e.confidence = trace.Likely
		e.cause += " By now a socket does: it may have started a moment ago."
	}
	return e
}

// explainAskedItself tells of a DNS proxy, or a resolver, to which its own query came back.
func explainAskedItself(c *trace.Case, s *trace.HostState) *explanation {
	t := c.Trouble
	if t == nil || !t.Loop || c.Symptom != trace.SymptomUnanswered {
		return nil
	}
	home, own := t.Root().Home(), actual(t.Root())
	here, owner := name(home), "the resolver"
	if who, _ := receiver(s); who != "" {
		owner = who
	}
	return &explanation{
		confidence: trace.Certain, direction: trace.Request, place: home, device: c.Event.Device.Name, fault: "asks itself", evidence: queryEvidence(t),
		summary: fmt.Sprintf("%s in %s asks itself: its own DNS queries to %s come back to it", owner, here, t.Root().Server),
		cause: fmt.Sprintf("%s For that, %s asked %s, and that query came back to it as %s: a redirect or NAT rule takes its own queries too, or its upstream leads back to it. Each query makes another, and none is answered.",
			askedFor(t), owner, t.Root().Server, own),
		fix: []string{
			fmt.Sprintf("# except %s in %s from the redirect (by its user or mark), or give it an upstream that does not lead back to it", owner, here),
			"# the rules: " + at(home, "nft list ruleset"),
		},
		verify: []string{dig(t.Exchange)},
	}
}
