package diagnose

import (
	"strings"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

// TestUnderlay is about hosts that cannot reach the other end of the tunnel that they send by.
func TestUnderlay(t *testing.T) {
	into := func(at trace.Place, packet trace.Tuple, made bool) trace.Hop {
		arrived := packet
		if made {
			arrived = trace.Tuple{}
		}
		h := throughHop(at, arrived, packet, true)
		h.OutTunnel = "vxlan"
		return h
	}
	request := exchange(vip4)
	request.Request = []trace.Hop{throughHop(clientPlace, trace.Tuple{}, vip4, true), into(balancerPlace, vip4, false)}
	request.Requests = 2
	stray := trace.Case{Symptom: trace.SymptomStray, Direction: trace.Request, Place: balancerPlace, Path: request,
		Event: trace.Event{Time: now, Netns: balancerPlace.Netns, Tuple: vip4, Flags: trace.SYN}}
	vanished := back(exchange(vip4, into(be, vip4.Reverse(), true)), trace.SymptomVanished)
	vanished.Place, vanished.Event.Netns = be, be.Netns
	waits := dropped(vip4, "NEIGH_FAILED", "neigh_invalidate")
	waits.Event.Device, waits.Event.OutIndex = vx0, vx0.Index
	plain := stray
	plain.Path.Request = []trace.Hop{request.Request[0], throughHop(balancerPlace, vip4, vip4, true)}
	tunnel := vxlan("10.2.0.10", "10.2.0.20", nil)
	next := []trace.Gateway{{Addr: addr("10.2.0.1"), Device: eth0}}
	for name, tt := range map[string]struct {
		c   trace.Case
		way trace.Lookup
		id  string
		dir trace.Direction
		fix string
	}{
		"a request without a way":             {stray, noRoute(), "request-no-route", trace.Request, "ip netns exec lb ip route add 10.2.0.20/32 via 10.2.0.1 dev eth0"},
		"a request that a route refuses":      {stray, rejected("blackhole", "10.2.0.0/24"), "request-route-rejected", trace.Request, "ip netns exec lb ip route del blackhole 10.2.0.0/24"},
		"an answer without a way":             {vanished, noRoute(), "reply-no-route", trace.Reply, "ip netns exec be ip route add 10.2.0.20/32 via 10.2.0.1 dev eth0"},
		"an answer that a route refuses":      {vanished, rejected("unreachable", "10.2.0.20/32"), "reply-route-rejected", trace.Reply, "ip netns exec be ip route del unreachable 10.2.0.20/32"},
		"a request that waits for ARP":        {waits, noRoute(), "request-no-route", trace.Request, "ip netns exec be ip route add 10.2.0.20/32 via 10.2.0.1 dev eth0"},
		"there is a way":                      {stray, byDefault(), "", 0, ""},
		"there is a way for the answer":       {vanished, byDefault(), "", 0, ""},
		"it did not go into a tunnel":         {plain, noRoute(), "", 0, ""},
		"the tunnel's way could not be asked": {stray, trace.Lookup{}, "", 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			cases := append(Suspects(&tt.c), tt.c)
			s := trace.HostState{Onward: found, Underlay: trace.Underlay{Tunnel: tunnel, Way: tt.way}, Onwards: next}
			var f trace.Finding
			for i := range cases {
				if cases[i].Symptom == trace.SymptomMisled {
					continue
				}
				if got, ok := Explain(&cases[i], &s); ok {
					f = got
					break
				}
			}
			if f.ID != tt.id || f.Direction != tt.dir || tt.id != "" && !strings.HasPrefix(f.Fix[0], tt.fix) {
				t.Errorf("found %q %s: %q", f.ID, f.Direction, f.Fix)
			}
			if tt.id != "" {
				checkWords(t, &f)
			}
		})
	}
}
