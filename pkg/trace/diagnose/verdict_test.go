package diagnose

import (
	"slices"
	"strings"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

func nftRule(table string, handle uint64) trace.FilterVerdict {
	return trace.FilterVerdict{Hook: trace.Forward, Backend: "nft", Family: "inet", Table: table, Chain: "c", Handle: handle, Rule: "drop"}
}

func legacyRule(table string) trace.FilterVerdict {
	return trace.FilterVerdict{Hook: trace.Forward, Backend: "iptables-legacy", Family: "ip", Table: table, Chain: "FORWARD", Line: 3, Rule: "-j DROP"}
}

// The kernel's own verdict picks among the rules that could have given it, and
// makes certain what no rule that is loaded now explains.
func TestKernelVerdict(t *testing.T) {
	chain := trace.Verdict{By: trace.ByChain, Hook: trace.Forward, Family: "ip", Table: "edge", Chain: "fwd"}
	table := trace.Verdict{By: trace.ByTable, Hook: trace.Forward, Family: "ip", Table: "filter"}
	hook := trace.Verdict{By: trace.ByHook, Hook: trace.Forward, Family: "ip"}
	tests := map[string]struct {
		verdict    trace.Verdict
		reason     string
		filters    []trace.FilterVerdict
		confidence trace.Confidence
		cause      string
		fix        string
	}{
		"one of two tables":        {chain, "NETFILTER_DROP", []trace.FilterVerdict{nftRule("filter", 4), nftRule("edge", 9)}, trace.Certain, "Rule handle 9 of chain inet edge c", "handle 9 "},
		"nft and not legacy":       {table, "NETFILTER_DROP", []trace.FilterVerdict{nftRule("filter", 4), legacyRule("filter")}, trace.Certain, "Rule 3 of chain ip filter FORWARD", "iptables-legacy -t filter -I FORWARD 3"},
		"a rule that is gone":      {chain, "NETFILTER_DROP", nil, trace.Certain, "Chain fwd of nftables table edge", "# ip netns exec be nft list ruleset"},
		"a legacy rule, gone":      {table, "NETFILTER_DROP", nil, trace.Certain, "Table filter of iptables-legacy", "# ip netns exec be iptables-legacy-save -t filter"},
		"some function":            {hook, "NETFILTER_DROP", nil, trace.Likely, "The kernel dropped", "# ip netns exec be nft list ruleset"},
		"no reason, no location":   {hook, "", []trace.FilterVerdict{nftRule("edge", 9)}, trace.Certain, "Rule handle 9", "handle 9 "},
		"a verdict that fits none": {chain, "NETFILTER_DROP", []trace.FilterVerdict{nftRule("filter", 4)}, trace.Certain, "Rule handle 4", "handle 4 "},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := dropped(vip4, tt.reason, "")
			c.Verdict = tt.verdict
			q, ok := Question(&c)
			if !ok || !slices.Equal(q.Filters, []trace.NetfilterHook{tt.verdict.Hook}) {
				t.Errorf("asks for hooks %v, want the one that the kernel told", q.Filters)
			}
			s := trace.HostState{Filters: tt.filters, Onward: found}
			f, ok := Explain(&c, &s)
			if !ok || f.ID != "netfilter-drop" || f.Confidence != tt.confidence {
				t.Fatalf("finding %q, %s; want netfilter-drop, %s", f.ID, f.Confidence, tt.confidence)
			}
			if !strings.HasPrefix(f.Cause, tt.cause) || !strings.Contains(f.Fix[0], tt.fix) {
				t.Errorf("cause %q, fix %q; want %q, %q", f.Cause, f.Fix, tt.cause, tt.fix)
			}
			if !slices.ContainsFunc(f.Evidence, func(e trace.Evidence) bool { return strings.Contains(e.Text, "the kernel's own verdict") }) {
				t.Errorf("the verdict is not in the evidence: %v", f.Evidence)
			}
		})
	}
}
