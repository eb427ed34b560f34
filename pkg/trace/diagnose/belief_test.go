package diagnose

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

const (
	rightMAC = "02:00:00:00:00:01"
	wrongMAC = "02:00:00:00:00:99"
)

func TestBelief(t *testing.T) {
	hop := netip.MustParseAddr("10.2.0.1")
	claimOf := func(p trace.Place, mac string) trace.Claim {
		return trace.Claim{Place: p, Device: eth0, MAC: mac, Holder: eth0, Prefix: netip.MustParsePrefix("10.2.0.1/24")}
	}
	entry := func(mac, state string) trace.HostState {
		onward := byDefault()
		onward.Device = vx0
		return trace.HostState{Onward: onward, NextHop: trace.Neighbor{Addr: hop, Device: vx0, MAC: mac, State: state}}
	}
	believing := func(s trace.HostState, takers, holders []trace.Claim) *trace.HostState {
		s.Believed = trace.Belief{Takers: takers, Holders: holders}
		return &s
	}
	right, wrong := claimOf(balancerPlace, rightMAC), claimOf(otherPlace, wrongMAC)
	vanished := back(exchange(vip4, throughHop(be, trace.Tuple{}, vip4.Reverse(), true)), trace.SymptomVanished)
	vanished.Place, vanished.Event.OutIndex, vanished.Event.Device = be, vx0.Index, vx0
	lost := request(trace.SymptomStray, vip4)
	lost.Path = exchange(vip4)
	lost.Path.Request = lost.Path.Request[:1]

	for name, tt := range map[string]struct {
		c          trace.Case
		s          *trace.HostState
		id         string
		confidence trace.Confidence
		at         trace.Place
		words      string
	}{
		"nobody has the MAC":         {vanished, believing(entry(wrongMAC, "PERMANENT"), nil, []trace.Claim{right}), "neighbor-unresolved", trace.Certain, be, "ip neigh del 10.2.0.1"},
		"nobody has it any more":     {vanished, believing(entry(wrongMAC, "STALE"), nil, []trace.Claim{right}), "neighbor-unresolved", trace.Likely, be, "ip neigh del 10.2.0.1"},
		"a stranger has it, by hand": {vanished, believing(entry(wrongMAC, "PERMANENT"), []trace.Claim{wrong}, []trace.Claim{right}), "neighbor-unresolved", trace.Certain, be, "ip neigh del 10.2.0.1"},
		"another has the address, too": {vanished, believing(entry(wrongMAC, "REACHABLE"), []trace.Claim{wrong}, []trace.Claim{right, wrong}),
			"neighbor-conflict", trace.Certain, otherPlace, "ip addr del 10.2.0.1/24"},
		"a request, by hand":                 {lost, believing(entry(wrongMAC, "PERMANENT"), nil, []trace.Claim{right}), "neighbor-unresolved", trace.Likely, clientPlace, "ip neigh del 10.2.0.1"},
		"a request, as somebody answered":    {lost, believing(entry(wrongMAC, "REACHABLE"), nil, []trace.Claim{right}), "", 0, trace.Place{}, ""},
		"a request, to one of two networks":  {lost, believing(entry(wrongMAC, "PERMANENT"), nil, []trace.Claim{right, claimOf(otherPlace, rightMAC)}), "", 0, trace.Place{}, ""},
		"proxy ARP":                          {vanished, believing(entry(wrongMAC, "REACHABLE"), []trace.Claim{{Place: otherPlace, MAC: wrongMAC}}, []trace.Claim{right}), "", 0, trace.Place{}, ""},
		"the right one":                      {vanished, believing(entry(rightMAC, "REACHABLE"), []trace.Claim{right}, []trace.Claim{right}), "", 0, trace.Place{}, ""},
		"the MAC of another of its devices":  {vanished, believing(entry(wrongMAC, "REACHABLE"), []trace.Claim{claimOf(balancerPlace, wrongMAC)}, []trace.Claim{right}), "", 0, trace.Place{}, ""},
		"the right one, and another network": {vanished, believing(entry(rightMAC, "REACHABLE"), []trace.Claim{right}, []trace.Claim{wrong, right}), "", 0, trace.Place{}, ""},
		"another network alone":              {vanished, believing(entry(rightMAC, "REACHABLE"), nil, []trace.Claim{wrong}), "", 0, trace.Place{}, ""},
		"a machine elsewhere":                {vanished, believing(entry(rightMAC, "REACHABLE"), nil, nil), "", 0, trace.Place{}, ""},
		"no entry":                           {vanished, believing(entry("", ""), nil, []trace.Claim{right}), "", 0, trace.Place{}, ""},
		"a tunnel":                           {vanished, believing(entry(noMAC, "NOARP"), nil, []trace.Claim{right}), "", 0, trace.Place{}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var found *trace.Case
			for _, s := range Suspects(&tt.c) {
				if s.Symptom == trace.SymptomMisled {
					found = &s
				}
			}
			if found == nil {
				t.Fatal("the sender is not asked")
			}
			if _, asks := Question(found); !asks {
				t.Error("nobody asks")
			}
			f, ok := Explain(found, tt.s)
			if ok != (tt.id != "") {
				t.Fatalf("found %t: %+v", ok, f)
			}
			if !ok {
				return
			}
			if f.ID != tt.id || f.Confidence != tt.confidence || f.Where.Place != tt.at || f.Direction != tt.c.Direction || !strings.Contains(strings.Join(f.Fix, "\n"), tt.words) {
				t.Errorf("found %+v", f)
			}
			checkWords(t, &f)
		})
	}
}

// The host before the one that drops a reply is asked, not a bridge between the two.
func TestMisledToStranger(t *testing.T) {
	bridged := throughHop(balancerPlace, vip4.Reverse(), vip4.Reverse(), true)
	bridged.Bridged = true
	c := back(exchange(vip4, throughHop(be, trace.Tuple{}, vip4.Reverse(), true), bridged, throughHop(otherPlace, vip4.Reverse(), vip4.Reverse(), false)), trace.SymptomDrop)
	c.Place, c.Event.Netns, c.Event.InIndex, c.Event.Hook, c.Event.Reason = otherPlace, otherPlace.Netns, eth0.Index, trace.HookDrop, "IP_INADDRERRORS"
	for _, s := range Suspects(&c) {
		if s.Symptom == trace.SymptomMisled && s.Place == be {
			return
		}
	}
	t.Error("the sender is not asked")
}

// What is lost in a tunnel the outer packet tells.
func TestMisledIntoTunnel(t *testing.T) {
	c := request(trace.SymptomStray, vip4)
	c.Path = exchange(vip4)
	c.Path.Request = c.Path.Request[:1]
	c.Path.Request[0].OutTunnel = "vxlan"
	if s := misled(&c); len(s) > 0 {
		t.Errorf("asks %s", s[0].Place.Name)
	}
}
