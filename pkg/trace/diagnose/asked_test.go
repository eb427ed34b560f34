package diagnose

import (
	"strings"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

// asked makes a case one that has not happened.
func asked(c trace.Case) trace.Case {
	c.Asked = true
	return c
}

func TestAsked(t *testing.T) {
	listening := []trace.Listener{{Matches: true}}
	back := trace.HostState{ReadAt: now, In: trace.Interface{Device: eth0}, DstLocal: true, Onward: trace.Lookup{Done: true, Type: "local"}}
	noWay := back
	noWay.Back = noRoute()
	strict := back
	strict.In.RPFilter, strict.Back = 1, found
	strict.Back.Device = vx0
	stray := trace.HostState{ReadAt: now, In: trace.Interface{Device: eth0}, Onward: byDefault(), Back: byDefault(), Forwarding: true}
	served := stray
	served.Listeners = listening
	tests := []struct {
		name       string
		c          trace.Case
		s          trace.HostState
		id         string
		confidence trace.Confidence
	}{
		{"no way back, and nobody listens yet", request(trace.SymptomSilence, vip4), noWay, "reply-no-route", trace.Certain},
		{"reverse path", dropped(vip4, "IP_RPFILTER", ""), strict, "rp-filter-drop", trace.Certain},
		{"named as the owner, though it forwards", request(trace.SymptomAsked, vip4), stray, "vip-not-local", trace.Likely},
		{"named as the owner, and it serves", request(trace.SymptomAsked, vip4), served, "vip-not-local", trace.Certain},
		{"a neighbour that nobody has asked", dropped(vip4, "NEIGH_FAILED", ""), stray, "neighbor-unresolved", trace.Likely},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := asked(tt.c)
			f, ok := Explain(&c, &tt.s)
			if !ok || f.ID != tt.id || f.Confidence != tt.confidence {
				t.Fatalf("explained %t as %s, %s; want %s, %s", ok, f.ID, f.Confidence, tt.id, tt.confidence)
			}
			if f.Count != 0 || len(f.Connections) != 0 || f.Where.Hook != "" {
				t.Errorf("nothing has happened, but count %d, connections %v, hook %q", f.Count, f.Connections, f.Where.Hook)
			}
			if !strings.HasPrefix(f.Evidence[0].Text, "asked before there is traffic") || strings.Contains(f.Summary, "dropped") {
				t.Errorf("told as if it had happened: %s %s %v", f.Summary, f.Cause, f.Evidence)
			}
			if q, ok := Question(&c); !ok || !q.Ahead {
				t.Error("the question does not say that the packet is yet to come")
			}
		})
	}
	if c := request(trace.SymptomSilence, vip4); true {
		if f, ok := Explain(&c, &noWay); ok {
			t.Errorf("not asked, and nobody listens: %s", f.ID)
		}
	}
}
