package netstate

import (
	"sync/atomic"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// entry is what is remembered of an inode that was asked about: the namespace
// that has it now, and the one that had it before.
type entry struct {
	place trace.Place // of now
	since time.Time   // when the namespace of now got the inode, or the former one lost its name; zero: not known
	filed bool        // a name, or another path, leads to the namespace of now
	born  time.Time   // of that file, which tells apart namespaces that have the same name and inode; zero: not known

	previous trace.Place // zero: not known
	until    time.Time   // when previous lost its name or the inode; not after since
	forget   int64       // tick when previous is forgotten

	used     atomic.Int64 // tick
	verified atomic.Int64 // nameless: tick until which it is not looked for on purpose again
	aged     atomic.Int64 // nameless: tick when to look for a process again
	asked    int64        // tick since when it is looked for
	listed   bool         // among the names, since then
	searched bool         // among the processes, since then
	retry    int64        // unknown: tick when to look again
	interval time.Duration
}

// known reports whether there is something to say of the namespace.
func (e *entry) known() bool {
	return e.place.Name != "" || e.place.Host || e.place.PID != 0
}

// remembers reports whether the previous namespace is known still.
func (e *entry) remembers(tick int64) bool {
	return e.previous.Netns != 0 && tick <= e.forget
}

// succeed makes room for the namespace that has the inode since a time. One of
// which nothing was known does not displace what is known of the one before it.
func (e *entry) succeed(since time.Time, forget int64) {
	if e.known() {
		e.previous, e.until, e.forget = e.place, since, forget
	}
	e.place = trace.Place{Netns: e.place.Netns}
	e.since = since
	e.verified.Store(0)
	e.aged.Store(0)
	e.retry, e.interval = 0, firstRetry
}

// then returns the namespace that had the inode at a time, and whether it has it
// still. A since that is in the future says only that the clock was set.
func (e *entry) then(at, now time.Time, tick int64) (trace.Place, bool) {
	if e.place.Host || !at.Before(e.since) || e.since.After(now) {
		return e.place, true
	}
	if e.remembers(tick) && at.Before(e.until) {
		return e.previous, false
	}
	return trace.Place{Netns: e.place.Netns}, false
}
