package agent

import (
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

func TestCounterMovement(t *testing.T) {
	var c counters
	begun := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	read := func(ns trace.Netns, packets uint64, after time.Duration) trace.FilterVerdict {
		v := []trace.FilterVerdict{{Table: "filter", Chain: "fwd", Handle: 9, Counted: true, Packets: packets}, {Table: "filter"}}
		c.compare(ns, v, begun.Add(after))
		if !v[1].EarlierAt.IsZero() {
			t.Error("a rule without counter has an earlier value")
		}
		return v[0]
	}
	if v := read(1, 3, 0); !v.EarlierAt.IsZero() {
		t.Errorf("the first reading knows an earlier one: %+v", v)
	}
	if v := read(1, 6, time.Second); v.Earlier != 3 || !v.EarlierAt.Equal(begun) {
		t.Errorf("got %+v, want 3 at the beginning", v)
	}
	if v := read(2, 6, time.Second); !v.EarlierAt.IsZero() {
		t.Errorf("another namespace's counter was taken: %+v", v)
	}
	if v := read(1, 1, 2*time.Second); !v.EarlierAt.IsZero() {
		t.Errorf("a counter that was reset was compared: %+v", v)
	}
	if v := read(1, 5, 2*time.Second+counterAge); !v.EarlierAt.IsZero() {
		t.Errorf("a reading too old was compared: %+v", v)
	}
	for n := range trace.Netns(2 * maxCounters) {
		read(n, 1, 0)
	}
	if len(c.first) > maxCounters {
		t.Errorf("%d counters are kept", len(c.first))
	}
}
