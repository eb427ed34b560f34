package diagnose

import (
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

// shapes are the findings that follow from the shape of the path.
var shapes = map[string]bool{
	"reply-wrong-source": true, "reply-policy-routed": true, "routing-loop": true,
	"neighbor-conflict": true, "accept-queue-full": true, "conntrack-entry-lost": true,
}

var (
	clientPlace   = trace.Place{Netns: 1, Name: "cl"}
	balancerPlace = trace.Place{Netns: 2, Name: "lb"}
	otherPlace    = trace.Place{Netns: 3, Name: "r3"}
	behind        = tuple("198.51.100.7:41822", "10.2.0.20:8080")
)

// hopOf is a hop by devices 2 and 3; an arrival that is not valid says that it was made there.
func throughHop(p trace.Place, arrived, left trace.Tuple, out bool) trace.Hop {
	h := trace.Hop{Place: p, Arrived: arrived, Tuple: left, First: now}
	if arrived.IsValid() {
		h.In = eth0
	}
	if out {
		h.Out = vx0
	}
	return h
}

// exchange is a path from cl through lb, which translates to `to`, to be, and back by the given hops.
func exchange(to trace.Tuple, reply ...trace.Hop) trace.Path {
	return trace.Path{
		Protocol: trace.TCP, Client: vip4.Src, Server: vip4.Dst, Connection: vip4,
		Request: []trace.Hop{throughHop(clientPlace, trace.Tuple{}, vip4, true), throughHop(balancerPlace, vip4, to, true), throughHop(be, to, to, false)},
		Reply:   reply,
	}
}

func back(p trace.Path, s trace.Symptom) trace.Case {
	ev := trace.Event{Time: now, Netns: clientPlace.Netns, Hook: trace.HookReceive, Tuple: p.Reply[len(p.Reply)-1].Tuple, Flags: trace.SYN | trace.ACK, Device: eth0}
	return trace.Case{Symptom: s, Direction: trace.Reply, Place: clientPlace, Event: ev, Path: p}
}

func TestWrongSource(t *testing.T) {
	none := trace.Tuple{}
	made := throughHop(be, none, behind.Reverse(), true)
	atClient := throughHop(clientPlace, behind.Reverse(), behind.Reverse(), false)
	right := throughHop(clientPlace, vip4.Reverse(), vip4.Reverse(), false)
	for name, tt := range map[string]struct {
		p     trace.Path
		at    trace.Place
		kind  deviation
		cause string
	}{
		"a way around the host that translates": {exchange(behind, made, atClient), balancerPlace, bypassed, "does not go back through lb"},
		"the host that translates did not restore": {exchange(behind, made, throughHop(balancerPlace, behind.Reverse(), behind.Reverse(), true), atClient),
			balancerPlace, notRestored, "did not restore 203.0.113.80:80"},
		"direct return from the own address": {exchange(vip4, made, atClient), be, ownSource, "(DSR)"},
		"a router that translates replies": {exchange(vip4, throughHop(be, none, vip4.Reverse(), true), throughHop(otherPlace, vip4.Reverse(), behind.Reverse(), true), atClient),
			otherPlace, changed, "source NAT there"},
		"restored, as it should":            {exchange(behind, made, throughHop(balancerPlace, behind.Reverse(), vip4.Reverse(), true), right), trace.Place{}, 0, ""},
		"direct return, as it should":       {exchange(vip4, throughHop(be, none, vip4.Reverse(), true), right), trace.Place{}, 0, ""},
		"on its way still":                  {exchange(behind, made), trace.Place{}, 0, ""},
		"restored by the twin of the other": {exchange(behind, made, throughHop(otherPlace, behind.Reverse(), vip4.Reverse(), true), right), trace.Place{}, 0, ""},
		"a bridge that saw it before and after": {exchange(behind, made, func() trace.Hop {
			h := throughHop(otherPlace, behind.Reverse(), vip4.Reverse(), true)
			h.Bridged = true
			return h
		}(), right), trace.Place{}, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := back(tt.p, trace.SymptomMisaddressed)
			var found *trace.Case
			for _, s := range Suspects(&c) {
				if s.Symptom == trace.SymptomMisaddressed {
					found = &s
				}
			}
			if tt.kind == 0 {
				if found != nil {
					t.Fatalf("suspects %s", found.Place.Name)
				}
				return
			}
			if found == nil || found.Place != tt.at {
				t.Fatalf("suspect %+v, want %s", found, tt.at.Name)
			}
			f, ok := Explain(found, &trace.HostState{})
			if !ok || f.ID != "reply-wrong-source" || f.Direction != trace.Reply || f.Where.Place != tt.at || !strings.Contains(f.Cause, tt.cause) {
				t.Errorf("finding %+v", f)
			}
			checkWords(t, &f)
		})
	}
}

