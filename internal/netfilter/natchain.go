package netfilter

import (
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// natHooks are where addresses are translated on a router's way.
var natHooks = map[uint32]trace.NetfilterHook{unix.NF_INET_PRE_ROUTING: trace.Prerouting, unix.NF_INET_POST_ROUTING: trace.Postrouting}

// NATChains returns the base chains of the calling thread's namespace that may
// translate packets of q's family.
func NATChains(q trace.Question) (trace.NATRules, error) {
	q.Filters = []trace.NetfilterHook{trace.Prerouting, trace.Postrouting}
	rules, socket, err := readRuleset(q, time.Now().Add(timeLimit))
	if socket != nil {
		defer socket.close()
	}
	if err != nil {
		return trace.NATRules{}, err
	}
	p := newPacket(q, trace.Interface{}, trace.Interface{}, trace.Prerouting, nil)
	return rules.natChains(p.family()), nil
}

func (s *ruleset) natChains(f family) trace.NATRules {
	found := trace.NATRules{Read: true}
	for _, t := range s.tables {
		found.Legacy = found.Legacy || t.backend == backendLegacy
		if t.family != f && t.family != familyInet {
			continue
		}
		for _, c := range t.chains {
			if c.base == nil || c.base.kind != "nat" || natHooks[c.base.hook] == "" {
				continue
			}
			found.Chains = append(found.Chains, trace.NATChain{Hook: natHooks[c.base.hook], Backend: t.backend, Family: t.family.String(), Table: t.name, Chain: c.name})
		}
	}
	slices.SortFunc(found.Chains, func(a, b trace.NATChain) int {
		return strings.Compare(a.Backend+a.Table+a.Chain, b.Backend+b.Table+b.Chain)
	})
	return found
}
