package correlate

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// UDP has no handshake, no sequence numbers and no end. The kernel tells the first
// packet of a flow in a second, at each hook and device, and all drops. Packets
// belong to a path by their tuple in a namespace where it was seen, by conntrack,
// or because they are the packet that was just seen elsewhere. Silence is no fault:
// many datagrams want no answer. An answer that was looked for a route, and has
// not left, is one.

const (
	// udpAnswered is how long an answer that was told stands for those that were not.
	udpAnswered = 2 * time.Second
	// udpCases is how often a path opens a case of one kind: what befalls a stream befalls each packet.
	udpCases = time.Second
	// udpAsked is how long after a request a failed lookup is for its answer. Others
	// look the way up too: who investigates, for one.
	udpAsked = 2 * time.Second
	// udpStrays is up to which of its questions a client that gets no answer makes a
	// case of their way: many datagrams want none.
	udpStrays = 3
	// udpUnderWay is how long an answer may be on its way from one namespace to the next.
	udpUnderWay = 100 * time.Millisecond
	// udpArrival is how long an answer may be on its way to a client of this node.
	udpArrival = time.Second
	// probeLimit is below what every system lets a packet live at first, less the
	// hops of the longest way: what comes in with less was sent to die on its way.
	probeLimit = 32
	// firstEphemeral is the first port that Linux gives to clients (net.ipv4.ip_local_port_range).
	firstEphemeral = 32768
)

// clientKey is a client's socket.
type clientKey struct {
	netns trace.Netns
	addr  netip.AddrPort
}

// udpPaths finds the paths of UDP by what TCP has no need of.
type udpPaths struct {
	bySKB    map[uint64]skbRef
	byClient map[clientKey]*path
}

// skbRef is the path of the packet that had an skb's address.
type skbRef struct {
	path      *path
	direction trace.Direction
	at        time.Time
}

func newUDPPaths() udpPaths {
	return udpPaths{bySKB: make(map[uint64]skbRef), byClient: make(map[clientKey]*path)}
}

// forget removes what leads to a path.
func (u *udpPaths) forget(p *path) {
	if u.bySKB[p.skb].path == p {
		delete(u.bySKB, p.skb)
	}
	if u.byClient[p.clientKey] == p {
		delete(u.byClient, p.clientKey)
	}
}

// see remembers the packet that a path showed last.
func (u *udpPaths) see(p *path, d trace.Direction, ev *trace.Event) {
	if p.skb != ev.SKB && u.bySKB[p.skb].path == p {
		delete(u.bySKB, p.skb)
	}
	p.skb = ev.SKB
	if ev.SKB != 0 {
		u.bySKB[ev.SKB] = skbRef{p, d, ev.Time}
	}
}

func (t *Table) addUDP(ev *trace.Event) {
	switch ev.Hook {
	case trace.HookReceive, trace.HookTransmit:
		if ev.Inner {
			t.addICMPError(ev)
			return
		}
		t.addDatagram(ev)
	case trace.HookICMPSent:
		t.addICMPError(ev)
	case trace.HookDrop:
		t.addDatagramDrop(ev)
	case trace.HookRouteMiss4, trace.HookRouteMiss6:
		t.addDatagramMiss(ev)
	}
}

// datagramPath returns the path that a packet belongs to, and its direction.
func (t *Table) datagramPath(ev *trace.Event) (*path, trace.Direction) {
	if p, d := t.findTuple(ev.Netns, ev.Tuple); p != nil {
		return p, d
	}
	if ref, ok := t.udp.bySKB[ev.SKB]; ok && ev.SKB != 0 && ev.Time.Sub(ref.at) < packetAge && (ref.path.isSender(ref.direction, ev.Tuple) || ref.path.comesBy(ref.direction, ev)) {
		return ref.path, ref.direction
	}
	if c := ev.Conntrack; c.Known() {
		for _, tuple := range []trace.Tuple{c.Original, c.Reply.Reverse()} {
			if p, d := t.findTuple(ev.Netns, tuple); p != nil {
				if conntrackDirection(c) == trace.Reply {
					d = opposite(d)
				}
				return p, d // where the request was not tracked, its answer begins an entry
			}
		}
	}
	if p := t.answeredPath(ev); p != nil {
		return p, trace.Reply
	}
	return nil, trace.DirectionUnknown
}

