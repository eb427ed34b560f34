package diagnose

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/replypath/replypath/pkg/trace"
)

// Question returns what has to be asked of the case's namespace to explain the
// case; false when no rule could, whatever the answer.
func Question(c *trace.Case) (trace.Question, bool) {
	ev := &c.Event
	q := trace.Question{
		Place: c.Place, Packet: ev.Tuple, Flags: ev.Flags, In: ev.InIndex, Out: ev.OutIndex, Mark: ev.Mark,
		Direction: c.Direction, SourceMAC: c.Arrival.SourceMAC, Conntrack: ev.Conntrack, Arrived: c.Arrival.Device.Index,
		Ahead: c.Asked,
	}
	switch c.Symptom {
	case trace.SymptomPassed, trace.SymptomUnsent:
		return q, true
	case trace.SymptomSwallowed:
		q.Switched = ev.Device.Index
		return q, true
	case trace.SymptomSilence:
		q.Switched = ev.Device.Index
		if c.Miss.Mark != 0 {
			q.Mark = c.Miss.Mark
		}
		if back := c.Miss.Tuple; back.IsValid() && back.Dst.Addr() == ev.Tuple.Src.Addr() {
			// The lookup for the answer names the address that really answers: after a DNAT it is another.
			q.Packet = back.Reverse()
		}
		return q, true
	case trace.SymptomRefused, trace.SymptomLoop, trace.SymptomDeaf, trace.SymptomAstray, trace.SymptomAsked:
		return q, true
	case trace.SymptomTooBig:
		if ev.Hook == trace.HookDrop && isNetfilterDrop(c) && ev.Reporter.IsValid() {
			return icmpQuestion(c, q), true
		}
		q.In, q.Out = 0, 0 // the packet's own: of the ICMP error about it nothing is asked
		return q, true
	case trace.SymptomMisled:
		return q, true
	case trace.SymptomVanished:
		q.Policy = true
		return q, c.Suspect
	case trace.SymptomMisaddressed:
		if f, ok := wrongSource(&c.Path); ok && f.deviation == ownSource && f.got.Protocol == trace.UDP {
			q.Packet, q.In, q.Receivers = f.want.Reverse(), 0, true // which socket took the question
		}
		return q, c.Suspect
	case trace.SymptomStray:
		return q, c.Suspect
	case trace.SymptomUnanswered, trace.SymptomErrorResponse, trace.SymptomLate, trace.SymptomAmplified:
		return dnsQuestion(c, q), true
	case trace.SymptomUnmatched:
		return q, true
	case trace.SymptomDrop:
		q.Tunnels = isTunnelDrop(ev) || isNeighborDrop(ev)
		switch {
		case ev.BySwitch():
			q.Switched = switchPort(ev)
			return q, true
		case isOversizeDrop(ev):
			q.Out = ev.Device.Index
			return q, true
		case ev.Fragment, isReassembly(ev):
			return fragmentQuestion(c, q), true
		case isBufferDrop(ev) && !ev.Carried.Known():
			q.Receivers = true
			return q, true
		case isTunnelDrop(ev):
			return q, true
		case isNetfilterDrop(c):
			q.Filters, q.MoreFragments = netfilterHooks(c), ev.MoreFragments
			q.Limits, q.Tracked = asksLimits(c) || mayRace(c), tracked(c)
			if ev.OtherHost && ev.Device.Index != ev.InIndex {
				q.Out = ev.Device.Index // a bridge has chosen the port; there is no route
			}
			return q, true
		case isNeighborDrop(ev):
			q.Out = ev.Device.Index
			if q.Out == 0 {
				q.Out = ev.OutIndex
			}
			return q, true
		case isRoutingDrop(ev), isLocalnetDrop(ev):
			return q, true
		case isXDPDrop(ev) || isTCDrop(ev):
			q.Attached = attachedDevice(ev)
			if q.In == 0 && isXDPDrop(ev) {
				q.In = ev.Device.Index // it came in, but was not received yet
			}
			return q, true
		}
	}
	return trace.Question{}, false
}

// dnsQuestion asks where a DNS query took the turn for the worse: which socket took it.
func dnsQuestion(c *trace.Case, q trace.Question) trace.Question {
	if c.Symptom == trace.SymptomErrorResponse || c.Symptom == trace.SymptomLate {
		q.Packet, q.In, q.Arrived = queryAt(c.Trouble.Root(), c.Place.Netns, q.Packet), 0, 0
	}
	q.Receivers = true
	q.Limits = c.Symptom == trace.SymptomUnanswered && c.Trouble.Lost
	return q
}

