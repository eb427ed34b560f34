package diagnose

import (
	"fmt"
	"slices"
	"strings"

	"github.com/replypath/replypath/pkg/trace"
)

var routingLoop = Rule{
	ID:       "routing-loop",
	Title:    "the packet circled until its TTL ran out",
	Severity: trace.Error,
	Doc: "The same packet came by the same hosts again and again, each time with fewer hops left to live; an ICMP error need not have been seen, as it may be rate limited or filtered. " +
		"Each host of the circle is asked where it sends the packet; the one that is linked to the destination or its owner should have delivered it, else the one that sends it back. " +
		"Where a host that serves the port has lost the address, that is reported instead (vip-not-local).",
	explain: explainLoop,
}

// DependsOnCircle reports whether the cause depends on where the hosts of a
// circle send the packet: then HostState.Circle has to be filled, from Circle.
func DependsOnCircle(c *trace.Case) bool { return len(Circle(c)) > 0 }

// mistaken returns the host of a circle whose route is to be mended: the last
// one that has the destination or its owner on a link and does not send there; else
// the last that turns to the default route; else the last.
func mistaken(circle []trace.Turn) *trace.Turn {
	last := func(fits func(*trace.Turn) bool) *trace.Turn {
		for i := len(circle) - 1; i >= 0; i-- {
			if fits(&circle[i]) {
				return &circle[i]
			}
		}
		return nil
	}
	if t := last(func(t *trace.Turn) bool { return t.Near.Addr.IsValid() && t.Way.Gateway != t.Near.Addr }); t != nil {
		return t
	}
	if t := last(func(t *trace.Turn) bool { return isDefault(t.Way.Prefix) }); t != nil {
		return t
	}
	return &circle[len(circle)-1]
}

func explainLoop(c *trace.Case, s *trace.HostState) *explanation {
	if c.Symptom != trace.SymptomLoop || c.Suspect || len(s.Circle) == 0 {
		return nil
	}
	to, wrong := c.Event.Tuple.Dst.Addr(), mistaken(s.Circle)
	here := name(wrong.Place)
	var names []string
	for i := range s.Circle {
		names = append(names, name(s.Circle[i].Place))
	}
	what := "reply"
	if c.Direction == trace.Request {
		what = "request"
	}
	e := &explanation{
		confidence: trace.Certain,
		place:      wrong.Place,
		device:     wrong.In.Name,
		fault:      fmt.Sprintf("%s at %d", to, wrong.Place.Netns),
		summary:    fmt.Sprintf("the %s to %s circles between %s", what, to, strings.Join(names, " and ")),
		verify:     []string{at(wrong.Place, "%s route get %s", ipCommand(to), to) + "   # must not lead back into the circle"},
	}
	if len(names) == 1 {
		e.summary = fmt.Sprintf("%s gets the %s to %s back again and again", names[0], what, to)
	}
	for i := range s.Circle {
		t := &s.Circle[i]
		e.evidence = append(e.evidence, state(s, "%s sends %s to %s", name(t.Place), to, way(&t.Way)))
	}
	e.cause = fmt.Sprintf("The %s for %s goes %s and round again until its TTL runs out. ", what, to, strings.Join(append(slices.Clone(names), names[0]), " -> "))
	e.fix = []string{"# " + at(wrong.Place, "%s route replace %s via GATEWAY dev DEVICE", ipCommand(to), host(to)) + "   # GATEWAY: the next router towards it, outside of the circle"}
	switch l := &wrong.Way; {
	case wrong.Near.Addr == to:
		e.cause += fmt.Sprintf("%s has %s on its link %s, but sends it to %s.", here, to, wrong.Near.Device.Name, way(l))
		mend := at(wrong.Place, "%s route del %s%s dev %s%s", ipCommand(to), showPrefix(l.Prefix), viaText(*l), quote(l.Device.Name), tableArg(l.Table))
		if lacksLink(wrong) {
			mend = at(wrong.Place, "%s route replace %s dev %s", ipCommand(to), wrong.Link, quote(wrong.Near.Device.Name))
		}
		e.fix = []string{mend + fmt.Sprintf("   # %s is on the link %s", to, wrong.Near.Device.Name)}
	case wrong.Near.Addr.IsValid():
		e.cause += fmt.Sprintf("%s is linked to the host that owns %s, at %s on %s, but sends it to %s.", here, to, wrong.Near.Addr, wrong.Near.Device.Name, way(l))
		e.fix = []string{at(wrong.Place, "%s route replace %s via %s dev %s", ipCommand(to), host(to), wrong.Near.Addr, quote(wrong.Near.Device.Name))}
	case isDefault(l.Prefix):
		e.confidence = trace.Likely
		e.cause += fmt.Sprintf("%s knows no better way to %s than its default route, which leads back.", here, to)
	default:
		e.confidence = trace.Likely
		e.cause += fmt.Sprintf("%s sends it back, to %s.", here, way(l))
	}
	return e
}

// lacksLink reports a host without the route to its own link that its address there
// had brought: else that would have been chosen before the one which leads away.
func lacksLink(t *trace.Turn) bool {
	return t.Link.IsValid() && t.Way.Prefix.IsValid() && (t.Way.Table == 0 || t.Way.Table == tableMain) && t.Way.Prefix.Bits() <= t.Link.Bits()
}

// way tells where a route leads.
func way(l *trace.Lookup) string {
	if !l.Found() {
		return "nobody (no route)"
	}
	table := ""
	if l.Table != 0 && l.Table != tableMain {
		table = " in table " + showTable(l.Table)
	}
	return fmt.Sprintf("%s%s (route %s%s)", l.Device.Name, viaText(*l), showPrefix(l.Prefix), table)
}
