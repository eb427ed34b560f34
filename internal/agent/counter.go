package agent

import (
	"sync"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// Bounds of what is remembered of filters' counters.
const (
	maxCounters = 4096
	counterAge  = 10 * time.Minute
)

// counters remembers what the counters of rules and policies said when they were
// first read, so that their movement since can be told.
type counters struct {
	mu    sync.Mutex
	first map[counterKey]reading
}

// counterKey is a rule or policy of a namespace.
type counterKey struct {
	netns                         trace.Netns
	backend, family, table, chain string
	policy                        bool
	handle                        uint64
	line                          int
	rule                          string
}

type reading struct {
	packets uint64
	at      time.Time
}

// compare adds to each verdict what its counter said earlier, or remembers it.
// A counter that went back was reset: then it begins anew.
func (c *counters) compare(ns trace.Netns, verdicts []trace.FilterVerdict, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range verdicts {
		v := &verdicts[i]
		if !v.Counted {
			continue
		}
		key := counterKey{ns, v.Backend, v.Family, v.Table, v.Chain, v.Policy, v.Handle, v.Line, v.Rule}
		if r, ok := c.first[key]; ok && now.Sub(r.at) < counterAge && r.packets <= v.Packets {
			v.Earlier, v.EarlierAt = r.packets, r.at
			continue
		}
		if c.first == nil || len(c.first) >= maxCounters {
			c.first = make(map[counterKey]reading)
		}
		c.first[key] = reading{v.Packets, now}
	}
}
