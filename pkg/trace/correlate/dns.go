package correlate

import (
	"net/netip"
	"time"

	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/dns"
)

// DNS has what other UDP lacks: an id and a question in each packet, query and response
// alike. Packets belong to one exchange when they have both in common, and tuples
// that NAT explains; those that agree in the former alone are other clients' or a forwarder's.

// DNSConfig configures a DNSTable. Zero values take the defaults.
type DNSConfig struct {
	MaxExchanges int           // live ones; default 8192
	Deadline     time.Duration // after which a query counts as unanswered; default 5 s, as resolvers wait
	// Place names the namespace that had an inode at a time; nil leaves names empty.
	Place func(trace.Netns, time.Time) trace.Place
	// Exited reports that a process is no more; nil: none ever exits.
	Exited func(pid uint32) bool
}

func (c *DNSConfig) setDefaults() {
	if c.MaxExchanges == 0 {
		c.MaxExchanges = 8192
	}
	if c.Deadline == 0 {
		c.Deadline = 5 * time.Second
	}
	if c.Place == nil {
		c.Place = func(ns trace.Netns, _ time.Time) trace.Place { return trace.Place{Netns: ns} }
	}
	if c.Exited == nil {
		c.Exited = func(uint32) bool { return false }
	}
}

const (
	// dnsLinger is how long after its response an exchange is followed: the devices above
	// the one that it came by see it too, and a socket that is gone shows.
	dnsLinger = 30 * time.Millisecond
	// dnsLate is how long after its deadline a response is still looked for.
	dnsLate = 10 * time.Second
	// dnsTwin is how far apart one resolver asks for two types of a name, on a busy node.
	dnsTwin = 100 * time.Millisecond
	// dnsRetry is the least time that a resolver waits before it asks again; what comes sooner was asked side by side.
	dnsRetry = 200 * time.Millisecond
	// dnsImpatient: whoever goes away sooner has not waited for the response, but had no use for it any more.
	dnsImpatient = 900 * time.Millisecond
	// dnsExits is how often it is asked whether clients have exited, and dnsExitsAtOnce of how many exchanges.
	dnsExits       = 250 * time.Millisecond
	dnsExitsAtOnce = 64
	// dnsPatience is the most that libraries wait before they send the same datagram again (RES_TIMEOUT is 5 s).
	dnsPatience = 6 * time.Second
	// maxSightings bounds one exchange.
	maxSightings = 32
)

// DNSTable holds the queries that wait for their end. It is not safe for concurrent use.
type DNSTable struct {
	cfg      DNSConfig
	messages map[dns.Key]*exchange
	askers   map[asker]*exchange // those that wait
	skbs     [4096]skbExchange
	sent     [4096]datagram // as many as the kernel keeps, and in the same places
	streams  streams
	places   map[trace.Netns]cachedPlace
	// An exchange is in one of these: without an end, with a response, given up.
	waiting, lingering, expired queue

	troubles  []trouble
	made      map[nameAt]*exchange // the latest query that a namespace made of a question
	answering map[serverAt]time.Time
	homes     map[trace.Netns]struct{} // where responses were seen to come to clients
	memory    answers
	searches  map[searcher]*search
	cut       map[cutKey]truncation // whose answers did not fit, of late
	cases     []trace.Case

	number   uint64
	advanced time.Time
	exits    time.Time
	done     []*trace.Exchange
	stats    DNSStats
}

// DNSStats counts what a DNSTable could make nothing of.
type DNSStats struct {
	Evicted   uint64 // queries given up before their end because the table was full
	Unmatched uint64 // responses whose query was not seen
	Malformed uint64 // payloads that are no DNS
	// Unfollowed segments of TCP began amid a message, or held messages beyond what was read of them.
	Unfollowed uint64
}

// NewDNS returns an empty table.
func NewDNS(cfg DNSConfig) *DNSTable {
	cfg.setDefaults()
	return &DNSTable{
		cfg: cfg, messages: make(map[dns.Key]*exchange), askers: make(map[asker]*exchange),
		places: make(map[trace.Netns]cachedPlace), streams: newStreams(), made: make(map[nameAt]*exchange), answering: make(map[serverAt]time.Time), homes: make(map[trace.Netns]struct{}),
		memory: newAnswers(), searches: make(map[searcher]*search), cut: make(map[cutKey]truncation),
	}
}

