package correlate

import (
	"time"

	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/dns"
)

// A query that ended badly is a trouble. It is a case only when it is sure that nothing
// else came of it: a response that comes after all, the answer to the same question by
// another query, a query that the resolver made of it and that is where the trouble
// began, or a finding about its packets, which is looked for by who takes the case.

const (
	// troubleWait is how long others have to tell what they know of a trouble.
	troubleWait = 500 * time.Millisecond
	// troubleLate is how long after its deadline a response makes a query late, not unanswered.
	troubleLate = 1200 * time.Millisecond
	// troubleClaim is the time in which whoever asked first claims the trouble of those who asked for it.
	troubleClaim = 300 * time.Millisecond
	// maxTroubles bounds those under way, maxOfOne those of one client with one server.
	maxTroubles, maxOfOne = 512, 32
	maxServers            = 4096
)

type trouble struct {
	x       *exchange
	told    *trace.Exchange // as it was handed out
	symptom trace.Symptom   // 0: it is only a slow one, and may explain another
	due     time.Time
	claims  bool // its time to claim others is over
}

// nameAt is a question, and the namespace where it was asked.
type nameAt struct {
	netns trace.Netns
	name  dns.Key
	kind  uint16
}

func (x *exchange) nameAt() nameAt { return nameAt{x.home, x.asker.name, x.Type} }

// forgetMade takes an exchange off the list of those that were made.
func (t *DNSTable) forgetMade(x *exchange) {
	if !x.made {
		return
	}
	switch {
	case x.newer != nil:
		x.newer.older = x.older
	case x.older == nil:
		delete(t.made, x.nameAt())
	default:
		t.made[x.nameAt()] = x.older
	}
	if x.older != nil {
		x.older.newer = x.newer
	}
	x.older, x.newer = nil, nil
}

// Cases returns the cases that were opened since the last call.
func (t *DNSTable) Cases() []trace.Case {
	cases := t.cases
	t.cases = nil
	return cases
}

// Settling reports whether a case may be opened in a moment: without another event.
func (t *DNSTable) Settling(now time.Time) bool {
	for x := t.lingering.first; x != nil; x = x.after {
		if x.isSlow() {
			return true
		}
	}
	for i := range t.troubles {
		if tr := &t.troubles[i]; tr.symptom != 0 && tr.due.Sub(now) <= troubleWait+troubleClaim {
			return true
		}
	}
	return false
}

// isSlow: whether its client has waited for the response shows a moment after that.
func (x *exchange) isSlow() bool { return x.Latency >= dnsRetry }

// suspect looks at an exchange that is handed out.
func (t *DNSTable) suspect(x *exchange, told *trace.Exchange, now time.Time) {
	tr := trouble{x: x, told: told, due: now.Add(troubleWait)}
	switch told.Outcome {
	case trace.Answered:
		t.follow(x, told)
		if told.Latency < dnsRetry || !x.made {
			return
		}
	case trace.Failed:
		tr.symptom = trace.SymptomErrorResponse
	case trace.Late:
		if !told.Gone && !x.superseded && told.Attempts < 2 {
			return // the client did wait
		}
		tr.symptom = trace.SymptomLate
	case trace.Unanswered:
		if !t.isSeenWhole(x, told) {
			return
		}
		tr.symptom = trace.SymptomUnanswered
		tr.due = latest(x.asked.Add(t.cfg.Deadline), now.Add(troubleLate))
	case trace.WrongSource:
		tr.symptom = trace.SymptomMisaddressed
	case trace.Cancelled:
		x.served = true // nobody wants it any more
		return
	default:
		return
	}
	alike := 0
	for i := range t.troubles {
		if o := t.troubles[i].x; o.home == x.home && o.Server == x.Server && o.Client.Addr() == x.Client.Addr() {
			alike++
		}
	}
	if len(t.troubles) < maxTroubles && alike < maxOfOne {
		t.troubles = append(t.troubles, tr)
	}
}

