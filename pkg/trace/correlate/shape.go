package correlate

import (
	"net/netip"
	"strings"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

const (
	// circleRounds is how often a packet must come by again to be said to circle:
	// one that a service on the way hands back passes twice, and no more.
	circleRounds = 3
	// roundAge bounds the time of one round, and keeps repetitions of a packet apart, which come a second later.
	roundAge = 500 * time.Millisecond
)

// comesAround reports that the packet has been here a moment ago, with more hops left
// to live. Datagrams have no number: there the skb tells that it is the same packet.
func (h *hop) comesAround(ev *trace.Event) bool {
	again := h.ttl != 0 && ev.TTL != 0 && ev.TTL < h.ttl && ev.Time.Sub(h.at) < roundAge
	if ev.Tuple.Protocol == trace.UDP {
		again = again && ev.SKB == h.skb
	}
	switch {
	case again:
		h.rounds++
	case ev.TTL != h.ttl: // the device above a port shows the same packet once more
		h.rounds = 0
	}
	h.ttl = ev.TTL
	return again
}

// watchCircle opens a case, once for each packet, when it has come around often enough.
func (t *Table) watchCircle(p *path, d trace.Direction, h *hop, ev *trace.Event) {
	if h == nil || h.rounds < circleRounds || ev.Time.Sub(p.circled) < roundAge {
		return
	}
	p.circled = ev.Time
	t.open(p, trace.SymptomLoop, d, ev)
}

// isAstray reports an answer that is back at the place where the request was
// first seen, and not with the addresses that the request had there.
func (p *path) isAstray(ev *trace.Event) bool {
	if ev.OtherHost || !p.isBack(ev) {
		return false
	}
	first := &p.request[0]
	if first.in.Index != 0 && ev.Device.Index != first.in.Index {
		return false // another device than the one towards the client
	}
	want := ev.Tuple.Reverse()
	for i := range p.request {
		if h := &p.request[i]; h.netns == ev.Netns && (h.arrived == want || h.tuple == want) {
			return false
		}
	}
	return true
}

// refuseAstray opens the case of an answer from elsewhere, once it is known to be of no use:
// it was refused with a reset, or the request was repeated after it.
func (t *Table) refuseAstray(p *path) {
	if astray := p.astray; astray != nil && !p.answered {
		p.astray = nil
		t.open(p, trace.SymptomMisaddressed, trace.Reply, astray)
	}
}

// departed returns the hop that packets of a direction were last seen to leave,
// if they came nowhere after it.
func (p *path) departed(d trace.Direction) *hop {
	var last *hop
	for i, hops := 0, *p.hops(d); i < len(hops); i++ {
		h := &hops[i]
		if h.otherHost {
			continue // a bridge, or flooded there
		}
		if last == nil || h.latest().After(last.latest()) {
			last = h
		}
	}
	if last == nil || last.out.Index == 0 || last.left.Before(last.at) {
		return nil
	}
	return last
}

// maxLostRequests is up to which repetition of a request that went from the
// client nowhere the client's host is asked: many are to machines that are not there.
const maxLostRequests = 3

// isLost reports whether the request left the host that made it and came to no other.
func (p *path) isLost() bool {
	if len(p.request) == 0 || p.request[0].in.Index != 0 || p.requests > maxLostRequests || p.switchDrops > 0 {
		return false
	}
	for i := 1; i < len(p.request); i++ {
		if !p.request[i].otherHost {
			return false
		}
	}
	return true
}

// misdelivered opens a case when an answer is refused by a host that the request
// did not come from: the host before sent it to the wrong one.
func (t *Table) misdelivered(p *path, ns trace.Netns, now time.Time) bool {
	if p.answered || p.guessed || len(p.request) == 0 || p.hasPassed(ns) {
		return false
	}
	var before, here *hop
	for i := range p.reply {
		switch h := &p.reply[i]; {
		case h.netns == ns && h.in.Index != 0 && h.out.Index == 0:
			here = h
		case h.netns != ns && !h.otherHost && h.out.Index != 0 && (before == nil || h.left.After(before.left)):
			before = h
		}
	}
	if before == nil || here == nil || here.otherHost || here.at.Before(before.left) || now.Sub(here.at) > neighborAge {
		return false
	}
	gone := p.departure(trace.Reply, before)
	if p.protocol == trace.TCP || p.mayOpen(trace.SymptomVanished, &gone) {
		t.open(p, trace.SymptomVanished, trace.Reply, &gone)
	}
	return true
}

// hasPassed reports whether the request came through a namespace, or from it.
func (p *path) hasPassed(ns trace.Netns) bool {
	for i := range p.request {
		if h := &p.request[i]; h.netns == ns && !h.otherHost {
			return true
		}
	}
	return false
}

// latest is when a packet was last seen at the hop.
func (h *hop) latest() time.Time {
	if h.left.After(h.at) {
		return h.left
	}
	return h.at
}

// departure rebuilds the event with which a packet left a hop.
func (p *path) departure(d trace.Direction, h *hop) trace.Event {
	ev := p.arrival(d, h)
	ev.Time, ev.Hook, ev.Device, ev.OutIndex = h.left, trace.HookTransmit, h.out, h.out.Index
	return ev
}

// watchRepeated looks, when a request is repeated, at what became of the one
// before it: its answer came from elsewhere, or left a host and was not seen
// again; or it was itself sent back, or on to where nobody saw it.
func (t *Table) watchRepeated(p *path, ev *trace.Event) {
	if p.answered || p.reset {
		return
	}
	if p.astray != nil {
		t.refuseAstray(p)
		return
	}
	swallowed := t.watchSwallowed(p, ev.Time)
	if h := p.departed(trace.Reply); h != nil {
		gone := p.departure(trace.Reply, h)
		t.open(p, trace.SymptomVanished, trace.Reply, &gone)
		return
	}
	if len(p.reply) > 0 {
		return
	}
	if p.turnsBack() || p.wentOut() || !swallowed && p.isLost() {
		t.open(p, trace.SymptomStray, trace.Request, ev)
	}
}

// wentOut reports whether the request before the one that is now sent at the first
// hop was last seen to leave a host that it had come to.
func (p *path) wentOut() bool {
	var last *hop
	for i := 1; i < len(p.request); i++ {
		if h := &p.request[i]; !h.otherHost && (last == nil || h.latest().After(last.latest())) {
			last = h
		}
	}
	return last != nil && last.in.Index != 0 && last.out.Index != 0 && !last.left.Before(last.at)
}

// isExpiry reports the drop of a packet whose hop limit ran out where it was to be sent on.
func isExpiry(ev *trace.Event) bool {
	if ev.TTL > 1 || ev.TTL == 0 || ev.InIndex == 0 {
		return false
	}
	return strings.HasPrefix(ev.Symbol, "ip_forward") || strings.HasPrefix(ev.Symbol, "ip6_forward")
}

// comesBy reports that a packet which goes in a circle comes by once more, with
// another source: NAT on its way takes it for a new flow each time, and gives it a port of its own.
func (p *path) comesBy(d trace.Direction, ev *trace.Event) bool {
	for i, hops := 0, *p.hops(d); i < len(hops); i++ {
		if h := &hops[i]; h.netns == ev.Netns && h.skb == ev.SKB && h.rounds > 0 && ev.TTL != 0 && ev.TTL <= h.ttl {
			return true
		}
	}
	return false
}

// goesRound notes the hops that a datagram must have passed again and again, once
// its hop limit has run out: of each flow the kernel tells one packet a second at each
// device. It came to one host by two devices, or was sent back where it came from.
func (p *path) goesRound(d trace.Direction) bool {
	hops := *p.hops(d)
	round := false
	mark := func(h *hop) {
		h.rounds = max(h.rounds, circleRounds)
		round = true
	}
	for i := range hops {
		first := &hops[i]
		if first.otherHost || first.in.Index == 0 {
			continue
		}
		if first.in.Index == first.out.Index {
			mark(first)
		}
		for j := len(hops) - 1; j > i; j-- {
			if hops[j].netns != first.netns || hops[j].otherHost || hops[j].in.Index == first.in.Index {
				continue
			}
			for k := i; k <= j; k++ {
				mark(&hops[k])
			}
			break
		}
	}
	return round
}

// sources finds the live paths by the address and port of their clients, before and after NAT.
type sources map[netip.AddrPort]*path

func (s sources) add(p *path, client netip.AddrPort) {
	if s[client] == p || len(p.sources) >= maxTuples {
		return
	}
	s[client] = p
	p.sources = append(p.sources, client)
}

func (s sources) remove(p *path) {
	for _, client := range p.sources {
		if s[client] == p {
			delete(s, client)
		}
	}
}

// watchUnmatched opens a case when a host answers a packet of a live connection
// with a reset, as it does not know it: the packet came with other addresses
// than those of the handshake, or to another host. A reset without an
// acknowledgement answers a packet for which there is no socket (RFC 9293, 3.10.7.1).
func (t *Table) watchUnmatched(ev *trace.Event) {
	if ev.InIndex != 0 || ev.Flags&(trace.RST|trace.ACK|trace.SYN|trace.FIN) != trace.RST {
		return
	}
	packet := ev.Tuple.Reverse()
	d := trace.Request
	p := t.sources[packet.Src]
	if p == nil {
		d, p = trace.Reply, t.sources[packet.Dst]
	}
	if p == nil || !p.answered || p.closed || p.reset || p.guessed || p.expects(d, ev.Netns, packet) {
		return
	}
	unmatched := *ev
	unmatched.Tuple, unmatched.Flags, unmatched.Device = packet, trace.ACK, trace.Device{}
	t.open(p, trace.SymptomUnmatched, d, &unmatched)
}

// hidesClient reports a host that gave the request another source, to which the packet comes back.
func (p *path) hidesClient(ns trace.Netns, packet trace.Tuple) bool {
	for i := range p.request {
		h := &p.request[i]
		if h.netns == ns && h.in.Index != 0 && h.out.Index != 0 && h.arrived.Src != h.tuple.Src && packet.Reverse() == h.tuple {
			return true
		}
	}
	return false
}

// expects reports whether a packet has, where its way ends, the addresses that it had in the handshake.
func (p *path) expects(d trace.Direction, ns trace.Netns, packet trace.Tuple) bool {
	if len(p.request) == 0 || len(p.reply) == 0 {
		return true // not enough was seen to tell
	}
	if d == trace.Reply {
		if p.hidesClient(ns, packet) {
			return false
		}
		first := &p.request[0]
		return first.in.Index != 0 || first.netns != ns || packet.Reverse() == first.tuple
	}
	for i := range p.request {
		if h := &p.request[i]; h.netns == ns && h.arrived == packet {
			return h.out.Index == 0 || h.arrived == h.tuple // not to be translated here
		}
	}
	return false
}
