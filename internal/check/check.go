package check

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/internal/agent"
	"github.com/replypath/replypath/internal/netfilter"
	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/diagnose"
)

// ErrUsage says that the question cannot be meant so.
var ErrUsage = errors.New("bad question")

// Question is what is asked: would the host that owns Server get its reply to Client?
type Question struct {
	From     trace.Place // the namespace that answers
	Protocol trace.Protocol
	Client   netip.AddrPort // port 0: any
	Server   netip.AddrPort // the VIP; invalid address: the one that the host would choose; port 0: any
	In       string         // device by which the request comes in; "": it is found out
	Mark     uint32         // of request and reply
	Run      bool           // BPF programs that keep state may be run on a copy of the packet
}

// Answer is what the hosts of this node would do.
type Answer struct {
	Findings []trace.Finding
	Path     trace.Path
	// Findings is one, or none: what is lost is lost once. Others are told in Notes.
	// Unread is what could not be read or judged, so that there may be more faults.
	Unread []string
	// Notes say what is worth knowing and no fault.
	Notes []string
}

// Checker asks the namespaces of this node. It is not safe for concurrent use.
type Checker struct {
	node   string
	places *netstate.Directory
	reader *netstate.Reader
}

// New makes a checker.
func New() (*Checker, error) {
	node, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("find the node's name: %w", err)
	}
	places, err := netstate.NewDirectory()
	if err != nil {
		return nil, fmt.Errorf("read the names of network namespaces: %w", err)
	}
	return &Checker{node: node, places: places, reader: netstate.NewReader(places, netfilter.Verdicts)}, nil
}

// Close frees the checker.
func (c *Checker) Close() error { return c.reader.Close() }

// Locate finds the namespace that a file leads to.
func (c *Checker) Locate(path string) (trace.Place, error) { return c.places.Locate(path) }

// Numbered finds the namespace that has a number, if it has a name or a process.
func (c *Checker) Numbered(ns trace.Netns) (trace.Place, error) {
	handle, err := c.places.Open(ns)
	if err != nil {
		return trace.Place{}, err
	}
	return c.places.Place(ns), handle.Close()
}

// Names lists the names of namespaces.
func (c *Checker) Names() []string { return c.places.Names() }

// Inside runs work on a thread in a namespace, which work must not change.
func (c *Checker) Inside(ctx context.Context, place trace.Place, work func() error) error {
	return c.reader.Inside(ctx, place, work)
}

// readTimeout bounds one question to one namespace.
const readTimeout = 2 * time.Second

// run is one question while it is being answered.
type run struct {
	*Checker
	ctx      context.Context
	q        Question
	topology *netstate.Topology
	now      time.Time
	answer   *Answer
	in       uint32 // the device that the user named; 0: none
	// tracks is what connection tracking would know of the request, by namespace.
	tracks map[trace.Netns][]trace.Conntrack
	// exempt are the namespaces that take the request in untracked.
	exempt map[trace.Netns]bool
	// known: the request was followed from its client to the host that answers.
	known bool
	// connMarks are the marks that rules gave the connection, by namespace.
	connMarks map[trace.Netns]trace.ConnMark
	told      map[trace.FaultKey]bool
	// sizes are the MTUs on the way, by direction.
	sizes  map[trace.Direction][]size
	trying bool        // nothing is told
	tried  *trace.Case // what would have been told
	// elsewhere are the hops of packets whose way is not that of the exchange.
	elsewhere  []trace.Hop
	outerSizes []size // on the way of the tunnel that is being followed
	runAll     bool   // programs may be run that keep state
	// most caps what is said: what may not come to pass is not certain. 0: nothing is capped.
	most trace.Confidence
	// reply is the reply as it is made, replyFrom where; clientAt the client's namespace.
	reply     packet
	replyFrom position
	clientAt  trace.Netns
	clamped   map[trace.Direction]bool // somebody makes TCP agree on smaller segments
	// switched: the request came to a device whose frames a program may switch, and change on their way.
	switched bool
}

