package netfilter

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

func TestNATChains(t *testing.T) {
	chains := func(family family, backend, name string, hooks ...uint32) *table {
		t := &table{family: family, backend: backend, name: name, chains: map[string]*chain{}}
		for i, hook := range hooks {
			kind := "nat"
			if hook == unix.NF_INET_FORWARD {
				kind = "filter"
			}
			c := &chain{table: t, name: string(rune('a' + i)), base: &base{hook: hook, kind: kind}}
			t.chains[c.name] = c
		}
		t.chains["u"] = &chain{table: t, name: "u"}
		return t
	}
	rules := &ruleset{tables: []*table{
		chains(familyInet, backendNFT, "mine", unix.NF_INET_PRE_ROUTING, unix.NF_INET_FORWARD, unix.NF_INET_LOCAL_OUT),
		chains(familyIP6, backendNFT, "six", unix.NF_INET_POST_ROUTING),
		chains(familyIP, backendLegacy, "nat", unix.NF_INET_POST_ROUTING),
	}}
	want := []trace.NATChain{
		{Hook: trace.Postrouting, Backend: backendLegacy, Family: "ip", Table: "nat", Chain: "a"},
		{Hook: trace.Prerouting, Backend: backendNFT, Family: "inet", Table: "mine", Chain: "a"},
	}
	if got := rules.natChains(familyIP); !got.Read || !got.Legacy || !slices.Equal(got.Chains, want) {
		t.Errorf("chains %+v, want %+v", got, want)
	}
}
