package diagnose

import (
	"net/netip"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

// TestVIPSentAway is about a request that a host sent on, and that nobody saw again.
func TestVIPSentAway(t *testing.T) {
	listener := []trace.Listener{{Addr: netip.MustParseAddrPort("0.0.0.0:80"), Matches: true}}
	route := func(prefix string) trace.Lookup {
		l := found
		l.Prefix = netip.MustParsePrefix(prefix)
		return l
	}
	away := trace.Lookup{Done: true, Type: "unicast", Prefix: netip.MustParsePrefix("0.0.0.0/0"), Table: 254, Device: vx0}
	appointed := trace.HostState{Onward: away, Forwarding: true, In: trace.Interface{Device: eth0}, Listeners: listener, Sent: route("203.0.113.80/32")}
	with := func(change func(*trace.HostState)) trace.HostState {
		s := appointed
		change(&s)
		return s
	}
	for name, tt := range map[string]struct {
		s    trace.HostState
		udp  bool
		want bool
	}{
		"a route for the VIP leads here":     {appointed, false, true},
		"datagrams":                          {appointed, true, true},
		"a default route leads here":         {with(func(s *trace.HostState) { s.Sent = route("0.0.0.0/0") }), false, false},
		"a route for a network leads here":   {with(func(s *trace.HostState) { s.Sent = route("203.0.113.0/24") }), false, false},
		"who sent it here is not known":      {with(func(s *trace.HostState) { s.Sent = trace.Lookup{} }), false, false},
		"a router that has a route for it":   {with(func(s *trace.HostState) { s.Onward.Prefix = netip.MustParsePrefix("203.0.113.80/32") }), false, false},
		"nobody listens":                     {with(func(s *trace.HostState) { s.Listeners = nil }), false, false},
		"another host has it on a link":      {with(func(s *trace.HostState) { s.Owners = []trace.Owner{{Place: otherPlace}} }), false, false},
		"it is its own":                      {with(func(s *trace.HostState) { s.DstLocal = true }), false, false},
		"other servers have it on lo, as it": {with(func(s *trace.HostState) { s.Owners = []trace.Owner{{Place: otherPlace, Virtual: true}} }), false, true},
	} {
		t.Run(name, func(t *testing.T) {
			c := request(trace.SymptomStray, vip4)
			c.Path = exchange(vip4)
			c.Path.Request[2].Out = vx0
			if tt.udp {
				c.Event.Tuple.Protocol, c.Path.Protocol, c.Event.Flags = trace.UDP, trace.UDP, 0
			}
			suspects := Suspects(&c)
			if len(suspects) != 2 || suspects[0].Symptom != trace.SymptomMisled || suspects[1].Place != be || suspects[1].Symptom != trace.SymptomStray {
				t.Fatalf("suspects %+v", suspects)
			}
			suspects = suspects[1:]
			if _, asks := Question(&c); asks {
				t.Error("a question that is repeated is asked about without a suspect")
			}
			if _, asks := Question(&suspects[0]); !asks {
				t.Error("nobody asks")
			}
			f, ok := Explain(&suspects[0], &tt.s)
			if ok != tt.want {
				t.Fatalf("found %t: %+v", ok, f)
			}
			if ok && (f.ID != "vip-not-local" || f.Confidence != trace.Likely || f.Where.Place != be || f.Direction != trace.Request) {
				t.Errorf("found %+v", f)
			}
		})
	}
}

// Of a request that is repeated again and again, the way is asked about no more.
func TestStrayRepeats(t *testing.T) {
	c := request(trace.SymptomStray, vip4)
	c.Path = exchange(vip4)
	c.Path.Request[2].Out, c.Path.Requests = vx0, strayRepeats+1
	if s := Suspects(&c); len(s) != 0 || Wants(&c) {
		t.Errorf("suspects %+v", s)
	}
}