// Len returns the number of live exchanges.
func (t *DNSTable) Len() int { return t.waiting.n + t.lingering.n + t.expired.n }

// Stats returns the counters.
func (t *DNSTable) Stats() DNSStats { return t.stats }

// Done returns the exchanges that ended, or ended otherwise than was said before, since the
// last call. The slice is valid until the next call to the table.
func (t *DNSTable) Done() []*trace.Exchange {
	done := t.done
	t.done = t.done[:0]
	return done
}

// HasNews reports whether Done or Cases have something to tell.
func (t *DNSTable) HasNews() bool { return len(t.done) > 0 || len(t.cases) > 0 }

// exchange is a query that is followed.
type exchange struct {
	trace.Exchange
	key        dns.Key // of its messages
	asker      asker
	next       *exchange   // with the same key
	unfollowed uint64      // DNSStats.Unfollowed when it began
	made       bool        // it began here: the first sighting is of the query being sent
	home       trace.Netns // where it was first seen
	skb        uint64      // of the packet seen last, its time and direction
	skbAt      time.Time
	skbReply   bool
	sent       [2]uint64 // keys of the query's and the response's latest datagrams
	coming     []byte    // the response that was seen last, on its way
	asked      time.Time // last
	superseded bool      // its client has asked again

	comingLength uint32
	stray        bool      // a response came from elsewhere
	ended        bool      // it was handed out
	twin         *exchange // while this one is followed
	// Made in the same namespace, of the same question: before this one, and after it.
	older, newer *exchange
	served       bool      // its client got the answer from another query
	lost         bool      // its twin was answered
	claimed      bool      // a trouble of whoever made its maker ask is told instead
	upstream     *exchange // that failed, and was made for this one
	previous     *exchange // that this one asks again

	// Room for what most have, in the same piece of memory.
	sightings [4]trace.Sighting
	tuples    [2]trace.Tuple

	queue      *queue
	after, ago *exchange // neighbours in the queue
	since      time.Time // when it came there
}

// asker is who asks for a name.
type asker struct {
	netns trace.Netns
	addr  netip.Addr
	name  dns.Key
}

// skbExchange is the exchange of the packet that had an skb's address.
type skbExchange struct {
	skb   uint64
	x     *exchange
	reply bool
}

func (t *DNSTable) slot(skb uint64) *skbExchange {
	return &t.skbs[(skb>>6^skb>>18)%uint64(len(t.skbs))]
}

// Add takes in one event. Events come in the order of their time.
func (t *DNSTable) Add(ev *trace.Event) {
	t.Advance(ev.Time)
	switch {
	case ev.Hook == trace.HookDrop:
		t.addDrop(ev)
	case ev.Hook == trace.HookRetransmit:
		t.addRetransmit(ev)
	case ev.PayloadLength == 0 && ev.Datagram != 0:
		t.addHop(ev)
	case ev.PayloadLength == 0 || ev.Inner || ev.Fragment:
	case ev.Tuple.Protocol == trace.TCP:
		t.streams.add(ev, t.addMessage, &t.stats)
	default:
		t.addMessage(ev, ev.Payload, ev.PayloadLength)
	}
}

// addMessage takes in a message of which there is the beginning.
func (t *DNSTable) addMessage(ev *trace.Event, message []byte, length uint32) {
	h, err := dns.Peek(message)
	if err != nil {
		t.stats.Malformed++
		return
	}
	if ev.Datagram != 0 {
		*t.datagram(ev.Datagram) = datagram{}
	}
	key, name := h.Keys()
	if h.Response && !h.HasQuestion() {
		t.stats.Unmatched++
		return
	}
	x := t.find(key, ev, h.Response)
	switch {
	case x == nil && h.Response:
		t.stats.Unmatched++
		return
	case x == nil:
		x = t.create(key, name, &h, ev)
	}
	x.skb, x.skbAt, x.skbReply = ev.SKB, ev.Time, h.Response
	*t.slot(ev.SKB) = skbExchange{ev.SKB, x, h.Response}
	t.sight(x, ev, h.Response)
	home := h.Response && x.isHome(ev)
	if ev.Datagram != 0 {
		t.remember(x, ev, h.Response)
		if h.Response && !home { // what it says is not told again where it comes home
			x.coming, x.comingLength = append([]byte(nil), message...), length
		}
	}
	if home {
		t.answer(x, &h, ev, append([]byte(nil), message...), length)
	}
}

