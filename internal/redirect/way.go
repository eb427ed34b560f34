package redirect

import (
	"net/netip"
	"os"
	"strings"

	"github.com/replypath/replypath/internal/netfilter"
	"github.com/replypath/replypath/pkg/trace"
)

// finish finds who listens where each leg ends, and what drops it on its way.
func (h *half) finish() {
	last := map[trace.RedirectRole]int{}
	for i := range h.family.Legs {
		l := &h.family.Legs[i]
		if l.Taken {
			h.listen(l)
			h.answerZone(l)
			l.LocalnetOff = h.localnetOff(l)
			last[l.Role] = i
		} else if l.Role == trace.RolePassthrough {
			last[l.Role] = i
		}
	}
	for i := range h.family.Legs { // of DNS that goes past: the zone in which it would be answered
		if l := &h.family.Legs[i]; l.Role == trace.RoleDNS && !l.Taken && h.family.DNSPort != 0 {
			as := *l
			as.Target = netip.AddrPortFrom(loopback(h.six), h.family.DNSPort)
			h.listen(&as)
			h.answerZone(&as)
			l.AnswerZone = as.AnswerZone
		}
	}
	for i := range h.family.Legs { // what goes past may be dropped: then it does no harm
		if l := &h.family.Legs[i]; h.six && !l.Taken && (l.Role == trace.RoleOutbound || l.Role == trace.RoleInbound) {
			h.drops(l)
		}
	}
	for role, i := range last { // where several end alike, one is enough
		if role != trace.RoleProxy && role != trace.RoleProxyDNS {
			h.drops(&h.family.Legs[i])
		}
	}
}

// answerZone finds the zone of connection tracking of what answers a redirected datagram. (That of TCP is found by its
// first packet, and no mesh puts it into one.)
func (h *half) answerZone(l *trace.RedirectLeg) {
	l.AnswerZone = l.Zone
	if l.Packet.Protocol != trace.UDP || l.Role != trace.RoleDNS || len(l.Sockets) == 0 {
		return
	}
	answer := netfilter.Sample{Hook: trace.Output, Tuple: trace.Tuple{Protocol: trace.UDP, Src: l.Target, Dst: l.Packet.Src}, Out: h.lo(), Owner: h.ownerOf(&l.Sockets[0])}
	met, err := h.rules.Meet(answer)
	h.unreadRules(err)
	if len(met.Doubts) == 0 {
		l.AnswerZone = met.Zone
	}
}

// ownerOf is who opened a socket, as rules see what it sends.
func (h *half) ownerOf(s *trace.Socket) netfilter.Owner {
	if s.UID == 0 && h.letsOthersGo() { // a stand-in, as nameProxy has it
		if owner, ok := h.proxyOwner(); ok {
			return owner
		}
	}
	if p := &h.r.Proxy; p.Known && p.UID == s.UID {
		return netfilter.Owner{Known: true, UID: p.UID, GID: p.GID, GIDKnown: p.HasGID}
	}
	return netfilter.Owner{Known: true, UID: s.UID}
}

// localnetOff reports a packet from outside that is sent to 127/8, which the
// kernel takes for a martian unless route_localnet says otherwise (ip_route_input_slow).
func (h *half) localnetOff(l *trace.RedirectLeg) bool {
	if l.Role != trace.RoleInbound || l.Kind != string(netfilter.DivertDNAT) || h.six || !l.Target.Addr().IsLoopback() {
		return false
	}
	return !routesLocalnet(l.Device)
}

// routesLocalnet reports whether packets from and to 127/8 may pass a device; yes, if that cannot be read.
func routesLocalnet(device string) bool {
	for _, d := range []string{"all", device} {
		b, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + d + "/route_localnet")
		if err != nil || strings.TrimSpace(string(b)) != "0" {
			return true
		}
	}
	return false
}

// step is a packet of a leg at one hook.
type step struct {
	netfilter.Sample
	loopback bool
}

