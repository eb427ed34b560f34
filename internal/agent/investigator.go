package agent

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"github.com/replypath/replypath/internal/metrics"
	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/internal/recorder"
	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/diagnose"
)

// Bounds of the investigation. A flood of cases of one kind asks its host some
// times a second, not once a packet.
const (
	caseQueue     = 2048
	investigators = 3
	readTimeout   = time.Second
	answerAge     = 50 * time.Millisecond // how long an answer serves cases of its kind, at least
	answerShare   = 20                    // so many times the read's own duration, so that one question takes at most 5% of a core
	maxAnswerAge  = time.Second
	maxAnswers    = 1024
	explainedAge  = 2 * time.Minute
	maxExplained  = 16384
)

// investigator asks the host about each case, once, and has it diagnosed.
type investigator struct {
	node     string
	reader   *netstate.Reader
	places   *netstate.Directory
	recorder *recorder.Recorder
	log      *slog.Logger

	queue chan *trace.Case // pointers: a case is large, and there are seldom many
	open  atomic.Int64     // cases queued or under way
	lost  atomic.Uint64    // cases that found the queue full
	// unread counts cases that stay open because their host could not be asked.
	unread atomic.Uint64
	cases  atomic.Uint64

	seed    maphash.Seed
	flights singleflight.Group
	mu      sync.Mutex
	answers map[answerKey]answer
	// explained holds the fault that explains a path: what else befalls the path comes of it.
	explained map[pathKey]explained
	// blamed holds what explained a connection last: a DNS query on it that ended badly did so for that.
	blamed map[trace.Tuple]blamed
	// silent holds which resolvers were found to answer nothing.
	silent    map[servedAt]blamed
	made      map[metrics.Finding]uint64
	counters  counters
	tracer    *ruleTracer // nil: rules are not traced
	redirects *redirectWatch
}

type answer struct {
	state trace.HostState
	until time.Time
}

type pathKey struct {
	connection trace.Tuple
	first      int64
}

type explained struct {
	fault uint64 // hash of what makes two findings the same fault
	at    time.Time
}

func newInvestigator(node string, reader *netstate.Reader, places *netstate.Directory, r *recorder.Recorder, log *slog.Logger) *investigator {
	return &investigator{
		node: node, reader: reader, places: places, recorder: r, log: log,
		queue:     make(chan *trace.Case, caseQueue),
		seed:      maphash.MakeSeed(),
		answers:   make(map[answerKey]answer),
		explained: make(map[pathKey]explained),
		blamed:    make(map[trace.Tuple]blamed),
		silent:    make(map[servedAt]blamed),
		made:      make(map[metrics.Finding]uint64),
		redirects: newRedirectWatch(places, reader),
	}
}

// String names the task.
func (i *investigator) String() string { return "investigator" }

// Run investigates until ctx is done.
func (i *investigator) Run(ctx context.Context) error {
	var g errgroup.Group
	for range investigators {
		g.Go(func() error {
			for {
				select {
				case c := <-i.queue:
					i.investigate(ctx, c)
					i.open.Add(-1)
				case <-ctx.Done():
					return nil
				}
			}
		})
	}
	return g.Wait()
}

// submit queues a case, and never waits.
func (i *investigator) submit(c trace.Case) {
	if !diagnose.Wants(&c) {
		return
	}
	i.cases.Add(1)
	i.enqueue(c)
}

func (i *investigator) enqueue(c trace.Case) {
	i.open.Add(1)
	select {
	case i.queue <- &c:
	default:
		i.open.Add(-1)
		i.lost.Add(1)
	}
}

// wait returns when no case is open. What is held until a namespace is known is asked
// once more, after all of them were looked for.
func (i *investigator) wait(ctx context.Context) {
	i.drained(ctx)
	held := i.redirects.release(time.Now(), true)
	if len(held) == 0 {
		return
	}
	i.places.Look()
	for _, c := range held {
		i.enqueue(c)
	}
	i.drained(ctx)
}

// drained returns when no case is open.
func (i *investigator) drained(ctx context.Context) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for i.open.Load() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (i *investigator) investigate(ctx context.Context, c *trace.Case) {
	var there bool
	if c.Symptom == trace.SymptomPassed {
		// Asked of connections that mostly are well, and of which many have gone: their places are verified when something is found.
		if there = i.stands(c); !there {
			return
		}
	} else {
		there = i.verifyPlaces(c)
	}
	if i.isBlamed(c) {
		return
	}
	for _, suspect := range diagnose.Suspects(c) {
		if i.explain(ctx, &suspect, there) {
			return
		}
	}
	i.explain(ctx, c, there)
}

