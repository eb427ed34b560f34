package trace

import "net/netip"

// Trouble is a DNS query that ended badly, with what else is known of the same question.
type Trouble struct {
	*Exchange
	// Upstream is the query that the resolver, or one that it asked, made of it and
	// that ended badly first; nil: none was seen.
	Upstream *Exchange
	// Related are the connections of these queries: what explains one of them explains the trouble.
	Related []Tuple
	// Served: the client got its answer all the same, from another query.
	Served bool
	// Dead: the server has answered nothing since.
	Dead bool
	// Lost: the query that was made together with this one was answered.
	Lost bool
	// Lossy: events were lost while it was under way.
	Lossy bool
	// Loop: the query that a resolver made of it came back to that resolver.
	Loop bool
	// Truncated: it is the TCP retry of a query whose answer did not fit.
	Truncated bool
	// Steps are the names that a search list made of the question's, and that were asked in vain.
	Steps []string
	// Queries is how many those and the question took.
	Queries int
}

// Root is the query at which the trouble began.
func (t *Trouble) Root() *Exchange {
	if t.Upstream != nil {
		return t.Upstream
	}
	return t.Exchange
}

// Resolved is the answer of DNS by which a client knew the address that it used.
type Resolved struct {
	Name   string // presentation form; "": none is known
	Server netip.AddrPort
	TTL    uint32 // seconds
	// Age is how long ago it came, in seconds.
	Age uint32
}

// Stale reports whether it must not be used any more.
func (r Resolved) Stale() bool { return r.Name != "" && r.Age > r.TTL }

// Old reports whether what it stood for may have changed since.
func (r Resolved) Old() bool { return r.Name != "" && (r.Stale() || r.Age >= oldAnswer) }

// oldAnswer is, in seconds, what services that come and go give as TTL at most.
const oldAnswer = 30