func TestPolicyRouted(t *testing.T) {
	main, way := byDefault(), trace.Lookup{Done: true, Type: "unicast", Prefix: netip.MustParsePrefix("0.0.0.0/0"), Table: 100, Device: vx0}
	rule := "100: from 203.0.113.80 lookup 100"
	lost := func(p trace.Path, at trace.Place, reason string) trace.Case {
		c := back(p, trace.SymptomDrop)
		c.Place, c.Event.Netns, c.Event.Hook, c.Event.Reason = at, at.Netns, trace.HookDrop, reason
		return c
	}
	away := exchange(vip4, throughHop(be, trace.Tuple{}, vip4.Reverse(), true))
	vanished := back(away, trace.SymptomVanished)
	for name, tt := range map[string]struct {
		c      trace.Case
		policy trace.Policy
		want   bool
	}{
		"never seen again":                       {vanished, trace.Policy{Rule: rule, Way: way, Main: main}, true},
		"dropped by a stranger":                  {lost(away, otherPlace, "IP_INADDRERRORS"), trace.Policy{Rule: rule, Way: way, Main: main}, true},
		"dropped where the request came through": {lost(away, balancerPlace, "IP_INNOROUTES"), trace.Policy{Rule: rule, Way: way, Main: main}, false},
		"there is no other way":                  {vanished, trace.Policy{Rule: rule, Way: way, Main: noRoute()}, false},
		"the same device":                        {vanished, trace.Policy{Rule: rule, Way: way, Main: way}, false},
		"no rule":                                {vanished, trace.Policy{}, false},
		"it left by another device":              {vanished, trace.Policy{Rule: rule, Way: main, Main: way}, false},
	} {
		t.Run(name, func(t *testing.T) {
			var f trace.Finding
			ok := false
			for _, s := range Suspects(&tt.c) {
				if f, ok = Explain(&s, &trace.HostState{Policy: tt.policy}); ok {
					break
				}
			}
			if ok != tt.want || ok && (f.ID != "reply-policy-routed" || f.Where.Place != be || f.Where.Device != vx0.Name || f.Direction != trace.Reply) {
				t.Errorf("finding %t: %+v", ok, f)
			}
			if ok {
				checkWords(t, &f)
			}
		})
	}
}

