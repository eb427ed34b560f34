package recorder

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// drain takes what is in the channel.
func drain(s *Subscription) []Update {
	var updates []Update
	for {
		select {
		case u, ok := <-s.Updates():
			if !ok {
				return updates
			}
			updates = append(updates, u)
		default:
			return updates
		}
	}
}

func TestCoalesce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Config{})
		defer r.Close()
		s := r.Subscribe(100)
		for i := range 1000 { // one second
			r.AddFinding(finding(i, time.Now()))
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		updates := drain(s)
		if len(updates) != 3 {
			t.Fatalf("%d messages in one second, want 3: at once, after 500 ms and after 1 s", len(updates))
		}
		for i, count := range []uint32{1, 501, 1000} {
			if got := updates[i].Finding.Finding.Count; got < count-1 || got > count+1 {
				t.Errorf("message %d has count %d, want %d", i, got, count)
			}
		}
		r.AddFinding(finding(1, time.Now()))
		if updates := drain(s); len(updates) != 1 {
			t.Errorf("%d messages after a pause, want one at once", len(updates))
		}
	})
}

func TestCoalesceEachFinding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Config{})
		defer r.Close()
		s := r.Subscribe(100)
		other := finding(1, time.Now())
		other.ID = "other"
		r.AddFinding(finding(1, time.Now()))
		time.Sleep(300 * time.Millisecond)
		r.AddFinding(other)
		r.AddFinding(other)
		r.AddFinding(finding(1, time.Now()))
		if n := len(drain(s)); n != 2 {
			t.Fatalf("%d messages, want the first of each", n)
		}
		time.Sleep(201 * time.Millisecond)
		synctest.Wait()
		if n := len(drain(s)); n != 1 {
			t.Errorf("%d messages after 500 ms, want the first finding's", n)
		}
		time.Sleep(300 * time.Millisecond)
		synctest.Wait()
		if n := len(drain(s)); n != 1 {
			t.Errorf("%d messages after 800 ms, want the other's", n)
		}
	})
}

func TestPathUpdates(t *testing.T) {
	r := New(Config{})
	s := r.Subscribe(10)
	p := path(1, time.Now())
	r.AddPath(p)
	p.Requests++
	r.AddPath(p) // nothing that a watcher waits for
	p.Answered, p.Requests = true, 7
	r.AddPath(p)
	updates := drain(s)
	if len(updates) != 2 || updates[0].Path.Answered || !updates[1].Path.Answered {
		t.Errorf("%d messages", len(updates))
	}
}

func TestSlowSubscriber(t *testing.T) {
	r := New(Config{})
	slow, quick := r.Subscribe(3), r.Subscribe(100)
	for i := range 10 {
		r.AddPath(path(i, time.Now()))
	}
	if n, lost := len(drain(slow)), slow.Lost(); n != 3 || lost != 7 {
		t.Errorf("slow: %d messages, %d lost, want 3 and 7", n, lost)
	}
	if n, lost := len(drain(quick)), quick.Lost(); n != 10 || lost != 0 {
		t.Errorf("quick: %d messages, %d lost", n, lost)
	}
}

func TestClose(t *testing.T) {
	r := New(Config{})
	a, b := r.Subscribe(1), r.Subscribe(1)
	a.Close()
	a.Close()
	if _, ok := <-a.Updates(); ok {
		t.Error("a closed subscription is open")
	}
	r.AddPath(path(1, time.Now()))
	if len(drain(b)) != 1 {
		t.Error("the other subscription got nothing")
	}
	r.Close()
	r.Close()
	b.Close()
	if _, ok := <-b.Updates(); ok {
		t.Error("a subscription of a closed recorder is open")
	}
	if _, ok := <-r.Subscribe(1).Updates(); ok {
		t.Error("a closed recorder gives a subscription")
	}
	r.AddFinding(finding(1, time.Now()))
	if len(r.Findings(time.Time{})) != 1 {
		t.Error("a closed recorder does not keep")
	}
}

// TestForgottenWhilePending: what is forgotten is not told of later.
func TestForgottenWhilePending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Config{MaxBytes: 1}) // nothing fits
		defer r.Close()
		s := r.Subscribe(10)
		r.AddFinding(finding(1, time.Now()))
		r.AddFinding(finding(1, time.Now()))
		time.Sleep(time.Second)
		synctest.Wait()
		if n := len(drain(s)); n != 2 || len(r.feed.pending) != 0 {
			t.Errorf("%d messages, %d pending", n, len(r.feed.pending))
		}
	})
}

func TestConcurrent(t *testing.T) {
	r := New(Config{MaxBytes: 64 << 10, MaxConnections: 8})
	var writers, readers sync.WaitGroup
	for w := range 3 {
		writers.Go(func() {
			for i := range 2000 {
				f := finding(i, time.Now())
				f.Where.Place.Netns = trace.Netns(i % 5)
				r.AddFinding(f)
				r.AddPath(path(i*3+w, time.Now()))
			}
		})
	}
	for range 3 {
		s := r.Subscribe(4)
		readers.Go(func() {
			for u := range s.Updates() {
				if u.Finding != nil {
					u.Finding.Restrict(time.Time{}, func(tuples []trace.Tuple, _ trace.Process) bool { return len(tuples) > 1 })
				}
			}
		})
	}
	for range 50 {
		for _, f := range r.Findings(time.Time{}) {
			_ = f.Evidence[0].Text + f.Connections[0].String()
		}
		_ = r.Paths(time.Time{})
		_ = r.Stats()
		r.Subscribe(1).Close()
	}
	writers.Wait()
	r.Close()
	readers.Wait()
}
