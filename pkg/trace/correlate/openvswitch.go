package correlate

import (
	"strings"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// isSwitchNoise reports a drop by Open vSwitch that costs nobody a packet: of
// those with which its daemon tries out what the datapath can do, which are to a
// loopback address; and of data for one output of several, a mirror for one. Were
// it the only one, the next handshake shows it.
func isSwitchNoise(ev *trace.Event) bool {
	if !ev.BySwitch() {
		return false
	}
	handshake := ev.Flags.IsSYN() || ev.Flags.IsSYNACK() || ev.Tuple.Protocol == trace.UDP
	return ev.Tuple.Dst.Addr().IsLoopback() || !handshake && outputFailed(ev)
}

// outputFailed reports a drop because a port could not send. Before 6.6 there is
// no reason, and an action that failed looks alike.
func outputFailed(ev *trace.Event) bool {
	switch ev.Reason {
	case "DEV_READY":
		return true
	case "", "NOT_SPECIFIED":
		return strings.HasPrefix(ev.Symbol, "do_")
	}
	return false
}

// isCopy reports a drop by Open vSwitch of what may be one copy of several. What
// was flooded, there or by a bridge before it, somebody else may get: a packet that
// is missed is sent again, and dropped again, and did not leave by another port.
func (p *path) isCopy(d trace.Direction, ev *trace.Event) bool {
	if !ev.BySwitch() {
		return false
	}
	p.switchDrops++
	if p.switchDrops == 1 {
		return true
	}
	for i, hops := 0, *p.hops(d); i < len(hops); i++ {
		h := &hops[i]
		here := h.netns == ev.Netns && (ev.InIndex == 0 || ev.InIndex == h.in.Index || ev.InIndex == h.port)
		if here && h.in.Index != 0 && h.out.Index != 0 {
			return true
		}
	}
	return false
}

// watchSwallowed opens a case about a packet to another MAC that was last seen to
// come in at a device, and reports whether it did. Open vSwitch takes packets there, and before 6.6 says
// nothing when its flows drop them.
func (t *Table) watchSwallowed(p *path, repeated time.Time) bool {
	if p.switchDrops > 0 {
		return false // it does say so
	}
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
			return true
		}
		return false
	}
	return false
}