// queryAt is a query's tuple as it came to a namespace.
func queryAt(x *trace.Exchange, ns trace.Netns, otherwise trace.Tuple) trace.Tuple {
	for i := range x.Sightings {
		if s := &x.Sightings[i]; !s.Reply && !s.Transmit && s.Place != nil && s.Place.Netns == ns {
			return x.TupleOf(s)
		}
	}
	return otherwise
}

// icmpQuestion asks what filters do with the ICMP error that was dropped.
func icmpQuestion(c *trace.Case, q trace.Question) trace.Question {
	ev := &c.Event
	q.Packet = trace.Tuple{Protocol: trace.ICMP, Src: netip.AddrPortFrom(ev.Reporter, 0), Dst: netip.AddrPortFrom(ev.Tuple.Src.Addr(), 0)}
	if ev.Tuple.Is6() {
		q.Packet.Protocol = trace.ICMPv6
	}
	q.Flags, q.ICMPType, q.ICMPCode = 0, ev.ICMPType, ev.ICMPCode
	q.Filters, q.SourceMAC, q.Arrived = netfilterHooks(c), ev.SourceMAC, 0
	return q
}

// fragmentQuestion asks what filters do with a fragment: it has no ports.
func fragmentQuestion(c *trace.Case, q trace.Question) trace.Question {
	ev := &c.Event
	if !ev.Fragment || !isNetfilterDrop(c) {
		return q
	}
	q.Packet.Src, q.Packet.Dst = netip.AddrPortFrom(q.Packet.Src.Addr(), 0), netip.AddrPortFrom(q.Packet.Dst.Addr(), 0)
	q.Filters, q.Fragment, q.MoreFragments = netfilterHooks(c), true, ev.MoreFragments
	return q
}

// DependsOnPath reports whether the mend depends on who is on this host's links
// along the path: then HostState.PathGateways has to be filled.
func DependsOnPath(c *trace.Case, s *trace.HostState) bool {
	if c.Symptom == trace.SymptomAstray {
		return true
	}
	l, ok := lookupBack(c, s)
	return ok && l.Done && !l.Found() && (!l.Rejected() || isDefault(l.Prefix))
}

// DependsOnOwner reports whether the cause depends on who owns the packet's
// destination: then HostState.Owners has to be filled.
func DependsOnOwner(c *trace.Case, s *trace.HostState) bool {
	if c.Direction != trace.Request || s.DstLocal {
		return false
	}
	if c.Symptom == trace.SymptomAsked {
		return true
	}
	return wasNotTaken(c, s) && !(s.Forwarding && s.Onward.Found()) || wasLetGo(c) && hasListener(s)
}

// ReplyQuestion asks whether the filter that dropped a request would drop its
// answer too, so that the mend lets both pass; false when that is not the question.
func ReplyQuestion(q *trace.Question) (trace.Question, bool) {
	if q.Direction != trace.Request || len(q.Filters) == 0 {
		return trace.Question{}, false
	}
	bridged := q.Filters[0] == trace.Prerouting && q.Out != 0 // between two ports
	if q.Filters[0] != trace.Forward && !bridged {
		return trace.Question{}, false
	}
	r := *q
	r.Packet, r.Direction = q.Packet.Reverse(), trace.Reply
	if q.Packet.Protocol == trace.TCP {
		r.Flags = trace.SYN | trace.ACK
	}
	r.In, r.Out, r.Arrived, r.SourceMAC = q.Out, q.In, 0, [6]byte{}
	r.Filters = q.Filters[:1]
	if bridged {
		return r, true
	}
	original := q.Packet
	if q.Conntrack.Known() {
		original = q.Conntrack.Original
	}
	r.Conntrack = trace.Conntrack{Original: original, Reply: r.Packet, Info: conntrackEstablishedReply}
	return r, true
}

// conntrackEstablishedReply is IP_CT_ESTABLISHED_REPLY of include/uapi/linux/netfilter/nf_conntrack_common.h.
const conntrackEstablishedReply = 3

// DependsOnNextHop reports whether the cause depends on who has the next hop's
// address: then HostState.NextHopOwner and NextHopDevice have to be filled.
func DependsOnNextHop(c *trace.Case, s *trace.HostState) bool {
	return c.Symptom == trace.SymptomDrop && isNeighborDrop(&c.Event) && s.NextHop.Addr.IsValid()
}

// Deaf returns the case of the next hop that is there and did not answer: why
// not, is for its own host to say. The packet is the one that asked: its sender
// is the source of the packet that waits, where that is the host's own
// (arp_solicit, net/ipv4/arp.c).
func Deaf(c *trace.Case, s *trace.HostState) (trace.Case, bool) {
	if !DependsOnNextHop(c, s) || s.NextHopOwner.Netns == 0 || !s.SrcLocal {
		return trace.Case{}, false
	}
	if c.Event.Tuple.Is6() {
		return mute(c, s), !c.Asked
	}
	d := *c
	d.Symptom, d.Place = trace.SymptomDeaf, s.NextHopOwner
	d.Event.Netns, d.Event.Device = s.NextHopOwner.Netns, s.NextHopDevice
	d.Event.InIndex, d.Event.OutIndex = s.NextHopDevice.Index, 0
	d.Event.Tuple.Dst = netip.AddrPortFrom(s.NextHop.Addr, 0)
	d.Arrival = trace.Event{}
	d.Miss = trace.Event{}
	return d, true
}