// isSeenWhole reports whether a response to a query would have been seen: that none was
// is no fault where it takes another way than the query, or one that shows no packets.
func (t *DNSTable) isSeenWhole(x *exchange, told *trace.Exchange) bool {
	switch {
	case x.Protocol == trace.TCP && t.stats.Unfollowed != x.unfollowed:
		return false
	case !x.made:
		return told.Stage == trace.StageReceived // it only passed here
	case told.Stage >= trace.StageAnswered && told.Drop == nil && told.Attempts < 2 && !x.superseded:
		_, seen := t.homes[x.home] // else programs may hand packets to it past all hooks
		return seen
	}
	return true
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// serve marks the queries whose question was answered by another one.
func (t *DNSTable) serve(y *exchange) {
	for o := y.previous; o != nil && !o.served; o = o.previous {
		o.served = true
	}
	for o := t.messages[y.key]; o != nil; o = o.next {
		if o != y && o.home == y.home && (o.Client == y.Client || o.isSameAsker(y)) {
			o.served = true
		}
	}
	for i := range t.troubles {
		if o := t.troubles[i].x; o != y && o.nameAt() == y.nameAt() && o.isSameAsker(y) {
			o.served = true
		}
	}
	if y.twin != nil {
		y.twin.lost = true
	}
}

// isSameAsker reports that two queries of one namespace may be of one process. A forwarder that
// asks several servers at once has another address for each of them that is behind another device.
func (x *exchange) isSameAsker(o *exchange) bool {
	if x.Client.Addr() == o.Client.Addr() {
		return x.maybeSameProcess(o)
	}
	return x.made && o.made && x.Process.PID != 0 && x.Process.PID == o.Process.PID
}

// conclude opens cases about troubles whose time has come.
func (t *DNSTable) conclude(now time.Time) {
	keep := t.troubles[:0]
	for _, tr := range t.troubles {
		switch {
		case now.Before(tr.due):
			keep = append(keep, tr)
		case tr.x.Outcome != tr.told.Outcome && tr.symptom != 0:
			// it ended otherwise since
		case !tr.claims:
			if tr.symptom != 0 {
				t.claim(&tr)
			}
			tr.claims, tr.due = true, now.Add(troubleClaim)
			keep = append(keep, tr)
		default:
			if tr.symptom != 0 && !tr.x.claimed && t.isFault(&tr) {
				t.open(&tr)
			}
			tr.x.upstream = nil
		}
	}
	clear(t.troubles[len(keep):])
	t.troubles = keep
}

// isFault reports whether a trouble is one for its client: an error that another query makes
// good at once, from another server or in simpler words, is none.
func (t *DNSTable) isFault(tr *trouble) bool {
	x := tr.x
	switch {
	case !x.served:
		return true
	case tr.symptom == trace.SymptomLate:
		return x.superseded
	case tr.symptom == trace.SymptomUnanswered:
		return t.answering[serverAt{x.home, x.Server}].Before(x.First) || x.lost
	}
	return false
}

// claim looks for the query that the resolver made of one that ended badly, and that did so first.
func (t *DNSTable) claim(tr *trouble) {
	at := tr.x.received()
	if at == nil {
		return
	}
	key := nameAt{at.Place.Netns, tr.x.asker.name, tr.x.Type}
	var found *exchange
	take := func(y *exchange) {
		if y == tr.x || y.nameAt() != key || y.Client == tr.x.Client || y.upstream == tr.x || !t.isMadeFor(y, tr.x, at.Time) {
			return
		}
		y.claimed = true
		if found == nil || y.First.Before(found.First) {
			found = y
		}
	}
	for i := range t.troubles {
		if o := &t.troubles[i]; o.symptom != 0 || tr.symptom == trace.SymptomLate {
			take(o.x)
		}
	}
	for y, n := t.made[key], 0; y != nil && n < maxLookedAt; y, n = y.older, n+1 {
		if y.Outcome == trace.Pending {
			take(y)
		}
	}
	tr.x.upstream = found
}

// isMadeFor reports whether a query may be one that a resolver made of another, which it got at
// a time. What it is asked again, it may ask again by the same query, or go on waiting for the answer.
func (t *DNSTable) isMadeFor(y, x *exchange, at time.Time) bool {
	switch {
	case !y.First.Before(at):
		return true
	case y.Server == x.Server || y.Process.PID == x.Process.PID:
		return false // the client's own
	case !y.asked.Before(at):
		return true
	}
	return (y.Outcome == trace.Pending || y.Outcome == trace.Unanswered) && at.Sub(y.asked) < t.cfg.Deadline
}

// comesBackAs reports whether the query that a resolver made of this one came to the same socket.
func (x *exchange) comesBackAs(y *exchange) bool {
	came, back := x.received(), y.received()
	return came != nil && back != nil && came.Place.Netns == back.Place.Netns && x.TupleOf(came).Dst == y.TupleOf(back).Dst
}

// received is where the query came to a host that did not send it on; nil: that was not seen.
func (x *exchange) received() *trace.Sighting {
	var last *trace.Sighting
	for i := range x.Sightings {
		switch s := &x.Sightings[i]; {
		case s.Reply:
		case !s.Transmit && !s.OtherHost:
			last = s
		case s.Transmit:
			last = nil
		}
	}
	return last
}

// open adds a case about a trouble.
func (t *DNSTable) open(tr *trouble) {
	detail := &trace.Trouble{Exchange: tr.told, Served: tr.x.served, Lost: tr.x.lost, Dead: t.answering[serverAt{tr.x.home, tr.x.Server}].Before(tr.x.First)}
	symptom, root := tr.symptom, tr.told
	y := tr.x
	for depth := 0; y != nil && depth < maxHops; depth++ {
		detail.Related = append(detail.Related, trace.Tuple{Protocol: y.Protocol, Src: y.Client, Dst: y.Server})
		if y.upstream == nil || depth == maxHops-1 {
			break
		}
		if y.comesBackAs(y.upstream) {
			detail.Loop = true
		}
		y = y.upstream
		copied := y.Exchange
		copied.Stage = y.stage()
		root, detail.Upstream = &copied, &copied
		switch y.Outcome {
		case trace.Failed:
			symptom = trace.SymptomErrorResponse
		case trace.Pending, trace.Unanswered:
			symptom = trace.SymptomUnanswered
		case trace.WrongSource:
			symptom = trace.SymptomMisaddressed
		case trace.Late, trace.Answered:
			symptom = trace.SymptomLate
		}
		if detail.Loop {
			symptom = trace.SymptomUnanswered
			break
		}
	}
	if tr.x.Protocol == trace.TCP {
		_, detail.Truncated = t.cut[cutKey{tr.x.Client.Addr(), tr.x.Server}]
	}
	t.addCase(symptom, root, detail)
}

// addCase opens a case where the query with which the trouble began was lost, refused, or held up.
func (t *DNSTable) addCase(symptom trace.Symptom, root *trace.Exchange, detail *trace.Trouble) {
	x := detail.Exchange
	c := trace.Case{Symptom: symptom, Trouble: detail, DNS: dns.Question(x.Type, x.Name), Path: exchangePath(x)}
	s, d := turningPoint(symptom, root)
	if s == nil {
		return
	}
	c.Direction, c.Place = d, *s.Place
	c.Event = sightingEvent(root, s)
	if symptom == trace.SymptomMisaddressed {
		c.Event.Tuple = trace.Tuple{Protocol: root.Protocol, Src: root.Responder, Dst: root.Client}
		c.Path, c.Rejected = exchangePath(root), true
	}
	if !s.Transmit {
		c.Arrival = c.Event
	}
	if drop := root.Drop; drop != nil && symptom == trace.SymptomUnanswered && !drop.Time.Before(s.Time) {
		c.Place, c.Event.Netns, c.Direction = drop.Place, drop.Place.Netns, drop.Direction
		if drop.Device.Index != 0 {
			c.Event.Device = drop.Device
		}
	}
	t.cases = append(t.cases, c)
}

// exchangePath is a query as a path.
func exchangePath(x *trace.Exchange) trace.Path {
	return trace.Path{
		Protocol: x.Protocol, Client: x.Client, Server: x.Server, Connection: trace.Tuple{Protocol: x.Protocol, Src: x.Client, Dst: x.Server},
		Request: x.Hops(trace.Request), Reply: x.Hops(trace.Reply), First: x.First, Last: x.Last, Requests: x.Attempts,
		Answered: x.Stage == trace.StageHome, Process: x.Process,
	}
}

// turningPoint is where a query took the turn for the worse, and which of the two directions did.
func turningPoint(symptom trace.Symptom, x *trace.Exchange) (*trace.Sighting, trace.Direction) {
	if len(x.Sightings) == 0 {
		return nil, trace.DirectionUnknown
	}
	last, made := &x.Sightings[0], (*trace.Sighting)(nil)
	for i := range x.Sightings {
		s := &x.Sightings[i]
		if s.Reply && s.Made && made == nil {
			made = s
		}
		if !s.Reply && symptom != trace.SymptomUnanswered {
			continue
		}
		last = s
	}
	switch symptom {
	case trace.SymptomErrorResponse, trace.SymptomMisaddressed:
		if made != nil {
			return made, trace.Reply
		}
		return &x.Sightings[0], trace.Reply // who answered is elsewhere
	case trace.SymptomLate:
		_, before, after := x.Held()
		switch {
		case after == nil:
			return last, trace.Reply
		case after.Reply && after.Made:
			return after, trace.Reply // the resolver had it
		case after.Reply:
			return before, trace.Reply
		}
		return before, trace.Request
	case trace.SymptomAmplified:
		return &x.Sightings[0], trace.Request
	}
	if last.Reply || x.Stage == trace.StageReceived {
		return last, trace.Reply
	}
	return last, trace.Request
}

func sightingEvent(x *trace.Exchange, s *trace.Sighting) trace.Event {
	ev := trace.Event{Time: s.Time, Hook: trace.HookReceive, Netns: s.Place.Netns, Device: s.Device, InIndex: s.Device.Index, Tuple: x.TupleOf(s)}
	if s.Transmit {
		ev.Hook, ev.InIndex = trace.HookTransmit, 0
	}
	return ev
}
