package diagnose

import (
	"fmt"
	"strings"

	"github.com/replypath/replypath/pkg/trace"
)

var fragmentDrop = Rule{
	ID:       "fragment-drop",
	Title:    "fragments are dropped, so the datagram is never whole",
	Severity: trace.Error,
	Doc: "A datagram that is bigger than the MTU travels in fragments, and the first alone has ports. A filter that looks at ports lets that one pass and drops the others; or a rule drops fragments on purpose; or the host that puts them together gave up (reasons FRAG_*). " +
		"The fragments are tied to their datagram by addresses, protocol and IP id. Where connection tracking is at work it puts datagrams together before most rules see them.",
	explain: explainFragment,
}

func explainFragment(c *trace.Case, s *trace.HostState) *explanation {
	ev := &c.Event
	if c.Symptom != trace.SymptomDrop || !isFragment(ev) && !isReassembly(ev) {
		return nil
	}
	filtered := isNetfilterDrop(c)
	if !ev.Fragment && !isReassembly(ev) && !(filtered && namesFragments(s.Filters)) {
		return nil // the first fragment, dropped as any packet would be
	}
	here := name(c.Place)
	e := &explanation{
		confidence: trace.Certain,
		summary:    fmt.Sprintf("%s drops fragments of datagrams from %s", here, ev.Tuple.Src),
		fault:      "fragments",
		verify:     []string{at(c.Place, "nstat -az IpReasmFails Ip6ReasmFails") + "   # and see whether big datagrams arrive"},
	}
	what := fmt.Sprintf("%s -> %s", ev.Tuple.Src, ev.Tuple.Dst)
	switch {
	case filtered:
		hook := netfilterHooks(c)[0]
		e.hook = string(hook)
		e.cause = fmt.Sprintf("The datagram %s is too big for one packet. Netfilter in %s dropped a fragment of it at hook %s, so it is never whole.", what, here, hook)
		e.fix = []string{fmt.Sprintf("# accept fragments in %s before what drops them (nft: ip frag-off & 0x1fff != 0 accept; exthdr frag exists accept), or send datagrams that fit", here)}
		if blame(e, c, s) {
			e.fix = append(e.fix, "# or send datagrams that fit into one packet")
		} else {
			e.verify = append([]string{at(c.Place, "nft list ruleset") + "   # what handles packets without ports"}, e.verify...)
		}
	case isReassembly(ev):
		e.cause = fmt.Sprintf("%s could not put the fragments of the datagram %s together (%s): some were lost before, or came too late.", capital(here), what, ev.Reason)
		e.confidence = trace.Likely
		e.fix = []string{"# find where the other fragments are lost, or send datagrams that fit"}
	default:
		e.confidence = trace.Likely
		e.cause = fmt.Sprintf("%s dropped a fragment of the datagram %s (%s), so it is never whole.", capital(here), what, dropText(ev))
		e.fix = []string{"# send datagrams that fit into one packet, or mend what drops them there"}
	}
	return e
}

// isFragment reports a piece of a datagram, the first one included.
func isFragment(ev *trace.Event) bool { return ev.Fragment || ev.MoreFragments }

// isReassembly reports a drop by what puts fragments together (net/ipv4/ip_fragment.c, net/ipv6/reassembly.c).
func isReassembly(ev *trace.Event) bool { return strings.HasPrefix(ev.Reason, "FRAG_") }

// namesFragments reports whether the rule that dropped the packet looks at fragments.
func namesFragments(filters []trace.FilterVerdict) bool {
	for _, f := range filters {
		if strings.Contains(f.Rule, "frag") || strings.Contains(f.Rule, "-f ") {
			return true
		}
	}
	return false
}