// answeredPath returns the path whose client a datagram goes to, where it can be
// nothing but the answer: it has the path's own addresses, and was led to where the
// request had not come; or the host that the request went to answers it with others.
func (t *Table) answeredPath(ev *trace.Event) *path {
	p := t.sources[ev.Tuple.Dst]
	if p == nil || p.protocol != trace.UDP || ev.Hook != trace.HookReceive && ev.Hook != trace.HookTransmit {
		return nil
	}
	if asked := p.asked(); asked.IsZero() || ev.Time.Sub(asked) > udpAsked {
		return nil
	}
	if slices.Contains(p.tuples, ev.Tuple.Reverse()) {
		return p
	}
	h := p.lastArrival(trace.Request, ev.Netns)
	if made := ev.Hook == trace.HookTransmit && ev.InIndex == 0; !made || h == nil || !p.isEnd(h) || h.out.Index != 0 || p.replied.After(h.at) {
		return nil
	}
	return p
}

// asked is when the request was seen last.
func (p *path) asked() time.Time {
	var last time.Time
	for i := range p.request {
		if at := p.request[i].latest(); at.After(last) {
			last = at
		}
	}
	return last
}

// isSender reports whether a packet with this tuple can be one of the path's: an
// skb's address alone may be used again at once. What changes on its way is its
// destination (DNAT); for another source conntrack has to tell.
func (p *path) isSender(d trace.Direction, tuple trace.Tuple) bool {
	if d == trace.Reply {
		tuple = tuple.Reverse()
	}
	for _, known := range p.tuples {
		if known.Src == tuple.Src {
			return true
		}
	}
	return false
}

func conntrackDirection(c trace.Conntrack) trace.Direction {
	if c.Info >= conntrackReply && c.Info != conntrackUntracked {
		return trace.Reply
	}
	return trace.Request
}

func opposite(d trace.Direction) trace.Direction {
	if d == trace.Reply {
		return trace.Request
	}
	return trace.Reply
}

// conntrackUntracked is IP_CT_UNTRACKED of include/uapi/linux/netfilter/nf_conntrack_common.h.
const conntrackUntracked = 7

// startDatagramPath starts a path with the first packet that is seen of it. What
// comes from a port that clients have, or goes to none, is taken for a request.
func (t *Table) startDatagramPath(ev *trace.Event) (*path, trace.Direction) {
	tuple, d, guessed := ev.Tuple, trace.Request, false
	if c := ev.Conntrack; c.Known() {
		d = conntrackDirection(c)
	} else if tuple.Src.Port() < firstEphemeral && tuple.Dst.Port() >= firstEphemeral {
		d, guessed = trace.Reply, true
	}
	if d == trace.Reply {
		tuple = tuple.Reverse()
	}
	p := t.create(datagramSeq(tuple), tuple, ev)
	p.guessed = guessed
	if d == trace.Request && ev.Hook == trace.HookTransmit && ev.InIndex == 0 {
		p.clientKey = clientKey{ev.Netns, tuple.Src}
		t.udp.byClient[p.clientKey] = p
	}
	return p, d
}

// datagramSeq spreads the paths of UDP over the index of sequence numbers, which they do not have (FNV-1a).
func datagramSeq(t trace.Tuple) uint32 {
	h := uint32(2166136261)
	add := func(b byte) { h = (h ^ uint32(b)) * 16777619 }
	for _, side := range []netip.AddrPort{t.Src, t.Dst} {
		for _, b := range side.Addr().As16() {
			add(b)
		}
		add(byte(side.Port()))
		add(byte(side.Port() >> 8))
	}
	return h
}

// datagram finds or starts the path of a packet, and makes it findable here.
func (t *Table) datagram(ev *trace.Event) (*path, trace.Direction) {
	p, d := t.datagramPath(ev)
	if p == nil {
		p, d = t.startDatagramPath(ev)
	}
	request := ev.Tuple
	if d == trace.Reply {
		request = request.Reverse()
	}
	t.touch(p, request, ev)
	if d == trace.Request && p.process.PID == 0 {
		p.process = ev.Process
	}
	t.udp.see(p, d, ev)
	if ev.MoreFragments {
		t.fragments.add(p, d, ev)
	}
	return p, d
}

// addDatagram follows a packet from namespace to namespace.
func (t *Table) addDatagram(ev *trace.Event) {
	p, d := t.datagram(ev)
	if d == trace.Reply {
		if p.replied.IsZero() && len(t.underWay) < t.cfg.MaxPaths {
			t.underWay = append(t.underWay, waiting{path: p, at: ev.Time})
		}
		p.replied = ev.Time
		p.settle(ev.Netns)
	}
	if ev.Hook == trace.HookTransmit {
		p.depart(d, ev)
	} else {
		t.watchCircle(p, d, p.arrive(d, ev), ev)
	}
	if d == trace.Request {
		before := p.requests
		if p.requests = p.request[0].count; before > 0 && p.requests > before {
			t.watchRepeatedDatagram(p, ev)
		}
		return
	}
	if !p.answered && p.isAstray(ev) {
		astray := *ev
		p.astray = &astray
		if p.isUnrestored(ev.Tuple) && p.mayOpen(trace.SymptomMisaddressed, ev) {
			t.refuseAstray(p)
		}
		return
	}
	if !p.answered && p.isBack(ev) {
		p.answered = true
		t.handOut(p)
	}
}