// stands reports whether a question's namespace is there to be asked. One that is not known yet is
// held until it is, or until it is sure that there is no way to it.
func (i *investigator) stands(c *trace.Case) bool {
	switch i.places.Standing(c.Place.Netns, c.Event.Time) {
	case netstate.There:
		return true
	case netstate.Gone:
		return false // nobody is left to ask
	}
	kept, patient := i.redirects.hold(c, time.Now())
	if !patient {
		place, same := i.places.PlaceAt(c.Place.Netns, c.Event.Time)
		if !same || place.Name != "" || place.PID != 0 || place.Host {
			return same
		}
	}
	if !kept {
		i.unread.Add(1)
	}
	return false
}

// verifyPlaces looks again at the names of the case's namespaces: a finding must
// not blame one that had the same inode before, or has it since. It reports
// whether the case's own namespace is still there to be asked.
func (i *investigator) verifyPlaces(c *trace.Case) (there bool) {
	for _, hops := range [][]trace.Hop{c.Path.Request, c.Path.Reply} {
		for n := range hops {
			hops[n].Place, _ = i.places.PlaceAt(hops[n].Place.Netns, hops[n].First)
		}
	}
	c.Place, there = i.places.PlaceAt(c.Place.Netns, c.Event.Time)
	return there
}

// explain asks the case's host and keeps the finding, if there is one.
func (i *investigator) explain(ctx context.Context, c *trace.Case, there bool) bool {
	q, wanted := diagnose.Question(c)
	if !wanted {
		return false
	}
	s, err := trace.HostState{}, error(netstate.ErrNoNamespace)
	if there && diagnose.AsksRedirectAlone(c) {
		s, err = i.askRedirect(ctx, c)
	} else if there {
		s, err = i.ask(ctx, q, c)
	}
	if err != nil {
		if !errors.Is(err, netstate.ErrNoNamespace) {
			i.log.Debug("cannot read host state", "netns", q.Place.Netns, "err", err)
		}
		s = trace.HostState{ReadAt: time.Now(), Unread: []string{err.Error()}}
	}
	if deaf, ok := diagnose.Deaf(c, &s); ok && i.explain(ctx, &deaf, true) {
		return true
	}
	if i.tracer != nil && err == nil && len(q.Filters) > 0 {
		i.tracer.confirm(ctx, &q, c, &s)
	}
	f, ok := diagnose.Explain(c, &s)
	if !ok {
		if err != nil && !errors.Is(err, netstate.ErrNoNamespace) {
			i.unread.Add(1) // of one that is gone, nobody is left to ask
		}
		return false
	}
	if c.Symptom == trace.SymptomPassed {
		i.redirects.found(c)
		i.verifyPlaces(c)
		f, _ = diagnose.Explain(c, &s)
	}
	f.Where.Node = i.node
	i.asSilence(&f, c)
	if i.claims(&f, c) {
		i.recorder.AddFinding(f)
	}
	return true
}

// claims reports whether a finding is what explains its path: the first one
// does, and its repetitions.
func (i *investigator) claims(f *trace.Finding, c *trace.Case) bool {
	key := pathKey{c.Path.Connection, c.Path.First.UnixNano()}
	fault := maphash.Comparable(i.seed, f.Key())
	i.mu.Lock()
	defer i.mu.Unlock()
	if e, ok := i.explained[key]; ok && e.fault != fault {
		return false
	}
	if len(i.explained) >= maxExplained {
		i.forgetExplained(c.Event.Time)
	}
	i.explained[key] = explained{fault, c.Event.Time}
	i.blame(f, c)
	i.made[metrics.Finding{ID: f.ID, Direction: f.Direction.String()}]++
	return true
}

// findings returns how many cases each finding explained so far.
func (i *investigator) findings() map[metrics.Finding]uint64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	return maps.Clone(i.made)
}

func (i *investigator) forgetExplained(now time.Time) {
	for k, e := range i.explained {
		if now.Sub(e.at) > explainedAge {
			delete(i.explained, k)
		}
	}
	if len(i.explained) >= maxExplained {
		clear(i.explained)
	}
}

// answerKey is a question without what varies from one connection to the next.
type answerKey struct {
	place   trace.Place
	packet  trace.Tuple
	flags   trace.TCPFlags
	in, out uint32
	arrived uint32
	mark    uint32
	filters string
	ct      uint8
	extra   [5]uint32 // what only some questions ask for
	policy  bool
	symptom trace.Symptom // what is asked of other hosts depends on it
	header  [4]uint8      // what there is instead of ports
	suspect bool          // and on this
}

func keyOf(q *trace.Question) answerKey {
	k := answerKey{
		place: q.Place, packet: q.Packet, flags: q.Flags, in: q.In, out: q.Out, arrived: q.Arrived, mark: q.Mark,
		filters: fmt.Sprint(q.Filters), ct: q.Conntrack.Info, extra: extraKey(q), policy: q.Policy,
		header: [4]uint8{q.ICMPType, q.ICMPCode},
	}
	if q.Fragment {
		k.header[2] = 1
	}
	if q.MoreFragments {
		k.header[3] = 1
	}
	clientSide := &k.packet.Src
	if q.Flags.IsSYNACK() {
		clientSide = &k.packet.Dst
	}
	*clientSide = netip.AddrPortFrom(clientSide.Addr(), 0)
	return k
}