// find returns the exchange that a message belongs to.
func (t *DNSTable) find(key dns.Key, ev *trace.Event, reply bool) *exchange {
	tuple := ev.Tuple
	if reply {
		tuple = tuple.Reverse()
	}
	head := t.messages[key]
	for x := head; x != nil; x = x.next {
		if _, known := x.tuple(tuple); known && !x.isAskedAnew(ev, reply) {
			return x
		}
	}
	for x := head; x != nil; x = x.next {
		if x.isTranslated(ev) || x.isSamePacket(ev, reply) {
			return x
		}
	}
	for x := head; x != nil; x = x.next {
		if x.isSameClient(tuple, ev, reply) {
			return x
		}
	}
	return nil
}

// tuple returns the index of a tuple in the direction of the query.
func (x *exchange) tuple(t trace.Tuple) (uint8, bool) {
	for i := range x.Tuples {
		if x.Tuples[i] == t {
			return uint8(i), true
		}
	}
	return 0, false
}

// isAskedAnew reports a query that has got its response already: whoever sends its like again means another.
func (x *exchange) isAskedAnew(ev *trace.Event, reply bool) bool {
	if reply || x.queue != nil && x.Outcome == trace.Pending {
		return false
	}
	if x.Outcome == trace.Unanswered && ev.Time.Sub(x.asked) < dnsPatience {
		return false // a library that has waited its five seconds sends the same once more
	}
	return x.sighted(ev, reply) != nil && !(x.skb == ev.SKB && ev.Time.Sub(x.skbAt) < packetAge)
}

// isTranslated reports that conntrack knows the packet for one of the exchange.
func (x *exchange) isTranslated(ev *trace.Event) bool {
	if !ev.Conntrack.Known() {
		return false
	}
	if _, known := x.tuple(ev.Conntrack.Original); known {
		return true
	}
	_, known := x.tuple(ev.Conntrack.Reply.Reverse())
	return known
}

// isSamePacket reports the packet that was just seen elsewhere. One that is made
// here is another, which may have got the address of one that has just been received.
func (x *exchange) isSamePacket(ev *trace.Event, reply bool) bool {
	return x.skb == ev.SKB && x.skbReply == reply && ev.Time.Sub(x.skbAt) < packetAge && !isMade(ev)
}

// isSameClient reports a packet of the same client's socket. What that sends itself to
// another server is another query; elsewhere it is the same one, with a destination that
// something chose which conntrack does not know.
func (x *exchange) isSameClient(tuple trace.Tuple, ev *trace.Event, reply bool) bool {
	if !reply && isMade(ev) {
		return false
	}
	for i := range x.Tuples {
		if x.Tuples[i].Src == tuple.Src {
			return true
		}
	}
	return false
}

// isMade reports a packet that leaves where it was made.
func isMade(ev *trace.Event) bool { return ev.Hook == trace.HookTransmit && ev.InIndex == 0 }

