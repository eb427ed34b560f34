package diagnose

import (
	"github.com/replypath/replypath/pkg/trace"
)

// translates reports whether a host gave the request other addresses than it came with.
func translates(h *trace.Hop) bool {
	return !h.Bridged && h.Arrived.IsValid() && h.Out.Index != 0 && h.Arrived != h.Tuple
}

// requestAt returns the hop of the request in a namespace that it reached last, or nil.
func requestAt(p *trace.Path, ns trace.Netns) *trace.Hop {
	for i := len(p.Request) - 1; i >= 0; i-- {
		if h := &p.Request[i]; h.Place.Netns == ns {
			return h
		}
	}
	return nil
}

// How an answer lost the source that it had to have.
type deviation uint8

const (
	ownSource   deviation = iota + 1 // the host that answers sends it with another source than it was asked at
	notRestored                      // the host that translated the request did not translate the answer back
	changed                          // a host on the way back changed it, though it had not changed the request
	bypassed                         // the answer did not come through the host that translated the request
)

// sourceFault says where an answer's source went wrong.
type sourceFault struct {
	deviation
	at        *trace.Hop  // of the host that had to keep or restore it
	got, want trace.Tuple // how the answer left that host (or reached the client), and how it should have
	direct    bool        // the answering host was asked at the client's own words (DSR)
}

// wrongSource compares the answer's addresses with the request's from host to
// host; false: the answer came back as it should, or too little was seen.
func wrongSource(p *trace.Path) (f sourceFault, ok bool) {
	if len(p.Request) == 0 || len(p.Reply) == 0 || p.Answered {
		return f, false
	}
	last := &p.Reply[len(p.Reply)-1]
	got, want := last.Tuple, trace.Tuple{Protocol: p.Protocol, Src: p.Server, Dst: p.Client}
	if first := &p.Request[0]; first.In.Index == 0 && first.Tuple.IsValid() {
		want = first.Tuple.Reverse() // as it left, after the client's own NAT
	}
	for i := range p.Reply {
		h := &p.Reply[i]
		if d, right := deviates(p, h); d != 0 {
			asked := requestAt(p, p.Reply[0].Place.Netns)
			return sourceFault{d, h, h.Tuple, right, asked != nil && asked.Arrived == want.Reverse()}, true
		}
	}
	if back := last.Place.Netns == p.Request[0].Place.Netns; !back || got == want {
		return f, false
	}
	for i := range p.Request {
		if h := &p.Request[i]; translates(h) {
			return sourceFault{bypassed, h, got, want, false}, true
		}
	}
	return f, false
}

// deviates looks at the answer as it leaves one host.
func deviates(p *trace.Path, h *trace.Hop) (deviation, trace.Tuple) {
	asked := requestAt(p, h.Place.Netns)
	switch {
	case h.Out.Index == 0 || h.Bridged:
		return 0, trace.Tuple{}
	case h.In.Index == 0: // made here
		if asked != nil && asked.Arrived.IsValid() && h.Tuple != asked.Arrived.Reverse() && asked.Out.Index == 0 {
			return ownSource, asked.Arrived.Reverse()
		}
	case asked != nil && translates(asked):
		if h.Arrived == asked.Tuple.Reverse() && h.Tuple != asked.Arrived.Reverse() {
			return notRestored, asked.Arrived.Reverse()
		}
	case h.Arrived.IsValid() && h.Arrived != h.Tuple && !knows(p, h.Tuple):
		return changed, h.Arrived
	}
	return 0, trace.Tuple{}
}

// knows reports whether an answer has addresses that the request had somewhere.
func knows(p *trace.Path, answer trace.Tuple) bool {
	for i := range p.Request {
		if h := &p.Request[i]; h.Tuple == answer.Reverse() || h.Arrived == answer.Reverse() {
			return true
		}
	}
	return false
}

// Circle returns the hosts that the case's packet came by again and again, in
// the order in which it first came by. Bridges that it passed are not among them.
func Circle(c *trace.Case) []trace.Hop {
	if c.Symptom != trace.SymptomLoop || c.Suspect {
		return nil
	}
	hops := c.Path.Request
	if c.Direction == trace.Reply {
		hops = c.Path.Reply
	}
	var circle []trace.Hop
	seen := make(map[trace.Netns]bool)
	for _, h := range hops {
		if h.Rounds < 2 || h.Bridged || seen[h.Place.Netns] || len(circle) == maxCircle {
			continue
		}
		seen[h.Place.Netns] = true
		circle = append(circle, h)
	}
	return circle
}

// maxCircle bounds the hosts of a circle that are asked.
const maxCircle = 8

// replySuspects returns the hosts that may have sent an answer astray before it was lost.
func replySuspects(c *trace.Case) []trace.Case {
	switch c.Symptom {
	case trace.SymptomDrop, trace.SymptomVanished, trace.SymptomMisaddressed:
	default:
		return nil
	}
	suspects := diverters(c)
	if f, ok := wrongSource(&c.Path); ok {
		s := suspect(c, trace.SymptomMisaddressed, f.at)
		s.Event.Tuple, s.Event.InIndex = f.got, 0
		suspects = append(suspects, s)
	}
	return suspects
}

// suspect makes the case of one hop.
func suspect(c *trace.Case, symptom trace.Symptom, h *trace.Hop) trace.Case {
	s := *c
	s.Suspect, s.Symptom, s.Place = true, symptom, h.Place
	s.Event.Netns, s.Event.Device, s.Event.OutIndex, s.Event.InIndex = h.Place.Netns, h.Out, h.Out.Index, h.In.Index
	s.Event.Tuple, s.Event.Mark = h.Tuple, h.Mark
	s.Arrival, s.Miss = trace.Event{}, trace.Event{}
	return s
}

// diverters are the hosts on the answer's way whose routing rules may have led
// it away: it left by another device than the one that the request came in by, and
// was lost there or at a host that the request had not come through.
func diverters(c *trace.Case) []trace.Case {
	lostAt := requestAt(&c.Path, c.Place.Netns)
	var suspects []trace.Case
	for i := range c.Path.Reply {
		h := c.Path.Reply[i]
		here := h.Place.Netns == c.Place.Netns
		if here && c.Symptom == trace.SymptomDrop {
			if !isNeighborDrop(&c.Event) {
				break
			}
			h.Out, h.Mark = c.Event.Device, c.Event.Mark
		}
		if c.Symptom == trace.SymptomDrop && !here && lostAt != nil || h.Out.Index == 0 || h.Bridged {
			continue
		}
		asked := requestAt(&c.Path, h.Place.Netns)
		if asked != nil && asked.In.Index == h.Out.Index {
			continue // back where the request came from
		}
		s := suspect(c, trace.SymptomVanished, &h)
		if h.Arrived.IsValid() {
			s.Event.Tuple = h.Arrived
		}
		if asked != nil && asked.In.Index != 0 {
			s.Arrival = trace.Event{Time: asked.First, Hook: trace.HookReceive, Netns: h.Place.Netns, Device: asked.In, Tuple: asked.Arrived, InIndex: asked.In.Index, Flags: trace.SYN}
		}
		suspects = append(suspects, s)
	}
	return suspects
}