// extraKey tells questions apart by what else they ask for.
func extraKey(q *trace.Question) [5]uint32 {
	key := [5]uint32{q.Attached, 4: q.Switched}
	for i, asked := range []bool{q.Limits, q.Receivers, q.Tunnels} {
		if asked {
			key[i+1] = 1
		}
	}
	return key
}

// ask reads the host's state, or takes the answer to the same question a moment ago.
func (i *investigator) ask(ctx context.Context, q trace.Question, c *trace.Case) (trace.HostState, error) {
	key := keyOf(&q)
	key.symptom, key.suspect = c.Symptom, c.Suspect
	i.mu.Lock()
	a, ok := i.answers[key]
	i.mu.Unlock()
	if ok && time.Now().Before(a.until) {
		return a.state, nil
	}
	v, err, _ := i.flights.Do(fmt.Sprint(key), func() (any, error) {
		started := time.Now()
		s, err := i.read(ctx, q)
		if err == nil && len(s.Unread) > 0 {
			// The first question of its kind may have the kernel load a module (tcp_diag), which takes its time.
			s, err = i.read(ctx, q)
		}
		if err != nil {
			return s, err
		}
		i.counters.compare(q.Place.Netns, s.Filters, s.ReadAt)
		if reply, ok := diagnose.ReplyQuestion(&q); ok && len(s.Filters) == 1 {
			if answer, err := i.read(ctx, reply); err == nil {
				s.ReplyFilters = answer.Filters
			}
		}
		if known, ok := diagnose.TrackedQuestion(&q); ok && len(s.Filters) > 0 {
			if answer, err := i.read(ctx, known); err == nil && len(answer.Unread) == 0 {
				s.Tracked, s.IfTracked = true, answer.Filters
			}
		}
		if diagnose.DependsOnPath(c, &s) {
			s.PathGateways = i.pathGateways(c)
		}
		if diagnose.DependsOnNextHop(c, &s) {
			s.NextHopOwner, s.NextHopDevice = i.holder(s.NextHop.Addr, q.Place.Netns)
		}
		if diagnose.DependsOnTunnels(c, &s) {
			s.FarTunnels = i.farTunnels(q.Place.Netns)
		}
		if diagnose.DependsOnWay(c, &s) {
			s.Onwards = i.onwards(ctx, c, &q)
		}
		if diagnose.TunnelOut(c) != 0 {
			s.Underlay = i.underlay(ctx, c, &s)
		}
		if diagnose.DependsOnOwner(c, &s) {
			s.Owners = i.owners(q.Packet.Dst.Addr(), q.Place.Netns)
		}
		if diagnose.DependsOnCircle(c) {
			s.Circle = i.circle(ctx, c)
		}
		if diagnose.DependsOnContest(c, &s) {
			s.Contest = i.contest(ctx, c, &s)
		}
		if diagnose.DependsOnBelief(c, &s) {
			s.Believed = i.belief(s.NextHop, q.Place.Netns)
		}
		if diagnose.DependsOnNAT(c) {
			s.NAT = i.natRules(ctx, c, q)
		}
		if diagnose.DependsOnSender(c, &s) {
			s.Sent = i.sent(ctx, c)
		}
		if diagnose.DependsOnRedirect(c) {
			i.readRedirect(ctx, c, &s)
		}
		if diagnose.DependsOnNarrow(c) {
			s.Narrow = i.narrow(c)
		}
		i.keepAnswer(key, s, time.Since(started))
		return s, nil
	})
	return v.(trace.HostState), err
}

// askRedirect reads what there is to know of a case that is about redirection alone.
func (i *investigator) askRedirect(ctx context.Context, c *trace.Case) (trace.HostState, error) {
	s := trace.HostState{ReadAt: time.Now()}
	r, err := i.redirects.inspect(ctx, c)
	if err != nil {
		return s, err
	}
	s.Redirect, s.ReadAt = r, r.ReadAt
	if c.Symptom == trace.SymptomPassed {
		i.redirects.storm(c)
	}
	return s, nil
}

// readRedirect adds what rules make of a transparent proxy's traffic to a host's state.
func (i *investigator) readRedirect(ctx context.Context, c *trace.Case, s *trace.HostState) {
	r, err := i.redirects.inspect(ctx, c)
	if err != nil {
		s.Unread = append(s.Unread, "redirection: "+err.Error())
		return
	}
	s.Redirect = r
}

func (i *investigator) read(ctx context.Context, q trace.Question) (trace.HostState, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	return i.reader.Read(ctx, q)
}

func (i *investigator) keepAnswer(key answerKey, s trace.HostState, took time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.answers) >= maxAnswers {
		clear(i.answers)
	}
	i.answers[key] = answer{s, time.Now().Add(min(max(answerAge, answerShare*took), maxAnswerAge))}
}
