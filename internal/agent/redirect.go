package agent

import (
	"context"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/internal/redirect"
	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/diagnose"
)

// Bounds of the watch over transparent proxies. What rules make of connections that
// succeed is asked seldom: the first of each kind, then ever more seldom as long as nothing is found.
const (
	maxSpaces      = 2048             // namespaces that are remembered
	maxKinds       = 128              // kinds of connections of each
	firstPause     = time.Second      // between two questions about a kind
	longestPause   = time.Minute      //
	plainPause     = 10 * time.Second // after one that showed a namespace that redirects nothing
	inspectShare   = 50               // so many times a question's own duration may pass until the next: 2% of a core
	inspectCredit  = time.Second / 4  // of questions that need not wait
	maxWaiting     = 512              // questions that wait for that, or for a namespace to be known
	holdTime       = 10 * time.Second // how long a question waits for a namespace to be known
	holdInterval   = holdTime / 50    // between looks whether it is
	inspectTimeout = 2 * time.Second  //
	loopWindow     = 5 * time.Second  // in which connections of a proxy that come back to it are counted; a busy one is slow
	maxMakers      = 16               // processes whose connections are counted
	fewLoops       = 3                // connections that a proxy makes to itself
	meshMemory     = 5 * time.Minute  // how long a namespace that is not heard of is remembered
	redirectAge    = 30 * time.Second // how long who the proxy is holds
)

// redirectWatch looks at connections that begin or end where a transparent proxy may
// be: that one goes past it, or in circles, no packet shows.
type redirectWatch struct {
	inspector *redirect.Inspector

	mu     sync.Mutex
	spaces map[trace.Netns]*space
	spent  time.Duration // of questions, less what has been allowed since
	at     time.Time
	waits  []trace.Case // questions that there was no time for
	held   []trace.Case // and those whose namespace is not known yet
	again  time.Time    // when those are asked again
}

// space is a namespace.
type space struct {
	seen    time.Time
	kinds   map[kind]*pause
	proxies map[uint32]time.Time // processes that listen where connections are redirected to
	makers  map[uint32]*maker
	entered *trace.Path // the first connection from outside
	window  time.Time
	plain   time.Time // until then it is taken for a namespace that redirects nothing
	unknown time.Time // since then a question waits for the way to it; zero: none does
}

// kind is what connections have in common that rules treat alike.
type kind struct {
	role   trace.RedirectRole
	six    bool
	taken  bool
	port   uint16
	loop   bool
	astray bool // it was answered past who called
}

// pause is until when nothing is asked about a kind.
type pause struct {
	until time.Time
	next  time.Duration
}

// maker is a process that makes connections which its namespace redirects.
type maker struct {
	count uint32
	first trace.Path
}

func newRedirectWatch(places *netstate.Directory, reader *netstate.Reader) *redirectWatch {
	return &redirectWatch{inspector: redirect.With(places, reader), spaces: make(map[trace.Netns]*space)}
}

// isProxy reports whether a process takes what a namespace's rules redirect, and whether it is known who does.
func (w *redirectWatch) isProxy(ns trace.Netns, pid uint32) (is, known bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.spaces[ns]
	if s == nil {
		return false, false
	}
	_, is = s.proxies[pid]
	return is, len(s.proxies) > 0
}

// cases returns the questions that a path gives rise to.
func (w *redirectWatch) cases(p *trace.Path) []trace.Case {
	if len(p.Request) == 0 || p.Guessed {
		return nil
	}
	var out []trace.Case
	first := &p.Request[0]
	stuck := !p.Answered && first.Out.Name == "lo"
	if first.In.Index == 0 && first.Place.Netns != 0 && (stuck || !withinHost(first)) {
		packet := p.Connection
		taken := first.Tuple.Dst != packet.Dst
		if p.Protocol == trace.TCP || packet.Dst.Port() == 53 || stuck {
			out = w.consider(out, p, first.Place, packet, trace.Device{}, taken)
		}
	}
	last := first
	for i := 1; i < len(p.Request) && p.Request[i].In.Index != 0; i++ {
		if !p.Request[i].Bridged {
			last = &p.Request[i]
		}
	}
	if last.In.Index > 1 && last.Out.Index == 0 && p.Protocol == trace.TCP {
		out = w.consider(out, p, last.Place, last.Arrived, last.In, false)
	}
	return out
}

// withinHost reports a packet that was made for its own host, and not redirected.
func withinHost(h *trace.Hop) bool {
	return h.Tuple.Src.Addr() == h.Tuple.Dst.Addr() && h.Tuple.Dst.Addr().IsLoopback()
}

