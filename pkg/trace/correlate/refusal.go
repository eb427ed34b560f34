package correlate

import (
	"net/netip"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

const (
	// refusalAge is how long a SYN that no socket took waits for what shows that nobody misses one.
	refusalAge = 300 * time.Millisecond
	// familiesApart is how far apart a program calls a host by the one IP version and by the other.
	familiesApart = 500 * time.Millisecond
	// Who calls so many ports of a host in such a time looks for those that are open.
	scanPorts = 16
	scanAge   = 2 * time.Second
	maxScans  = 1024
	// maxRefusals bounds those that wait; maxSiblings the connections among which another one is looked for.
	maxRefusals, maxSiblings = 1024, 256
)

// refusals are SYNs that no socket took. That one IP version is refused is no fault for a
// program that tries both and is served by the other; nor is what a port scan meets.
type refusals struct {
	held  []refusal // oldest first
	scans map[scanKey]*scan
}

type refusal struct {
	c    trace.Case
	path *path
}

type scanKey struct {
	netns          trace.Netns // the server's: many have the same addresses
	client, server netip.Addr
}

func scanOf(ev *trace.Event) scanKey {
	return scanKey{ev.Netns, ev.Tuple.Src.Addr(), ev.Tuple.Dst.Addr()}
}

// scan is what one host was refused by another.
type scan struct {
	since, until time.Time // until: it is one for that long
	ports        map[uint16]struct{}
}

// note notes the port of a refusal.
func (r *refusals) note(ev *trace.Event) {
	key, now := scanOf(ev), ev.Time
	s := r.scans[key]
	if s == nil {
		if r.scans == nil || len(r.scans) >= maxScans {
			r.scans = make(map[scanKey]*scan)
		}
		s = &scan{since: now, ports: make(map[uint16]struct{})}
		r.scans[key] = s
	}
	if now.Sub(s.since) > scanAge {
		s.since = now
		clear(s.ports)
	}
	if s.ports[ev.Tuple.Dst.Port()] = struct{}{}; len(s.ports) >= scanPorts || now.Before(s.until) {
		s.until = now.Add(scanAge)
	}
}

// isScan reports a refusal that is one of many.
func (r *refusals) isScan(ev *trace.Event) bool {
	s := r.scans[scanOf(ev)]
	return s != nil && ev.Time.Before(s.until)
}

// holdRefusal lets the case that was opened last wait.
func (t *Table) holdRefusal(p *path, ev *trace.Event) {
	last := len(t.cases) - 1
	c := t.cases[last]
	t.refusals.note(ev)
	if c.Leg.IsValid() || len(t.refusals.held) >= maxRefusals {
		return // a proxy's
	}
	t.cases = t.cases[:last]
	t.refusals.held = append(t.refusals.held, refusal{c, p})
}

// releaseRefusals opens the cases about refusals that have waited until a time, and that somebody misses.
func (t *Table) releaseRefusals(until time.Time) {
	n := 0
	for ; n < len(t.refusals.held) && !t.refusals.held[n].c.Event.Time.After(until); n++ {
		if r := &t.refusals.held[n]; !t.refusals.isScan(&r.c.Event) && !t.isServedOtherwise(r.path, &r.c.Event) {
			t.cases = append(t.cases, r.c)
		}
	}
	clear(t.refusals.held[:n])
	t.refusals.held = t.refusals.held[n:]
}

// isServedOtherwise reports a connection whose program calls the same port of the same host by
// the other IP version, too, and is answered. Where the refused one was redirected, that is another fault.
func (t *Table) isServedOtherwise(p *path, ev *trace.Event) bool {
	if p.process.PID == 0 || len(p.request) == 0 || p.server != ev.Tuple.Dst {
		return false
	}
	for e, n := t.recent.Front(), 0; e != nil && n < maxSiblings; e, n = e.Next(), n+1 {
		q := e.Value.(*path)
		if q.protocol != p.protocol || !q.answered || q.process.PID != p.process.PID || q.server.Port() != p.server.Port() ||
			q.server.Addr().Is4() == p.server.Addr().Is4() || len(q.request) == 0 || q.request[0].netns != p.request[0].netns {
			continue
		}
		if q.request[len(q.request)-1].netns == ev.Netns && q.first.Sub(p.first).Abs() < familiesApart {
			return true
		}
	}
	return false
}
