package diagnose

import (
	"fmt"

	"github.com/replypath/replypath/pkg/trace"
)

var conntrackInsertRace = Rule{
	ID:       "conntrack-insert-race",
	Title:    "parallel packets of one socket raced for one entry (the 5 s DNS delay)",
	Severity: trace.Warning,
	Doc: "Resolvers send the queries for A and AAAA at once from one socket. Where NAT is on the way, both packets may be new to connection tracking, and only the first one gets its entry: " +
		"the other is dropped when it is to be confirmed (hook POSTROUTING or INPUT), without a rule, and asked again after five seconds. Recognised by that drop, or by a query that was lost on a host that translates while its twin was answered, " +
		"together with the namespace's counter insert_failed. Kernels from 5.7 on resolve nearly all of these clashes.",
	explain: explainInsertRace,
}

// mayRace reports a datagram that was dropped, by no rule that told, where its new entry is confirmed.
func mayRace(c *trace.Case) bool {
	ev := &c.Event
	if c.Symptom != trace.SymptomDrop || ev.Tuple.Protocol != trace.UDP || !isNetfilterDrop(c) || !ev.Conntrack.Known() || c.Verdict.By > trace.ByConntrack {
		return false
	}
	hook := netfilterHooks(c)[0]
	return c.Direction == trace.Request && (hook == trace.Postrouting || hook == trace.Input)
}

func explainInsertRace(c *trace.Case, s *trace.HostState) *explanation {
	t := s.Tracking
	if !t.Known || t.InsertFailed == 0 {
		return nil
	}
	here := name(c.Place)
	e := &explanation{
		confidence: trace.Likely, direction: trace.Request, fault: "insert race", device: c.Event.Device.Name,
		fix: []string{
			"# in the clients' resolv.conf: options single-request-reopen (glibc: A and AAAA from sockets of their own), or use-vc",
			"# or let a resolver on the node answer them (node-local DNS cache), so that queries need no NAT",
		},
		verify:   []string{at(c.Place, "conntrack -S") + "   # insert_failed must not grow"},
		evidence: []trace.Evidence{state(s, "connection tracking in %s: insert_failed %d, clashes resolved %d", here, t.InsertFailed, t.Clashes)},
	}
	switch {
	case mayRace(c) && len(s.Filters) == 0:
		ev := &c.Event
		e.summary = fmt.Sprintf("%s dropped a datagram that raced with another one for its conntrack entry", here)
		e.cause = fmt.Sprintf("The datagram %s -> %s was dropped where its new conntrack entry is confirmed in %s, and no rule there drops it: another packet had made an entry with the same addresses a moment before.", ev.Tuple.Src, ev.Tuple.Dst, here)
	case c.Symptom == trace.SymptomUnanswered && c.Trouble.Lost && c.Direction == trace.Reply && s.Asked() && !s.DstLocal:
		x := c.Trouble.Exchange
		e.summary = fmt.Sprintf("the query %s was lost in %s, while the one that was sent together with it was answered", question(x), here)
		e.cause = fmt.Sprintf("%s The query and its twin of the other type left the client at once; both came to %s, and only one went on: they raced for one conntrack entry.", askedFor(c.Trouble), here)
		e.evidence = append(e.evidence, queryEvidence(c.Trouble)...)
	default:
		return nil
	}
	return e
}
