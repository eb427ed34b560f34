package diagnose

import (
	"fmt"
	"slices"

	"github.com/replypath/replypath/pkg/trace"
)

// missingRoute is the fault of rules that mark packets for which there is no route.
const missingRoute = "missing route"

// unrouted finds rules that mark packets to have them delivered here (TPROXY), where no routing
// rule leads packets with that mark to lo.
func (j *redirectJudge) unrouted() {
	families := j.families()
	used := slices.ContainsFunc(families, func(f *trace.RedirectFamily) bool { return f.Used })
	for _, f := range families {
		if used && !f.Used {
			continue
		}
		for i := range f.Legs {
			if l := &f.Legs[i]; l.Lacks != nil {
				j.unroute(f, l)
				break // the others lack the same
			}
		}
	}
}

func (j *redirectJudge) unroute(f *trace.RedirectFamily, l *trace.RedirectLeg) {
	m, here := l.Lacks, name(j.r.Place)
	mark := fmt.Sprintf("0x%x", m.Mark)
	to := l.Packet.Dst.Addr()
	finding := trace.Finding{
		Fault: missingRoute, Where: trace.Where{Hook: hookOf(l.Role), Device: "lo"},
		Fix:      routeByMark(j.r.Place, m, f.Six),
		Evidence: []trace.Evidence{j.saw("%s %s: mark %s (%s)", l.Role, l.Packet, mark, ruleName(l))},
	}
	lacks := fmt.Sprintf("no routing rule of %s is for that mark, and no table has a local route for all addresses", showFamily(f.Six))
	switch {
	case m.Rule && m.Route:
		lacks = fmt.Sprintf("a routing rule of %s for that mark leads to table %d, but another comes before it", showFamily(f.Six), m.Table)
	case m.Rule:
		lacks = fmt.Sprintf("a routing rule of %s for that mark leads to table %d, which has no local route for all addresses", showFamily(f.Six), m.Table)
	case m.Route:
		lacks = fmt.Sprintf("no routing rule of %s for that mark leads to table %d, which has the local route", showFamily(f.Six), m.Table)
	}
	if m.Answers {
		to = l.Packet.Src.Addr()
		finding.Confidence = trace.Likely // a proxy may call from an address of its own all the same
		finding.Summary = fmt.Sprintf("answers of applications in %s do not come back to the proxy: no route by mark %s", here, mark)
		finding.Cause = fmt.Sprintf("The rules hand inbound traffic to the proxy as it is (TPROXY), and give what applications answer to it the mark %s, by which it is to come back: the proxy calls them from the address of its client. "+
			"But %s. So answers leave for the client itself, which did not ask, and the proxy's connections get nowhere.", mark, lacks)
	} else {
		finding.Summary = fmt.Sprintf("%s traffic in %s is marked for the proxy, but no route by mark %s leads it there", l.Role, here, mark)
		finding.Cause = fmt.Sprintf("The rules mark %s traffic with %s, and hand to the proxy what comes in by lo with that mark (TPROXY). But %s: it leaves as if there were no rule, past the proxy.", l.Role, mark, lacks)
	}
	finding.Evidence = append(finding.Evidence, j.saw("%s with mark %s is not routed to this host; %s", to, mark, lacks))
	finding.Verify = []string{at(j.r.Place, "%s route get %s mark %s", ipCommand(to), to, mark) + "   # must say local", j.verify()}
	rule := &redirectMissing
	if f.Six && !m.Answers && j.takesElsewhere(f, l.Role) {
		rule = &redirectBypassedIPv6
	}
	j.add(rule, l, finding)
}

// routeByMark are the commands that have packets with a mark delivered here.
func routeByMark(place trace.Place, m *trace.MarkRoute, six bool) []string {
	ip := "ip"
	if six {
		ip = "ip -6"
	}
	var out []string
	switch {
	case !m.Rule:
		out = append(out, at(place, "%s rule add fwmark 0x%x lookup %d", ip, m.Mark, m.Table))
	case m.Route:
		out = append(out, at(place, "%s rule add pref 1 fwmark 0x%x lookup %d", ip, m.Mark, m.Table))
	}
	if !m.Route {
		out = append(out, at(place, "%s route add local default dev lo table %d", ip, m.Table))
	}
	return out
}

// strayedAnswer is the packet to which an application answered past its proxy: the proxy had called it from the
// address of the client, by lo, and the answer left by another device.
func strayedAnswer(p *trace.Path) (trace.Tuple, bool) {
	if len(p.Request) == 0 || len(p.Reply) == 0 {
		return trace.Tuple{}, false
	}
	call, answer := &p.Request[0], &p.Reply[0]
	return p.Connection, call.In.Index == 0 && call.Out.Name == "lo" && !isLow(p.Connection.Src.Addr()) && p.Connection.Src.Addr() != p.Connection.Dst.Addr() &&
		answer.Place.Netns == call.Place.Netns && answer.In.Index == 0 && answer.Out.Index > loopbackIndex
}

// AnswerStrayed reports a path whose answer left past the proxy that had called, with the client's address, from the same namespace.
func AnswerStrayed(p *trace.Path) bool {
	_, ok := strayedAnswer(p)
	return ok
}

// explainUnrouted: what rules mark for the proxy went past it, or the answer to it did.
func explainUnrouted(c *trace.Case, s *trace.HostState, id string) *explanation {
	leg := askedLeg(s)
	if c.Symptom != trace.SymptomPassed || leg == nil || leg.Lacks == nil {
		return nil
	}
	if leg.Lacks.Answers != AnswerStrayed(&c.Path) || !leg.Lacks.Answers && isProxys(c, s) {
		return nil
	}
	e := judgement(c, s, id, func(f *trace.Finding) bool { return f.Fault == missingRoute })
	if e != nil {
		e.confidence = trace.Certain
	}
	return e
}