// drops finds a rule that is sure to drop a packet of the leg's handshake.
func (h *half) drops(l *trace.RedirectLeg) {
	found := func(v *trace.FilterVerdict, s step) {
		l.Drop, l.DropAnswer, l.OnLoopback = v, s.Reply, s.loopback
	}
	if l.Role != trace.RoleInbound {
		if v, s := h.dropped(h.within(l)); v != nil {
			found(v, s)
		}
		return
	}
	// A filter may let some clients pass and not others: it is a fault when it lets none.
	var first *trace.FilterVerdict
	var where step
	for _, from := range h.clients() {
		v, s := h.dropped(h.fromOutside(l, from))
		if v == nil {
			return
		}
		if first == nil {
			first, where = v, s
		}
	}
	found(first, where)
}

// clients are addresses from which a client may call.
func (h *half) clients() []netip.Addr {
	out := []netip.Addr{h.remote()}
	if n := h.own().Next(); n.IsValid() {
		out = append(out, n)
	}
	others := []string{"10.0.0.77", "10.244.77.77", "172.16.0.77", "192.168.0.77", "100.64.0.77"}
	if h.six {
		others = []string{"fd00::77", "2001:db8::77", "fd77:77::77"}
	}
	for _, a := range others {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// dropped returns the rule that drops the first of the steps that is dropped for sure.
func (h *half) dropped(steps []step) (*trace.FilterVerdict, step) {
	for _, s := range steps {
		found, err := h.rules.Drops(s.Sample)
		if err != nil {
			h.unread(name(h.six)+" filters", err)
		}
		if len(found) == 1 && found[0].Certain {
			return &found[0], s
		}
	}
	return nil, step{}
}

// within are the hooks that a handshake passes which never leaves this namespace.
func (h *half) within(l *trace.RedirectLeg) []step {
	owner := h.app
	if p := h.r.Proxy; l.Role == trace.RolePassthrough || l.Role == trace.RoleSelf {
		owner = netfilter.Owner{Known: true, UID: p.UID, GID: p.GID, GIDKnown: p.HasGID}
	}
	after := l.Packet
	if l.Taken && l.Kind != string(netfilter.DivertTProxy) {
		after.Dst = l.Target
	}
	lo := h.lo()
	if !l.Taken && l.Role == trace.RoleOutbound {
		s := netfilter.Sample{Tuple: after, Owner: owner, Out: h.outside()}
		first, last := s, s
		first.Hook, last.Hook = trace.Output, trace.Postrouting
		return []step{{first, false}, {last, false}}
	}
	out := lo
	if l.Device != lo.Name {
		out = h.outside()
	}
	request := func(hook trace.NetfilterHook, in, out trace.Interface) step {
		return step{netfilter.Sample{Hook: hook, Tuple: after, Original: l.Packet, In: in, Out: out, Owner: owner}, true}
	}
	none := trace.Interface{}
	back := netfilter.Sample{Hook: trace.Output, Tuple: after.Reverse(), Original: l.Packet.Reverse(), Out: lo, Reply: true}
	if l.Taken && len(l.Sockets) > 0 {
		back.Owner = netfilter.Owner{Known: true, UID: l.Sockets[0].UID}
	}
	home := netfilter.Sample{Hook: trace.Input, Tuple: l.Packet.Reverse(), Original: l.Packet.Reverse(), In: lo, Reply: true}
	return []step{
		request(trace.Output, none, out), request(trace.Postrouting, none, lo),
		request(trace.Prerouting, lo, none), request(trace.Input, lo, none),
		{back, true}, {home, true},
	}
}

// fromOutside are the hooks that a handshake with another host passes here.
func (h *half) fromOutside(l *trace.RedirectLeg, from netip.Addr) []step {
	before := l.Packet
	before.Src = netip.AddrPortFrom(from, before.Src.Port())
	after := before
	if l.Taken && l.Kind != string(netfilter.DivertTProxy) {
		after.Dst = l.Target
	}
	dev := h.outside()
	request := func(hook trace.NetfilterHook) step {
		return step{netfilter.Sample{Hook: hook, Tuple: after, Original: before, In: dev}, false}
	}
	back := netfilter.Sample{Hook: trace.Output, Tuple: after.Reverse(), Original: before.Reverse(), Out: dev, Reply: true}
	if len(l.Sockets) > 0 {
		back.Owner = netfilter.Owner{Known: true, UID: l.Sockets[0].UID}
	}
	return []step{request(trace.Prerouting), request(trace.Input), {back, false}}
}
