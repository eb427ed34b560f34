package check

import (
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/diagnose"
)

// packet is the packet that is followed.
type packet struct {
	tuple     trace.Tuple
	flags     trace.TCPFlags
	direction trace.Direction
	mark      uint32
	outer     bool // its way is not that of the exchange: the outer packet of a tunnel, or an ICMP error
	again     bool // it comes after the handshake's first two: its way is known
	later     bool // it is a fragment, not the first
	data      bool // of a reply: what follows the SYN-ACK, with which a host that saw neither takes up a connection
	// about is the packet that an ICMP error is about, and icmp its type and code.
	about trace.Tuple
	icmp  [2]uint8
}

// position is where the packet is: a namespace, and the device by which it came in; 0: made there.
type position struct {
	netns trace.Netns
	in    uint32
}

// endKind says why a walk ended.
type endKind uint8

const (
	goesOn  endKind = iota
	arrived         // a namespace takes it for itself
	lost            // it would be dropped, and a finding says so
	left            // it leaves what is known of this node
	blind           // something could not be read
)

// ending is how a walk ended.
type ending struct {
	kind   endKind
	at     position
	packet packet
}

// maxHops bounds a walk.
const maxHops = 64

// walk follows a packet until it ends somewhere.
func (r *run) walk(p packet, at position) ending {
	type visit struct {
		position
		tuple trace.Tuple
	}
	seen := make(map[visit]int)
	for range maxHops {
		v := visit{at, p.tuple}
		if first, been := seen[v]; been {
			r.circles(&p, at, first)
			return ending{lost, at, p}
		}
		seen[v] = len(*r.hopsOf(&p))
		s := &step{run: r, packet: &p, at: at, place: r.places.Place(at.netns)}
		next, kind := s.take()
		if kind != goesOn {
			return ending{kind, at, p}
		}
		if next.netns != at.netns {
			p.mark = 0 // a packet loses it on its way to another namespace (skb_scrub_packet, net/core/skbuff.c)
		}
		at = next
		if at.netns == r.q.From.Netns && p.direction == trace.Request && !p.outer && r.q.Mark != 0 {
			p.mark = r.q.Mark
		}
		if r.in != 0 && at.netns == r.q.From.Netns && p.direction == trace.Request && !p.outer {
			at.in = r.in // as the user says
		}
	}
	r.unread("the way is longer than %d hops", maxHops)
	return ending{blind, at, p}
}

// circles tells of a packet that comes back to where it was: hop number first.
func (r *run) circles(p *packet, at position, first int) {
	s := &step{run: r, packet: p, at: at, place: r.places.Place(at.netns)}
	state, err := r.read(s.question())
	if err != nil {
		return
	}
	hops := *r.hopsOf(p)
	for i := first; i < len(hops); i++ {
		hops[i].Rounds = 2
	}
	c := s.lost(trace.SymptomLoop, "")
	r.explain(&c, &state)
}

// step is one namespace on the way of a packet.
type step struct {
	*run
	packet *packet
	at     position
	place  trace.Place
	before trace.Tuple // the packet as it came
	state  trace.HostState
	out    trace.Device
	hop    netip.Addr // the next one
	track  trace.Conntrack
}

// answers reports whether this is the host that is to answer the request.
func (s *step) answers() bool {
	return s.packet.direction == trace.Request && !s.packet.outer && s.at.netns == s.q.From.Netns
}

// take brings the packet through the namespace.
func (s *step) take() (position, endKind) {
	s.enter()
	if s.at.in == 0 { // what is made here has its route before hook OUTPUT
		if state, err := s.settled(); err == nil {
			s.out = state.Onward.Device
		}
	}
	if !s.changeIn() {
		return position{}, blind
	}
	state, err := s.settled()
	s.state = state
	if err != nil || !state.Onward.Done {
		return position{}, blind
	}
	s.out = state.Onward.Device
	if kind := s.passes(s.at.in, sidesIn); kind != goesOn {
		return position{}, kind
	}
	switch {
	case state.DstLocal && s.at.in == 0: // to itself, by lo
		return s.loop()
	case state.DstLocal:
		return position{}, s.deliver()
	case s.answers() && s.at.in != 0 && !s.isRouter():
		return position{}, s.disown()
	}
	return s.forward()
}