func TestRoutingLoop(t *testing.T) {
	turn := func(p trace.Place, l trace.Lookup, near string) trace.Turn {
		g := trace.Gateway{Device: vx0}
		if near != "" {
			g.Addr = addr(near)
		}
		return trace.Turn{Place: p, In: eth0, Way: l, Near: g}
	}
	specific, whole := byDefault(), byDefault()
	specific.Prefix, whole.Prefix = netip.MustParsePrefix("203.0.113.80/32"), netip.MustParsePrefix("203.0.113.0/24")
	linked := func(l trace.Lookup) []trace.Turn {
		t := turn(balancerPlace, l, "203.0.113.80")
		t.Link = whole.Prefix
		return []trace.Turn{t, turn(otherPlace, byDefault(), "")}
	}
	other := whole
	other.Table = 100
	c := request(trace.SymptomLoop, vip4)
	round := func(p trace.Place) trace.Hop {
		h := throughHop(p, vip4, vip4, true)
		h.Rounds = 3
		return h
	}
	c.Path.Request = []trace.Hop{throughHop(clientPlace, trace.Tuple{}, vip4, true), round(balancerPlace), round(otherPlace)}
	for name, tt := range map[string]struct {
		circle []trace.Turn
		at     trace.Place
		fix    string
	}{
		"the destination is on a link":   {[]trace.Turn{turn(balancerPlace, specific, "203.0.113.80"), turn(otherPlace, byDefault(), "")}, balancerPlace, "ip netns exec lb ip route del 203.0.113.80/32 via 10.2.0.1 dev eth0"},
		"its link has a route, too":      {linked(specific), balancerPlace, "ip netns exec lb ip route del 203.0.113.80/32 via 10.2.0.1 dev eth0"},
		"its link has lost its route":    {linked(whole), balancerPlace, "ip netns exec lb ip route replace 203.0.113.0/24 dev vx0"},
		"and only the default is left":   {linked(byDefault()), balancerPlace, "ip netns exec lb ip route replace 203.0.113.0/24 dev vx0"},
		"another table leads away":       {linked(other), balancerPlace, "ip netns exec lb ip route del 203.0.113.0/24 via 10.2.0.1 dev eth0 table 100"},
		"its owner is on a link":         {[]trace.Turn{turn(balancerPlace, byDefault(), ""), turn(otherPlace, byDefault(), "10.9.0.2")}, otherPlace, "ip netns exec r3 ip route replace 203.0.113.80/32 via 10.9.0.2 dev vx0"},
		"the default route leads back":   {[]trace.Turn{turn(balancerPlace, byDefault(), ""), turn(otherPlace, specific, "")}, balancerPlace, "# ip netns exec lb ip route replace 203.0.113.80/32 via GATEWAY"},
		"both have a route of their own": {[]trace.Turn{turn(balancerPlace, specific, ""), turn(otherPlace, specific, "")}, otherPlace, "# ip netns exec r3 ip route replace"},
	} {
		f, ok := Explain(&c, &trace.HostState{Circle: tt.circle})
		if !ok || f.ID != "routing-loop" || f.Where.Place != tt.at || !strings.HasPrefix(f.Fix[0], tt.fix) {
			t.Errorf("%s: at %s, fix %q", name, f.Where.Place.Name, f.Fix)
			continue
		}
		checkWords(t, &f)
	}
	c.Path.Request[1].Rounds, c.Path.Request[2].Rounds = 0, 0 // a traceroute's short-lived packet
	if DependsOnCircle(&c) {
		t.Error("asks about a packet that came by once")
	}
}

func TestConflict(t *testing.T) {
	other := trace.Claim{Place: otherPlace, Device: eth0, MAC: "02:00:00:00:00:02", Listens: true}
	own := trace.Claim{Place: be, Device: eth0, MAC: "02:00:00:00:00:01"}
	mute := other
	mute.Listens = false
	for name, tt := range map[string]struct {
		c    trace.Case
		s    trace.HostState
		id   string
		conf trace.Confidence
	}{
		"refused":           {request(trace.SymptomRefused, vip4), trace.HostState{DstLocal: true, Contest: trace.Contest{Own: own, Others: []trace.Claim{other}}}, "neighbor-conflict", trace.Certain},
		"dropped by a rule": {dropped(vip6, "NETFILTER_DROP", "nft_do_chain"), trace.HostState{DstLocal: true, Contest: trace.Contest{Own: own, Others: []trace.Claim{other}}}, "neighbor-conflict", trace.Certain},
		"both serve it": {request(trace.SymptomSilence, vip4), trace.HostState{DstLocal: true, Listeners: listening(), Contest: trace.Contest{Own: own, Others: []trace.Claim{other}}},
			"neighbor-conflict", trace.Likely},
		"nobody serves it": {request(trace.SymptomRefused, vip4), trace.HostState{DstLocal: true, Contest: trace.Contest{Own: own, Others: []trace.Claim{mute}}}, "port-not-listening", trace.Certain},
		"nobody else":      {request(trace.SymptomRefused, vip4), trace.HostState{DstLocal: true}, "port-not-listening", trace.Certain},
	} {
		f, ok := Explain(&tt.c, &tt.s)
		if !ok || f.ID != tt.id || f.Confidence != tt.conf || f.Direction != trace.Request {
			t.Errorf("%s: %s %s %s", name, f.ID, f.Confidence, f.Direction)
			continue
		}
		checkWords(t, &f)
	}
}

