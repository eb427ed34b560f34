package correlate

import (
	"math"
	"slices"

	"github.com/replypath/replypath/pkg/trace"
)

// What a connection may be instead of an exchange.
const (
	unknown = -1 - iota // no path is known of it
	leftOut             // it was not asked for
)

// claim is the finding that explains an exchange, by its view and its number there.
type claim struct{ view, finding int }

// settlement leaves one finding to each exchange: a packet is lost at one place,
// and what other nodes conclude from its absence is the same fault.
type settlement struct {
	views     []View
	exchanges []Exchange
	// exchangeOf says which exchange a node's finding means by a connection.
	exchangeOf func(view int, c trace.Connection) int

	claims map[int]claim              // by exchange
	seen   map[claim][]trace.Evidence // by other nodes, of the same fault
}

func (s *settlement) settle() []trace.Finding {
	s.claims, s.seen = make(map[int]claim), make(map[claim][]trace.Evidence)
	s.each(func(c claim, f *trace.Finding) {
		for _, met := range connectionsOf(f) {
			n := s.exchangeOf(c.view, met)
			if n < 0 {
				continue
			}
			s.exchanges[n].Faulty = true
			if held, taken := s.claims[n]; !taken || explainsBetter(f, s.finding(held), &s.exchanges[n].Path) {
				s.claims[n] = c
			}
		}
	})
	kept := make(map[claim]trace.Finding)
	s.each(func(c claim, f *trace.Finding) {
		if own, ok := s.restrict(c, f); ok {
			kept[c] = own
		}
	})
	var settled []trace.Finding
	s.each(func(c claim, _ *trace.Finding) {
		if f, ok := kept[c]; ok {
			f.Evidence = append(slices.Clip(f.Evidence), s.seen[c]...)
			settled = append(settled, f)
		}
	})
	return settled
}

// each calls do with all findings, in the order of their views.
func (s *settlement) each(do func(claim, *trace.Finding)) {
	for v := range s.views {
		for i := range s.views[v].Findings {
			do(claim{v, i}, &s.views[v].Findings[i])
		}
	}
}

func (s *settlement) finding(c claim) *trace.Finding { return &s.views[c.view].Findings[c.finding] }

// restrict returns a finding with the connections that it explains, as their
// client meant them. False: there are none.
func (s *settlement) restrict(c claim, f *trace.Finding) (trace.Finding, bool) {
	own, shown := *f, unknown
	own.Connections = nil
	listed := connectionsOf(f)
	for _, met := range listed {
		n := s.exchangeOf(c.view, met)
		winner, taken := s.claims[n]
		switch {
		case n == leftOut || taken && winner != c:
			own.Count -= min(met.Count, own.Count)
			if taken && s.concede(winner, f) {
				return own, false
			}
			continue
		case n >= 0:
			if shown == unknown || met.Tuple == f.Path.Connection {
				shown = n
			}
			met.Tuple = s.exchanges[n].Path.Connection
		}
		own.Connections = addConnection(own.Connections, met)
	}
	if shown >= 0 {
		own.Path = s.exchanges[shown].Path
	}
	return own, len(own.Connections) > 0 || len(listed) == 0
}

// concede gives the finding that explains an exchange the evidence of another
// about the same fault. True: the other one is all about that, as far as it can
// be told; not all connections that met a fault are kept.
func (s *settlement) concede(to claim, f *trace.Finding) bool {
	winner := s.finding(to)
	if winner.ID != f.ID || winner.Direction != f.Direction {
		return false
	}
	for _, e := range f.Evidence {
		known := func(k trace.Evidence) bool { return k.Text == e.Text }
		if !slices.ContainsFunc(winner.Evidence, known) && !slices.ContainsFunc(s.seen[to], known) {
			s.seen[to] = append(s.seen[to], e)
		}
	}
	return winner.Omitted > 0 || f.Omitted > 0
}

// addConnection adds one, or counts it with the same one: a node may have taken one exchange for two.
func addConnection(list []trace.Connection, c trace.Connection) []trace.Connection {
	for i := range list {
		if list[i].Tuple == c.Tuple {
			list[i].Count += c.Count
			return list
		}
	}
	return append(list, c)
}

// connectionsOf returns the connections that met a fault; that of its path alone where none are listed.
func connectionsOf(f *trace.Finding) []trace.Connection {
	if len(f.Connections) > 0 || !f.Path.Connection.IsValid() {
		return f.Connections
	}
	return []trace.Connection{{Tuple: f.Path.Connection, Count: f.Count, Last: f.LastSeen}}
}

// explainsBetter: the surer one, else the one that is earlier on the way.
func explainsBetter(f, held *trace.Finding, p *trace.Path) bool {
	if f.Confidence != held.Confidence {
		return f.Confidence > held.Confidence
	}
	return position(f, p) < position(held, p)
}

// position is where on the way a finding's place is.
func position(f *trace.Finding, p *trace.Path) int {
	hops, before := p.Request, 0
	if f.Direction == trace.Reply {
		hops, before = p.Reply, len(p.Request)
	}
	for i := range hops {
		if at := hops[i].Place; at.Node == f.Where.Node && at.Netns == f.Where.Place.Netns {
			return before + i
		}
	}
	if f.Direction == trace.Request || len(hops) == 0 {
		return before + len(hops) // it came no further, or was never sent
	}
	return math.MaxInt
}