// Wants reports whether a case can be explained at all.
func Wants(c *trace.Case) bool {
	_, asks := Question(c)
	return asks || len(Suspects(c)) > 0
}

// Suspects returns the cases that have to be looked at before c itself: hosts
// earlier on the way that should have kept the packet instead of sending it on.
// A request that dies on the way to nobody, or circles, was often let go by the
// host that it was meant for.
func Suspects(c *trace.Case) []trace.Case {
	if c.Symptom == trace.SymptomUnmatched {
		return unmatchedSuspects(c)
	}
	if c.Trouble != nil && c.Symptom != trace.SymptomMisaddressed {
		return nil
	}
	if c.Direction == trace.Reply {
		suspects := slices.Concat(intoNowhere(c), replySuspects(c), misled(c))
		if a, ok := astray(c); ok {
			suspects = append(suspects, a)
		}
		return suspects
	}
	if c.Direction != trace.Request || c.Symptom == trace.SymptomSilence || c.Symptom == trace.SymptomRefused || c.Trouble != nil {
		return nil
	}
	suspects := misled(c)
	for i := len(c.Path.Request) - 1; i > 0; i-- { // the first hop is the client, or the way in
		h := &c.Path.Request[i]
		if h.In.Index == 0 || h.Out.Index == 0 {
			continue
		}
		s := *c
		s.Suspect, s.Symptom, s.Place = true, trace.SymptomLoop, h.Place
		if c.Symptom == trace.SymptomStray && h.In.Index != h.Out.Index {
			if h.Bridged || i != len(c.Path.Request)-1 || c.Path.Requests > strayRepeats {
				continue
			}
			s.Symptom = trace.SymptomStray // it went on from here, and nobody saw it again
		}
		s.Event.Netns, s.Event.Device, s.Event.InIndex, s.Event.OutIndex = h.Place.Netns, h.In, h.In.Index, 0
		s.Event.Tuple = h.Tuple
		s.Arrival = s.Event
		s.Arrival.Hook, s.Arrival.Time = trace.HookReceive, h.First
		suspects = append(suspects, s)
	}
	return suspects
}

// strayRepeats is up to which repetition of a request the host that sent it on is
// asked: routers see many that go to machines which are not there.
const strayRepeats = 3

// isNetfilterDrop reports a drop by a rule, a policy or conntrack. Kernels
// before 5.17 give no reason: there the function tells.
func isNetfilterDrop(c *trace.Case) bool {
	ev := &c.Event
	if c.Verdict.Known() {
		return true
	}
	if isOversizeDrop(ev) {
		return false
	}
	if ev.Reason != "" && ev.Reason != "NOT_SPECIFIED" {
		return ev.Reason == "NETFILTER_DROP" || ev.Reason == "NETFILTER_INGRESS"
	}
	return hasPrefix(ev.Symbol, "nft_do_chain", "nf_hook_slow", "ipt_do_table", "ip6t_do_table", "nf_hook_ingress", "nf_hook_netdev", "br_nf_") ||
		isBridgeEntry(ev) || isQueueDrop(ev)
}

// isBridgeEntry reports a drop where frames come into a bridge: its hook
// PREROUTING is part of that function, and drops without a reason.
func isBridgeEntry(ev *trace.Event) bool { return hasPrefix(ev.Symbol, "br_handle_frame") }

// isRerouted reports a packet made here that a mark, or another destination, given at hook OUTPUT sent to
// another route, which refuses it (ip_route_me_harder). Netfilter drops it then,
// and no rule says so.
func isRerouted(c *trace.Case, s *trace.HostState) bool {
	ev := &c.Event
	return c.Symptom == trace.SymptomDrop && isNetfilterDrop(c) && c.Verdict.By <= trace.ByHook && ev.InIndex == 0 && ev.Device.Index == 0 &&
		(ev.Mark != 0 || ev.Conntrack.Known() && ev.Conntrack.Original.Dst.Addr() != ev.Tuple.Dst.Addr()) && len(s.Filters) == 0 && s.Onward.Done && !s.Onward.Found()
}

