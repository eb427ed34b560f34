package diagnose

import (
	"fmt"

	"github.com/replypath/replypath/pkg/trace"
)

var conntrackFull = Rule{
	ID:       "conntrack-full",
	Title:    "the conntrack table is full",
	Severity: trace.Error,
	Doc: "Connection tracking had no room for a new connection (nf_conntrack_count has reached nf_conntrack_max) and dropped its first packet. Recognised by a drop by netfilter that no rule made, " +
		"of a packet without an entry, while the namespace's table is full; where the kernel's functions can be followed, connection tracking itself says so. Each namespace counts its own entries; the limit is set on the host, for all.",
	explain: explainConntrackFull,
}

var conntrackInvalidDrop = Rule{
	ID:       "conntrack-invalid-drop",
	Title:    "a stateful filter saw only one direction and called it INVALID",
	Severity: trace.Error,
	Doc: "A stateful firewall that never saw one direction of a connection cannot know the packets of the other: it calls them INVALID, and a rule for that (or the policy, since no rule for established " +
		"connections fits) drops them. Recognised by a drop of a TCP packet that carries no conntrack entry, by a rule or policy that would let the very packet pass if its connection were known.",
	explain: explainConntrackInvalid,
}

// isUntold reports a packet that connection tracking gave no entry, though it was not exempt.
func isUntold(ev *trace.Event) bool { return !ev.Conntrack.Known() && ev.Conntrack.Info == 0 }

// asksLimits reports a packet that connection tracking itself may have dropped.
func asksLimits(c *trace.Case) bool {
	if c.Symptom != trace.SymptomDrop || !isNetfilterDrop(c) || !isUntold(&c.Event) {
		return false
	}
	return c.Verdict.By <= trace.ByConntrack
}

// tracked is the entry that a packet which is INVALID would have if its
// connection were known; zero where it is not INVALID.
func tracked(c *trace.Case) trace.Conntrack {
	ev := &c.Event
	if !isNetfilterDrop(c) || !isUntold(ev) || ev.Tuple.Protocol != trace.TCP || ev.Flags == 0 || ev.Flags.IsSYN() {
		return trace.Conntrack{}
	}
	if c.Direction == trace.Reply || ev.Flags.IsSYNACK() {
		return trace.Conntrack{Original: ev.Tuple.Reverse(), Reply: ev.Tuple, Info: conntrackEstablishedReply}
	}
	return trace.Conntrack{Original: ev.Tuple, Reply: ev.Tuple.Reverse()}
}

// TrackedQuestion asks what the filters would do with an INVALID packet if its
// connection were known; false when that is not the question.
func TrackedQuestion(q *trace.Question) (trace.Question, bool) {
	if !q.Tracked.Known() || len(q.Filters) == 0 {
		return trace.Question{}, false
	}
	r := *q
	r.Conntrack, r.Tracked = q.Tracked, trace.Conntrack{}
	return r, true
}

