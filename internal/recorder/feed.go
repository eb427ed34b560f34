package recorder

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// findingInterval is the least time between two messages about one finding: a
// fault may be met thousands of times a second.
const findingInterval = 500 * time.Millisecond

// Update is one message to a subscriber; one of its fields is set.
type Update struct {
	Finding *Record     // made, or met again
	Path    *trace.Path // new, or with another outcome; not to be changed
	// Exchange is a DNS query that has ended; only SubscribeExchanges gets these, and nothing else. Not to be changed.
	Exchange *trace.Exchange
}

// Subscription is a feed of updates from the moment of Subscribe on.
type Subscription struct {
	recorder *Recorder
	updates  chan Update
	lost     atomic.Uint64
	// exchanges says that it is for these alone.
	exchanges bool
}

// Updates returns the channel of updates. It is closed by Close of the
// subscription or of the recorder.
func (s *Subscription) Updates() <-chan Update { return s.updates }

// Lost counts the updates that this subscriber did not get because its buffer
// was full. It is counted before the next update that the subscriber does get.
func (s *Subscription) Lost() uint64 { return s.lost.Load() }

// Close ends the subscription. It may be called more than once.
func (s *Subscription) Close() {
	s.recorder.mu.Lock()
	defer s.recorder.mu.Unlock()
	s.recorder.feed.remove(s)
}

// Subscribe returns a feed of updates that holds up to buffer of them for a
// slow reader. A reader that is slower loses updates; it never holds up the recorder.
func (r *Recorder) Subscribe(buffer int) *Subscription {
	s := &Subscription{recorder: r, updates: make(chan Update, max(buffer, 1))}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.feed.closed {
		close(s.updates)
		return s
	}
	r.feed.subscribers = append(r.feed.subscribers, s)
	return s
}

// feed sends updates to the subscribers. The recorder's lock guards it. Its
// timer runs only while something is pending.
type feed struct {
	subscribers []*Subscription
	pending     []*record // findings that have more to tell, and told something a moment ago
	timer       *time.Timer
	due         time.Time // when timer fires
	closed      bool
}

// finding tells of a finding now, or when findingInterval is over.
func (f *feed) finding(r *Recorder, kept *record) {
	if len(f.subscribers) == 0 || kept.pending {
		return
	}
	now := time.Now()
	wait := kept.published.Add(findingInterval).Sub(now)
	if wait <= 0 {
		f.publish(kept, now)
		return
	}
	kept.pending = true
	f.pending = append(f.pending, kept)
	f.flushAfter(r, now, wait)
}

// flushAfter sees to it that flush runs after wait, or before.
func (f *feed) flushAfter(r *Recorder, now time.Time, wait time.Duration) {
	due := now.Add(wait)
	if f.timer != nil {
		if !due.Before(f.due) || !f.timer.Stop() { // or it is about to run
			return
		}
	}
	f.due = due
	f.timer = time.AfterFunc(wait, r.flush)
}

// flush tells of the findings whose interval is over, and waits for the others.
func (r *Recorder) flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := &r.feed
	f.timer = nil
	if f.closed {
		return
	}
	now := time.Now()
	next := findingInterval
	waiting := f.pending[:0]
	for _, kept := range f.pending {
		if wait := kept.published.Add(findingInterval).Sub(now); wait > 0 {
			next = min(next, wait)
			waiting = append(waiting, kept)
			continue
		}
		kept.pending = false
		f.publish(kept, now)
	}
	clear(f.pending[len(waiting):])
	f.pending = waiting
	if len(waiting) > 0 {
		f.flushAfter(r, now, next)
	}
}

// forget leaves out a finding that is no longer kept, so that pending is bounded as the findings are.
func (f *feed) forget(kept *record) {
	if kept.pending {
		kept.pending = false
		f.pending = slices.DeleteFunc(f.pending, func(r *record) bool { return r == kept })
	}
}

func (f *feed) publish(kept *record, now time.Time) {
	if len(f.subscribers) == 0 {
		return
	}
	kept.published = now
	snapshot := kept.snapshot()
	f.send(Update{Finding: &snapshot})
}

func (f *feed) path(p *trace.Path) {
	if len(f.subscribers) > 0 {
		told := *p
		f.send(Update{Path: &told})
	}
}

func (f *feed) send(u Update) {
	for _, s := range f.subscribers {
		if !s.exchanges {
			s.send(u)
		}
	}
}

func (s *Subscription) send(u Update) {
	select {
	case s.updates <- u:
	default:
		s.lost.Add(1)
	}
}

func (f *feed) remove(s *Subscription) {
	if i := slices.Index(f.subscribers, s); i >= 0 {
		f.subscribers = slices.Delete(f.subscribers, i, i+1)
		close(s.updates)
	}
}

func (f *feed) close() {
	f.closed = true
	if f.timer != nil {
		f.timer.Stop()
	}
	for _, s := range f.subscribers {
		close(s.updates)
	}
	f.subscribers, f.pending = nil, nil
}
