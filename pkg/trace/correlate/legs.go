package correlate

import (
	"net/netip"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// Bounds of what is remembered of proxies.
const (
	maxProxied  = 64   // connections of one namespace that its own rules sent to a socket there
	maxProxies  = 1024 // such namespaces
	maxOnward   = 8    // connections with which a proxy goes on from one
	legAge      = 2 * time.Second
	astrayAge   = time.Second
	maxStranded = 1024
)

// legs joins what a proxy makes two connections of: the one that a namespace's
// own rules sent to it, and the one with which it goes on. No packet says so; the
// namespace, the process, the addresses and the time do.
type legs struct {
	proxied map[trace.Netns][]*path // newest last
	astray  map[astrayKey]time.Time
}

type astrayKey struct {
	netns    trace.Netns
	src, dst netip.Addr
}

// joined is what a path has of other legs.
type joined struct {
	proxied    bool // a namespace's own rules sent it to a socket there
	outward    bool // the namespace in which it was made
	proxyNetns trace.Netns
	proxiedAt  time.Time
	onward     []*path // legs with which the proxy went on
	parent     *path   // the leg that the proxy goes on from
	confidence trace.Confidence
}

// isRedirected reports an entry of connection tracking that changes where a packet goes.
func isRedirected(c trace.Conntrack) bool { return c.Known() && c.Reply.Src != c.Original.Dst }

// noteProxied remembers a connection that is answered where it was redirected to.
func (t *Table) noteProxied(p *path, ev *trace.Event) {
	if p.joined.proxied || ev.Hook != trace.HookTransmit || ev.InIndex != 0 || p.joined.parent != nil || len(p.request) == 0 {
		return
	}
	c := ev.Conntrack
	if !isRedirected(c) || ev.Tuple.Src.Addr() != c.Reply.Src.Addr() && ev.Tuple.Src != c.Original.Dst {
		return
	}
	p.joined.proxied, p.joined.proxyNetns, p.joined.proxiedAt = true, ev.Netns, ev.Time
	p.joined.outward = p.request[0].netns == ev.Netns && p.request[0].in.Index == 0
	if t.legs.proxied == nil {
		t.legs.proxied = make(map[trace.Netns][]*path)
	}
	list := t.legs.proxied[ev.Netns]
	if list == nil && len(t.legs.proxied) >= maxProxies {
		clear(t.legs.proxied)
	}
	if len(list) >= maxProxied {
		list = list[1:]
	}
	t.legs.proxied[ev.Netns] = append(list, p)
}

// isPassthrough reports an address from which proxies call their application: 127.0.0.6 or ::6, or others of lo.
func isPassthrough(a netip.Addr) bool {
	if a.Is4() {
		return a.IsLoopback() && a != netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	b := a.As16()
	return b[15] > 1 && netip.AddrFrom16([16]byte(append(make([]byte, 15, 16), b[15]))) == a
}

// joinLeg finds the connection that a proxy goes on from with one that it has just made.
func (t *Table) joinLeg(p *path, ev *trace.Event) {
	if ev.Hook != trace.HookTransmit && ev.Hook != trace.HookDrop || ev.InIndex != 0 || isRedirected(ev.Conntrack) || p.joined.parent != nil {
		return
	}
	parent, confidence := t.cameFrom(ev.Netns, p.client.Addr(), p.server, p.process.PID, ev.Time)
	if parent == nil || parent == p {
		return
	}
	p.joined.parent, p.joined.confidence = parent, confidence
	parent.joined.onward = append(parent.joined.onward, p)
	parent.changed = true
}

// cameFrom chooses among the connections that a proxy may go on from: one that
// was meant for the same server, else any; one with which it has not gone on yet.
func (t *Table) cameFrom(ns trace.Netns, from netip.Addr, server netip.AddrPort, pid uint32, now time.Time) (*path, trace.Confidence) {
	pass := isPassthrough(from)
	isProxy, known := false, false
	if t.cfg.Proxy != nil {
		isProxy, known = t.cfg.Proxy(ns, pid)
	}
	// As long as nobody knows the proxy: a process that calls the very server that another one was kept from calling.
	guess := !pass && !isProxy
	if guess && (known || pid == 0) {
		return nil, 0
	}
	var best *path
	var fits int
	better := func(q *path) bool {
		if best == nil {
			return true
		}
		if a, b := q.server == server, best.server == server; a != b {
			return a
		}
		return len(q.joined.onward) < len(best.joined.onward)
	}
	for _, q := range t.legs.proxied[ns] {
		switch {
		case q.element == nil || q.closed || now.Sub(q.joined.proxiedAt) > legAge || len(q.joined.onward) >= maxOnward:
			continue
		case pass && q.joined.outward, pid != 0 && q.process.PID == pid && q.joined.outward:
			continue // it is the proxy's own call, or of the other direction
		case guess && (q.server != server || !q.joined.outward || len(q.joined.onward) > 0 || q.process.PID == 0):
			continue
		}
		if len(q.joined.onward) == 0 {
			fits++
		}
		if better(q) {
			best = q
		}
	}
	switch {
	case best == nil:
		return nil, 0
	case fits == 1 && best.server == server && len(best.joined.onward) == 0 && !guess:
		return best, trace.Certain
	case best.server == server && len(best.joined.onward) == 0:
		return best, trace.Likely
	}
	return best, trace.Possible
}

// root is the leg that the client made.
func (p *path) root() *path {
	for range maxOnward {
		if p.joined.parent == nil || p.joined.parent.element == nil {
			return p
		}
		p = p.joined.parent
	}
	return p
}

// whole is a path as its client knows it: with the legs with which proxies went on.
func (t *Table) whole(p *path) trace.Path {
	root := p.root()
	whole := root.snapshot(t.cfg.Place)
	t.append(&whole, root, 0)
	return whole
}

func (t *Table) append(whole *trace.Path, p *path, depth int) {
	if depth > maxOnward {
		return
	}
	for _, q := range p.joined.onward {
		leg := q.snapshot(t.cfg.Place)
		whole.Request = append(whole.Request, leg.Request...)
		whole.Reply = append(leg.Reply, whole.Reply...)
		whole.Answered = whole.Answered && leg.Answered
		whole.Reset = whole.Reset || leg.Reset
		if leg.Last.After(whole.Last) {
			whole.Last = leg.Last
		}
		if whole.Joined == 0 || q.joined.confidence < whole.Joined {
			whole.Joined = q.joined.confidence
		}
		t.append(whole, q, depth+1)
	}
}

// addAstray opens a case about a socket's own lookup from or to a loopback
// address that leads off lo, or nowhere: connect() or sendto() fails, or its packets go astray.
func (t *Table) addAstray(ev *trace.Event) {
	if ev.Tuple.Dst.Port() == 0 || !ev.Tuple.IsValid() {
		return // somebody asks for a route, as ip-route(8) does
	}
	key := astrayKey{ev.Netns, ev.Tuple.Src.Addr(), ev.Tuple.Dst.Addr()}
	if at, seen := t.legs.astray[key]; seen && ev.Time.Sub(at) < astrayAge {
		return
	}
	if t.legs.astray == nil || len(t.legs.astray) >= maxStranded {
		t.legs.astray = make(map[astrayKey]time.Time)
	}
	t.legs.astray[key] = ev.Time
	place := t.cfg.Place(ev.Netns, ev.Time)
	own := ev.Tuple
	c := trace.Case{Symptom: trace.SymptomUnsent, Direction: trace.Request, Event: *ev, Place: place, Path: trace.Path{
		Protocol: own.Protocol, Client: own.Src, Server: own.Dst, Connection: own, First: ev.Time, Last: ev.Time, Requests: 1, Process: ev.Process,
		Request: []trace.Hop{{Place: place, Tuple: own, First: ev.Time, Count: 1}},
	}}
	if q, confidence := t.cameFrom(ev.Netns, own.Src.Addr(), own.Dst, ev.Process.PID, ev.Time); q != nil {
		hops := c.Path.Request
		c.Path, c.Leg = t.whole(q), own
		c.Path.Request, c.Path.Joined, c.Path.Answered = append(c.Path.Request, hops...), confidence, false
	}
	t.cases = append(t.cases, c)
}
