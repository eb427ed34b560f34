package correlate

import (
	"fmt"
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// calls lets a process call a server, which refuses or answers.
func (s *scene) calls(pid, seq uint32, t trace.Tuple, at trace.Netns, refused bool) {
	s.add(trace.Event{Hook: trace.HookSocketState, Netns: client, NewState: stateSYNSent, Process: trace.Process{PID: pid}, Tuple: trace.Tuple{Protocol: trace.TCP, Src: t.Src, Dst: t.Dst}})
	p := s.syn(t, seq).tx(client, 0, 2).rx(at, 2)
	if !refused {
		s.synack(t.Reverse(), seq).tx(at, 0, 2).rx(client, 2)
		return
	}
	ev := p.ev
	ev.Hook, ev.Netns, ev.Reason = trace.HookResetSent, at, "NO_SOCKET"
	s.add(ev)
}

// A program that tries both IP versions of a host, and is served by one, misses nothing.
func TestRefusedByOneFamily(t *testing.T) {
	six, four := tcp("[2001:db8::7]:40000", "[2001:db8:5::80]:80"), tcp("198.51.100.7:40001", "203.0.113.80:80")
	for name, tt := range map[string]struct {
		play func(*scene)
		want int
	}{
		"served by the other":        {func(s *scene) { s.calls(7, 1, six, backend, true); s.calls(7, 2, four, backend, false) }, 0},
		"served by the other before": {func(s *scene) { s.calls(7, 2, four, backend, false); s.calls(7, 1, six, backend, true) }, 0},
		"refused by both":            {func(s *scene) { s.calls(7, 1, six, backend, true); s.calls(7, 2, four, backend, true) }, 2},
		"another process":            {func(s *scene) { s.calls(7, 1, six, backend, true); s.calls(8, 2, four, backend, false) }, 1},
		"another host":               {func(s *scene) { s.calls(7, 1, six, backend, true); s.calls(7, 2, four, other, false) }, 1},
		"the same IP version": {func(s *scene) {
			s.calls(7, 1, four, backend, true)
			s.calls(7, 2, tcp("198.51.100.7:40002", "203.0.113.81:80"), backend, false)
		}, 1},
		"another port": {func(s *scene) {
			s.calls(7, 1, six, backend, true)
			s.calls(7, 2, tcp("198.51.100.7:40002", "203.0.113.80:81"), backend, false)
		}, 1},
		"it is told, once it waited": {func(s *scene) { s.calls(7, 1, six, backend, true) }, 1},
		"served by the other, long ago": {func(s *scene) {
			s.calls(7, 2, four, backend, false)
			s.wait(time.Second)
			s.calls(7, 1, six, backend, true)
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, Config{Silence: time.Hour})
			tt.play(s)
			if len(s.table.Cases()) != 0 {
				t.Error("a case at once")
			}
			s.wait(400 * time.Millisecond)
			if got := s.table.Cases(); len(got) != tt.want {
				t.Errorf("%d cases, want %d", len(got), tt.want)
			}
		})
	}
}

// What a port scan meets is not missed; a few services that are down are.
func TestRefusedScan(t *testing.T) {
	for ports, want := range map[int]int{8: 8, 200: 0} {
		s := newScene(t, Config{Silence: time.Hour})
		for i := range ports {
			s.calls(7, uint32(i+1), tcp(fmt.Sprintf("198.51.100.7:%d", 40000+i), fmt.Sprintf("203.0.113.80:%d", i+1)), backend, true)
			s.wait(10 * time.Millisecond)
		}
		s.wait(time.Second)
		if got := s.table.Cases(); len(got) != want {
			t.Errorf("%d ports: %d cases, want %d", ports, len(got), want)
		}
	}
}
