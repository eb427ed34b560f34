package redirect

import (
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/replypath/replypath/internal/netfilter"
	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/mesh"
)

// nameProxy finds out who the proxy is: whoever listens where outbound traffic
// goes, else inbound, else DNS.
func (n *inspection) nameProxy() {
	p := &n.r.Proxy
	var found []trace.Socket
	for _, role := range []trace.RedirectRole{trace.RoleOutbound, trace.RoleInbound, trace.RoleDNS, trace.RoleDNSTCP} {
		for _, h := range n.halves {
			for i := range h.family.Legs {
				l := &h.family.Legs[i]
				if l.Role == role && l.Taken {
					h.listen(l)
					found = append(found, l.Sockets...)
				}
			}
		}
	}
	if len(found) > 0 {
		owner := found[:1]
		netstate.NameOwners(n.ctx, owner)
		p.Known, p.UID, p.Process = true, owner[0].UID, owner[0].Process
		if uid, ok := ownerOf(int(p.Process.PID), "Uid:"); ok && p.UID == 0 {
			p.UID = uid // it listened as root, and is another user since: so rules see what it opens now
		}
		p.GID, p.HasGID = ownerOf(int(p.Process.PID), "Gid:")
		if p.Root = p.UID == 0 && n.letsOthersGo(); p.Root {
			p.Known, p.HasGID = false, false
		}
	} else if uid := os.Geteuid(); uid != 0 { // an init container runs as the proxy will
		p.Known, p.UID, p.GID, p.HasGID = true, uint32(uid), uint32(os.Getegid()), true
	}
	if n.o.ProxyUID != nil {
		p.Known, p.Named, p.UID = true, true, *n.o.ProxyUID
		p.GID, p.HasGID = *n.o.ProxyUID, true
		if n.o.ProxyGID != nil {
			p.GID = *n.o.ProxyGID
		}
	}
}

// letsOthersGo reports whether rules let users go, and not root.
func (n *inspection) letsOthersGo() bool {
	others := false
	for _, h := range n.halves {
		others = others || len(h.family.UIDs) > 0
		if slices.Contains(h.family.UIDs, 0) || slices.Contains(h.family.GIDs, 0) {
			return false
		}
	}
	return others
}

// ownerOf is the user ("Uid:") or group ("Gid:") with which a process opens files, and sockets.
func ownerOf(pid int, field string) (uint32, bool) {
	if pid <= 0 {
		return 0, false
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			if f := strings.Fields(rest); len(f) == 4 {
				id, err := strconv.ParseUint(f[3], 10, 32)
				return uint32(id), err == nil
			}
		}
	}
	return 0, false
}

// listen finds the sockets that take what a leg ends at.
func (h *half) listen(l *trace.RedirectLeg) {
	l.Sockets, l.Others = nil, nil
	for i := range h.sockets {
		s := &h.sockets[i]
		switch {
		case s.Protocol != l.Packet.Protocol || s.Local.Port() != l.Target.Port():
		case netstate.Takes(s, l.Target):
			l.Sockets = append(l.Sockets, *s)
		default:
			l.Others = append(l.Others, *s)
		}
	}
}

// proxyOwner is the proxy, as rules see it: known, or else whoever the rules let go.
func (h *half) proxyOwner() (netfilter.Owner, bool) {
	p := &h.r.Proxy
	if p.Known {
		return netfilter.Owner{Known: true, UID: p.UID, GID: p.GID, GIDKnown: p.HasGID}, true
	}
	if len(h.family.UIDs) > 0 {
		uid := h.family.UIDs[0]
		if m := mesh.Named(h.r.Mesh); m != nil && slices.Contains(h.family.UIDs, m.UID) {
			uid = m.UID
		}
		if !p.HasGID && p.UID == 0 {
			p.UID, p.GID, p.HasGID = uid, uid, true
		}
		return netfilter.Owner{Known: true, UID: uid, GID: uid, GIDKnown: true}, true
	}
	return netfilter.Owner{}, false
}

