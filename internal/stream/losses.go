package stream

import (
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	lossSamples  = 1024
	lossInterval = time.Second // changes closer together share a sample
)

// LossLog remembers how counters of loss grew, so that an answer can tell what
// was lost in its window. Where it cannot be exact it errs towards telling of
// a loss: a change counts for the whole time since the observation before it,
// and one that is older than the memory counts as long as that reaches. The
// zero value is ready. It is safe for concurrent use.
type LossLog struct {
	mu      sync.Mutex
	samples []lossSample // oldest first; only observations that differ from the one before
	base    map[string]uint64
}

// lossSample is what the counters were from its time on.
type lossSample struct {
	time     time.Time
	counters map[string]uint64
}

// Observe notes what the counters, which only grow, are at a time. Call it at
// regular intervals, and before an answer.
func (l *LossLog) Observe(now time.Time, counters map[string]uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := len(l.samples) - 1
	if sameCounters(l.latest(), counters) {
		return
	}
	if last >= 0 && now.Sub(l.samples[last].time) < lossInterval {
		l.samples[last] = lossSample{now, maps.Clone(counters)}
		return
	}
	if len(l.samples) == lossSamples {
		l.base = l.samples[0].counters
		l.samples = slices.Delete(l.samples, 0, 1)
	}
	l.samples = append(l.samples, lossSample{now, maps.Clone(counters)})
}

// Since returns what was lost at or after a time, by cause, in order of cause.
// The zero time means since start.
func (l *LossLog) Since(since time.Time) []Loss {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.base
	if since.IsZero() {
		before = nil
	}
	for _, s := range l.samples {
		if !s.time.Before(since) {
			break
		}
		before = s.counters
	}
	var losses []Loss
	latest := l.latest()
	for _, cause := range slices.Sorted(maps.Keys(latest)) {
		if count := latest[cause]; count > before[cause] {
			losses = append(losses, Loss{cause, count - before[cause]})
		}
	}
	return losses
}

// latest returns the counters observed last.
func (l *LossLog) latest() map[string]uint64 {
	if len(l.samples) == 0 {
		return nil
	}
	return l.samples[len(l.samples)-1].counters
}

// sameCounters compares; a missing counter is 0.
func sameCounters(a, b map[string]uint64) bool {
	for cause, count := range b {
		if a[cause] != count {
			return false
		}
	}
	for cause, count := range a {
		if b[cause] != count {
			return false
		}
	}
	return true
}
