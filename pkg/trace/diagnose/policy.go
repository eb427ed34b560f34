package diagnose

import (
	"fmt"

	"github.com/replypath/replypath/pkg/trace"
)

var replyPolicyRouted = Rule{
	ID:       "reply-policy-routed",
	Title:    "a routing rule sent the reply into another table and out of another device",
	Severity: trace.Error,
	Doc: "The reply was lost (dropped by a host that the request had not come through, without an answer from its next hop, or never seen again), and a routing rule had sent it " +
		"there: into another table, and out of another device than both the one that the request came in by and the one that table main names. Rules that lead replies back where the request " +
		"came from are left alone, and so are those without which there would be no route at all.",
	explain: explainPolicyRouted,
}

func explainPolicyRouted(c *trace.Case, s *trace.HostState) *explanation {
	if c.Symptom != trace.SymptomVanished || !c.Suspect || s.Policy.Rule == "" {
		return nil
	}
	way, main := &s.Policy.Way, &s.Policy.Main
	switch {
	case !main.Found() || main.Device.Index == way.Device.Index:
		return nil
	case c.Arrival.Device.Index == way.Device.Index:
		return nil
	case c.Event.OutIndex != 0 && c.Event.OutIndex != way.Device.Index:
		return nil // it went elsewhere
	}
	here, to := name(c.Place), c.Event.Tuple.Dst.Addr()
	ip := ipCommand(to)
	return &explanation{
		confidence: trace.Certain,
		direction:  trace.Reply,
		device:     way.Device.Name,
		fault:      s.Policy.Rule,
		summary:    fmt.Sprintf("a routing rule of %s sends the reply to %s out of %s, where it is lost", here, to, way.Device.Name),
		cause: fmt.Sprintf("The rule %q of %s sends the reply from %s into table %s, and so out of %s%s, where it was lost. Table main would have sent it out of %s%s.",
			s.Policy.Rule, here, c.Event.Tuple.Src.Addr(), showTable(way.Table), way.Device.Name, viaText(*way), main.Device.Name, viaText(*main)),
		fix: []string{
			at(c.Place, "%s rule del %s", ip, ruleArgs(s.Policy.Rule)) + "   # if nobody relies on it",
			"# or " + at(c.Place, "%s route replace %s%s dev %s%s", ip, showPrefix(way.Prefix), viaText(*main), quote(main.Device.Name), tableArg(way.Table)),
		},
		verify: []string{at(c.Place, "%s route get %s from %s%s", ip, to, c.Event.Tuple.Src.Addr(), policyArgs(c, s.Policy.Rule)) +
			fmt.Sprintf("   # must leave by %s", main.Device.Name)},
		evidence: []trace.Evidence{state(s, "rule %s; route in table %s: %s dev %s%s; in table main: %s dev %s%s", s.Policy.Rule,
			showTable(way.Table), showPrefix(way.Prefix), way.Device.Name, viaText(*way), showPrefix(main.Prefix), main.Device.Name, viaText(*main))},
	}
}

// policyArgs adds to `ip route get` what the rule has to see.
func policyArgs(c *trace.Case, rule string) string {
	args := ""
	for i := range c.Path.Reply {
		if h := &c.Path.Reply[i]; h.Place.Netns == c.Place.Netns && h.In.Index != 0 {
			return " iif " + quote(h.In.Name) // it only passes here
		}
	}
	if c.Event.Mark != 0 {
		args = fmt.Sprintf(" mark %#x", c.Event.Mark)
	}
	return args + portArgs(rule, c.Event.Tuple.Protocol, c.Event.Tuple.Src.Port())
}