// create starts an exchange with the first packet that is seen of it.
func (t *DNSTable) create(key, name dns.Key, h *dns.Header, ev *trace.Event) *exchange {
	if t.Len() >= t.cfg.MaxExchanges {
		t.makeRoom()
	}
	t.number++
	x := &exchange{
		Exchange: trace.Exchange{
			Number: t.number, Protocol: ev.Tuple.Protocol, Client: ev.Tuple.Src, Server: ev.Tuple.Dst, Process: ev.Process,
			ID: h.ID, Type: h.Type, Class: h.Class, RD: h.RD, Name: h.Name(), First: ev.Time, Last: ev.Time,
		},
		key: key, made: isMade(ev) || ev.Hook == trace.HookDrop && ev.InIndex == 0, home: ev.Netns, asked: ev.Time,
		unfollowed: t.stats.Unfollowed,
	}
	x.Sightings, x.Tuples = x.sightings[:0], x.tuples[:0]
	if c := ev.Conntrack; c.Known() && (c.Reply.Reverse() == ev.Tuple || c.Original == ev.Tuple) {
		x.Client, x.Server = c.Original.Src, c.Original.Dst
		x.Tuples = append(x.Tuples, c.Original)
	}
	x.asker = asker{ev.Netns, x.Client.Addr(), name}
	t.relate(x)
	t.askers[x.asker] = x
	if x.made {
		if x.older = t.made[x.nameAt()]; x.older != nil {
			x.older.newer = x
		}
		t.made[x.nameAt()] = x
	}
	for o := t.messages[key]; o != nil && x.made; o = o.next { // sent to another server, too, which has answered already
		x.served = x.served || o.Outcome == trace.Answered && o.home == x.home && o.isSameAsker(x)
	}
	x.next = t.messages[key]
	t.messages[key] = x
	t.waiting.push(x, ev.Time)
	return x
}

// relate finds what the client asked before: the same, in vain, or another type of the name just now.
func (t *DNSTable) relate(x *exchange) {
	latest := t.askers[x.asker]
	if latest == nil {
		return
	}
	sameProcess := x.maybeSameProcess(latest)
	if latest.Type != x.Type && x.First.Sub(latest.First) < dnsTwin && (latest.Client == x.Client || sameProcess) {
		x.Twin, latest.Twin = latest.Number, x.Number
		x.twin, latest.twin = latest, x
	}
	if latest.Outcome == trace.Failed && latest.Type == x.Type && sameProcess {
		x.previous = latest // it may be asked in simpler words now
	}
	candidates := [...]*exchange{latest, latest.twin, nil, nil}
	if latest.previous != nil { // the other type has been asked again a moment ago
		candidates[2], candidates[3] = latest.previous, latest.previous.twin
	}
	for _, o := range candidates {
		if o != nil && o != x && o.isAskedAgainBy(x) {
			x.Repeats, x.previous = o.Number, o
			// What is asked of several servers side by side has not been given up.
			o.superseded = x.First.Sub(o.asked) >= dnsRetry
			return
		}
	}
}

// isAskedAgainBy reports that x asks what this one got no response to: after some time, or
// another server from the same socket.
func (x *exchange) isAskedAgainBy(again *exchange) bool {
	if x.superseded || x.Type != again.Type || x.Class != again.Class || !x.maybeSameProcess(again) {
		return false
	}
	if x.Outcome != trace.Pending && x.Outcome != trace.Unanswered && x.Outcome != trace.WrongSource {
		return false
	}
	return x.Client == again.Client && x.ID == again.ID && x.Server != again.Server || again.First.Sub(x.asked) >= dnsRetry
}

// sighted returns the sighting of a packet at the same device.
func (x *exchange) sighted(ev *trace.Event, reply bool) *trace.Sighting {
	transmit := ev.Hook == trace.HookTransmit
	for i := range x.Sightings {
		s := &x.Sightings[i]
		if s.Reply == reply && s.Transmit == transmit && s.Device.Index == ev.Device.Index && s.Place.Netns == ev.Netns {
			return s
		}
	}
	return nil
}

// sight notes that a packet was seen at a device.
func (t *DNSTable) sight(x *exchange, ev *trace.Event, reply bool) {
	tuple := ev.Tuple
	if reply {
		tuple = tuple.Reverse()
	}
	index, known := x.tuple(tuple)
	if !known && len(x.Tuples) < maxTuples {
		index = uint8(len(x.Tuples))
		x.Tuples = append(x.Tuples, tuple)
	}
	x.Last = ev.Time
	s := x.sighted(ev, reply)
	if s == nil {
		if len(x.Sightings) == maxSightings {
			return
		}
		x.Sightings = append(x.Sightings, trace.Sighting{
			Time: ev.Time, Place: t.place(ev.Netns, ev.Time), Device: ev.Device, Tuple: index,
			Reply: reply, Transmit: ev.Hook == trace.HookTransmit, OtherHost: ev.OtherHost, Made: isMade(ev),
		})
		s = &x.Sightings[len(x.Sightings)-1]
	}
	s.Count++
	if s == &x.Sightings[0] {
		x.Attempts++
		if s.Count > 1 {
			x.asked = ev.Time
			if x.queue == &t.waiting { // and waits anew
				t.waiting.remove(x)
				t.waiting.push(x, ev.Time)
			}
		}
	}
}

