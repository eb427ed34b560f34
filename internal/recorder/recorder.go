// Package recorder is the agent's memory: the findings made and the paths seen
// of late, bounded by time and by bytes, and a feed of both for those who watch.
//
// It is no store: what does not fit is forgotten, oldest first, and counted.
package recorder

import (
	"cmp"
	"container/list"
	"slices"
	"sync"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// Config bounds a Recorder. The zero value gives the defaults.
type Config struct {
	MaxAge         time.Duration    // for how long something is kept after it was last seen; default 10 minutes
	MaxBytes       int              // estimate of the memory held; default 16 MiB
	MaxConnections int              // connections kept of one finding; default 256
	Now            func() time.Time // clock for MaxAge; default time.Now
}

// withDefaults fills in what is not set.
func (c Config) withDefaults() Config {
	if c.MaxAge <= 0 {
		c.MaxAge = 10 * time.Minute
	}
	if c.MaxBytes <= 0 {
		c.MaxBytes = 16 << 20
	}
	if c.MaxConnections <= 0 {
		c.MaxConnections = 256
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// Recorder keeps findings and paths. It is safe for concurrent use.
type Recorder struct {
	config Config

	mu           sync.Mutex
	findings     map[trace.FaultKey]*record
	findingOrder *list.List // of *record, least recently added to first
	findingBytes int
	paths        map[pathKey]*list.Element
	pathOrder    *list.List // of *pathEntry, least recently added first
	pathBytes    int
	exchanges    exchanges
	made         uint64 // findings made since start
	forgotten    Stats  // only the counters of what was forgotten
	feed         feed
}

// Stats says how full a Recorder is.
type Stats struct {
	Findings, Paths int    // kept
	Bytes           int    // estimate of the memory that they hold
	FindingsMade    uint64 // since start; a finding met again is not made again
	// FindingsForgotten and PathsForgotten were given up before their time because memory was full.
	FindingsForgotten, PathsForgotten uint64
	Exchanges                         int // DNS queries kept
	ExchangesForgotten                uint64
}

// New returns an empty Recorder.
func New(config Config) *Recorder {
	return &Recorder{
		config:       config.withDefaults(),
		findings:     make(map[trace.FaultKey]*record),
		findingOrder: list.New(),
		paths:        make(map[pathKey]*list.Element),
		pathOrder:    list.New(),
	}
}

// AddFinding keeps a finding, or merges it with the kept one of the same fault
// (see trace.Finding). Its Count is what this report adds, not a running total.
func (r *Recorder) AddFinding(f trace.Finding) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.config.Now()
	if f.LastSeen.IsZero() {
		f.LastSeen = now
	}
	if f.FirstSeen.IsZero() {
		f.FirstSeen = f.LastSeen
	}
	r.expire(now)
	key := f.Key()
	kept := r.findings[key]
	if kept == nil {
		r.made++
		kept = newRecord(key, r.made, &f)
		kept.element = r.findingOrder.PushBack(kept)
		r.findings[key] = kept
	} else {
		r.findingBytes -= kept.bytes
		kept.merge(&f)
		r.findingOrder.MoveToBack(kept.element)
	}
	kept.addConnections(&f, r.config.MaxConnections)
	r.findingBytes += kept.bytes
	r.shrink()
	r.feed.finding(r, kept)
}

// AddPath keeps a path, or replaces the kept one of the same connection (same
// Connection and First). The path's slices are copied.
func (r *Recorder) AddPath(p trace.Path) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.config.Now()
	if p.Last.IsZero() {
		p.Last = now
	}
	p.Request, p.Reply = slices.Clone(p.Request), slices.Clone(p.Reply)
	r.expire(now)
	key := pathKey{p.Connection, p.First.UnixNano()}
	entry := &pathEntry{key: key, path: p, bytes: pathEntryBytes(&p)}
	news := true
	if element := r.paths[key]; element != nil {
		old := element.Value.(*pathEntry)
		news = outcomeOf(&old.path) != outcomeOf(&p)
		r.pathBytes -= old.bytes
		element.Value = entry
		r.pathOrder.MoveToBack(element)
	} else {
		r.paths[key] = r.pathOrder.PushBack(entry)
	}
	r.pathBytes += entry.bytes
	r.shrink()
	if news {
		r.feed.path(&entry.path)
	}
}

// Findings returns what was last seen at or after since, in order of first
// seen. The zero time asks for all that is kept.
func (r *Recorder) Findings(since time.Time) []trace.Finding {
	records := r.Records(since)
	findings := make([]trace.Finding, len(records))
	for i := range records {
		findings[i] = records[i].Finding
	}
	return findings
}

// Records is Findings with what it takes to restrict one to some of its connections.
func (r *Recorder) Records(since time.Time) []Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire(r.config.Now())
	var records []Record
	for e := r.findingOrder.Front(); e != nil; e = e.Next() {
		if kept := e.Value.(*record); !kept.finding.LastSeen.Before(since) {
			records = append(records, kept.snapshot())
		}
	}
	slices.SortStableFunc(records, func(a, b Record) int {
		return cmp.Or(a.Finding.FirstSeen.Compare(b.Finding.FirstSeen), cmp.Compare(a.Number, b.Number))
	})
	return records
}

