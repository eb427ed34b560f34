package correlate

import (
	"net/netip"
	"strings"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// Add takes in one event. Events come in the order of their time.
func (t *Table) Add(ev *trace.Event) {
	t.Advance(ev.Time)
	if ev.Hook == trace.HookVerdict {
		t.verdicts.add(ev)
		return
	}
	if ev.Hook == trace.HookAstray {
		t.addAstray(ev)
		return
	}
	if ev.Carried.Known() {
		t.addTunnelDrop(ev)
		return
	}
	if ev.Hook == trace.HookDrop && (isRouteQuery(ev) || isSwitchNoise(ev)) {
		return
	}
	if ev.Hook == trace.HookDrop && ev.Netns == 0 {
		return // what a namespace still held goes with it: that is nobody's loss
	}
	if ev.Fragment && ev.Hook == trace.HookDrop {
		t.addFragmentDrop(ev)
		return
	}
	if ev.Tuple.Protocol != trace.TCP && ev.Tuple.Protocol != trace.UDP || !ev.Tuple.IsValid() || ev.Fragment || ev.Short && !ev.Inner || isGroup(ev.Tuple.Dst.Addr()) {
		return
	}
	if ev.Group {
		return
	}
	if ev.Tuple.Protocol == trace.UDP {
		t.addUDP(ev)
		return
	}
	switch ev.Hook {
	case trace.HookReceive, trace.HookTransmit:
		t.addPacket(ev)
	case trace.HookDrop:
		t.addDrop(ev)
	case trace.HookResetSent:
		t.addResetSent(ev)
	case trace.HookICMPSent:
		t.addICMPError(ev)
	case trace.HookRouteMiss4, trace.HookRouteMiss6:
		if p, _ := t.handshake(ev); p != nil {
			miss := *ev
			p.miss = &miss
		}
	case trace.HookSocketState:
		t.addSocketState(ev)
	case trace.HookResetReceived:
		if p, _ := t.findTuple(ev.Netns, ev.Tuple); p != nil {
			p.reset, p.changed = true, true
		}
	}
}

// isGroup reports an address that TCP cannot connect to: RFC 9293, section 3.9.2.3.
func isGroup(a netip.Addr) bool {
	return a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// handshake returns the path that a SYN, a SYN-ACK or a reset that answers a SYN
// belongs to, and its direction. For a route miss, whose tuple is that of the
// packet to be sent, the flags are those of the packet received.
func (t *Table) handshake(ev *trace.Event) (*path, trace.Direction) {
	tuple := ev.Tuple
	switch {
	case ev.Flags.IsSYN():
		if p := t.findSeq(ev.Seq, trace.Request, tuple, ev); p != nil {
			return p, trace.Request
		}
		return t.findSeq(ev.Seq, trace.Reply, tuple.Reverse(), ev), trace.Request
	case ev.Flags.IsSYNACK(), ev.Flags.Has(trace.RST | trace.ACK):
		if p := t.findAnswered(tuple.Reverse(), ev); p != nil {
			return p, trace.Reply
		}
		return t.findAnswered(tuple, ev), trace.Reply
	}
	return nil, trace.DirectionUnknown
}

func (t *Table) addPacket(ev *trace.Event) {
	if ev.Inner {
		t.addICMPError(ev)
		return
	}
	switch {
	case ev.Flags.IsSYN():
		t.addRequest(ev)
	case ev.Flags.IsSYNACK():
		t.addReply(ev)
	case ev.Flags.Has(trace.RST):
		t.addReset(ev)
	case ev.Flags.Has(trace.FIN):
		if p, d := t.findTuple(ev.Netns, ev.Tuple); p != nil {
			p.fins[d-trace.Request] = true
			if p.fins[0] && p.fins[1] {
				t.close(p, ev)
			}
		}
	}
}

// addRequest follows a SYN from namespace to namespace.
func (t *Table) addRequest(ev *trace.Event) {
	p := t.findSeq(ev.Seq, trace.Request, ev.Tuple, ev)
	if p == nil {
		p = t.create(ev.Seq, ev.Tuple, ev)
		if ev.Hook == trace.HookTransmit && ev.InIndex == 0 {
			p.process = t.connects.find(ev.Netns, p.server, ev.Process)
			t.joinLeg(p, ev)
		}
	}
	t.touch(p, ev.Tuple, ev)
	p.skb = ev.SKB
	if ev.Hook == trace.HookTransmit {
		if h := p.depart(trace.Request, ev); h == &p.request[0] && h.in.Index == 0 {
			t.countRequest(p, h, ev)
		}
		return
	}
	h := p.arrive(trace.Request, ev)
	if h == nil {
		return
	}
	if h == &p.request[0] && h.rounds == 0 {
		t.countRequest(p, h, ev)
	}
	t.watchCircle(p, trace.Request, h, ev)
	if ev.OtherHost {
		return // bridged, or flooded here: not this host's to answer
	}
	h.pending = true
	for i := range p.request {
		if &p.request[i] == h {
			t.waits = append(t.waits, waiting{p, i, ev.Time})
		}
	}
}

// countRequest counts a SYN where it was first seen. One that is sent again
// because no answer came may open a case.
func (t *Table) countRequest(p *path, h *hop, ev *trace.Event) {
	p.requests = h.count
	if p.requests > 1 {
		t.watchRepeated(p, ev)
	}
}

// turnsBack reports whether a host sent the request back by the device that it came by.
func (p *path) turnsBack() bool {
	for i := range p.request {
		if h := &p.request[i]; h.in.Index != 0 && h.in.Index == h.out.Index {
			return true
		}
	}
	return false
}

// addReply follows a SYN-ACK.
func (t *Table) addReply(ev *trace.Event) {
	request := ev.Tuple.Reverse()
	p := t.findAnswered(request, ev)
	if p == nil {
		// Its SYN was not seen: it came before we looked, or was lost.
		p = t.create(ev.Ack-1, request, ev)
	}
	t.touch(p, request, ev)
	p.skb, p.replied = ev.SKB, ev.Time
	if ev.Hook == trace.HookTransmit {
		p.settle(ev.Netns)
		p.depart(trace.Reply, ev)
		t.noteProxied(p, ev)
	} else {
		t.watchCircle(p, trace.Reply, p.arrive(trace.Reply, ev), ev)
	}
	if p.isAstray(ev) {
		astray := *ev
		p.astray, p.unwanted = &astray, ev.Tuple.Reverse()
		return
	}
	if !p.answered && p.isBack(ev) {
		p.answered = true
		t.handOut(p)
	}
}

// isBack reports whether a reply is back at the place where the request was first seen.
func (p *path) isBack(ev *trace.Event) bool {
	if len(p.request) == 0 || p.request[0].netns != ev.Netns {
		return false
	}
	if made := p.request[0].in.Index == 0; made {
		return ev.Hook == trace.HookReceive && !ev.OtherHost // what is flooded here, it does not get
	}
	return ev.Hook == trace.HookTransmit
}

// addReset follows a RST: the answer to a SYN, or the end of a connection.
func (t *Table) addReset(ev *trace.Event) {
	if ev.Hook == trace.HookTransmit {
		t.watchUnmatched(ev)
	}
	p, _ := t.handshake(ev)
	if p == nil {
		if p, _ = t.findTuple(ev.Netns, ev.Tuple); p == nil {
			return
		}
	}
	if t.isMadeForServer(p, ev) {
		if ev.Hook == trace.HookTransmit && ev.InIndex == 0 && !t.misdelivered(p, ev.Netns, ev.Time) {
			p.settle(ev.Netns)
			p.reject(ev)
		}
		return
	}
	if ev.Tuple == p.unwanted && !p.answered {
		t.refuseAstray(p) // the client still waits for the right answer
		if ev.Hook == trace.HookTransmit && ev.InIndex == 0 {
			t.misdelivered(p, ev.Netns, ev.Time)
		}
		return
	}
	if ev.Hook == trace.HookTransmit {
		p.settle(ev.Netns)
		if ev.InIndex == 0 && t.misdelivered(p, ev.Netns, ev.Time) {
			p.unwanted = ev.Tuple // the client still waits, and knows nothing of this
			return
		}
		if ev.InIndex == 0 && p.reject(ev) {
			t.refuseUntaken(p, ev)
		}
	}
	p.reset = true
	t.close(p, ev)
}

// isMadeForServer reports a reset in the client's name that a filter on the way back
// made for the server whose answer it rejects, or a host that the answer was misdelivered to: the client, of whom no answer is known
// to have come, does not hear of it, and goes on asking.
func (t *Table) isMadeForServer(p *path, ev *trace.Event) bool {
	if p.answered || len(p.request) == 0 || p.request[0].netns == ev.Netns {
		return false
	}
	_, d := t.findTuple(ev.Netns, ev.Tuple)
	return d == trace.Request
}

func (t *Table) close(p *path, ev *trace.Event) {
	p.last, p.changed = ev.Time, true
	if !p.closed {
		p.closed = true
		t.closings = append(t.closings, closing{p, ev.Time})
	}
}

// addResetSent opens a case when a SYN was refused because no socket took it.
// Kernels before 6.10 are silent here; there the drop tells.
func (t *Table) addResetSent(ev *trace.Event) {
	if ev.Flags.IsSYN() && ev.Reason == noSocket {
		t.refuse(ev)
	}
}

// noSocket is a reason both to reset and to drop.
const noSocket = "NO_SOCKET"

// refuse opens a case about a SYN that no socket took, once for each packet.
func (t *Table) refuse(ev *trace.Event) {
	p := t.findSeq(ev.Seq, trace.Request, ev.Tuple, ev)
	if p == nil {
		p = t.create(ev.Seq, ev.Tuple, ev)
	}
	t.touch(p, ev.Tuple, ev)
	p.settle(ev.Netns)
	if p.refused == ev.SKB && ev.Time.Sub(p.refusedAt) < rejectionAge {
		return
	}
	p.refused, p.refusedAt = ev.SKB, ev.Time
	t.open(p, trace.SymptomRefused, trace.Request, ev)
	t.holdRefusal(p, ev)
}

// isRefusal reports the drop of a SYN that was answered with a reset, as no
// socket took it. Kernels before 5.17 give no reason: there a reset that has
// just left says the same.
func (t *Table) isRefusal(ev *trace.Event) bool {
	switch {
	case !ev.Flags.IsSYN():
		return false
	case ev.Reason != "":
		return ev.Reason == noSocket
	case !isTCPReceive(ev):
		return false
	}
	p := t.findSeq(ev.Seq, trace.Request, ev.Tuple, ev)
	return p != nil && p.rejection.netns == ev.Netns && ev.Time.Sub(p.rejection.at) < rejectionAge
}

// isTCPReceive reports a drop by the function that looks for a packet's socket.
func isTCPReceive(ev *trace.Event) bool {
	return strings.HasPrefix(ev.Symbol, "tcp_v4_rcv") || strings.HasPrefix(ev.Symbol, "tcp_v6_rcv")
}

// keepUntaken remembers a SYN that was dropped without a reason where sockets
// are looked for: a duplicate, or refused by a reset that waits for its next hop's MAC.
func (t *Table) keepUntaken(ev *trace.Event) {
	if !ev.Flags.IsSYN() || ev.Reason != "" || !isTCPReceive(ev) {
		return
	}
	if p := t.findSeq(ev.Seq, trace.Request, ev.Tuple, ev); p != nil && p.replied.IsZero() {
		untaken := *ev
		p.untaken = &untaken
	}
}

// refuseUntaken opens the case of a SYN that was dropped before the reset ev which refuses it left.
func (t *Table) refuseUntaken(p *path, ev *trace.Event) {
	u := p.untaken
	p.untaken = nil
	answers := ev.Flags.Has(trace.RST|trace.ACK) && p.isAcked(ev)
	if u != nil && answers && u.Netns == ev.Netns && p.replied.IsZero() && ev.Time.Sub(u.Time) < neighborAge {
		t.refuse(u)
	}
}

// neighborAge is how long a packet may wait for its next hop's MAC: mcast_solicit
// times retrans_time_ms of net/core/neighbour.c, and some.
const neighborAge = 4 * time.Second

// addICMPError notes that a host answered a packet of the path with an ICMP
// error: sent here (the hook icmp_send; for IPv6, and on kernels which
// do not have that, an error that leaves where it was made).
func (t *Table) addICMPError(ev *trace.Event) {
	t.tellsICMP = t.tellsICMP || ev.Hook == trace.HookICMPSent
	made := ev.Hook == trace.HookICMPSent || ev.Hook == trace.HookTransmit && ev.InIndex == 0
	if told := t.tellsICMP && ev.Hook == trace.HookTransmit && !ev.Tuple.Is6(); !made || told {
		return
	}
	p, d := t.handshake(ev)
	if p == nil {
		if p, d = t.findTuple(ev.Netns, ev.Tuple); p == nil {
			return
		}
	}
	if !p.reject(ev) {
		return // sent on for a namespace above
	}
	switch {
	case isTimeExceeded(ev):
		if ev.Time.Sub(p.circled) < roundAge {
			return
		}
		p.circled = ev.Time
		if ev.Tuple.Protocol == trace.UDP && !p.goesRound(d) {
			return // as traceroute has it
		}
		t.open(p, trace.SymptomLoop, d, ev)
	case isTooBig(ev):
		t.addTooBig(p, d, ev)
	}
}

// isTimeExceeded: RFC 792 type 11 code 0; RFC 4443 type 3 code 0.
func isTimeExceeded(ev *trace.Event) bool {
	if ev.Tuple.Is6() {
		return ev.ICMPType == 3 && ev.ICMPCode == 0
	}
	return ev.ICMPType == 11 && ev.ICMPCode == 0
}

// TCP states of include/net/tcp_states.h.
const (
	stateEstablished = 1
	stateSYNSent     = 2
)

func (t *Table) addSocketState(ev *trace.Event) {
	switch ev.NewState {
	case stateSYNSent:
		t.connects.add(ev)
	case stateEstablished:
		p, _ := t.findTuple(ev.Netns, ev.Tuple)
		if p == nil {
			return
		}
		// Whatever devices showed of it, both sides have heard of each other.
		p.replied, p.changed, p.established = ev.Time, true, true
		if !p.answered {
			p.answered = true
			t.handOut(p)
		}
	}
}