// proxy asks what becomes of the proxy's own traffic.
func (h *half) proxy() {
	owner, ok := h.proxyOwner()
	h.family.Passes = slices.Contains(h.mentions.Sources, passthrough(h.six))
	add := func(role trace.RedirectRole, s netfilter.Sample) {
		h.family.Legs = append(h.family.Legs, h.unmarked(role, s))
	}
	out := h.family.Leg(trace.RoleOutbound)
	dns := h.family.Leg(trace.RoleDNS)
	if !ok {
		owner = h.app
	}
	if out != nil && out.Taken {
		add(trace.RoleProxy, h.outbound(trace.TCP, out.Packet.Dst, owner))
	}
	if dns != nil && dns.Taken {
		asker := owner
		if len(dns.Sockets) > 0 && !h.r.Proxy.Named && !(dns.Sockets[0].UID == 0 && h.letsOthersGo()) { // whoever answers asks on
			asker = netfilter.Owner{Known: true, UID: dns.Sockets[0].UID, GID: owner.GID, GIDKnown: owner.GIDKnown && dns.Sockets[0].UID == owner.UID}
		}
		add(trace.RoleProxyDNS, h.outbound(trace.UDP, dns.Packet.Dst, asker))
	}
	if !h.family.Takes(trace.RoleInbound) || !ok {
		return
	}
	port := h.port()
	if len(h.ports) > 0 {
		port = h.ports[0]
	}
	if h.passes() {
		s := h.outbound(trace.TCP, netip.AddrPortFrom(h.own(), port), owner)
		s.Out, s.Tuple.Src = h.lo(), netip.AddrPortFrom(passthrough(h.six), clientPort)
		add(trace.RolePassthrough, s)
	}
	s := h.outbound(trace.TCP, netip.AddrPortFrom(passthrough(h.six), selfCallPort), owner)
	add(trace.RoleSelf, s)
}

// passes reports whether the proxy may call the application from 127.0.0.6 or
// ::6: a mesh does that, or rules that know the address.
func (h *half) passes() bool {
	if m := mesh.Named(h.r.Mesh); m != nil && m.SelfCalls {
		return true
	}
	return h.family.Passes
}

// unmarked asks for the proxy's packet and, where that would be taken, whether a
// mark that rules know would keep it from that: proxies may mark their packets.
func (h *half) unmarked(role trace.RedirectRole, s netfilter.Sample) trace.RedirectLeg {
	leg := h.ask(role, s)
	if !leg.Taken || role == trace.RoleSelf {
		return leg
	}
	for _, mark := range h.mentions.Marks {
		if mark == 0 {
			continue
		}
		s.Mark = mark
		if other := h.ask(role, s); !other.Taken {
			h.family.Distinguished, h.family.Marks = true, append(h.family.Marks, mark)
			return other
		}
	}
	return leg
}

// excusedOwners finds whose packets go past the outbound redirect.
func (h *half) excusedOwners() {
	f := h.family
	out := f.Leg(trace.RoleOutbound)
	if out == nil || !out.Taken {
		if out = f.Leg(trace.RoleDNS); out == nil || !out.Taken {
			return
		}
	}
	try := func(o netfilter.Owner) bool {
		l := h.ask(trace.RoleProxy, h.outbound(out.Packet.Protocol, out.Packet.Dst, o))
		return !l.Taken && len(l.Doubts) == 0
	}
	for _, uid := range h.mentions.UIDs {
		o := h.app
		if o.UID = uid; try(o) {
			f.UIDs = append(f.UIDs, uid)
		}
	}
	for _, gid := range h.mentions.GIDs {
		o := h.app
		if o.GID = gid; try(o) {
			f.GIDs = append(f.GIDs, gid)
		}
	}
	f.Distinguished = f.Distinguished || len(f.UIDs)+len(f.GIDs) > 0
}
