package diagnose

import (
	"fmt"

	"github.com/replypath/replypath/pkg/trace"
)

// zoned finds redirected queries whose answers are in another zone of connection tracking: they are not known
// to be answers, keep the proxy's address as their source, and nobody takes them.
func (j *redirectJudge) zoned() {
	if j.told(redirectLoop.ID) {
		return // the rules are for another user, and that is told
	}
	for _, f := range j.families() {
		if f.Six && !f.Used {
			continue
		}
		l := f.Leg(trace.RoleDNS)
		if l == nil || !l.Taken || !isZoned(l) {
			continue
		}
		e := otherZone(j.r, l)
		j.add(&replyWrongSource, l, trace.Finding{Fault: e.fault, Confidence: e.confidence, Where: trace.Where{Hook: e.hook, Device: "lo"},
			Summary: e.summary, Cause: e.cause, Fix: e.fix, Verify: []string{j.verify()},
			Evidence: []trace.Evidence{j.saw("%s: zone %d, %s to %s; its answer: zone %d", l.Packet, l.Zone, l.Kind, l.Target, l.AnswerZone)}})
		j.found[len(j.found)-1].Direction = trace.Reply
	}
}

// isZoned reports a leg that is answered in another zone than its own.
func isZoned(l *trace.RedirectLeg) bool {
	return l.Kind != "tproxy" && l.Zone != l.AnswerZone && len(l.Sockets) > 0
}

// otherZone tells of an answer that is in another zone than what it answers.
func otherZone(r *trace.Redirection, l *trace.RedirectLeg) *explanation {
	j := &redirectJudge{r: r}
	uid, here := j.proxyUID(), name(r.Place)
	if len(l.Sockets) > 0 && l.Sockets[0].UID != 0 {
		uid = l.Sockets[0].UID
	}
	e := &explanation{
		confidence: trace.Certain, direction: trace.Reply, hook: "OUTPUT", device: "lo", fault: "zone",
		summary: fmt.Sprintf("answers from port %d in %s are in another conntrack zone than the queries, and come from the wrong source", l.Target.Port(), here),
		cause: fmt.Sprintf("%s send queries to %s on to %s, in zone %d of connection tracking. The proxy's answers (uid %d) are in zone %d: there they answer nothing that is known, "+
			"so that their source is not restored to %s, and the application takes none of them.",
			capital(j.rulesName()), l.Packet.Dst, l.Target, l.Zone, uid, l.AnswerZone, l.Packet.Dst),
		verify: []string{j.verify()},
	}
	switch {
	case l.Zone == 0:
		e.fix = []string{j.queryZone(l, uid)}
	case l.Backend == "nft":
		e.fix = []string{fmt.Sprintf("# in a chain at hook output, priority raw: %s sport %d ct zone set %d: %s", l.Packet.Protocol, l.Target.Port(), l.Zone, at(r.Place, "nft -a list ruleset"))}
	default:
		e.fix = []string{at(r.Place, "%s -t raw -I OUTPUT 1 -p %s --sport %d -m owner --uid-owner %d -j CT --zone %d", toolOf(l.Backend, l.Packet.Is6()), l.Packet.Protocol, l.Target.Port(), uid, l.Zone)}
	}
	return e
}

// queryZone is the command that puts queries into the zone in which the answers to them are.
func (j *redirectJudge) queryZone(l *trace.RedirectLeg, uid uint32) string {
	server := l.Packet.Dst.Addr()
	if l.Backend == "nft" {
		return fmt.Sprintf("# in a chain at hook output, priority raw: %s daddr %s udp dport 53 meta skuid != %d ct zone set %d: %s", ipFamily(server.Is6()), server, uid, l.AnswerZone, at(j.r.Place, "nft -a list ruleset"))
	}
	return at(j.r.Place, "%s -t raw -A OUTPUT -p udp -d %s --dport 53 -m owner ! --uid-owner %d -j CT --zone %d", toolOf(l.Backend, server.Is6()), server, uid, l.AnswerZone)
}

// isUnrestored reports an answer to a request that the client's own namespace had redirected, which came to the client
// with the source that the request was redirected to.
func isUnrestored(c *trace.Case) bool {
	if c.Symptom != trace.SymptomUnmatched || c.Suspect || c.Direction != trace.Reply || len(c.Path.Request) == 0 {
		return false
	}
	first := &c.Path.Request[0]
	return first.In.Index == 0 && first.Place.Netns == c.Place.Netns && first.Tuple.Dst != c.Path.Connection.Dst && c.Event.Tuple.Src == first.Tuple.Dst
}

func explainUnrestored(c *trace.Case, s *trace.HostState) *explanation {
	if !isUnrestored(c) {
		return nil
	}
	first, here := &c.Path.Request[0], name(c.Place)
	to := first.Tuple.Dst
	e := &explanation{
		confidence: trace.Likely, direction: trace.Reply, device: "lo", hook: "OUTPUT", fault: "unrestored " + to.String(),
		summary: fmt.Sprintf("%s redirects what is sent to %s to %s, and does not restore the answer's source", here, c.Path.Connection.Dst, to),
		cause: fmt.Sprintf("A rule of %s sends what is meant for %s on to %s. The answer came with the source %s: connection tracking did not take it for one, as a rule exempts it (notrack) or puts it into another zone.",
			here, c.Path.Connection.Dst, to, to),
		fix:    []string{"# " + listRules(c, s, "") + fmt.Sprintf("   # answers from %s have to be tracked, in the zone of the requests", to)},
		verify: []string{fmt.Sprintf("# repeat the request: the answer must come from %s", c.Path.Connection.Dst)},
	}
	if leg := askedLeg(s); leg != nil && leg.Taken && leg.Zone != leg.AnswerZone {
		e = otherZone(s.Redirect, leg)
	}
	e.evidence = append(e.evidence, state(s, "%s was asked, %s answered, and no socket took it", c.Path.Connection.Dst, c.Event.Tuple.Src))
	return e
}
