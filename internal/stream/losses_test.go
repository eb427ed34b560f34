package stream

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// at returns a time some seconds after start.
func at(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }

func TestLossLog(t *testing.T) {
	var l LossLog
	if got := l.Since(time.Time{}); got != nil {
		t.Errorf("an empty log lost %v", got)
	}
	l.Observe(at(0), map[string]uint64{"ring_full": 0})
	l.Observe(at(10), map[string]uint64{"ring_full": 5})
	l.Observe(at(11), map[string]uint64{"ring_full": 5})
	l.Observe(at(20), map[string]uint64{"ring_full": 7, "decode": 1})
	l.Observe(at(20.5), map[string]uint64{"ring_full": 8, "decode": 1}) // shares a sample
	tests := []struct {
		since time.Time
		want  []Loss
	}{
		{time.Time{}, []Loss{{"decode", 1}, {"ring_full", 8}}},
		{at(0), []Loss{{"decode", 1}, {"ring_full", 8}}},
		{at(9), []Loss{{"decode", 1}, {"ring_full", 8}}},
		{at(10), []Loss{{"decode", 1}, {"ring_full", 8}}},
		{at(10.1), []Loss{{"decode", 1}, {"ring_full", 3}}},
		{at(20), []Loss{{"decode", 1}, {"ring_full", 3}}},
		{at(20.6), nil},
		{at(99), nil},
	}
	for _, tt := range tests {
		if got := l.Since(tt.since); !slices.Equal(got, tt.want) {
			t.Errorf("since %v: %v, want %v", tt.since.Sub(start), got, tt.want)
		}
	}
}

// TestLossLogForgets: what is older than the memory is told too long rather than too short.
func TestLossLogForgets(t *testing.T) {
	var l LossLog
	for i := range lossSamples * 2 {
		l.Observe(at(float64(i)), map[string]uint64{"ring_full": uint64(i)})
	}
	if len(l.samples) != lossSamples {
		t.Errorf("%d samples", len(l.samples))
	}
	if got := l.Since(at(1)); len(got) != 1 || got[0].Count != lossSamples {
		t.Errorf("before the memory: %v, want all that it reaches", got)
	}
	if got := l.Since(time.Time{}); got[0].Count != lossSamples*2-1 {
		t.Errorf("since start: %v", got)
	}
	if got := l.Since(at(lossSamples*2 - 2)); got[0].Count != 2 {
		t.Errorf("the last two: %v", got)
	}
}

func TestLossLogConcurrent(t *testing.T) {
	var l LossLog
	var group sync.WaitGroup
	for w := range 4 {
		group.Go(func() {
			for i := range 500 {
				l.Observe(at(float64(i)), map[string]uint64{fmt.Sprint(w): uint64(i)})
				l.Since(at(float64(i / 2)))
			}
		})
	}
	group.Wait()
}
