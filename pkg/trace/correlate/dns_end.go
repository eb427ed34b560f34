package correlate

import (
	"time"

	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/dns"
)

// queue holds exchanges in the order in which they came there.
type queue struct {
	first, last *exchange
	n           int
}

func (q *queue) push(x *exchange, now time.Time) {
	x.queue, x.since = q, now
	x.ago, x.after = q.last, nil
	if q.last != nil {
		q.last.after = x
	} else {
		q.first = x
	}
	q.last = x
	q.n++
}

func (q *queue) remove(x *exchange) {
	if x.ago != nil {
		x.ago.after = x.after
	} else {
		q.first = x.after
	}
	if x.after != nil {
		x.after.ago = x.ago
	} else {
		q.last = x.ago
	}
	x.queue, x.ago, x.after = nil, nil, nil
	q.n--
}

// leave takes an exchange out of its queue.
func (x *exchange) leave() {
	if x.queue != nil {
		x.queue.remove(x)
	}
}

// remove forgets an exchange.
func (t *DNSTable) remove(x *exchange) {
	x.leave()
	if t.askers[x.asker] == x {
		delete(t.askers, x.asker)
	}
	t.forgetMade(x)
	if x.twin != nil && x.twin.twin == x {
		x.twin.twin = nil
	}
	x.twin, x.previous = nil, nil
	if s := t.slot(x.skb); s.x == x {
		*s = skbExchange{}
	}
	for _, key := range x.sent {
		if d := t.datagram(key); d.x == x {
			*d = datagram{}
		}
	}
	// What is handed out keeps x alive: that must not keep others.
	defer func() { x.next = nil }()
	head := t.messages[x.key]
	if head == x {
		if x.next == nil {
			delete(t.messages, x.key)
		} else {
			t.messages[x.key] = x.next
		}
		return
	}
	for ; head != nil; head = head.next {
		if head.next == x {
			head.next = x.next
			return
		}
	}
}

// Advance lets time pass: queries that waited too long have no answer.
func (t *DNSTable) Advance(now time.Time) {
	if now.Sub(t.advanced) < advanceStep {
		return
	}
	t.advanced = now
	for x := t.lingering.first; x != nil && now.Sub(x.since) >= dnsLinger; x = t.lingering.first {
		t.handOut(x, x.Last)
		t.remove(x)
	}
	for x := t.waiting.first; x != nil && now.Sub(x.since) >= t.cfg.Deadline; x = t.waiting.first {
		t.giveUp(x, trace.Unanswered, now)
	}
	for x := t.expired.first; x != nil && now.Sub(x.since) >= dnsLate; x = t.expired.first {
		t.remove(x)
	}
	t.watchExits(now)
	t.streams.expire(now)
	t.conclude(now)
}

// giveUp ends an exchange without a response, and goes on looking for one that comes late.
func (t *DNSTable) giveUp(x *exchange, o trace.Outcome, now time.Time) {
	x.Outcome = o
	if x.stray {
		x.Outcome = trace.WrongSource
	}
	t.handOut(x, now)
	x.leave()
	t.expired.push(x, now)
}

// watchExits ends the exchanges of clients that have exited.
func (t *DNSTable) watchExits(now time.Time) {
	if now.Sub(t.exits) < dnsExits {
		return
	}
	t.exits = now
	for x, n := t.waiting.first, 0; x != nil && n < dnsExitsAtOnce; n++ {
		next := x.after
		if x.Process.PID != 0 && t.cfg.Exited(x.Process.PID) {
			// Where its query was refused or lost before, that is why it went.
			if now.Sub(x.asked) < dnsImpatient && x.Repeats == 0 && x.Attempts < 2 && x.Drop == nil && !x.stray {
				t.giveUp(x, trace.Cancelled, now)
			} else {
				t.giveUp(x, trace.Unanswered, now)
			}
		}
		x = next
	}
}

// Flush hands out all exchanges whose end is known: nothing that may still be told of those with a response is waited for.
func (t *DNSTable) Flush() {
	for x := t.lingering.first; x != nil; {
		next := x.after
		if !x.isSlow() {
			t.handOut(x, x.Last)
			t.remove(x)
		}
		x = next
	}
}

// makeRoom gives up the exchange that matters least.
func (t *DNSTable) makeRoom() {
	for _, q := range []*queue{&t.lingering, &t.expired} {
		if x := q.first; x != nil {
			if !x.ended || q == &t.lingering {
				t.handOut(x, x.Last)
			}
			t.remove(x)
			return
		}
	}
	x := t.waiting.first
	t.stats.Evicted++
	t.handOut(x, x.Last)
	t.remove(x)
}

