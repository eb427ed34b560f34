package agent

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/internal/metrics"
	"github.com/replypath/replypath/internal/probe"
	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/dns"
)

// hostPIDs is the inode of the initial PID namespace: PROC_PID_INIT_INO of include/linux/proc_ns.h.
const hostPIDs = 0xeffffffc

// processWatch returns what tells whether a process of the initial PID namespace
// has exited; nil where this process cannot see those.
func processWatch() func(uint32) bool {
	var st unix.Stat_t
	if unix.Stat("/proc/self/ns/pid", &st) != nil || st.Ino != hostPIDs {
		return nil
	}
	return hasExited
}

// hasExited reports a process that is no more, or of which no more is left than what its parent has not taken note of.
func hasExited(pid uint32) bool {
	b, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/stat")
	if err != nil {
		return os.IsNotExist(err)
	}
	_, state, _ := strings.Cut(string(b[bytes.LastIndexByte(b, ')')+1:]), " ") // after the name, which may hold anything
	return strings.HasPrefix(state, "Z") || strings.HasPrefix(state, "X")
}

// dnsCounter counts DNS queries as they end. It is safe for concurrent use.
type dnsCounter struct {
	mu    sync.Mutex
	names int // how many names are counted apart; 0: none
	stats metrics.DNS
}

func newDNSCounter(names int) *dnsCounter {
	return &dnsCounter{names: names, stats: metrics.NewDNS()}
}

func (c *dnsCounter) add(x *trace.Exchange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !x.Revised {
		c.stats.Queries++
		c.addName(x.Name)
		if x.Outcome == trace.Unanswered || x.Outcome == trace.WrongSource {
			c.stats.Unanswered[x.Stage.String()]++
		}
	}
	if x.Latency > 0 && (x.Outcome == trace.Answered || x.Outcome == trace.Failed || x.Outcome == trace.Late) {
		c.stats.Responses[dns.RcodeName(x.Rcode)]++
		c.stats.Observe(x.Latency.Seconds())
	}
}

func (c *dnsCounter) addName(name string) {
	if c.names == 0 {
		return
	}
	if _, known := c.stats.Names[name]; !known && len(c.stats.Names) >= c.names {
		name = "other"
	}
	c.stats.Names[name]++
}

func (c *dnsCounter) snapshot() metrics.DNS {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats.Clone()
}

// dnsDeadline is after which time a query counts as unanswered: what resolvers wait (resolv.conf(5)).
const dnsDeadline = 5 * time.Second

// blamed is the finding that explained a connection, and when.
type blamed struct {
	finding trace.Finding
	at      time.Time
}

const (
	maxBlamed = 4096
	// blamedAge is how long after a finding a DNS query on its connection has ended badly because of it.
	blamedAge = 15 * time.Second
)

// blame remembers a finding about packets of DNS. The lock is held.
func (i *investigator) blame(f *trace.Finding, c *trace.Case) {
	if f.Severity < trace.Warning || c.Trouble != nil {
		return
	}
	if len(i.blamed) >= maxBlamed {
		clear(i.blamed)
	}
	i.blamed[c.Path.Connection] = blamed{*f, time.Now()}
}

// isBlamed reports whether a DNS query that ended badly is explained by what was found
// about its packets, or those of the queries that were made of it. Its client's
// connection is then one of those that met that fault.
func (i *investigator) isBlamed(c *trace.Case) bool {
	if c.Trouble == nil {
		return false
	}
	i.mu.Lock()
	var found *trace.Finding
	for _, related := range c.Trouble.Related {
		if b, ok := i.blamed[related]; ok && time.Since(b.at) < blamedAge && c.Trouble.First.Before(b.at) {
			found = &b.finding
			break
		}
	}
	i.mu.Unlock()
	if found == nil {
		return false
	}
	f, client := *found, c.Path.Connection
	for _, known := range f.Connections {
		if known.Tuple == client {
			return true
		}
	}
	note := fmt.Sprintf("because of that, the DNS query %s of %s to %s ended badly (%s)", c.DNS, client.Src, client.Dst, c.Trouble.Outcome)
	f.Count, f.Path, f.Evidence = 1, c.Path, append(slices.Clone(f.Evidence), trace.Evidence{Time: c.Trouble.Last, Text: note})
	f.Cause += " " + strings.ToUpper(note[:1]) + note[1:] + "."
	f.Connections = []trace.Connection{{Tuple: client, Count: 1, Last: c.Trouble.Last}}
	f.LastSeen = c.Trouble.Last
	i.recorder.AddFinding(f)
	return true
}

// servedAt is where a server is.
type servedAt struct {
	netns trace.Netns
	port  uint16
}

