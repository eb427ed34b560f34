package main

import (
	"cmp"
	"math"
	"slices"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
	"github.com/replypath/replypath/internal/stream"
	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/correlate"
	"github.com/replypath/replypath/pkg/trace/filter"
)

// named is a set of tuples, in request direction.
type named map[trace.Tuple]bool

func (n named) messages() []*tracev1.Connection {
	var list []*tracev1.Connection
	for t := range n {
		list = append(list, stream.ProtoTuple(t))
		if len(list) == maxNamed {
			break
		}
	}
	return list
}

// hasAny reports whether one of the tuples is in the set.
func (n named) hasAny(tuples []trace.Tuple) bool {
	return slices.ContainsFunc(tuples, func(t trace.Tuple) bool { return n[t] })
}

// named are all tuples that the answers tell of.
func (r *round) named() named {
	n := make(named)
	for _, v := range r.views() {
		for i := range v.Paths {
			n.add(&v.Paths[i])
		}
		for i := range v.Findings {
			n.add(&v.Findings[i].Path)
			for _, c := range v.Findings[i].Connections {
				n[c.Tuple] = true
			}
		}
	}
	return n
}

func (n named) add(p *trace.Path) {
	for _, t := range filter.Tuples(nil, p) {
		n[t] = true
	}
}

// views are the answers as they are joined.
func (r *round) views() []correlate.View {
	views := make([]correlate.View, len(r.answers))
	for i, a := range r.answers {
		if a == nil {
			continue
		}
		for _, p := range a.paths {
			views[i].Paths = append(views[i].Paths, stream.TracePath(p))
		}
		for _, f := range a.findings {
			views[i].Findings = append(views[i].Findings, stream.TraceFinding(f))
		}
	}
	return views
}

// joined is the answer of all agents together.
func (r *round) joined() []*tracev1.ExplainResponse {
	keep := r.seeds.hasAny
	switch f, _ := filter.Parse(r.asked.GetFilter()); { // it was checked before
	case r.asked.GetProcessGroup() != 0:
	case r.asked.GetFilter() != "":
		keep = f.MatchTuples
	default:
		keep = nil
	}
	exchanges, findings := correlate.Join(r.views(), keep)
	var told []*tracev1.ExplainResponse
	counted := make(named)
	for i := range findings {
		told = append(told, &tracev1.ExplainResponse{Result: &tracev1.ExplainResponse_Finding{Finding: stream.ProtoFinding(&findings[i])}})
		for _, c := range findings[i].Connections {
			counted[c.Tuple] = true
		}
	}
	paths := 0
	for i := range exchanges {
		e := &exchanges[i]
		paths++
		delete(counted, e.Path.Connection)
		if r.asked.GetAll() && (!e.Faulty || r.asked.GetFaulty()) {
			told = append(told, &tracev1.ExplainResponse{Result: &tracev1.ExplainResponse_Path{Path: stream.ProtoPath(&e.Path)}})
		}
	}
	summary := r.summary(len(findings), paths+len(counted))
	return append(told, &tracev1.ExplainResponse{Result: &tracev1.ExplainResponse_Summary{Summary: summary}})
}

// summary adds up what the agents lost. Who did not answer may have known of a fault.
func (r *round) summary(findings, paths int) *tracev1.Summary {
	s := &tracev1.Summary{Findings: uint32(findings), Paths: uint32(paths), Unanswered: r.fleet.unanswered()}
	complete := len(s.Unanswered) == 0
	for _, a := range r.answers {
		if a == nil {
			complete = false
			continue
		}
		s.Nodes += a.summary.GetNodes()
		s.LostEvents = addCounts(s.LostEvents, a.summary.GetLostEvents())
		complete = complete && a.summary.GetVerdict() != "incomplete" && a.summary.GetLostEvents() == 0
		for _, l := range a.summary.GetLosses() {
			s.Losses = addLoss(s.Losses, l)
		}
	}
	slices.SortFunc(s.Losses, func(a, b *tracev1.Loss) int { return cmp.Compare(a.GetCause(), b.GetCause()) })
	switch {
	case findings > 0:
		s.Verdict = "fault"
	case complete:
		s.Verdict = "ok"
	default:
		s.Verdict = "incomplete"
	}
	return s
}

func addLoss(losses []*tracev1.Loss, l *tracev1.Loss) []*tracev1.Loss {
	for _, known := range losses {
		if known.GetCause() == l.GetCause() {
			known.Count = addCounts(known.GetCount(), l.GetCount())
			return losses
		}
	}
	return append(losses, &tracev1.Loss{Cause: l.GetCause(), Count: l.GetCount()})
}

// addCounts adds without wrapping round.
func addCounts(a, b uint32) uint32 { return uint32(min(uint64(a)+uint64(b), math.MaxUint32)) }
