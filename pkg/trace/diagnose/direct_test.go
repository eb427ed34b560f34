package diagnose

import (
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

var (
	gw0   = trace.Device{Index: 7, Name: "gw0"}
	eth1  = trace.Device{Index: 8, Name: "eth1"}
	pod0  = trace.Device{Index: 9, Name: "pod0"}
	inPod = tuple("198.51.100.7:41822", "10.9.0.5:8080")
	ig    = trace.Place{Netns: 3, Name: "ig"}
	mgmt  = trace.Place{Netns: 4, Name: "mgmt"}
)

// tunnelled is a SYN-ACK that be, the endpoint's node, sent by eth1 to mgmt, which dropped it.
func tunnelled() trace.Case {
	c := replyDropped(vip4, "IP_INNOROUTES", "ip_error")
	c.Place, c.Event.Netns = mgmt, mgmt.Netns
	c.Miss = trace.Event{Hook: trace.HookRouteMiss4, Errno: syscall.EAGAIN, Tuple: vip4.Reverse()}
	c.Path.Request = []trace.Hop{
		{Place: ig, In: eth0, Out: gw0, Tuple: vip4},
		{Place: be, Out: pod0, Tuple: inPod},
	}
	c.Path.Reply = []trace.Hop{{Place: be, In: gw0, Out: eth1, Tuple: vip4.Reverse()}, {Place: mgmt, In: eth0, Tuple: vip4.Reverse()}}
	return c
}

func TestAstray(t *testing.T) {
	wrong := byDefault()
	wrong.Device, wrong.Gateway = eth1, addr("10.3.0.1")
	s := &trace.HostState{Onward: wrong, PathGateways: []trace.Gateway{{Addr: addr("10.2.0.1"), Device: eth0}}}
	c := tunnelled()
	suspects := Suspects(&c)
	i := slices.IndexFunc(suspects, func(c trace.Case) bool { return c.Place == be && c.Symptom == trace.SymptomAstray })
	if i < 0 {
		t.Fatalf("suspects: %+v", suspects)
	}
	for _, earlier := range suspects[:i] {
		if f, ok := Explain(&earlier, s); ok {
			t.Errorf("explained as %s first", f.ID)
		}
	}
	f, ok := Explain(&suspects[i], s)
	if !ok || f.ID != "reply-no-route" || f.Where.Place != be || f.Direction != trace.Reply {
		t.Fatalf("found %v %+v", ok, f)
	}
	if want := "ip netns exec be ip route replace default via 10.2.0.1 dev eth0"; !strings.HasPrefix(f.Fix[0], want) {
		t.Errorf("fix is %q, want %q", f.Fix[0], want)
	}
	if !strings.Contains(f.Cause, "(DSR)") || !strings.Contains(f.Cause, "203.0.113.80:80 as source") {
		t.Errorf("the cause does not say who has to answer: %s", f.Cause)
	}
}

// TestFoundNothing6: kernels differ in which of two functions the other is inlined into.
func TestFoundNothing6(t *testing.T) {
	for name, want := range map[string]bool{"ip6_pkt_discard": true, "ip6_pkt_prohibit": false} {
		for _, symbol := range []string{name, "ip6_pkt_drop"} {
			c := replyDropped(vip6, "IP_INNOROUTES", symbol)
			c.Event.Input = name
			if got := foundNothing(&c); got != want {
				t.Errorf("given to %s, dropped in %s: found nothing is %v", name, symbol, got)
			}
		}
	}
}

func TestNotAstray(t *testing.T) {
	wrong := byDefault()
	wrong.Device = eth1
	near := []trace.Gateway{{Addr: addr("10.2.0.1"), Device: eth0}}
	for name, change := range map[string]func(*trace.Case, *trace.HostState){
		"no other router known":         func(_ *trace.Case, s *trace.HostState) { s.PathGateways = nil },
		"the router is on the same way": func(_ *trace.Case, s *trace.HostState) { s.Onward.Device = eth0 },
		"a table of its own":            func(_ *trace.Case, s *trace.HostState) { s.Onward.Table = 100 },
		"the request came that way":     func(c *trace.Case, _ *trace.HostState) { c.Path.Request[1].In = eth0 },
		"the router refuses on purpose": func(c *trace.Case, _ *trace.HostState) { c.Miss.Errno = syscall.EINVAL },
		"the router does not forward":   func(c *trace.Case, _ *trace.HostState) { c.Miss = trace.Event{} },
		"the request came through it": func(c *trace.Case, _ *trace.HostState) {
			c.Path.Request = append([]trace.Hop{{Place: mgmt, In: eth0, Out: eth1}}, c.Path.Request...)
		},
	} {
		c, s := tunnelled(), &trace.HostState{Onward: wrong, PathGateways: near}
		change(&c, s)
		for _, suspect := range Suspects(&c) {
			if f, ok := Explain(&suspect, s); ok {
				t.Errorf("%s: found %s: %s", name, f.ID, f.Summary)
			}
		}
	}
}

// TestDirectAnswer: a load balancer that translates and is no tunnel's end must see the reply anyway.
func TestDirectAnswer(t *testing.T) {
	c := tunnelled()
	c.Place = be
	if text := directAnswer(&c, &trace.HostState{}); !strings.Contains(text, "ig only tunnelled") {
		t.Errorf("got %q", text)
	}
	c.Path.Request[1].In = eth0
	if text := directAnswer(&c, &trace.HostState{}); text != "" {
		t.Errorf("plain NAT is told as DSR: %q", text)
	}
	c = tunnelled()
	c.Place, c.Path.Request[1].Tuple.Dst = be, netip.MustParseAddrPort("203.0.113.80:80")
	if text := directAnswer(&c, &trace.HostState{}); text != "" {
		t.Errorf("a host that does not translate is told as the one: %q", text)
	}
}

// TestOwnAnswer: what makes direct return is the service's address on the host
// that answers, behind a host that sent the request on as it was. Routers alone do not.
func TestOwnAnswer(t *testing.T) {
	rt, lb := trace.Place{Netns: 5, Name: "rt"}, trace.Place{Netns: 6, Name: "lb"}
	hop := func(p trace.Place, out trace.Device, arrived, left trace.Tuple) trace.Hop {
		return trace.Hop{Place: p, In: eth0, Out: out, Arrived: arrived, Tuple: left}
	}
	switched := hop(trace.Place{Netns: 7, Name: "sw"}, eth1, vip4, vip4)
	switched.Bridged = true
	atBackend := hop(be, trace.Device{}, vip4, vip4)
	for name, test := range map[string]struct {
		virtual bool
		request []trace.Hop
		want    string
	}{
		"through a load balancer":  {true, []trace.Hop{hop(rt, eth1, vip4, vip4), hop(lb, eth0, vip4, vip4), switched, atBackend}, "does not go back through lb"},
		"balancer next to client":  {true, []trace.Hop{hop(lb, eth0, vip4, vip4), atBackend}, "with 203.0.113.80:80 as source"},
		"two routers to a server":  {false, []trace.Hop{hop(rt, eth1, vip4, vip4), hop(lb, eth1, vip4, vip4), atBackend}, ""},
		"a load balancer with NAT": {true, []trace.Hop{hop(rt, eth1, vip4, vip4), hop(lb, eth1, vip4, inPod), hop(be, trace.Device{}, inPod, inPod)}, ""},
		"only a switch between":    {true, []trace.Hop{{Place: mgmt, Out: eth0, Tuple: vip4}, switched, atBackend}, ""},
		"a balancer on its node":   {true, []trace.Hop{switched, atBackend}, "with 203.0.113.80:80 as source (DSR)"},
		"on the way":               {true, []trace.Hop{hop(lb, eth0, vip4, vip4), hop(be, eth1, vip4, vip4)}, ""},
		"not seen":                 {true, nil, ""},
	} {
		c := request(trace.SymptomSilence, vip4)
		c.Path.Request = test.request
		text := directAnswer(&c, &trace.HostState{Virtual: test.virtual})
		if (text == "") != (test.want == "") || !strings.Contains(text, test.want) {
			t.Errorf("%s: %q", name, text)
		}
	}
}
