package correlate

import (
	"container/list"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// Config of a Table. Zero values take the defaults.
type Config struct {
	MaxPaths int           // live paths; default 16384
	Silence  time.Duration // how long a request may stay without anything leaving; default 200 ms
	Idle     time.Duration // how long a path is followed without an event; default 60 s
	Linger   time.Duration // how long a closed path is followed; default 2 s
	// Place names the namespace that had an inode at a time; nil leaves names empty. It must be cheap.
	Place func(trace.Netns, time.Time) trace.Place
	// Proxy reports whether a process is one to which rules of a namespace send connections, and whether it is
	// known which of its processes are; nil: nobody knows.
	Proxy func(ns trace.Netns, pid uint32) (is, known bool)
}

func (c *Config) setDefaults() {
	if c.MaxPaths == 0 {
		c.MaxPaths = 16384
	}
	if c.Silence == 0 {
		c.Silence = 200 * time.Millisecond
	}
	if c.Idle == 0 {
		c.Idle = 60 * time.Second
	}
	if c.Linger == 0 {
		c.Linger = 2 * time.Second
	}
	if c.Place == nil {
		c.Place = func(ns trace.Netns, _ time.Time) trace.Place { return trace.Place{Netns: ns} }
	}
}

// tupleKey finds a path by a packet in request direction, in one namespace.
type tupleKey struct {
	netns trace.Netns
	tuple trace.Tuple
}

// waiting is a request that came in somewhere, and the time until which it may wait.
type waiting struct {
	path *path
	hop  int
	at   time.Time
}

type closing struct {
	path *path
	at   time.Time
}

// Table holds the live paths. It is not safe for concurrent use.
type Table struct {
	cfg      Config
	bySeq    map[uint32]*path
	tuples   map[tupleKey]*path
	opened   map[uint32]*path // by what their answer acknowledges, where that is data too
	sources  sources
	recent   *list.List // of *path, most recently active first
	waits    []waiting
	underWay []waiting // first answers of UDP, oldest first
	closings []closing
	connects connects
	verdicts verdicts
	refusals refusals
	legs     legs
	udp      udpPaths

	fragments fragments
	advanced  time.Time
	cases     []trace.Case
	done      []trace.Path
	evicted   uint64
	// tellsICMP: this kernel has the hook icmp_send, so IPv4's errors need not be seen as packets.
	tellsICMP bool
}

// New returns an empty table.
func New(cfg Config) *Table {
	cfg.setDefaults()
	return &Table{
		cfg:     cfg,
		bySeq:   make(map[uint32]*path),
		tuples:  make(map[tupleKey]*path),
		opened:  make(map[uint32]*path),
		sources: make(sources),
		recent:  list.New(),
		udp:     newUDPPaths(),
	}
}

// Len returns the number of live paths.
func (t *Table) Len() int { return t.recent.Len() }

// Evicted returns how many paths were given up before their end because the table was full.
func (t *Table) Evicted() uint64 { return t.evicted }

// Cases returns the cases that were opened since the last call.
func (t *Table) Cases() []trace.Case {
	cases := t.cases
	t.cases = nil
	return cases
}

// Done returns the paths that were answered or ended since the last call.
func (t *Table) Done() []trace.Path {
	done := t.done
	t.done = nil
	return done
}

// Flush hands out all live paths that changed since they were last handed out,
// and the cases that wait for what else may be told of them.
func (t *Table) Flush() {
	t.cases = append(t.cases, t.verdicts.flush()...)
	if n := len(t.refusals.held); n > 0 {
		t.releaseRefusals(t.refusals.held[n-1].c.Event.Time)
	}
	for e := t.recent.Back(); e != nil; e = e.Prev() {
		t.handOut(e.Value.(*path))
	}
}

// advanceStep bounds how often time is looked at while events pour in.
const advanceStep = 20 * time.Millisecond

// Advance lets time pass: requests that waited too long open cases, paths grow old.
func (t *Table) Advance(now time.Time) {
	t.cases = append(t.cases, t.verdicts.release(now)...)
	if now.Sub(t.advanced) < advanceStep {
		return
	}
	t.advanced = now
	for len(t.waits) > 0 && now.Sub(t.waits[0].at) >= t.cfg.Silence {
		w := t.waits[0]
		t.waits = t.waits[1:]
		t.checkSilence(w)
	}
	t.watchArrivals(now)
	t.releaseRefusals(now.Add(-refusalAge))
	for len(t.closings) > 0 && now.Sub(t.closings[0].at) >= t.cfg.Linger {
		p := t.closings[0].path
		t.closings = t.closings[1:]
		t.remove(p)
	}
	for e := t.recent.Back(); e != nil && now.Sub(e.Value.(*path).last) >= t.cfg.Idle; e = t.recent.Back() {
		t.remove(e.Value.(*path))
	}
	t.connects.expire(now)
}

// checkSilence opens a case for a request that reached its end and had no effect.
func (t *Table) checkSilence(w waiting) {
	p := w.path
	if p.element == nil || w.hop >= len(p.request) {
		return
	}
	h := &p.request[w.hop]
	if !h.pending || !h.at.Equal(w.at) && p.protocol == trace.TCP || !p.isEnd(h) || p.replied.After(h.at) {
		return // answered, here or where a redirect that no device showed has taken it
	}
	h.pending = false
	ev := p.arrival(trace.Request, h)
	t.open(p, trace.SymptomSilence, trace.Reply, &ev)
}

// open adds a case about what ev shows.
func (t *Table) open(p *path, s trace.Symptom, d trace.Direction, ev *trace.Event) {
	c := trace.Case{
		Symptom: s, Direction: d, Event: *ev, Path: t.whole(p), Place: t.cfg.Place(ev.Netns, ev.Time), Proxied: p.joined.proxied,
	}
	if p.joined.parent != nil {
		c.Leg = trace.Tuple{Protocol: p.protocol, Src: p.client, Dst: p.server}
	}
	asked := d
	if s == trace.SymptomSilence {
		asked = trace.Request
	}
	if h := p.lastArrival(asked, ev.Netns); h != nil {
		c.Arrival = p.arrival(asked, h)
	}
	c.DNS, c.Event.Payload = payloadQuestion(ev), nil // the payload is gone when the case is looked at
	if p.miss != nil && p.miss.Netns == ev.Netns {
		c.Miss = *p.miss
	}
	if r := p.rejection; r.netns == ev.Netns && ev.Time.Sub(r.at) < rejectionAge {
		c.Rejected = true
	}
	if p.tooBig != nil {
		c.TooBig, c.TooBigPlace = p.tooBig.ev, t.cfg.Place(p.tooBig.ev.Netns, p.tooBig.ev.Time)
	}
	p.changed = true
	if mayBeNetfilter(ev) && (s == trace.SymptomDrop || s == trace.SymptomTooBig) {
		t.verdicts.hold(c)
		return
	}
	t.cases = append(t.cases, c)
}

// rejectionAge is how long after an ICMP error or reset the packet that caused it is dropped.
const rejectionAge = time.Millisecond

// handOut adds a path to those that are done, once for each change.
func (t *Table) handOut(p *path) {
	if !p.changed {
		return
	}
	p.changed = false
	switch root := p.root(); {
	case root != p:
		root.changed = false
	case p.joined.parent != nil:
		return // it was told with the leg that it goes on from, which is gone
	}
	t.done = append(t.done, t.whole(p))
}

// create starts a path with a packet in request direction.
func (t *Table) create(seq uint32, tuple trace.Tuple, ev *trace.Event) *path {
	if t.recent.Len() >= t.cfg.MaxPaths {
		t.makeRoom()
	}
	p := &path{
		seq: seq, protocol: tuple.Protocol, client: tuple.Src, server: tuple.Dst,
		first: ev.Time, last: ev.Time, changed: true, keys: make([]tupleKey, 0, 4),
	}
	// What the client meant is what conntrack saw first.
	if c := ev.Conntrack; c.Known() && (c.Reply.Reverse() == tuple || c.Original == tuple) {
		p.client, p.server = c.Original.Src, c.Original.Dst
		p.addTuple(c.Original)
	}
	p.next = t.bySeq[seq]
	t.bySeq[seq] = p
	p.element = t.recent.PushFront(p)
	return p
}

// conntrackReply is the first value of enum ip_conntrack_info that stands for reply direction.
const conntrackReply = 3

// makeRoom gives up the path that matters least: one that has ended, else the
// one that was active longest ago. It is a loss only if that one still waits for its answer.
func (t *Table) makeRoom() {
	for len(t.closings) > 0 {
		p := t.closings[0].path
		t.closings = t.closings[1:]
		if p.element != nil {
			t.remove(p)
			return
		}
	}
	p := t.recent.Back().Value.(*path)
	if !p.answered && !p.reset && p.protocol == trace.TCP {
		t.evicted++
	}
	t.remove(p)
}

// adopt starts a path with a packet of a connection that was there before us.
// Conntrack knows who is the client; else it can only be guessed: the side with the higher port.
func (t *Table) adopt(ev *trace.Event) (*path, trace.Direction) {
	tuple, d := ev.Tuple, trace.Request
	isReply := tuple.Src.Port() < tuple.Dst.Port()
	if ev.Conntrack.Known() {
		isReply = ev.Conntrack.Info >= conntrackReply
	}
	if isReply {
		tuple, d = tuple.Reverse(), trace.Reply
	}
	p := t.create(ev.Seq, tuple, ev)
	p.guessed, p.adopted = !ev.Conntrack.Known(), true
	t.touch(p, tuple, ev)
	return p, d
}

// touch marks a path as active and makes it findable by this tuple.
func (t *Table) touch(p *path, tuple trace.Tuple, ev *trace.Event) {
	if ev.Time.After(p.last) {
		p.last = ev.Time
	}
	p.changed = true
	p.addTuple(tuple)
	t.sources.add(p, tuple.Src)
	t.recent.MoveToFront(p.element)
	k := tupleKey{ev.Netns, tuple}
	if t.tuples[k] == p || len(p.keys) >= maxHops {
		return
	}
	t.tuples[k] = p
	p.keys = append(p.keys, k)
}

func (t *Table) remove(p *path) {
	if p.element == nil {
		return
	}
	t.handOut(p)
	t.forgetOpened(p)
	t.udp.forget(p)
	t.fragments.forget(p)
	t.recent.Remove(p.element)
	p.element = nil
	t.sources.remove(p)
	for _, k := range p.keys {
		if t.tuples[k] == p {
			delete(t.tuples, k)
		}
	}
	head := t.bySeq[p.seq]
	if head == p {
		if p.next == nil {
			delete(t.bySeq, p.seq)
		} else {
			t.bySeq[p.seq] = p.next
		}
		return
	}
	for ; head != nil; head = head.next {
		if head.next == p {
			head.next = p.next
			return
		}
	}
}

// findSeq returns the path whose SYN had this sequence number, if a packet of
// direction d with this tuple (in request direction) can be of it.
func (t *Table) findSeq(seq uint32, d trace.Direction, tuple trace.Tuple, ev *trace.Event) *path {
	for p := t.bySeq[seq]; p != nil; p = p.next {
		if p.protocol == tuple.Protocol && p.related(d, tuple, ev) {
			return p
		}
	}
	return nil
}

// findTuple returns the path that a packet belongs to by its tuple, and its direction.
func (t *Table) findTuple(ns trace.Netns, tuple trace.Tuple) (*path, trace.Direction) {
	if p := t.tuples[tupleKey{ns, tuple}]; p != nil {
		return p, trace.Request
	}
	if p := t.tuples[tupleKey{ns, tuple.Reverse()}]; p != nil {
		return p, trace.Reply
	}
	return nil, trace.DirectionUnknown
}
