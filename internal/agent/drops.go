package agent

import (
	"maps"
	"sync"
)

// dropCounter counts the kernel's drops by reason, for metrics. The zero value is ready.
type dropCounter struct {
	mu sync.Mutex
	by map[string]uint64
}

func (d *dropCounter) add(reason string) {
	if reason == "" {
		reason = "NOT_SPECIFIED"
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.by == nil {
		d.by = make(map[string]uint64)
	}
	d.by[reason]++
}

// snapshot returns a copy.
func (d *dropCounter) snapshot() map[string]uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.by)
}