// Paths returns what was last seen at or after since, in order of first seen.
// The zero time asks for all that is kept. The hops must not be changed.
func (r *Recorder) Paths(since time.Time) []trace.Path {
	r.mu.Lock()
	r.expire(r.config.Now())
	var paths []trace.Path
	for e := r.pathOrder.Front(); e != nil; e = e.Next() {
		if p := &e.Value.(*pathEntry).path; !p.Last.Before(since) {
			paths = append(paths, *p)
		}
	}
	r.mu.Unlock()
	slices.SortStableFunc(paths, func(a, b trace.Path) int { return a.First.Compare(b.First) })
	return paths
}

// Stats says how full the recorder is.
func (r *Recorder) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.forgotten
	s.Findings, s.Paths, s.Bytes, s.FindingsMade = len(r.findings), len(r.paths), r.findingBytes+r.pathBytes+r.exchanges.bytes, r.made
	s.Exchanges = r.exchanges.len()
	return s
}

// Close ends all subscriptions. The recorder still keeps and answers.
func (r *Recorder) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.feed.close()
}

// expire forgets what is older than MaxAge.
func (r *Recorder) expire(now time.Time) {
	oldest := now.Add(-r.config.MaxAge)
	r.exchanges.expire(oldest)
	for e := r.pathOrder.Front(); e != nil && e.Value.(*pathEntry).path.Last.Before(oldest); e = r.pathOrder.Front() {
		r.forgetPath(e)
	}
	for e := r.findingOrder.Front(); e != nil && e.Value.(*record).finding.LastSeen.Before(oldest); e = r.findingOrder.Front() {
		r.forgetFinding(e)
	}
}

// shrink makes room. Paths come and go with the traffic and findings with the
// faults, so neither may push the other below half of the memory. DNS queries may
// take three eighths of it, where that is free, and are left a quarter.
func (r *Recorder) shrink() {
	for r.exchanges.bytes > r.config.MaxBytes*3/8 {
		r.exchanges.forget()
		r.forgotten.ExchangesForgotten++
	}
	for r.findingBytes+r.pathBytes+r.exchanges.bytes > r.config.MaxBytes {
		if r.exchanges.len() > 0 && (r.exchanges.bytes > r.config.MaxBytes/4 || r.pathOrder.Len()+r.findingOrder.Len() == 0) {
			r.exchanges.forget()
			r.forgotten.ExchangesForgotten++
			continue
		}
		if e := r.pathOrder.Front(); e != nil && (r.pathBytes > r.config.MaxBytes/2 || r.findingOrder.Len() == 0) {
			r.forgetPath(e)
			r.forgotten.PathsForgotten++
			continue
		}
		r.forgetFinding(r.findingOrder.Front())
		r.forgotten.FindingsForgotten++
	}
}

func (r *Recorder) forgetPath(e *list.Element) {
	entry := r.pathOrder.Remove(e).(*pathEntry)
	delete(r.paths, entry.key)
	r.pathBytes -= entry.bytes
}

func (r *Recorder) forgetFinding(e *list.Element) {
	kept := r.findingOrder.Remove(e).(*record)
	delete(r.findings, kept.key)
	r.findingBytes -= kept.bytes
	r.feed.forget(kept)
}

// pathKey tells paths apart: a client may use its port again.
type pathKey struct {
	connection trace.Tuple
	first      int64 // Unix nanoseconds
}

type pathEntry struct {
	key   pathKey
	path  trace.Path
	bytes int
}

// outcome is what makes an update of a path worth telling.
type outcome struct{ answered, reset bool }

func outcomeOf(p *trace.Path) outcome { return outcome{p.Answered, p.Reset} }