// silenceAge is how long after a resolver was found silent its full buffer is the same fault: queries that go on being unanswered tell anew.
const silenceAge = time.Minute

// asSilence turns the finding that a resolver's receive buffer is full into the one that it is silent,
// where that was told before: it does not read, and now there is no room any more.
func (i *investigator) asSilence(f *trace.Finding, c *trace.Case) {
	at := servedAt{f.Where.Place.Netns, c.Event.Tuple.Dst.Port()}
	i.mu.Lock()
	defer i.mu.Unlock()
	switch f.ID {
	case "dns-unanswered":
		if f.Direction != trace.Reply {
			return
		}
		if len(i.silent) >= maxBlamed {
			clear(i.silent)
		}
		i.silent[at] = blamed{*f, time.Now()}
	case "socket-buffer-full":
		known, ok := i.silent[at]
		if !ok || c.Event.Tuple.Protocol != trace.UDP || time.Since(known.at) > silenceAge {
			return
		}
		full := *f
		*f = known.finding
		f.Count, f.Path, f.FirstSeen, f.LastSeen = full.Count, full.Path, full.FirstSeen, full.LastSeen
		f.Connections, f.Omitted = full.Connections, full.Omitted
		f.Evidence = append(slices.Clone(full.Evidence), trace.Evidence{Time: full.LastSeen, Text: full.Summary})
	}
}

// lossTime is when events were lost last: of those that tell of DNS. It belongs to the reading goroutine.
type lossTime struct {
	looked, last time.Time
	count        uint64
	limited      map[trace.Netns]limitTime
}

// limitTime is when a namespace's events were not told last, because it gave too many.
type limitTime struct {
	count uint64
	last  time.Time
}

// lossLook is how often it is asked at most.
const lossLook = 100 * time.Millisecond

// noteLoss looks whether events were lost since it was asked before: for want of room in the ring,
// or because a namespace gave too many.
func (p *pipeline) noteLoss(now time.Time) {
	if now.Sub(p.lost.looked) < lossLook {
		return
	}
	p.lost.looked = now
	losses, err := p.probe.Losses()
	if err != nil {
		return
	}
	if n := losses[probe.LossCauses[0]]; n != p.lost.count {
		p.lost.count, p.lost.last = n, now
	}
	if losses[probe.LossLimit] == 0 {
		return
	}
	limited, err := p.probe.Limited()
	if err != nil {
		return
	}
	if p.lost.limited == nil {
		p.lost.limited = make(map[trace.Netns]limitTime)
	}
	for ns, n := range limited {
		if p.lost.limited[ns].count != n {
			p.lost.limited[ns] = limitTime{n, now}
		}
	}
}

// since reports whether something was lost at or after a time: of what any namespace told, or of what
// those told to which the queries of a trouble came. Of those that they were made in the responses are told if
// the queries are.
func (l *lossTime) since(t *trace.Trouble) bool {
	if !l.last.Before(t.First) {
		return true
	}
	for _, x := range []*trace.Exchange{t.Exchange, t.Upstream} {
		if x == nil || len(l.limited) == 0 {
			continue
		}
		for i := range x.Sightings {
			at, ok := l.limited[x.Sightings[i].Place.Netns]
			if ok && x.Sightings[i].Place.Netns != x.Home().Netns && !at.last.Before(t.First) {
				return true
			}
		}
	}
	return false
}

// limitCause is the cause of loss by a namespace's limit, with the namespace.
func (p *pipeline) limitCause(ns trace.Netns) string {
	if ns == 0 {
		return probe.LossLimit
	}
	place := p.places.PlaceThen(ns, time.Now())
	switch {
	case place.Workload != "":
		return probe.LossLimit + " of " + place.Workload
	case place.Name != "":
		return probe.LossLimit + " of " + place.Name
	case place.Host:
		return probe.LossLimit + " of the host"
	}
	return fmt.Sprintf("%s of network namespace %d", probe.LossLimit, ns)
}

// limited returns how many events were not told because their namespace gave too many, by cause.
func (p *pipeline) limited() map[string]uint64 {
	skipped, err := p.probe.Limited()
	if err != nil {
		p.log.Warn("cannot read what namespaces told too much", "err", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.limitCauses == nil {
		p.limitCauses = make(map[trace.Netns]string)
	}
	causes := make(map[string]uint64, len(skipped))
	for ns, n := range skipped {
		if p.limitCauses[ns] == "" { // and not another one later, though its name may change
			p.limitCauses[ns] = p.limitCause(ns)
		}
		causes[p.limitCauses[ns]] += n
	}
	return causes
}