// watchRepeatedDatagram looks, when a client asks again, at what became of its
// question and of the answer: what was found of either is a fault only where the
// host that did it says so. That nothing was found is none.
func (t *Table) watchRepeatedDatagram(p *path, ev *trace.Event) {
	if p.answered || p.guessed || p.request[0].in.Index != 0 {
		return // answers that go to another machine by another way are not seen to arrive
	}
	if astray := p.astray; astray != nil {
		// One from another port may be meant to be: so TFTP answers.
		if astray.Tuple.Src.Addr() != p.server.Addr() && p.mayOpen(trace.SymptomMisaddressed, ev) {
			t.refuseAstray(p)
		}
		return
	}
	if p.departed(trace.Reply) != nil {
		t.watchVanished(p, ev.Time)
		return
	}
	if len(p.reply) == 0 && (p.turnsBack() || p.requests <= udpStrays && (p.wentOut() || p.isLost())) && p.mayOpen(trace.SymptomStray, ev) {
		t.open(p, trace.SymptomStray, trace.Request, ev)
	}
}

// watchVanished opens a case about an answer that left a host and was not seen again.
func (t *Table) watchVanished(p *path, now time.Time) {
	h := p.departed(trace.Reply)
	if h == nil || now.Sub(h.left) <= udpUnderWay {
		return
	}
	gone := p.departure(trace.Reply, h)
	if p.mayOpen(trace.SymptomVanished, &gone) {
		t.open(p, trace.SymptomVanished, trace.Reply, &gone)
	}
}

// watchArrivals looks what became of the first answers to clients of this node,
// which may ask only once.
func (t *Table) watchArrivals(now time.Time) {
	for len(t.underWay) > 0 && now.Sub(t.underWay[0].at) >= udpArrival {
		p := t.underWay[0].path
		t.underWay = t.underWay[1:]
		if p.element == nil || p.answered || p.guessed || p.astray != nil || len(p.request) == 0 || p.request[0].in.Index != 0 {
			continue
		}
		t.watchVanished(p, now)
	}
}

// addDatagramMiss notes that a host found no route for its answer. Whether
// another table has one shows when the answer leaves.
func (t *Table) addDatagramMiss(ev *trace.Event) {
	p, d := t.findTuple(ev.Netns, ev.Tuple)
	if p == nil {
		p, d = t.startDatagramPath(ev)
		request := ev.Tuple
		if d == trace.Reply {
			request = request.Reverse()
		}
		t.touch(p, request, ev)
	}
	if d != trace.Reply {
		return
	}
	miss := *ev
	p.miss = &miss
	h := p.lastArrival(trace.Request, ev.Netns)
	if h == nil {
		arrival := *ev
		arrival.Tuple, arrival.SKB = ev.Tuple.Reverse(), 0
		arrival.Device = trace.Device{Index: ev.InIndex}
		if h = p.arrive(trace.Request, &arrival); h == nil {
			return
		}
	}
	if h.pending || ev.Time.Sub(p.replied) < udpAnswered || ev.Time.Sub(h.at) > udpAsked || !p.mayOpen(trace.SymptomSilence, ev) {
		return
	}
	h.pending = true
	for i := range p.request {
		if &p.request[i] == h {
			t.waits = append(t.waits, waiting{p, i, ev.Time})
		}
	}
}

// addDatagramDrop opens a case about a datagram that was dropped.
func (t *Table) addDatagramDrop(ev *trace.Event) {
	if ev.Inner && isTooBig(ev) && isLost(ev) {
		t.addTooBigDrop(ev)
		return
	}
	if ev.Inner || ev.OtherHost && !isBridgeDrop(ev) || ev.Reason == "QUEUE_PURGE" || ev.Unbuilt {
		return
	}
	if isUDPReceive(ev) {
		t.refuseDatagram(ev)
		return
	}
	p, d := t.datagram(ev)
	delete(t.udp.bySKB, ev.SKB) // its address is free from now on
	if p.isCopy(d, ev) {
		return
	}
	p.dropAt(d, ev)
	if isExpiry(ev) && p.goesRound(d) {
		if ev.Time.Sub(p.circled) >= roundAge && p.mayOpen(trace.SymptomLoop, ev) {
			t.open(p, trace.SymptomLoop, d, ev)
		}
		return
	}
	if p.mayOpen(trace.SymptomDrop, ev) {
		t.open(p, trace.SymptomDrop, d, ev)
	}
}