func TestAcceptQueue(t *testing.T) {
	full := trace.Listener{Addr: netip.MustParseAddrPort("0.0.0.0:80"), Matches: true, Queue: 2, Backlog: 1}
	idle := trace.Listener{Addr: netip.MustParseAddrPort("0.0.0.0:80"), Matches: true, Queue: 1, Backlog: 1}
	for name, tt := range map[string]struct {
		s    trace.HostState
		id   string
		conf trace.Confidence
	}{
		"full":                     {trace.HostState{DstLocal: true, Back: found, Listeners: []trace.Listener{full}}, "accept-queue-full", trace.Certain},
		"one of two is full":       {trace.HostState{DstLocal: true, Back: found, Listeners: []trace.Listener{idle, full}}, "accept-queue-full", trace.Likely},
		"as many as it may":        {trace.HostState{DstLocal: true, Back: found, Listeners: []trace.Listener{idle}}, "", 0},
		"full, and no way back":    {trace.HostState{DstLocal: true, Back: noRoute(), Listeners: []trace.Listener{full}}, "reply-no-route", trace.Certain},
		"full, on another address": {trace.HostState{DstLocal: true, Back: found, Listeners: []trace.Listener{{Queue: 9}}}, "", 0},
	} {
		c := request(trace.SymptomSilence, vip4)
		f, _ := Explain(&c, &tt.s)
		if f.ID != tt.id || f.Confidence != tt.conf {
			t.Errorf("%s: %q %s", name, f.ID, f.Confidence)
		}
	}
}

func TestEntryLost(t *testing.T) {
	none := trace.Tuple{}
	p := exchange(behind, throughHop(be, none, behind.Reverse(), true), throughHop(balancerPlace, behind.Reverse(), vip4.Reverse(), true), throughHop(clientPlace, vip4.Reverse(), vip4.Reverse(), false))
	p.Answered = true
	c := back(p, trace.SymptomUnmatched)
	suspects := Suspects(&c)
	if len(suspects) != 1 || suspects[0].Place != balancerPlace {
		t.Fatalf("suspects %+v", suspects)
	}
	f, ok := Explain(&suspects[0], &trace.HostState{})
	if !ok || f.ID != "conntrack-entry-lost" || f.Direction != trace.Reply || f.Where.Place != balancerPlace || f.Confidence != trace.Likely {
		t.Errorf("finding %+v", f)
	}
	checkWords(t, &f)
	direct := exchange(vip4, throughHop(be, none, vip4.Reverse(), true), throughHop(clientPlace, vip4.Reverse(), vip4.Reverse(), false))
	direct.Answered = true
	c = back(direct, trace.SymptomUnmatched)
	if got := Suspects(&c); len(got) != 0 {
		t.Errorf("nobody translates, suspects %+v", got)
	}
	// Dropped as INVALID by the host that translates; not so a packet that it knows.
	c = back(p, trace.SymptomDrop)
	c.Place, c.Event.Flags, c.Event.Reason = balancerPlace, trace.ACK, "NETFILTER_DROP"
	if f, _ := Explain(&c, &trace.HostState{}); f.ID != "conntrack-entry-lost" {
		t.Errorf("invalid: %q", f.ID)
	}
	c.Event.Conntrack = trace.Conntrack{Original: vip4, Reply: behind.Reverse()}
	if f, _ := Explain(&c, &trace.HostState{}); f.ID != "netfilter-drop" {
		t.Errorf("known: %q", f.ID)
	}
}

// checkWords checks that a finding is complete and well put.
func checkWords(t *testing.T, f *trace.Finding) {
	t.Helper()
	if f.Summary == "" || f.Cause == "" || len(f.Fix) == 0 || len(f.Verify) == 0 || len(f.Evidence) == 0 || f.Where.Device == "" {
		t.Errorf("incomplete: %+v", f)
	}
	for _, text := range append(append([]string{f.Summary, f.Cause}, f.Fix...), f.Verify...) {
		if strings.Contains(text, "%!") || strings.Contains(text, "invalid ") {
			t.Errorf("badly put: %q", text)
		}
	}
}