// isHome reports a response that is back where the query was first seen.
func (x *exchange) isHome(ev *trace.Event) bool {
	return ev.Netns == x.home && (ev.Hook == trace.HookReceive) == x.made && !(ev.OtherHost && x.made)
}

// answer notes that the response has come. It keeps the message.
func (t *DNSTable) answer(x *exchange, h *dns.Header, ev *trace.Event, message []byte, length uint32) {
	if x.Outcome != trace.Pending && x.Outcome != trace.Unanswered && x.Outcome != trace.Cancelled && x.Outcome != trace.WrongSource {
		return
	}
	source := ev.Tuple.Src
	expected := source == x.Server
	for i := range x.Sightings {
		s := &x.Sightings[i]
		expected = expected || !s.Reply && s.Place.Netns == x.home && x.Tuples[s.Tuple].Dst == source
	}
	x.Rcode, x.ResponseLength, x.Response = uint16(h.Rcode), length, message
	x.Latency = ev.Time.Sub(x.First)
	if !expected {
		x.stray, x.Responder = true, source
		if x.Outcome == trace.Pending {
			return // the right one may still come
		}
		x.Outcome = trace.WrongSource
		t.handOut(x, ev.Time)
		return
	}
	// A library that sends its query again takes the answer to the first one, too. One that
	// comes at once is to the second one: the first one was lost.
	again, soon := x.Attempts > 1 && x.asked.Sub(x.First) >= dnsRetry, ev.Time.Sub(x.asked) < dnsRetry
	late := x.superseded || again && !soon || x.ended && !(again && soon)
	switch {
	case x.Outcome == trace.Cancelled: // nobody waited for it any more
	case late:
		x.Outcome = trace.Late
	case h.Rcode != 0 && h.Rcode != rcodeNXDOMAIN:
		x.Outcome = trace.Failed
	default:
		x.Outcome = trace.Answered
	}
	x.Responder = x.responder(source)
	t.learn(x, h, message)
	x.leave()
	t.lingering.push(x, ev.Time)
}

// rcodeNXDOMAIN: RFC 1035, section 4.1.1. That there is no such name is an answer.
const rcodeNXDOMAIN = 3

// responder is the address at which the query was received, where that was seen, else where the response came from.
func (x *exchange) responder(source netip.AddrPort) netip.AddrPort {
	for i := len(x.Sightings) - 1; i >= 0; i-- {
		switch s := &x.Sightings[i]; {
		case !s.Reply && !s.Transmit && !s.OtherHost:
			return x.Tuples[s.Tuple].Dst
		case !s.Reply:
			return source
		case s.Made:
			source = x.Tuples[s.Tuple].Dst
		}
	}
	return source
}

// cachedPlace is a namespace's name, which is not asked for again at each packet.
type cachedPlace struct {
	place *trace.Place
	until time.Time
}

// placeAge is how long a name is taken for right.
const placeAge = time.Second

func (t *DNSTable) place(ns trace.Netns, at time.Time) *trace.Place {
	c := t.places[ns]
	if c.place != nil && at.Before(c.until) {
		return c.place
	}
	if len(t.places) >= maxPlaces {
		clear(t.places)
	}
	if p := t.cfg.Place(ns, at); c.place == nil || *c.place != p {
		c.place = &p
	}
	c.until = at.Add(placeAge)
	t.places[ns] = c
	return c.place
}

const maxPlaces = 1024

// maybeSameProcess: not always can be told which one it was.
func (x *exchange) maybeSameProcess(o *exchange) bool {
	return x.Process.PID == o.Process.PID || x.Process.PID == 0 || o.Process.PID == 0
}