func (w *redirectWatch) consider(out []trace.Case, p *trace.Path, place trace.Place, packet trace.Tuple, in trace.Device, taken bool) []trace.Case {
	if !packet.IsValid() {
		return out
	}
	c := trace.Case{Symptom: trace.SymptomPassed, Direction: trace.Request, Path: *p, Place: place, Proxied: taken,
		Event: trace.Event{Time: p.Last, Netns: place.Netns, Device: in, InIndex: in.Index, Tuple: packet}}
	if c.Event.Hook = trace.HookTransmit; in.Index != 0 {
		c.Event.Hook = trace.HookReceive
	}
	role, _ := diagnose.RedirectPacket(&c)
	k := kind{role: role, six: packet.Is6(), taken: taken, port: packet.Dst.Port(), astray: diagnose.AnswerStrayed(p)}
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.space(place.Netns, p.Last)
	if s == nil {
		return out
	}
	if in.Index != 0 {
		if s.turn(p.Last); s.entered == nil {
			entered := *p
			s.entered = &entered
		}
	}
	if taken {
		k.port, k.loop = 0, s.count(p)
	}
	switch {
	case !s.due(k, p.Last):
	case w.affords(p.Last):
		return append(out, c)
	case len(w.waits) < maxWaiting:
		w.waits = append(w.waits, c)
	}
	return out
}

// overdue returns questions that had to wait: those that there is time for now, or all.
func (w *redirectWatch) overdue(now time.Time, all bool) []trace.Case {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.waits) == 0 || !all && !w.affords(now) {
		return nil
	}
	n := 1
	if all {
		n = len(w.waits)
	}
	due := make([]trace.Case, 0, n)
	for _, c := range w.waits[:n] {
		if s := w.spaces[c.Place.Netns]; s != nil && now.Before(s.plain) {
			continue // another question has shown it meanwhile
		}
		due = append(due, c)
	}
	w.waits = w.waits[n:]
	return due
}

// hold keeps a question until the way to its namespace is known: kept, unless too many wait;
// not patient when it has waited long enough.
func (w *redirectWatch) hold(c *trace.Case, now time.Time) (kept, patient bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.space(c.Place.Netns, c.Event.Time)
	switch {
	case s.unknown.IsZero():
		s.unknown = now
	case now.Sub(s.unknown) > holdTime:
		s.unknown = time.Time{}
		return false, false
	}
	if len(w.held) >= maxWaiting {
		return false, true
	}
	w.held = append(w.held, *c)
	return true, true
}

// release returns the questions that are held, to be asked again; none when it is too early, unless all are wanted.
func (w *redirectWatch) release(now time.Time, all bool) []trace.Case {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.held) == 0 || !all && now.Before(w.again) {
		return nil
	}
	held := w.held
	w.held, w.again = nil, now.Add(holdInterval)
	return held
}

// space returns what is known of a namespace.
func (w *redirectWatch) space(ns trace.Netns, now time.Time) *space {
	s := w.spaces[ns]
	if s == nil {
		if len(w.spaces) >= maxSpaces {
			for other, old := range w.spaces {
				if now.Sub(old.seen) > meshMemory {
					delete(w.spaces, other)
				}
			}
			if len(w.spaces) >= maxSpaces {
				clear(w.spaces)
			}
		}
		s = &space{kinds: make(map[kind]*pause), proxies: make(map[uint32]time.Time), makers: make(map[uint32]*maker)}
		w.spaces[ns] = s
	}
	s.seen = now
	return s
}

// turn begins a new window when the last one is over.
func (s *space) turn(now time.Time) {
	if now.Sub(s.window) > loopWindow {
		clear(s.makers)
		s.window, s.entered = now, nil
	}
}

// count counts a redirected connection with its process, and reports whether that is a
// proxy which comes back to itself.
func (s *space) count(p *trace.Path) bool {
	s.turn(p.Last)
	pid := p.Process.PID
	m := s.makers[pid]
	if m == nil {
		if len(s.makers) >= maxMakers {
			return false
		}
		m = &maker{first: *p}
		s.makers[pid] = m
	}
	m.count++
	_, proxy := s.proxies[pid]
	return proxy && m.count >= fewLoops
}

// due reports whether a kind of connection is to be asked about, and makes the next one wait.
func (s *space) due(k kind, now time.Time) bool {
	if now.Before(s.plain) {
		return false
	}
	known := s.kinds[k]
	if known == nil {
		if len(s.kinds) >= maxKinds {
			clear(s.kinds)
		}
		known = &pause{next: firstPause}
		s.kinds[k] = known
	}
	if now.Before(known.until) {
		return false
	}
	known.until = now.Add(known.next)
	known.next = min(2*known.next, longestPause)
	return true
}

