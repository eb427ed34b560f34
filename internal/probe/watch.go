package probe

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"
)

const (
	// watchInterval is how often modules and calls are looked at.
	watchInterval = 2 * time.Second
	// pauseTime is how long a function that is called too often is let alone.
	pauseTime = time.Minute
	// maxShare is the share of one CPU that following functions may take, all together.
	maxShare = 0.01
)

// cost of following one call, roughly: a trampoline, or two traps.
var cost = map[string]time.Duration{"fexit": 100 * time.Nanosecond, "kprobe": time.Microsecond}

// pace is how often a function is called.
type pace struct {
	calls  uint64    // counted so far
	paused time.Time // until when it is let alone
}

// Watch attends to the plus tier until ctx is done: functions of modules are
// attached when their module appears, and functions that are called so often
// that following them costs more than 1% of a CPU are let alone for a while.
func (p *Probe) Watch(ctx context.Context) error {
	if p.cfg.Tier == TierBase {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case now := <-tick.C:
			p.attend(now, now.Sub(last))
			last = now
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *Probe) attend(now time.Time, passed time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pauseBusy(now, passed, p.calls)
	if !p.waits(now) {
		return
	}
	k, err := readKernel(p.cfg.BTF)
	if err != nil {
		return
	}
	p.attachWaiting(k, now)
	debug.FreeOSMemory() // the kernel's types took some 30 MB
}

// pauseBusy detaches the functions that cost most, until the rest costs little enough.
func (p *Probe) pauseBusy(now time.Time, passed time.Duration, count func(counter uint32) uint64) {
	share := make([]float64, len(p.functions)) // of one CPU
	total := 0.0
	for i := range p.functions {
		f := &p.functions[i]
		calls := count(f.counter)
		if f.status.State == Attached {
			share[i] = float64(calls-f.pace.calls) * float64(cost[f.status.Means]) / float64(passed)
			total += share[i]
		}
		f.pace.calls = calls
	}
	for total > maxShare {
		busiest := 0
		for i := range share {
			if share[i] > share[busiest] {
				busiest = i
			}
		}
		f := &p.functions[busiest]
		f.detach()
		f.pace.paused = now.Add(pauseTime)
		f.status.State, f.status.Means = Paused, ""
		f.status.Reason = fmt.Sprintf("following it would cost %.0f%% of a CPU here; tried again every %v", share[busiest]*100, pauseTime)
		total -= share[busiest]
		share[busiest] = 0
	}
}

// calls returns how often a function was called while it was followed.
func (p *Probe) calls(counter uint32) (total uint64) {
	var perCPU []uint64
	if p.maps[verdictMapCalls].Lookup(counter, &perCPU) != nil {
		return 0
	}
	for _, n := range perCPU {
		total += n
	}
	return total
}

// settled is at which look a module that appeared is taken to be ready: it can be
// seen a little before its functions can be followed.
const settled = 2

// look notes whether the module of a function that is absent has appeared.
func (f *attachedFunction) look() {
	switch {
	case f.status.State != Absent || f.module == "":
	case isLoaded(f.module):
		f.loaded++
	default:
		f.loaded = 0
	}
}

// isDue reports whether a function should be tried now.
func (f *attachedFunction) isDue(now time.Time) bool {
	switch f.status.State {
	case Absent:
		return f.loaded == settled
	case Paused:
		return now.After(f.pace.paused)
	}
	return false
}

func (p *Probe) waits(now time.Time) bool {
	due := false
	for i := range p.functions {
		p.functions[i].look()
		due = due || p.functions[i].isDue(now)
	}
	return due
}

func (p *Probe) attachWaiting(k *kernel, now time.Time) {
	l := newLoader(p, k)
	object, err := l.object(loadVerdict)
	if err != nil {
		return
	}
	for i := range p.functions {
		if f := &p.functions[i]; f.isDue(now) {
			l.attachFunction(object, f)
		}
	}
}