// What a host that translated the handshake drops untranslated, says that its entry is gone.
func TestUntranslated(t *testing.T) {
	hidden := tuple("10.2.0.1:41822", "10.2.0.20:8080")
	translated := func(to trace.Tuple) trace.Path {
		p := exchange(to, throughHop(be, trace.Tuple{}, to.Reverse(), true), throughHop(balancerPlace, to.Reverse(), vip4.Reverse(), true))
		p.Answered = true
		return p
	}
	drop := trace.Event{Time: now, Netns: balancerPlace.Netns, Hook: trace.HookDrop, Tuple: vip4, Flags: trace.ACK, InIndex: 2, HasRoute: true, Reason: "IP_INNOROUTES", Symbol: "ip_error"}
	for name, tt := range map[string]struct {
		p      trace.Path
		d      trace.Direction
		change func(*trace.Event)
		want   bool
	}{
		"no route for what NAT should have replaced": {translated(behind), trace.Request, func(*trace.Event) {}, true},
		"a new request":            {translated(behind), trace.Request, func(ev *trace.Event) { ev.Flags = trace.SYN }, false},
		"translated, and no route": {translated(behind), trace.Request, func(ev *trace.Event) { ev.Tuple = behind }, false},
		"never translated":         {translated(vip4), trace.Request, func(*trace.Event) {}, false},
		"tracked anew, and filtered": {translated(behind), trace.Request, func(ev *trace.Event) {
			ev.Reason, ev.Conntrack = "NETFILTER_DROP", trace.Conntrack{Original: vip4, Reply: vip4.Reverse(), Info: conntrackNew}
		}, true},
		"established, and filtered": {translated(behind), trace.Request, func(ev *trace.Event) {
			ev.Reason, ev.Conntrack = "NETFILTER_DROP", trace.Conntrack{Original: vip4, Reply: vip4.Reverse()}
		}, false},
		"an answer to an address that nobody has": {translated(hidden), trace.Reply, func(ev *trace.Event) { ev.Tuple = hidden.Reverse() }, true},
		"an answer to the client itself":          {translated(behind), trace.Reply, func(ev *trace.Event) { ev.Tuple = behind.Reverse() }, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := trace.Case{Symptom: trace.SymptomDrop, Direction: tt.d, Place: balancerPlace, Event: drop, Path: tt.p}
			tt.change(&c.Event)
			f, ok := Explain(&c, &trace.HostState{Onward: trace.Lookup{Done: true, Errno: syscall.ENETUNREACH}})
			if got := ok && f.ID == "conntrack-entry-lost"; got != tt.want || got && f.Direction != tt.d {
				t.Errorf("finding %s %s", f.ID, f.Direction)
			}
		})
	}
}

// A host that let the SYN-ACK pass, and hides what follows behind an address of its own.
func TestHider(t *testing.T) {
	p := exchange(vip4, throughHop(be, trace.Tuple{}, vip4.Reverse(), true), throughHop(otherPlace, vip4.Reverse(), vip4.Reverse(), true),
		throughHop(clientPlace, vip4.Reverse(), vip4.Reverse(), false))
	p.Request[1] = throughHop(balancerPlace, vip4, vip4, true)
	p.Answered = true
	c := back(p, trace.SymptomUnmatched)
	c.Event.Tuple = tuple("10.9.9.1:80", vip4.Src.String())
	c.Event.Tuple.Src = netip.AddrPortFrom(c.Event.Tuple.Src.Addr(), 8080)
	suspects := Suspects(&c)
	if len(suspects) != 1 || suspects[0].Place != otherPlace {
		t.Fatalf("suspects %+v", suspects)
	}
	c.Event.Tuple = tuple("10.9.9.1:80", vip4.Src.String()) // the server's port: it may be one of its own addresses
	suspects = Suspects(&c)
	if len(suspects) != 2 || suspects[0].Place != be {
		t.Fatalf("suspects %+v", suspects)
	}
	for i := range suspects {
		if f, ok := Explain(&suspects[i], &trace.HostState{}); ok {
			t.Errorf("%s of a host that does not have the address", f.ID)
		}
	}
	if f, ok := Explain(&suspects[0], &trace.HostState{SrcLocal: true}); !ok || f.ID != "reply-wrong-source" || f.Direction != trace.Reply || f.Where.Place != be {
		t.Errorf("%s at %s of a server that hides what follows", f.ID, f.Where.Place.Name)
	}
	suspects = suspects[1:]
	f, ok := Explain(&suspects[0], &trace.HostState{SrcLocal: true})
	if !ok || f.ID != "reply-wrong-source" || f.Direction != trace.Reply || f.Where.Place != otherPlace {
		t.Fatalf("finding %+v", f)
	}
	checkWords(t, &f)
	c.Event.Tuple = vip4.Reverse()
	if s := Suspects(&c); len(s) > 0 {
		t.Errorf("an answer with the right source: %d suspects", len(s))
	}
}