// Reply answers a question. The error says that it could not be asked at all.
func (c *Checker) Reply(ctx context.Context, q Question) (*Answer, error) {
	r := &run{Checker: c, ctx: ctx, q: q, now: time.Now(), answer: &Answer{},
		tracks: make(map[trace.Netns][]trace.Conntrack), exempt: make(map[trace.Netns]bool), told: make(map[trace.FaultKey]bool), sizes: make(map[trace.Direction][]size), clamped: make(map[trace.Direction]bool), runAll: q.Run, connMarks: make(map[trace.Netns]trace.ConnMark)}
	if err := c.Inside(ctx, q.From, func() error { return nil }); err != nil {
		return nil, err
	}
	if err := r.complete(); err != nil {
		return nil, err
	}
	topology, err := c.reader.Topology(q.From.Netns)
	if err != nil {
		return nil, err
	}
	r.topology = topology
	r.answer.Unread = append(r.answer.Unread, topology.Unread...)
	if r.in, err = r.inDevice(); err != nil {
		return nil, err
	}
	tuple := trace.Tuple{Protocol: r.q.Protocol, Src: r.q.Client, Dst: r.q.Server}
	r.answer.Path = trace.Path{
		Protocol: r.q.Protocol, Client: r.q.Client, Server: r.q.Server, Connection: tuple, // never seen: no times
	}
	r.both(tuple)
	slices.Sort(r.answer.Unread)
	r.answer.Unread = slices.Compact(r.answer.Unread)
	return r.answer, nil
}

// ephemeral is a port that a client may have (net.ipv4.ip_local_port_range).
const ephemeral = 49152

// complete fills in what the question leaves open.
func (r *run) complete() error {
	q := &r.q
	if !q.Server.Addr().IsValid() {
		source, err := r.chosenSource()
		if err != nil {
			return err
		}
		q.Server = netip.AddrPortFrom(source, q.Server.Port())
		r.note("the source that %s would choose is %s; --vip names another", r.name(q.From), source)
	}
	if q.Server.Addr().Is4() != q.Client.Addr().Is4() {
		return fmt.Errorf("%w: client %s and VIP %s are of different families", ErrUsage, q.Client.Addr(), q.Server.Addr())
	}
	if q.Client.Port() == 0 && q.Server.Port() != 0 {
		q.Client = netip.AddrPortFrom(q.Client.Addr(), ephemeral)
	}
	return nil
}

// inDevice finds the device that the question names.
func (r *run) inDevice() (uint32, error) {
	if r.q.In == "" {
		return 0, nil
	}
	for _, l := range r.topology.Of(r.q.From.Netns) {
		if l.Name == r.q.In {
			return l.Index, nil
		}
	}
	return 0, fmt.Errorf("%w: no device %q in %s", ErrUsage, r.q.In, r.name(r.q.From))
}

// both walks the request, asks the host that answers, and walks the reply.
func (r *run) both(tuple trace.Tuple) {
	p := packet{tuple: tuple, direction: trace.Request}
	if tuple.Protocol == trace.TCP {
		p.flags = trace.SYN
	}
	at := position{netns: r.q.From.Netns, in: r.in}
	if start, ok := r.clientPlace(); ok {
		r.clientAt = start
		end := r.walk(p, position{netns: start})
		p.tuple = end.packet.tuple
		switch {
		case end.at.netns == at.netns && end.kind == lost && r.replyTold():
			return // what is wrong with its way back took the request already
		case end.at.netns == at.netns && (end.kind == arrived || end.kind == lost):
			r.known, at = true, end.at
		case end.kind == lost && !r.owns(at.netns, p.tuple.Dst.Addr()):
			return // it died on its way to an address that the host lacks: that is one fault, not two
		}
	}
	if !r.known {
		if at.in == 0 {
			at.in = r.wayIn(p)
		}
	}
	p.mark = r.q.Mark
	r.answering(p, at)
}

// replyTold reports whether a finding is about the reply.
func (r *run) replyTold() bool {
	return slices.ContainsFunc(r.answer.Findings, func(f trace.Finding) bool { return f.Direction == trace.Reply })
}

// clientPlace finds the namespace of this node that is the client.
func (r *run) clientPlace() (trace.Netns, bool) {
	var found []trace.Netns
	for _, ns := range r.topology.Order {
		for _, l := range r.topology.Of(ns) {
			if l.Up && hasAddress(l, r.q.Client.Addr()) && !slices.Contains(found, ns) {
				found = append(found, ns)
			}
		}
	}
	if len(found) > 1 {
		r.unread("%d namespaces of this node have the client's address %s: which one is meant cannot be told", len(found), r.q.Client.Addr())
	}
	if len(found) != 1 {
		return 0, false
	}
	return found[0], true
}

// wayIn is the device that the request most likely comes in by when nothing
// tells: the one by which the reply leaves. It says which others would not do.
func (r *run) wayIn(p packet) uint32 {
	s, err := r.read(trace.Question{Place: r.q.From, Packet: p.tuple.Reverse(), Mark: r.q.Mark})
	if err != nil || !s.Onward.Found() {
		return 0
	}
	way := s.Onward.Device
	var strict []string
	for _, l := range r.topology.Of(r.q.From.Netns) {
		if l.Loopback || !l.Up || l.Index == way.Index || l.Master != 0 || p.tuple.Is6() {
			continue
		}
		s, err := r.read(trace.Question{Place: r.q.From, Packet: p.tuple, In: l.Index, Arrived: l.Index, Mark: r.q.Mark})
		if err == nil && s.DstLocal && diagnose.RefusesSource(&s) {
			strict = append(strict, l.Name)
		}
	}
	if len(strict) > 0 {
		r.note("the request is taken to come in by %s, the way back to the client; were it to come in by %s, reverse-path filtering would drop it (--in DEVICE says which)",
			way.Name, strings.Join(strict, " or "))
	}
	return way.Index
}