// netfilterHooks returns the hooks at which the packet can have been dropped,
// most likely first: the one that netfilter told, else from the state of its route.
func netfilterHooks(c *trace.Case) []trace.NetfilterHook {
	ev := &c.Event
	if v := c.Verdict; v.Hook != "" && v.Family != bridgeFamily {
		return []trace.NetfilterHook{v.Hook}
	}
	onLoopback := ev.Device.Name == "lo"
	switch {
	case !ev.HasRoute:
		return []trace.NetfilterHook{trace.Prerouting, trace.Ingress}
	case ev.Device.Index == 0:
		return []trace.NetfilterHook{trace.Output, trace.Postrouting}
	case onLoopback && ev.InIndex != 0:
		return []trace.NetfilterHook{trace.Input, trace.Prerouting}
	case ev.InIndex == 0:
		return []trace.NetfilterHook{trace.Postrouting, trace.Output, trace.Egress}
	case hasPrefix(ev.Input, "ip_forward", "ip6_forward"):
		if ev.Device.Index == ev.OutIndex && ev.InIndex != ev.OutIndex {
			return []trace.NetfilterHook{trace.Postrouting, trace.Egress}
		}
		return []trace.NetfilterHook{trace.Forward, trace.Postrouting}
	case hasPrefix(ev.Input, "ip_local_deliver", "ip6_input"):
		return []trace.NetfilterHook{trace.Input}
	}
	return []trace.NetfilterHook{trace.Forward, trace.Input, trace.Postrouting, trace.Prerouting}
}

// bridgeFamily has hooks of its own, that bridged packets pass beside those of their protocol.
const bridgeFamily = "bridge"

// isNeighborDrop reports a packet that waited for its next hop's MAC in vain.
// IPv6 gives no reason of its own: there the function tells.
func isNeighborDrop(ev *trace.Event) bool {
	switch ev.Reason {
	case "NEIGH_FAILED", "NEIGH_QUEUEFULL", "NEIGH_CREATEFAIL", "NEIGH_DEAD":
		return true
	case "", "NOT_SPECIFIED":
		return hasPrefix(ev.Symbol, "neigh_", "__neigh_", "arp_error_report", "ndisc_error_report")
	}
	return false
}

// isQueueFull reports a packet that found too many others waiting for the next hop's MAC.
func isQueueFull(ev *trace.Event) bool {
	return ev.Reason == "NEIGH_QUEUEFULL" || ev.Reason == "" && hasPrefix(ev.Symbol, "__neigh_event_send")
}

// isRoutingDrop reports a packet for which the host had no way, or refused it one.
func isRoutingDrop(ev *trace.Event) bool {
	switch ev.Reason {
	case "IP_INNOROUTES", "IP_OUTNOROUTES", "IP_INADDRERRORS", "IP_RPFILTER":
		return true
	case "", "NOT_SPECIFIED":
		return hasPrefix(ev.Symbol, "ip_error", "ip_rcv_finish", "ip_route_input", "ip_forward", "ip6_forward", "ip6_pkt_",
			"dst_discard", "ip6_rcv_finish", "ip6_input", "__ip_queue_xmit", "ip6_xmit", "inet6_csk_", "ip_list_rcv_finish")
	}
	return false
}

// isMartian reports a drop without a reason where IPv4 looks for a packet's
// route: reverse-path filtering, or an address that no packet may have. A packet
// that this host does not own or forward goes on to ip_error instead.
func isMartian(ev *trace.Event) bool {
	return (ev.Reason == "" || ev.Reason == "NOT_SPECIFIED") && hasPrefix(ev.Symbol, "ip_rcv_finish", "ip_list_rcv_finish", "ip_route_input")
}

// isRPFilterDrop reports a drop by reverse-path filtering. Kernels before 5.17
// give no reason: there it is what rp_filter would do with the packet, dropped
// in the function that asks it.
func isRPFilterDrop(ev *trace.Event, s *trace.HostState) bool {
	if ev.Reason != "" {
		return ev.Reason == "IP_RPFILTER"
	}
	return hasPrefix(ev.Symbol, "ip_rcv_finish") && refusesSource(s)
}

// refusesSource reports whether rp_filter forbids what comes from the packet's
// source by the device that it came in by.
func refusesSource(s *trace.HostState) bool {
	if s.In.RPFilter == 0 || !s.Back.Done || s.SrcLocal {
		return false // a source that is the host's own is refused with or without rp_filter
	}
	strict := s.In.RPFilter == 1
	return !s.Back.Found() || strict && s.Back.Device.Index != s.In.Index
}

func hasPrefix(s string, prefixes ...string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}

// RefusesSource reports whether reverse-path filtering would drop what comes
// from the packet's source by the device that it comes in by.
func RefusesSource(s *trace.HostState) bool { return refusesSource(s) }

// HasListener reports whether a socket would take the packet, were its destination local.
func HasListener(s *trace.HostState) bool { return hasListener(s) }
