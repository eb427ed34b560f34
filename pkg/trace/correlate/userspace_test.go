package correlate

import (
	"testing"
	"time"
)

// TestTranslatedInUserSpace: a switch in user space hands on a new packet with
// another destination, and answers with another one still.
func TestTranslatedInUserSpace(t *testing.T) {
	s := newScene(t, Config{})
	meant, pod := tcp("198.51.100.7:40000", "203.0.113.80:80"), tcp("198.51.100.7:40000", "10.9.0.5:8080")
	s.syn(meant, 100).tx(client, 0, 2).rx(lb, 2).tx(lb, 2, 3)
	s.syn(pod, 100).tx(router, 0, 4).rx(backend, 2)
	s.synack(pod.Reverse(), 100).tx(backend, 0, 2).rx(router, 4)
	s.synack(meant.Reverse(), 100).rx(router, 5).tx(router, 5, 6).rx(client, 2)
	s.now = s.now.Add(time.Second)
	s.table.Advance(s.now)
	if cases := s.table.Cases(); len(cases) > 0 {
		t.Errorf("a case was opened: %+v", cases[0])
	}
	s.table.Flush()
	paths := s.table.Done()
	last := paths[len(paths)-1]
	if s.table.Len() != 1 || !last.Answered || last.Server != meant.Dst || len(last.Request) != 4 {
		t.Errorf("%d paths; the last: %+v", s.table.Len(), last)
	}
}

// TestScanner: one number and one port for all destinations are still many connections.
func TestScanner(t *testing.T) {
	s := newScene(t, Config{})
	s.syn(tcp("198.51.100.7:40000", "203.0.113.80:80"), 100).tx(client, 0, 2).rx(lb, 2)
	s.syn(tcp("198.51.100.7:40000", "203.0.113.80:443"), 100).tx(client, 0, 2).rx(lb, 2)
	if s.table.Len() != 2 {
		t.Errorf("%d paths, want 2", s.table.Len())
	}
}
