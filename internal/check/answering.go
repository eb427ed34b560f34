package check

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/diagnose"
)

// answering asks the host that is to answer for what it does with the request
// as it comes in, and follows the reply.
func (r *run) answering(p packet, at position) {
	s := &step{run: r, packet: &p, at: at, place: r.q.From, before: p.tuple}
	s.track = trace.Conntrack{Original: p.tuple, Reply: p.tuple.Reverse(), Info: conntrackNew}
	state, err := s.settled()
	if err != nil || !state.Onward.Done {
		return
	}
	s.state = state
	if !r.known && s.received() {
		return
	}
	if !s.state.DstLocal && !s.isRouter() {
		return // told
	}
	if s.state.DstLocal {
		s.heard()
		if s.silent() || r.replyNever() {
			return
		}
	}
	reply := packet{tuple: p.tuple.Reverse(), direction: trace.Reply, mark: r.q.Mark}
	if p.tuple.Protocol == trace.TCP {
		reply.flags = trace.SYN | trace.ACK
	}
	r.reply = reply
	r.replyFrom = position{netns: at.netns}
	end := r.walk(reply, r.replyFrom)
	switch end.kind {
	case arrived:
		if r.known && end.packet.tuple != r.awaited() {
			r.misaddressed(&end)
			return
		}
		if r.known {
			r.after()
		}
	case left:
		r.note("beyond %s the way of the reply is not known", r.name(r.places.Place(end.at.netns)))
	}
}

// received takes the request in where it was not followed to here. It reports
// whether that settles what becomes of the reply.
func (s *step) received() bool {
	hop := trace.Hop{Place: s.place, In: s.device(s.at.in), Tuple: s.packet.tuple, First: s.now}
	s.answer.Path.Request = append(s.answer.Path.Request, hop)
	if change, ok := s.changes(trace.Prerouting); ok && change.Untracked {
		s.untrack()
	}
	switch {
	case s.state.DstLocal:
		s.deliver()
	case s.isRouter():
		s.note("%s does not own %s, and forwards: it is checked as a router on the way of the reply", s.run.name(s.place), s.packet.tuple.Dst.Addr())
		return false
	case s.run.switched:
		s.run.unread("the request passes a switch in a program, such as Open vSwitch's: whether it comes to %s as one for %s cannot be told", s.run.name(s.place), s.packet.tuple.Dst.Addr())
		return true
	default:
		s.disown()
		return true
	}
	return s.replyTold() // the way back is what is wrong
}

// replyNever reports whether no reply is built, as the finding that there is says.
func (r *run) replyNever() bool {
	return slices.ContainsFunc(r.answer.Findings, func(f trace.Finding) bool { return f.ID == "accept-queue-full" })
}

// awaited is the reply that the client waits for: to what it sent, as that left it.
func (r *run) awaited() trace.Tuple { return r.answer.Path.Connection.Reverse() }

// heard checks that a socket takes the request.
func (s *step) heard() {
	if s.packet.tuple.Dst.Port() == 0 {
		return
	}
	if !diagnose.HasListener(&s.state) {
		s.fail(trace.SymptomRefused, "NO_SOCKET", &s.state)
		return
	}
	full := func(l trace.Listener) bool { return !l.Matches || l.Queue > l.Backlog }
	if s.packet.tuple.Protocol == trace.TCP && !slices.ContainsFunc(s.state.Listeners, func(l trace.Listener) bool { return !full(l) }) {
		defer func(was trace.Confidence) { s.most = was }(s.most)
		s.most = trace.Likely // there may be room by then
		s.fail(trace.SymptomSilence, "", &s.state)
	}
}

// silent reports a reply that is never built, for want of a way to the client.
func (s *step) silent() bool {
	state := s.state
	if s.q.Mark != 0 {
		q := trace.Question{Place: s.place, Packet: s.packet.tuple.Reverse(), Mark: s.q.Mark}
		if back, err := s.read(q); err == nil {
			state.Back = back.Onward
		}
	}
	if !state.Back.Done || state.Back.Found() {
		return false
	}
	c := s.lost(trace.SymptomSilence, "")
	c.Direction = trace.Reply
	s.explain(&c, &state)
	return true
}

// chosenSource is the address that the host that answers would choose towards the client.
func (r *run) chosenSource() (source netip.Addr, err error) {
	failed := r.Inside(r.ctx, r.q.From, func() error {
		found, err := netlink.RouteGet(r.q.Client.Addr().AsSlice())
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return errors.New("no route")
		}
		source, _ = netip.AddrFromSlice(found[0].Src)
		source = source.Unmap()
		return nil
	})
	if failed == nil && !source.IsValid() {
		failed = errors.New("no source address")
	}
	if failed != nil {
		return source, fmt.Errorf("%w: which source address %s would choose towards %s cannot be told (%v): name it with --vip",
			ErrUsage, r.name(r.q.From), r.q.Client.Addr(), failed)
	}
	return source, nil
}