func explainConntrackFull(c *trace.Case, s *trace.HostState) *explanation {
	if !asksLimits(c) {
		return nil
	}
	told, full := c.Verdict.By == trace.ByConntrack, s.Tracking.Full()
	byRule := len(s.Filters) == 1 && s.Filters[0].Certain
	if !told && (!full || byRule) {
		return nil
	}
	ev, here := &c.Event, name(c.Place)
	t := s.Tracking
	hook := netfilterHooks(c)[0]
	e := &explanation{
		confidence: trace.Likely, device: filterDevice(c, s), hook: string(hook), fault: "conntrack table",
		summary: fmt.Sprintf("the conntrack table of %s is full, so the %s was dropped", here, packetName(ev)),
		cause:   fmt.Sprintf("Connection tracking in %s had no room for the connection of the %s %s -> %s, and dropped it at hook %s.", here, packetName(ev), ev.Tuple.Src, ev.Tuple.Dst, hook),
		verify:  []string{at(c.Place, "sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max") + "   # the first must be well below the second"},
	}
	wanted := "N"
	if t.Known && t.Max > 0 {
		wanted = fmt.Sprint(2 * t.Max)
		e.cause += fmt.Sprintf(" It holds %d entries; nf_conntrack_max is %d.", t.Count, t.Max)
		e.evidence = append(e.evidence, state(s, "nf_conntrack_count is %d, nf_conntrack_max %d; %d packets were dropped for want of an entry", t.Count, t.Max, t.Drops))
	}
	raise := fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%s   # on the host itself: the limit of each of its namespaces; an entry takes some 300 bytes", wanted)
	if wanted == "N" {
		raise = "# " + raise
	}
	e.fix = []string{raise, "# " + at(c.Place, "conntrack -L") + "   # who fills it; or exempt that traffic from tracking"}
	if told && full || full && !byRule && len(s.Filters) == 0 && t.Drops > 0 {
		e.confidence = trace.Certain
	}
	if told && !full {
		e.cause += " By now there is room again."
	}
	return e
}

func explainConntrackInvalid(c *trace.Case, s *trace.HostState) *explanation {
	if c.Symptom != trace.SymptomDrop || !tracked(c).Known() || !s.Tracked || len(s.IfTracked) > 0 {
		return nil
	}
	filters := judgedFilters(c, s.Filters)
	if len(filters) == 0 {
		return nil
	}
	ev, here, v := &c.Event, name(c.Place), &filters[0]
	passes := seesRequest(c)
	e := &explanation{
		confidence: trace.Certain, device: filterDevice(c, s), hook: string(v.Hook), fault: "invalid " + faultOf(v),
		summary: fmt.Sprintf("%s calls the %s INVALID, and %s drops it", here, packetName(ev), showShort(v)),
		cause: fmt.Sprintf("%s dropped the %s %s -> %s at hook %s in %s: it carries no conntrack entry, so to a stateful filter it is INVALID. ",
			capital(showVerdict(v)), packetName(ev), ev.Tuple.Src, ev.Tuple.Dst, v.Hook, here),
		fix:    []string{acceptBefore(c, v), fmt.Sprintf("# or let both directions of the connection pass %s, or none", here)},
		verify: []string{verifyFilter(c, filters)},
	}
	switch {
	case c.Direction == trace.Reply && !passes:
		e.cause += fmt.Sprintf("The request went another way (asymmetric routing), so %s saw only the reply.", here)
	case c.Direction == trace.Request && !seesReply(c):
		e.cause += fmt.Sprintf("The replies go another way (asymmetric routing, DSR), so %s sees only the requests and takes the connection for unanswered.", here)
	default:
		e.confidence = trace.Likely
		e.cause += fmt.Sprintf("Both directions pass %s: its entry is gone, or the packet does not fit what it has seen of the connection.", here)
	}
	if !v.Certain || len(filters) > 1 {
		e.confidence = min(e.confidence, trace.Likely)
	}
	for i := range filters {
		e.evidence = append(e.evidence, state(s, "%s%s", showVerdict(&filters[i]), showCounter(&filters[i])))
	}
	e.evidence = append(e.evidence, state(s, "the same rules let the packet pass if its connection is established"))
	if t := s.Tracking; t.Known && t.Invalid > 0 {
		e.evidence = append(e.evidence, state(s, "conntrack has called %d packets invalid in %s", t.Invalid, here))
	}
	return e
}

// seesRequest and seesReply report whether packets of a direction passed the case's namespace.
func seesRequest(c *trace.Case) bool { return passes(c.Path.Request, c.Place.Netns) }
func seesReply(c *trace.Case) bool   { return passes(c.Path.Reply, c.Place.Netns) }

func passes(hops []trace.Hop, ns trace.Netns) bool {
	for i := range hops {
		if hops[i].Place.Netns == ns {
			return true
		}
	}
	return false
}
