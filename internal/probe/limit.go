package probe

import (
	"maps"
	"sync"

	"github.com/replypath/replypath/pkg/trace"
)

// defaultNamespaceEvents is far more than a busy resolver gives, and a tenth of what can be read.
const defaultNamespaceEvents = 50000

func (c *Config) namespaceEvents() int {
	if c.NamespaceEvents <= 0 {
		return defaultNamespaceEvents
	}
	return c.NamespaceEvents
}

// limits is what is known of namespaces that gave more events than they may. What the kernel
// counts in a slot is forgotten when another namespace needs it: it is read in time, mostly.
type limits struct {
	mu      sync.Mutex
	total   uint64
	seen    map[budgetAt]packetBudget
	skipped map[trace.Netns]uint64
}

// budgetAt is a slot of the map on a CPU.
type budgetAt struct {
	slot uint32
	cpu  int
}

// maxLimited bounds how many namespaces are counted apart.
const maxLimited = 64

// Limited returns how many events were not told because their namespace gave too many, since
// start, by namespace. Those that cannot be told apart are under 0. The map is not changed any more.
func (p *Probe) Limited() (map[trace.Netns]uint64, error) {
	l := &p.limits
	l.mu.Lock()
	defer l.mu.Unlock()
	total, err := p.loss(dropLossLOSS_LIMIT)
	if err != nil || total == l.total {
		return l.skipped, err
	}
	next := maps.Clone(l.skipped)
	if next == nil {
		next, l.seen = make(map[trace.Netns]uint64), make(map[budgetAt]packetBudget)
	}
	var perCPU []packetBudget
	for slot := range p.maps[packetMapBudgets].MaxEntries() {
		if err := p.maps[packetMapBudgets].Lookup(slot, &perCPU); err != nil {
			return l.skipped, err
		}
		for cpu, b := range perCPU {
			l.note(next, budgetAt{slot, cpu}, b)
		}
	}
	told := uint64(0)
	for ns, n := range next {
		if ns != 0 {
			told += n
		}
	}
	if delete(next, 0); told < total {
		next[0] = total - told
	}
	l.total, l.skipped = total, next
	return next, nil
}

// note adds what a slot counted since it was read before.
func (l *limits) note(skipped map[trace.Netns]uint64, at budgetAt, b packetBudget) {
	before := l.seen[at]
	if b.Skipped == 0 || b.Netns == before.Netns && b.Skipped == before.Skipped {
		return
	}
	l.seen[at] = b
	more := b.Skipped
	if b.Netns == before.Netns && more >= before.Skipped {
		more -= before.Skipped
	}
	ns := trace.Netns(b.Netns)
	if _, known := skipped[ns]; known || len(skipped) < maxLimited {
		skipped[ns] += more
	}
}
