package recorder

import (
	"slices"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// exchangeEntry is a DNS query that is kept.
type exchangeEntry struct {
	exchange *trace.Exchange
	bytes    int
}

// exchanges are kept in the order in which they ended.
type exchanges struct {
	entries   []*exchangeEntry
	head      int                       // of entries, the first that is kept
	revisable map[uint64]*exchangeEntry // those that may be told again with another end
	bytes     int
}

// isRevisable: a response may still come.
func isRevisable(o trace.Outcome) bool {
	return o != trace.Answered && o != trace.Failed && o != trace.Late
}

func (e *exchanges) add(x *trace.Exchange) {
	bytes := exchangeBytes(x)
	if kept := e.revisable[x.Number]; kept != nil && x.Revised {
		e.bytes += bytes - kept.bytes
		kept.exchange, kept.bytes = x, bytes
		if !isRevisable(x.Outcome) {
			delete(e.revisable, x.Number)
		}
		return
	}
	entry := &exchangeEntry{x, bytes}
	e.entries = append(e.entries, entry)
	e.bytes += bytes
	if isRevisable(x.Outcome) {
		if e.revisable == nil {
			e.revisable = make(map[uint64]*exchangeEntry)
		}
		e.revisable[x.Number] = entry
	}
}

func (e *exchanges) len() int { return len(e.entries) - e.head }

func (e *exchanges) forget() {
	oldest := e.entries[e.head]
	e.entries[e.head] = nil
	e.bytes -= oldest.bytes
	delete(e.revisable, oldest.exchange.Number)
	if e.head++; e.head > len(e.entries)/2 {
		n := copy(e.entries, e.entries[e.head:])
		clear(e.entries[n:])
		e.entries, e.head = e.entries[:n], 0
	}
}

func (e *exchanges) expire(oldest time.Time) {
	for e.len() > 0 && e.entries[e.head].exchange.Last.Before(oldest) {
		e.forget()
	}
}

// AddExchange keeps a DNS query that has ended, or replaces the kept one that is told
// again with another end. It must not be changed any more.
func (r *Recorder) AddExchange(x *trace.Exchange) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire(r.config.Now())
	r.exchanges.add(x)
	r.shrink()
	r.feed.exchange(x)
}

// Exchanges returns the DNS queries that were last seen at or after since, in the order in
// which they were asked. They must not be changed.
func (r *Recorder) Exchanges(since time.Time) []*trace.Exchange {
	r.mu.Lock()
	r.expire(r.config.Now())
	var all []*trace.Exchange
	for _, e := range r.exchanges.entries[r.exchanges.head:] {
		if !e.exchange.Last.Before(since) {
			all = append(all, e.exchange)
		}
	}
	r.mu.Unlock()
	slices.SortStableFunc(all, func(a, b *trace.Exchange) int { return a.First.Compare(b.First) })
	return all
}

// SubscribeExchanges is Subscribe for DNS queries, which others are not told of: there may be very many.
func (r *Recorder) SubscribeExchanges(buffer int) *Subscription {
	s := r.Subscribe(buffer)
	r.mu.Lock()
	defer r.mu.Unlock()
	s.exchanges = true
	return s
}

func (f *feed) exchange(x *trace.Exchange) {
	for _, s := range f.subscribers {
		if s.exchanges {
			s.send(Update{Exchange: x})
		}
	}
}

// followed is what the table that made an exchange has beside it, in the same piece of memory.
const followed = 256

func exchangeBytes(x *trace.Exchange) int {
	bytes := sizeof[trace.Exchange]() + followed + sizeof[exchangeEntry]() + 2*sizeof[*exchangeEntry]() + len(x.Name) + len(x.Process.Comm) +
		cap(x.Response) + cap(x.Sightings)*sizeof[trace.Sighting]() + cap(x.Tuples)*sizeof[trace.Tuple]()
	if x.Drop != nil {
		bytes += sizeof[trace.Drop]()
	}
	return withOverhead(bytes)
}