// addDrop notes that a packet of an exchange was dropped. One that came home and
// found no socket came when nobody waited any more.
func (t *DNSTable) addDrop(ev *trace.Event) {
	if ev.OtherHost && !isBridgeDrop(ev) || ev.Reason == "QUEUE_PURGE" || ev.Inner {
		return
	}
	x, reply := t.dropped(ev)
	if x == nil {
		return
	}
	x.Drop = &trace.Drop{Time: ev.Time, Place: *t.place(ev.Netns, ev.Time), Device: ev.Device, Direction: trace.Request, Reason: ev.Reason, Symbol: ev.Symbol}
	if !reply {
		if x.queue == &t.expired { // that was why
			t.handOut(x, ev.Time)
		}
		return
	}
	x.Drop.Direction = trace.Reply
	if ev.Netns != x.home || !x.made || !isUDPReceive(ev) {
		return
	}
	x.Gone = true
	switch {
	case x.Outcome != trace.Answered && x.Outcome != trace.Failed:
	case x.Latency < dnsRetry:
		x.Outcome = trace.Cancelled
	default:
		x.Outcome = trace.Late
	}
}

// dropped returns the exchange that a dropped packet is of, and whether it is the response.
func (t *DNSTable) dropped(ev *trace.Event) (*exchange, bool) {
	if s := t.slot(ev.SKB); s.skb == ev.SKB && s.x != nil && s.x.queue != nil && ev.SKB != 0 {
		x, reply := s.x, s.reply
		*s = skbExchange{}
		tuple := ev.Tuple
		if reply {
			tuple = tuple.Reverse()
		}
		if _, known := x.tuple(tuple); known || x.isTranslated(ev) {
			return x, reply
		} // else another packet at the same address
	}
	h, err := dns.Peek(ev.Payload)
	if err != nil || !h.HasQuestion() {
		return nil, false
	}
	key, name := h.Keys()
	x := t.find(key, ev, h.Response)
	if x == nil && !h.Response {
		x = t.create(key, name, &h, ev)
	}
	switch {
	case x == nil:
	case len(x.Sightings) == 0:
		t.sight(x, ev, false)
		x.Sightings[0].Transmit, x.Sightings[0].Made = x.made, x.made
	case !h.Response && len(x.Sightings) == 1 && x.Drop != nil:
		x.Attempts++ // sent, and dropped, again
	}
	return x, h.Response
}

// handOut gives an exchange to those who keep it. What is handed out is not changed afterwards.
func (t *DNSTable) handOut(x *exchange, at time.Time) {
	x.Last = at
	x.Stage, x.Via = x.stage(), x.via()
	x.Revised = x.ended
	x.ended = true
	if x.queue == &t.lingering || x.queue == &t.waiting && x.Outcome == trace.Pending {
		t.done = append(t.done, &x.Exchange) // it is forgotten at once
		t.suspect(x, &x.Exchange, at)
		return
	}
	out := x.Exchange // it may be seen again
	out.Sightings = append([]trace.Sighting(nil), x.Sightings...)
	out.Tuples = append([]trace.Tuple(nil), x.Tuples...)
	t.done = append(t.done, &out)
	t.suspect(x, &out, at)
}

// stage is how far the exchange came.
func (x *exchange) stage() trace.Stage {
	var query, before *trace.Sighting
	stage := trace.StageClient
	for i := range x.Sightings {
		s := &x.Sightings[i]
		switch {
		case !s.Reply:
			query, before = s, query
		case s.Place.Netns == x.home && s.Transmit != x.made && !s.OtherHost:
			return trace.StageHome
		case s.Made && stage < trace.StageAnswered:
			stage = trace.StageAnswered
		case !s.Made:
			stage = trace.StageReply
		}
	}
	if stage >= trace.StageAnswered || query == nil {
		return stage
	}
	atHome := query.Place.Netns == x.home && x.made
	changed := x.Tuples[query.Tuple].Dst != x.Server
	switch {
	case atHome && changed && (query.Transmit || x.Drop != nil):
		return trace.StageRedirect
	case query == &x.Sightings[0] && query.Transmit:
		return trace.StageClient
	case !query.Transmit && !query.OtherHost && x.Drop == nil:
		return trace.StageReceived
	case query.Transmit && before != nil && before.Tuple != query.Tuple:
		return trace.StageNAT
	}
	return trace.StageHop
}

// via is which way the query took, as far as it was seen.
func (x *exchange) via() trace.Via {
	var last *trace.Sighting
	here := true
	for i := range x.Sightings {
		if s := &x.Sightings[i]; !s.Reply {
			last, here = s, here && s.Place.Netns == x.home
		}
	}
	if last == nil {
		return trace.ViaUnknown
	}
	received := !last.Transmit && !last.OtherHost
	if at := x.Tuples[last.Tuple].Dst; at != x.Server {
		if first := x.Tuples[x.Sightings[0].Tuple].Dst; x.made && here && first != x.Server && (first.Addr().IsLoopback() || received) {
			return trace.ViaRedirected
		}
		return trace.ViaNAT
	}
	switch {
	case here && received && x.made:
		return trace.ViaLocal
	case received && x.made && last.Place.Host && !x.Sightings[0].Place.Host:
		return trace.ViaNodeLocal
	}
	return trace.ViaDirect
}
