package diagnose

import (
	"strings"
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// queued are a rule that drops, and one that hands over to a program.
func queued() []trace.FilterVerdict {
	q := rule(true)
	q.Handle, q.Rule, q.Queue = 12, "tcp dport 80 queue to 5", true
	return []trace.FilterVerdict{rule(true), q}
}

func TestQueueDrop(t *testing.T) {
	for symbol, want := range map[string]string{
		"nf_queue": "none takes it", "nf_reinject": "the program behind rule handle 12", "nft_do_chain": "rule handle 9 of chain inet filter fwd dropped",
	} {
		c := dropped(vip4, "NOT_SPECIFIED", symbol)
		c.Event.HasRoute, c.Event.Input = true, "ip_forward"
		if _, ok := Question(&c); !ok {
			t.Errorf("%s: nothing is asked", symbol)
		}
		f, ok := Explain(&c, &trace.HostState{Filters: queued(), Onward: found})
		if !ok || f.ID != "netfilter-drop" || !strings.Contains(f.Summary, want) {
			t.Errorf("%s: found %v %s: %q, want %q", symbol, ok, f.ID, f.Summary, want)
		}
	}
}

func TestCounterIsEvidence(t *testing.T) {
	c := dropped(vip4, "NETFILTER_DROP", "nft_do_chain")
	v := rule(true)
	v.Packets, v.Earlier, v.EarlierAt = 6, 3, now.Add(-time.Second)
	f, _ := Explain(&c, &trace.HostState{ReadAt: now, Filters: []trace.FilterVerdict{v}})
	last := f.Evidence[len(f.Evidence)-1].Text
	if !strings.HasSuffix(last, "its counter went from 3 to 6 packets since 03:04:04.000") {
		t.Errorf("evidence is %q", last)
	}
}

// TestFilterOfUDP: the mend names the packet's own protocol.
func TestFilterOfUDP(t *testing.T) {
	c := dropped(vip4, "NETFILTER_DROP", "nft_do_chain")
	c.Event.Tuple.Protocol, c.Event.Flags = trace.UDP, 0
	legacy := rule(true)
	legacy.Backend, legacy.Family, legacy.Line = "iptables-legacy", "ip", 3
	for _, v := range []trace.FilterVerdict{rule(true), legacy} {
		f, ok := Explain(&c, &trace.HostState{Filters: []trace.FilterVerdict{v}})
		if !ok || strings.Contains(f.Fix[0], "tcp") || !strings.Contains(f.Fix[0], "udp") {
			t.Errorf("fix is %q", f.Fix)
		}
	}
}
