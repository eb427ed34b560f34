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

// lossTime is when events were lost last: of those that tell of DNS. It belongs to the reading goroutine.
type lossTime struct {
	looked, last time.Time
	count        uint64
}

// lossLook is how often it is asked at most.
const lossLook = 100 * time.Millisecond

// noteLoss looks whether events were lost since it was asked before: for want of room in the ring.
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
}

// since reports whether something was lost at or after a time.
func (l *lossTime) since(t time.Time) bool { return !l.last.Before(t) }
