package correlate

import (
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// maybeFlooded reports the first drop of a frame to another MAC by Open vSwitch. A
// bridge before it that floods brings it frames that others get too, and that it
// has no use for; a packet that is missed is sent again, and dropped again.
func (p *path) maybeFlooded(ev *trace.Event) bool {
	if !ev.OtherHost || !ev.BySwitch() {
		return false
	}
	p.switchDrops++
	return p.switchDrops == 1
}

// watchSwallowed opens a case about a packet to another MAC that was last seen to
// come in at a device. Open vSwitch takes packets there, and before 6.6 says
// nothing when its flows drop them.
func (t *Table) watchSwallowed(p *path, repeated time.Time) {
	for _, d := range []trace.Direction{trace.Reply, trace.Request} {
		hops := *p.hops(d)
		var last *hop
		for i := range hops {
			h := &hops[i]
			if !h.latest().Before(repeated) {
				continue // the repetition itself
			}
			if last == nil || h.latest().After(last.latest()) {
				last = h
			}
		}
		if last == nil {
			continue
		}
		if swallowed := last.otherHost && last.at.After(last.left); swallowed {
			ev := p.arrival(d, last)
			ev.OtherHost = true
			t.open(p, trace.SymptomSwallowed, d, &ev)
		}
		return
	}
}
