package correlate

import (
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

const (
	// tooBigPatience is how long a sender may go on sending what is too big after
	// it was told so for the first time: packets under way, and one more timeout.
	tooBigPatience = 700 * time.Millisecond
	// tooBigAge is how long being told again is being told of the same.
	tooBigAge = 30 * time.Second
)

// tooBig is what hosts said of packets of a path that are too big for a device.
type tooBig struct {
	ev    trace.Event // the ICMP error sent last
	first time.Time   // when the first one was sent
}

// isTooBig reports "fragmentation needed" (RFC 792, RFC 1191) and "packet too big" (RFC 4443).
func isTooBig(ev *trace.Event) bool {
	if ev.Tuple.Is6() {
		return ev.ICMPType == 2
	}
	return ev.ICMPType == 3 && ev.ICMPCode == 4
}

// addTooBig notes that a host said that a packet is too big. A sender that hears
// of it sends smaller ones; one that is told again and again does not.
func (t *Table) addTooBig(p *path, d trace.Direction, ev *trace.Event) {
	told := p.tooBig
	if told == nil || ev.Time.Sub(told.ev.Time) > tooBigAge {
		p.tooBig = &tooBig{*ev, ev.Time}
		return
	}
	told.ev = *ev
	if ev.Time.Sub(told.first) >= tooBigPatience {
		t.open(p, trace.SymptomTooBig, d, ev)
	}
}

// addTooBigDrop opens a case when the ICMP error itself is dropped: its receiver
// will not hear of it.
func (t *Table) addTooBigDrop(ev *trace.Event) {
	p, d := t.findTuple(ev.Netns, ev.Tuple)
	if p == nil {
		return
	}
	if p.tooBig == nil {
		p.tooBig = &tooBig{*ev, ev.Time}
	}
	t.open(p, trace.SymptomTooBig, d, ev)
}