// affords reports whether there is time for a question.
func (w *redirectWatch) affords(now time.Time) bool {
	if w.at.IsZero() {
		w.at = now
	}
	w.spent = max(0, w.spent-now.Sub(w.at)/inspectShare)
	w.at = now
	return w.spent < inspectCredit
}

// inspect asks what rules make of a case's connection.
func (w *redirectWatch) inspect(ctx context.Context, c *trace.Case) (*trace.Redirection, error) {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	begun := time.Now()
	role, tuple := diagnose.RedirectPacket(c)
	packet := redirect.Packet{Role: role, Tuple: tuple}
	o := redirect.Options{Place: c.Place, PID: int(c.Path.Process.PID), Live: true}
	if role != trace.RoleInbound {
		pid := c.Path.Process.PID
		if c.Leg.IsValid() {
			pid = c.Event.Process.PID
		}
		if uid, ok := userOf(pid); ok {
			packet.UID = &uid
		}
		if role == trace.RoleDNS {
			o.Resolvers = append(o.Resolvers, tuple.Dst.Addr())
		}
	} else {
		o.PID = 0
	}
	o.Packets = append(o.Packets, packet)
	r, err := w.inspector.Inspect(ctx, o)
	for range 2 { // rules may change while they are read
		if err == nil && !slices.ContainsFunc(r.Families, func(f trace.RedirectFamily) bool { return f.Unread }) {
			break
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
		r, err = w.inspector.Inspect(ctx, o)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.spent += time.Since(begun)
	if err != nil {
		return nil, err
	}
	if s := w.space(c.Place.Netns, c.Event.Time); s != nil {
		s.learn(r)
	}
	return r, nil
}

// isPlain reports a namespace of which all rules were read, and that redirects nothing.
func isPlain(r *trace.Redirection) bool {
	redirects := func(f trace.RedirectFamily) bool { return f.Unread || f.Redirects() }
	taken := func(l trace.RedirectLeg) bool { return l.Taken }
	return len(r.Unread) == 0 && !diagnose.IsMesh(r) && !slices.ContainsFunc(r.Families, redirects) && !slices.ContainsFunc(r.Asked, taken)
}

// learn notes who takes what is redirected.
func (s *space) learn(r *trace.Redirection) {
	now := r.ReadAt
	s.unknown = time.Time{}
	if isPlain(r) {
		s.plain = now.Add(plainPause)
	}
	for pid, at := range s.proxies {
		if now.Sub(at) > redirectAge {
			delete(s.proxies, pid)
		}
	}
	if pid := r.Proxy.Process.PID; pid != 0 && !r.Proxy.Named {
		s.proxies[pid] = now
	}
	for i := range r.Families {
		for _, l := range r.Families[i].Legs {
			for _, k := range l.Sockets {
				if l.Taken && k.Process.PID != 0 && len(s.proxies) < maxMakers {
					s.proxies[k.Process.PID] = now
				}
			}
		}
	}
}

// storm makes of a case what a proxy that comes back to itself is: the first
// connection that was not the proxy's own, and how many were.
func (w *redirectWatch) storm(c *trace.Case) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.spaces[c.Place.Netns]
	if s == nil || !c.Proxied {
		return
	}
	var client *trace.Path
	for pid, m := range s.makers {
		if _, proxy := s.proxies[pid]; proxy {
			if c.Repeats += m.count; c.Looped == nil {
				own := m.first
				c.Looped = &own
			}
		} else if client == nil || m.first.First.Before(client.First) {
			client = &m.first
		}
	}
	if client == nil {
		client = s.entered
	}
	if c.Repeats >= fewLoops && client != nil {
		c.Path = *client
	}
}

// found has the kind of a case asked about again soon.
func (w *redirectWatch) found(c *trace.Case) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.spaces[c.Place.Netns]; s != nil {
		for _, p := range s.kinds {
			p.next = firstPause
		}
	}
}

// userOf is the effective user of a process.
func userOf(pid uint32) (uint32, bool) {
	if pid == 0 {
		return 0, false
	}
	b, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/status")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "Uid:"); ok {
			if f := strings.Fields(rest); len(f) == 4 {
				id, err := strconv.ParseUint(f[3], 10, 32) // that of files, and sockets
				return uint32(id), err == nil
			}
		}
	}
	return 0, false
}
