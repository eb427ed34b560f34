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

// exchanges are kept in the order in which they ended: those that may change, or are special, by
// themselves, all others packed.
type exchanges struct {
	entries   []*exchangeEntry
	head      int                       // of entries, the first that is kept
	revisable map[uint64]*exchangeEntry // those that may be told again with another end
	chunks    []*chunk                  // oldest first; none is empty
	packed    int                       // how many exchanges they hold
	spare     []byte                    // of the chunk that was forgotten last
	bytes     int
}

// isRevisable: a response may still come.
func isRevisable(o trace.Outcome) bool {
	return o != trace.Answered && o != trace.Failed && o != trace.Late
}

func (e *exchanges) add(x *trace.Exchange) {
	if kept := e.revisable[x.Number]; kept != nil && x.Revised {
		bytes := exchangeBytes(x)
		e.bytes += bytes - kept.bytes
		kept.exchange, kept.bytes = x, bytes
		if !isRevisable(x.Outcome) {
			delete(e.revisable, x.Number)
		}
		return
	}
	if isPackable(x) && e.pack(x) {
		return
	}
	bytes := exchangeBytes(x)
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

// pack keeps an exchange as bytes; false: it is too large.
func (e *exchanges) pack(x *trace.Exchange) bool {
	for range 2 {
		if n := len(e.chunks); n > 0 {
			if bytes := e.chunks[n-1].add(x); bytes > 0 {
				e.bytes += bytes
				e.packed++
				return true
			}
			if e.chunks[n-1].isEmpty() { // it does not fit into a new one either
				e.chunks = e.chunks[:n-1]
				return false
			}
		}
		e.chunks = append(e.chunks, newChunk(e.spare))
		e.spare = nil
	}
	return false
}

func (e *exchanges) len() int { return len(e.entries) - e.head + e.packed }

// oldest is when the first of those that are kept by themselves, and of those that are packed, was last seen.
func (e *exchanges) oldest() (entry, packed time.Time) {
	if e.head < len(e.entries) {
		entry = e.entries[e.head].exchange.Last
	}
	if len(e.chunks) > 0 {
		packed = e.chunks[0].oldest()
	}
	return entry, packed
}

// forget forgets the oldest one.
func (e *exchanges) forget() {
	if entry, packed := e.oldest(); entry.IsZero() || !packed.IsZero() && packed.Before(entry) {
		e.forgetPacked()
	} else {
		e.forgetEntry()
	}
}

func (e *exchanges) forgetPacked() {
	first := e.chunks[0]
	e.bytes -= first.forget()
	e.packed--
	if first.isEmpty() {
		e.spare = first.data[:0]
		e.chunks[0] = nil
		e.chunks = e.chunks[1:]
	}
}

func (e *exchanges) forgetEntry() {
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
	for e.head < len(e.entries) && e.entries[e.head].exchange.Last.Before(oldest) {
		e.forgetEntry()
	}
	for len(e.chunks) > 0 && e.chunks[0].oldest().Before(oldest) {
		e.forgetPacked()
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
	for _, c := range r.exchanges.chunks {
		c.each(since, func(x *trace.Exchange) { all = append(all, x) })
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