// settled asks what the namespace would do. An IPv6 address that was added a
// moment ago is not local before the kernel's worker has looked at it.
func (s *step) settled() (trace.HostState, error) {
	for try := 0; ; try++ {
		state, err := s.read(s.question())
		dst := s.packet.tuple.Dst.Addr()
		if err != nil || state.DstLocal || dst.Is4() || try == 10 || !owns(s.topology, s.at.netns, dst) {
			return state, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// isRouter reports whether the host that is to answer only forwards: it does
// not own the destination, has a way on, and nothing there would take it.
func (s *step) isRouter() bool {
	return s.state.Forwarding && s.state.Onward.Found() && !diagnose.HasListener(&s.state)
}

// enter notes the hop, and what connection tracking knows.
func (s *step) enter() {
	s.before = s.packet.tuple
	hop := trace.Hop{Place: s.place, In: s.device(s.at.in), Tuple: s.before, First: s.now, Count: 0}
	if s.at.in != 0 {
		hop.Arrived = s.before
	}
	hops := s.hops()
	*hops = append(*hops, hop)
	s.track = s.tracked()
}

// tracked is what connection tracking here knows of the packet as it comes.
func (s *step) tracked() trace.Conntrack {
	fresh := trace.Conntrack{Original: s.before, Reply: s.before.Reverse(), Info: conntrackNew}
	known := s.tracks[s.at.netns]
	switch {
	case s.packet.about.IsValid():
		fresh.Info = conntrackRelated
		return fresh
	case s.packet.outer:
		return fresh
	case s.packet.direction == trace.Request && !s.packet.again:
		return fresh
	case s.packet.direction == trace.Request:
		for _, t := range known {
			if t.Original == s.before && (t.Info == conntrackReply || s.at.netns == s.q.From.Netns) {
				t.Info = conntrackEstablished
				return t
			}
		}
		return trace.Conntrack{} // this host saw no answer to the request: the packet is INVALID to it
	}
	for i := range known {
		if t := &known[i]; t.Reply == s.before {
			t.Info = conntrackReply // it has seen an answer
			return *t
		}
	}
	switch {
	case !s.exempt[s.at.netns] && (!s.known || s.at.netns == s.q.From.Netns):
		// The request may have come through here; let it be so.
		return trace.Conntrack{Original: s.before.Reverse(), Reply: s.before, Info: conntrackReply}
	case s.packet.tuple.Protocol != trace.TCP, s.packet.data && s.takesUp():
		return fresh
	}
	return trace.Conntrack{}
}

// takesUp reports whether connection tracking here takes up TCP connections whose beginning it has not seen.
func (s *step) takesUp() bool {
	loose := ""
	err := s.Inside(s.ctx, s.place, func() error {
		value, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_tcp_loose")
		loose = strings.TrimSpace(string(value))
		return err
	})
	return err == nil && loose != "0"
}

// restores reports whether connection tracking gives the packet the addresses of its connection's first.
func (s *step) restores() bool {
	return !s.packet.outer && s.track.Known() && (s.track.Info == conntrackReply || s.track.Info == conntrackEstablished)
}

// enum ip_conntrack_info (include/uapi/linux/netfilter/nf_conntrack_common.h).
const (
	conntrackEstablished = 0
	conntrackRelated     = 1
	conntrackNew         = 2
	conntrackReply       = 3
	conntrackUntracked   = 7
)

func (s *step) hops() *[]trace.Hop { return s.run.hopsOf(s.packet) }

// hopsOf is where the hops of a packet are noted.
func (r *run) hopsOf(p *packet) *[]trace.Hop {
	switch {
	case p.outer, p.again, p.later:
		return &r.elsewhere
	case p.direction == trace.Reply:
		return &r.answer.Path.Reply
	}
	return &r.answer.Path.Request
}

func (s *step) device(index uint32) trace.Device {
	d := trace.Device{Index: index}
	if l := s.topology.Links[netstate.Port{Netns: s.at.netns, Index: index}]; l != nil {
		d.Name = l.Name
	}
	return d
}

// question asks what the namespace would do with the packet.
func (s *step) question() trace.Question {
	return trace.Question{
		Place: s.place, Packet: s.packet.tuple, Flags: s.packet.flags, Direction: s.packet.direction, In: s.at.in, Arrived: s.at.in,
		Mark: s.packet.mark, Conntrack: s.track, Ahead: true, Fragment: s.packet.later, ICMPType: s.packet.icmp[0], ICMPCode: s.packet.icmp[1],
		ConnMark: s.connMark(),
	}
}

// connMark is the mark of the packet's connection: a new one has none.
func (s *step) connMark() trace.ConnMark {
	mark, marked := s.connMarks[s.at.netns]
	switch {
	case s.packet.outer || s.packet.later:
		return trace.ConnMark{}
	case marked && s.track.Known():
		return mark
	case s.packet.direction == trace.Request && !s.packet.again, s.packet.direction == trace.Reply && s.track.Known() && s.track.Info == conntrackNew:
		return trace.ConnMark{Known: true}
	}
	return trace.ConnMark{}
}

// lost is the case of the packet that is lost here.
func (s *step) lost(symptom trace.Symptom, reason string) trace.Case {
	in := s.device(s.at.in)
	ev := trace.Event{
		Time: s.now, Hook: trace.HookDrop, Netns: s.at.netns, Device: in, Tuple: s.packet.tuple, Flags: s.packet.flags,
		Mark: s.packet.mark, InIndex: s.at.in, OutIndex: s.out.Index, HasRoute: true, Conntrack: s.track, Reason: reason,
		Fragment: s.packet.later,
	}
	c := trace.Case{Symptom: symptom, Direction: s.packet.direction, Place: s.place, Event: ev}
	if s.at.in != 0 {
		c.Arrival = ev
		c.Arrival.Hook, c.Arrival.Reason = trace.HookReceive, ""
	}
	return c
}

// fail has a drop explained.
func (s *step) fail(symptom trace.Symptom, reason string, state *trace.HostState) endKind {
	c := s.lost(symptom, reason)
	s.explain(&c, state)
	return lost
}

// loop sends a packet that is for the host itself by lo.
func (s *step) loop() (position, endKind) {
	filtered, state := s.filters(trace.Output, trace.Postrouting)
	if filtered {
		return position{}, s.filtered(state, trace.Output)
	}
	s.leave(trace.Device{Index: 1, Name: "lo"})
	return position{s.at.netns, 1}, goesOn
}

// deliver gives the packet to this namespace's own sockets.
func (s *step) deliver() endKind {
	filtered, state := s.filters(trace.Ingress, trace.Prerouting, trace.Input)
	early := filtered && state.Filters[0].Hook != trace.Input
	switch {
	case early:
		return s.filtered(state, trace.Input)
	case s.refuses():
		return s.fail(trace.SymptomDrop, "IP_RPFILTER", &s.state)
	case filtered:
		return s.filtered(state, trace.Input)
	}
	if s.packet.direction == trace.Request && !s.packet.outer {
		s.changes(trace.Input) // for the mark that it may give the connection
		s.remember()
		if !s.answers() {
			return s.taken()
		}
	}
	return arrived
}

// taken tells of a request that another host than the one that is to answer takes for its own.
func (s *step) taken() endKind {
	if s.packet.again {
		return left
	}
	s.note("%s owns %s and would take the request itself", s.run.name(s.place), s.packet.tuple.Dst.Addr())
	if s.packet.tuple.Dst.Port() == 0 || diagnose.HasListener(&s.state) {
		return left // a proxy, it may be
	}
	var virtual bool
	err := s.Inside(s.ctx, s.place, func() error {
		services, err := os.ReadFile("/proc/thread-self/net/ip_vs")
		virtual = err == nil && strings.Count(string(services), "\n") > 3
		return nil
	})
	if err != nil || virtual {
		return left // IPVS takes it before any socket
	}
	return s.fail(trace.SymptomRefused, "NO_SOCKET", &s.state)
}

// refuses reports whether reverse-path filtering drops the packet.
func (s *step) refuses() bool {
	return s.at.in > 1 && s.state.In.Name != "lo" && diagnose.RefusesSource(&s.state)
}

// disown tells of a request that came to a host that is to answer, and does not own the destination.
func (s *step) disown() endKind {
	filtered, state := s.filters(trace.Ingress, trace.Prerouting)
	if filtered {
		return s.filtered(state, trace.Prerouting)
	}
	return s.fail(trace.SymptomAsked, "", &s.state)
}

// forward sends the packet on, or out where it was made here.
func (s *step) forward() (position, endKind) {
	hooks := []trace.NetfilterHook{trace.Output, trace.Postrouting, trace.Egress}
	if s.at.in != 0 {
		hooks = []trace.NetfilterHook{trace.Ingress, trace.Prerouting, trace.Forward, trace.Postrouting, trace.Egress}
	}
	if kind := s.unroutable(); kind != goesOn {
		return position{}, kind
	}
	s.hop = s.state.Onward.Gateway
	if !s.hop.IsValid() {
		s.hop = s.packet.tuple.Dst.Addr()
	}
	filtered, state := s.filters(hooks...)
	if filtered {
		hook := trace.Output
		if s.at.in != 0 {
			hook = trace.Forward
		}
		return position{}, s.filtered(state, hook)
	}
	s.clampedHere()
	s.translateOut()
	s.remember()
	s.leave(s.out)
	s.measure()
	if kind := s.passes(s.out.Index, sidesOut); kind != goesOn {
		return position{}, kind
	}
	return s.next(&state)
}

// unroutable tells of a packet for which there is no way, in the kernel's order
// (ip_route_input_slow, net/ipv4/route.c).
func (s *step) unroutable() endKind {
	onward := &s.state.Onward
	early := s.at.in != 0 && (!onward.Found() || !s.state.Forwarding || s.refuses())
	if early {
		if filtered, state := s.filters(trace.Ingress, trace.Prerouting); filtered {
			return s.filtered(state, trace.Prerouting)
		}
	}
	switch {
	case !onward.Found() && s.at.in == 0:
		return s.fail(trace.SymptomDrop, "IP_OUTNOROUTES", &s.state)
	case !onward.Found() && s.state.Forwarding:
		return s.fail(trace.SymptomDrop, "IP_INNOROUTES", &s.state)
	case s.at.in != 0 && (!onward.Found() || !s.state.Forwarding):
		return s.fail(trace.SymptomDrop, "IP_INADDRERRORS", &s.state)
	case s.refuses():
		return s.fail(trace.SymptomDrop, "IP_RPFILTER", &s.state)
	case onward.Type != "unicast":
		return left
	}
	return goesOn
}

// leave notes by which device the packet leaves.
func (s *step) leave(out trace.Device) {
	hops := *s.hops()
	h := &hops[len(hops)-1]
	h.Out, h.Tuple = out, s.packet.tuple
}

// remember keeps what connection tracking here would know of the request.
func (s *step) remember() {
	if s.packet.direction != trace.Request || s.packet.outer || s.packet.again || s.packet.later || s.track.Info == conntrackUntracked {
		return
	}
	s.tracks[s.at.netns] = append(s.tracks[s.at.netns], trace.Conntrack{Original: s.before, Reply: s.packet.tuple.Reverse()})
}
