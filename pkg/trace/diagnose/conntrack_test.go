package diagnose

import (
	"strings"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

// invalidAtRouter is a SYN-ACK without an entry that a rule of be, a router, dropped.
func invalidAtRouter(change func(*trace.Case)) trace.Case {
	c := replyDropped(vip4, "NETFILTER_DROP", "nft_do_chain")
	c.Event.HasRoute, c.Event.Input, c.Event.OutIndex = true, "ip_forward", vx0.Index
	if change != nil {
		change(&c)
	}
	return c
}

func hopOf(p trace.Place) trace.Hop { return trace.Hop{Place: p, Tuple: vip4} }

func TestExplainConntrack(t *testing.T) {
	full := trace.ConntrackState{Known: true, Count: 1000, Max: 1000, Drops: 3}
	roomy := trace.ConntrackState{Known: true, Count: 10, Max: 1000}
	byConntrack := func(c *trace.Case) { c.Verdict = trace.Verdict{By: trace.ByConntrack, Hook: trace.Prerouting} }
	first := func(change func(*trace.Case)) trace.Case {
		c := dropped(vip4, "NETFILTER_DROP", "nf_hook_slow")
		if change != nil {
			change(&c)
		}
		return c
	}
	datagram := first(func(c *trace.Case) { c.Event.Tuple.Protocol, c.Event.Flags = trace.UDP, 0 })
	ack := invalidAtRouter(func(c *trace.Case) {
		c.Direction, c.Event.Tuple, c.Event.Flags = trace.Request, vip4, trace.ACK
		c.Path.Request = []trace.Hop{hopOf(be)}
	})
	rules := []trace.FilterVerdict{rule(true)}
	tests := map[string]struct {
		c    trace.Case
		s    trace.HostState
		id   string
		conf trace.Confidence
		why  string
	}{
		"table full":                       {first(nil), trace.HostState{Tracking: full}, "conntrack-full", trace.Certain, "holds 1000 entries"},
		"table full, UDP":                  {datagram, trace.HostState{Tracking: full}, "conntrack-full", trace.Certain, "holds 1000 entries"},
		"table full, and a rule that may":  {first(nil), trace.HostState{Tracking: full, Filters: []trace.FilterVerdict{rule(false)}}, "conntrack-full", trace.Likely, ""},
		"table full, but a rule drops":     {first(nil), trace.HostState{Tracking: full, Filters: rules}, "netfilter-drop", trace.Certain, ""},
		"table full, packet is known":      {first(func(c *trace.Case) { c.Event.Conntrack.Original, c.Event.Conntrack.Info = vip4, 2 }), trace.HostState{Tracking: full}, "netfilter-drop", trace.Likely, ""},
		"room, and conntrack says so":      {first(byConntrack), trace.HostState{Tracking: roomy}, "conntrack-full", trace.Likely, "By now there is room again"},
		"full, and conntrack says so":      {first(byConntrack), trace.HostState{Tracking: full}, "conntrack-full", trace.Certain, ""},
		"room, no rule":                    {first(nil), trace.HostState{Tracking: roomy}, "netfilter-drop", trace.Likely, ""},
		"full, not read, conntrack says":   {first(byConntrack), trace.HostState{}, "conntrack-full", trace.Likely, ""},
		"reply only":                       {invalidAtRouter(nil), trace.HostState{Filters: rules, Tracked: true}, "conntrack-invalid-drop", trace.Certain, "saw only the reply"},
		"request only":                     {ack, trace.HostState{Filters: rules, Tracked: true}, "conntrack-invalid-drop", trace.Certain, "sees only the requests"},
		"both ways":                        {invalidAtRouter(func(c *trace.Case) { c.Path.Request = []trace.Hop{hopOf(be)} }), trace.HostState{Filters: rules, Tracked: true}, "conntrack-invalid-drop", trace.Likely, "Both directions pass"},
		"candidates":                       {invalidAtRouter(nil), trace.HostState{Filters: []trace.FilterVerdict{rule(true), rule(true)}, Tracked: true}, "conntrack-invalid-drop", trace.Likely, ""},
		"dropped, known or not":            {invalidAtRouter(nil), trace.HostState{Filters: rules, Tracked: true, IfTracked: rules}, "netfilter-drop", trace.Certain, ""},
		"not asked what if":                {invalidAtRouter(nil), trace.HostState{Filters: rules}, "netfilter-drop", trace.Certain, ""},
		"exempt from tracking":             {invalidAtRouter(func(c *trace.Case) { c.Event.Conntrack.Info = 7 }), trace.HostState{Filters: rules, Tracked: true}, "netfilter-drop", trace.Certain, ""},
		"a SYN is new":                     {first(nil), trace.HostState{Filters: rules, Tracked: true}, "netfilter-drop", trace.Certain, ""},
		"a datagram is never INVALID here": {datagram, trace.HostState{Filters: rules, Tracked: true}, "netfilter-drop", trace.Certain, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.s.Onward = found
			f, ok := Explain(&tt.c, &tt.s)
			if !ok || f.ID != tt.id || f.Confidence != tt.conf || !strings.Contains(f.Cause, tt.why) {
				t.Errorf("found %q, %s: %s; want %q, %s, %s", f.ID, f.Confidence, f.Cause, tt.id, tt.conf, tt.why)
			}
			checkComplete(t, &f)
		})
	}
}

// Filters are asked again only for what is INVALID to them, with the entry that it would have.
func TestTrackedQuestion(t *testing.T) {
	c := invalidAtRouter(nil)
	q, _ := Question(&c)
	r, ok := TrackedQuestion(&q)
	if !ok || r.Conntrack.Original != vip4 || r.Conntrack.Info != conntrackEstablishedReply || !q.Limits {
		t.Errorf("asks %t with %+v, limits %t", ok, r.Conntrack, q.Limits)
	}
	c = dropped(vip4, "NETFILTER_DROP", "nft_do_chain")
	q, _ = Question(&c)
	if _, ok := TrackedQuestion(&q); ok {
		t.Error("asks about a SYN, which is new")
	}
}
