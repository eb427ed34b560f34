package correlate

import (
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

var (
	byHook  = trace.Verdict{By: trace.ByHook, Hook: trace.Forward, Family: "ip"}
	byChain = trace.Verdict{By: trace.ByChain, Hook: trace.Forward, Family: "ip", Table: "filter", Chain: "FORWARD"}
)

// A drop carries the most exact verdict on its own packet, whether that was told before or after it.
func TestVerdictBelongsToTheDrop(t *testing.T) {
	drop := func(p packet) packet { return p.drop(router, 2, "NETFILTER_DROP", "nft_do_chain") }
	tests := map[string]struct {
		play func(*scene, packet)
		want trace.Verdict
	}{
		"none":               {func(_ *scene, p packet) { drop(p) }, trace.Verdict{}},
		"before the drop":    {func(_ *scene, p packet) { drop(p.verdict(router, byChain)).verdict(router, byHook) }, byChain},
		"after the drop":     {func(_ *scene, p packet) { drop(p).verdict(router, byChain).verdict(router, byHook) }, byChain},
		"of the hook alone":  {func(_ *scene, p packet) { drop(p).verdict(router, byHook) }, byHook},
		"on another packet":  {func(s *scene, p packet) { drop(p); s.syn(vip, 9).verdict(router, byChain) }, trace.Verdict{}},
		"long before":        {func(s *scene, p packet) { p.verdict(router, byChain); s.wait(2 * verdictAge); drop(p) }, trace.Verdict{}},
		"on its predecessor": {func(s *scene, p packet) { drop(p); s.wait(2 * verdictAge); p.verdict(router, byChain) }, trace.Verdict{}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, Config{})
			tt.play(s, s.syn(vip, 1).tx(client, 0, 2).rx(router, 2))
			if got := s.cases(1)[0].Verdict; got != tt.want {
				t.Errorf("verdict = %+v, want %+v", got, tt.want)
			}
		})
	}
}

// What waits for a verdict is handed out when somebody asks, at once.
func TestFlushDoesNotWaitForVerdicts(t *testing.T) {
	s := newScene(t, Config{})
	s.syn(vip, 1).rx(router, 2).drop(router, 2, "NETFILTER_DROP", "nft_do_chain")
	s.table.Flush()
	if n := len(s.table.Cases()); n != 1 {
		t.Errorf("%d cases after a flush, want 1", n)
	}
}

func TestVerdictsAreBounded(t *testing.T) {
	s := newScene(t, Config{})
	for range 10 * maxVerdicts {
		s.syn(vip, 1).verdict(router, byChain)
	}
	if n := len(s.table.verdicts.told); n > maxVerdicts {
		t.Errorf("%d verdicts are kept, want %d at most", n, maxVerdicts)
	}
}