// explain has a case diagnosed, as the agent would, and keeps the finding. The
// state is what the case's namespace said when it was asked here.
func (r *run) explain(c *trace.Case, s *trace.HostState) {
	r.explainOr(c, s, fmt.Sprintf("%s would not let the %s pass, and no rule says why", r.name(c.Place), strings.ToLower(c.Direction.String())))
}

// explainOr is explain; where no rule says why, other is told.
func (r *run) explainOr(c *trace.Case, s *trace.HostState, other string) {
	if r.trying {
		r.tried = c
		return
	}
	f, ok := r.foretell(c)
	if !ok {
		f, ok = diagnose.Explain(c, s)
		f.Where.Node = r.node
	}
	if !ok {
		r.answer.Unread = append(r.answer.Unread, other)
		return
	}
	r.tell(f)
}

// foretell is what the agent would make of a case, with the path up to here.
func (r *run) foretell(c *trace.Case) (trace.Finding, bool) {
	c.Asked, c.Path = true, r.answer.Path
	c.Path.Request, c.Path.Reply = slices.Clone(c.Path.Request), slices.Clone(c.Path.Reply)
	return agent.Foretell(r.ctx, r.node, r.reader, r.places, c)
}

// tell keeps a finding, as sure as it may be here.
func (r *run) tell(f trace.Finding) {
	r.withoutPort(&f)
	if r.most != 0 {
		f.Confidence = min(f.Confidence, r.most)
	}
	r.keep(f)
}

// keep adds a finding, or a note of one that comes after another.
func (r *run) keep(f trace.Finding) {
	key := f.Key()
	key.Direction = trace.DirectionUnknown // what stops the one stops the other, too
	if r.told[key] {
		return
	}
	r.told[key] = true
	if len(r.answer.Findings) > 0 {
		// A second one may well come of the first, and what is lost once is not lost again.
		r.note("once that is mended: %s, %s (%s)", f.Summary, f.ID, strings.ToLower(f.Direction.String()))
		return
	}
	r.answer.Findings = append(r.answer.Findings, f)
}

// withoutPort takes the port out of a finding's texts where none was asked about.
func (r *run) withoutPort(f *trace.Finding) {
	if r.q.Server.Port() != 0 {
		return
	}
	texts := strings.NewReplacer(
		r.q.Server.String(), r.q.Server.Addr().String(), r.q.Client.String(), r.q.Client.Addr().String(),
		" tcp dport 0", "", " tcp sport 0", "", " udp dport 0", "", " udp sport 0", "", " --dport 0", "", " --sport 0", "",
	)
	f.Summary, f.Cause = texts.Replace(f.Summary), texts.Replace(f.Cause)
	for i := range f.Fix {
		f.Fix[i] = texts.Replace(f.Fix[i])
	}
	for i := range f.Evidence {
		f.Evidence[i].Text = texts.Replace(f.Evidence[i].Text)
	}
}

// read asks a namespace.
func (r *run) read(q trace.Question) (trace.HostState, error) {
	q.Ahead = true
	ctx, cancel := context.WithTimeout(r.ctx, readTimeout)
	defer cancel()
	s, err := r.reader.Read(ctx, q)
	if err == nil && len(s.Unread) > 0 { // the first question of its kind may have the kernel load a module
		s, err = r.reader.Read(ctx, q)
	}
	switch {
	case errors.Is(err, unix.EPERM):
		r.unread("%s: entering it takes CAP_SYS_ADMIN", r.name(q.Place))
	case err != nil:
		r.unread("%s: %v", r.name(q.Place), err)
	}
	for _, u := range s.Unread {
		r.unread("%s: %s", r.name(q.Place), u)
	}
	return s, err
}

func (r *run) unread(format string, args ...any) {
	r.answer.Unread = append(r.answer.Unread, fmt.Sprintf(format, args...))
}

func (r *run) note(format string, args ...any) {
	r.answer.Notes = append(r.answer.Notes, fmt.Sprintf(format, args...))
}

// name calls a place what its operator calls it.
func (r *run) name(p trace.Place) string {
	switch {
	case p.Name != "":
		return p.Name
	case p.Host:
		return "this host's own namespace"
	}
	return fmt.Sprintf("network namespace %d", p.Netns)
}
