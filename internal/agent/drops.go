package agent

import (
	"net/netip"
	"sync"
)

// dropCounter counts the kernel's drops by reason, for metrics.
type dropCounter struct {
	mu sync.Mutex
	by map[string]uint64
}

func newDropCounter() *dropCounter { return &dropCounter{by: make(map[string]uint64)} }

func (d *dropCounter) add(reason string) {
	if reason == "" {
		reason = "NOT_SPECIFIED"
	}
	d.mu.Lock()
	d.by[reason]++
	d.mu.Unlock()
}

// snapshot returns a copy.
func (d *dropCounter) snapshot() map[string]uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	by := make(map[string]uint64, len(d.by))
	for k, v := range d.by {
		by[k] = v
	}
	return by
}

// portless is an endpoint without its port.
func portless(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), 0) }