// isRouteQuery reports the packet that the kernel makes up to answer `ip route get`, ours included.
func isRouteQuery(ev *trace.Event) bool {
	return strings.HasPrefix(ev.Symbol, "inet_rtm_getroute") || strings.HasPrefix(ev.Symbol, "inet6_rtm_getroute")
}

// isUDPReceive reports a drop because no socket took the packet. Kernels before
// 5.17 give no reason: there the function tells, that drops for nothing else but a bad checksum.
func isUDPReceive(ev *trace.Event) bool {
	if ev.Reason != "" && ev.Reason != "NOT_SPECIFIED" {
		return ev.Reason == noSocket
	}
	return strings.HasPrefix(ev.Symbol, "__udp4_lib_rcv") || strings.HasPrefix(ev.Symbol, "__udp6_lib_rcv")
}

// refuseDatagram opens a case about a request that no socket took. An answer that
// no socket took came late, to a client that is gone, or from an address that the
// client did not ask; or it should have been translated, and was before.
func (t *Table) refuseDatagram(ev *trace.Event) {
	if asked := t.udp.byClient[clientKey{ev.Netns, ev.Tuple.Dst}]; asked != nil && asked.server != ev.Tuple.Src {
		// Else it is the late answer of another server that the same socket had asked.
		if p, d := t.findTuple(ev.Netns, ev.Tuple); p == nil || p == asked || d == trace.Request {
			t.refuseAnswer(asked, ev)
			return
		}
	}
	p, d := t.datagram(ev)
	if d != trace.Request {
		if p.answered && p.translatedAt(ev.Netns) {
			t.refuseUnknown(p, ev)
		}
		t.misdelivered(p, ev.Netns, ev.Time)
		return
	}
	if isProbe(ev, p) {
		return
	}
	p.settle(ev.Netns)
	if p.mayOpen(trace.SymptomRefused, ev) {
		t.open(p, trace.SymptomRefused, trace.Request, ev)
	}
}

// isProbe reports a datagram that traceroute sends: to live for so many hops, and
// to a port on which nobody listens, so that its end answers too.
func isProbe(ev *trace.Event, p *path) bool {
	ttl := ev.TTL
	if h := p.lastArrival(trace.Request, ev.Netns); ttl == 0 && h != nil {
		ttl = h.ttl
	}
	return ttl != 0 && ttl < probeLimit
}

// refuseAnswer opens a case about an answer that reached the client from elsewhere.
func (t *Table) refuseAnswer(p *path, ev *trace.Event) {
	if p.answered {
		t.refuseUnknown(p, ev)
		return
	}
	if p.astray == nil {
		astray := *ev
		p.astray = &astray
		if len(p.reply) == 0 || p.reply[len(p.reply)-1].netns != ev.Netns {
			p.dropAt(trace.Reply, ev)
		}
	}
	if p.mayOpen(trace.SymptomMisaddressed, ev) {
		t.refuseAstray(p)
	}
}

// refuseUnknown opens a case about an answer that came with other addresses than those before it.
func (t *Table) refuseUnknown(p *path, ev *trace.Event) {
	if p.mayOpen(trace.SymptomUnmatched, ev) {
		t.open(p, trace.SymptomUnmatched, trace.Reply, ev)
	}
}

// isUnrestored reports an answer whose source is what a host on the way had put in
// place of the address that the client asked: no server can have meant that, so it
// needs no repeated question to be a fault.
func (p *path) isUnrestored(answer trace.Tuple) bool {
	for i := range p.request {
		h := &p.request[i]
		if !h.otherHost && h.in.Index != 0 && h.out.Index != 0 && h.tuple.Dst == answer.Src && h.arrived.Dst.Addr() != answer.Src.Addr() {
			return true
		}
	}
	return false
}

// translatedAt reports whether a namespace gave the request other addresses.
func (p *path) translatedAt(ns trace.Netns) bool {
	for i := range p.request {
		if h := &p.request[i]; h.netns == ns && h.in.Index != 0 && h.out.Index != 0 && h.arrived != h.tuple {
			return true
		}
	}
	return false
}

// mayOpen limits how often a stream of datagrams opens a case of one kind.
func (p *path) mayOpen(s trace.Symptom, ev *trace.Event) bool {
	if p.opened == s && p.openedIn == ev.Netns && ev.Time.Sub(p.openedAt) < udpCases {
		return false
	}
	p.opened, p.openedIn, p.openedAt = s, ev.Netns, ev.Time
	return true
}
