package redirect

import (
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/internal/netfilter"
	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/mesh"
)

const (
	upFlag       = unix.IFF_UP
	loopbackFlag = unix.IFF_LOOPBACK

	clientPort   = 49160 // such as clients have
	dnsPort      = 53
	mostSamples  = 64
	mostTries    = 4096
	commonPort   = 29080 // such as services have; moved where rules mention it
	selfCallPort = 24242 // between 20000 and 29999, as Kuma's validator takes it
)

// Addresses that samples have: documentation's, so that they are nobody's (RFC 5737, RFC 3849).
var (
	remote4, remote6 = netip.MustParseAddr("203.0.113.77"), netip.MustParseAddr("2001:db8:77::77")
	here4, here6     = netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8:10::10")
	pass4, pass6     = netip.MustParseAddr("127.0.0.6"), netip.MustParseAddr("::6")
	loop4, loop6     = netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()
)

func choose(six bool, four, other netip.Addr) netip.Addr {
	if six {
		return other
	}
	return four
}

func passthrough(six bool) netip.Addr { return choose(six, pass4, pass6) }
func loopback(six bool) netip.Addr    { return choose(six, loop4, loop6) }

// remote is an address of another host that no rule mentions.
func (h *half) remote() netip.Addr { return choose(h.six, remote4, remote6) }

// own is the namespace's address; a stand-in where it has none.
func (h *half) own() netip.Addr {
	if h.family.Address.IsValid() {
		return h.family.Address
	}
	return choose(h.six, here4, here6)
}

// lo is the loopback device.
func (h *half) lo() trace.Interface {
	return trace.Interface{Device: trace.Device{Index: max(h.r.Loopback.Index, 1), Name: "lo"}, Up: true}
}

// outside is the device that leads to other hosts; a stand-in where there is none.
func (h *half) outside() trace.Interface {
	var first *link
	for i := range h.links {
		l := &h.links[i]
		if l.loopback || !l.Up {
			continue
		}
		if slices.ContainsFunc(l.addrs, func(a netip.Addr) bool { return a == h.family.Address }) {
			return l.Interface
		}
		if first == nil {
			first = l
		}
	}
	if first != nil {
		return first.Interface
	}
	return trace.Interface{Device: trace.Device{Name: "eth0"}, Kind: "veth", Up: true}
}

// port is one that neither rules nor sockets know.
func (h *half) port() uint16 {
	p := uint16(commonPort)
	for slices.Contains(h.mentions.Ports, p) || slices.ContainsFunc(h.sockets, func(s trace.Socket) bool { return s.Local.Port() == p }) {
		p++
	}
	return p
}

// targets are the ports to which the family's rules divert.
func (h *half) targets() []uint16 {
	var out []uint16
	for _, c := range h.mentions.Chains {
		out = append(out, c.Ports...)
	}
	return out
}

// services are the ports at which applications listen: other than those of the proxy.
func (h *half) services() []uint16 {
	var out []uint16
	known := h.targets()
	for _, m := range mesh.Known {
		known = append(append(append(known, m.Inbound...), m.Outbound...), m.DNS...)
	}
	for _, s := range h.sockets {
		p := s.Local.Port()
		if s.Protocol == trace.TCP && !s.Local.Addr().IsLoopback() && !slices.Contains(known, p) && !slices.Contains(out, p) && len(out) < mostSamples {
			out = append(out, p)
		}
	}
	return out
}

// ask makes a leg of a sample.
func (h *half) ask(role trace.RedirectRole, s netfilter.Sample) trace.RedirectLeg {
	leg := trace.RedirectLeg{Role: role, Packet: s.Tuple, UID: s.Owner.UID, Device: s.Out.Name + s.In.Name}
	met, err := h.rules.Meet(s)
	h.unreadRules(err)
	leg.Taken, leg.Rule, leg.Excused = met.Taken, met.Rule, met.Excused
	leg.Untracked = met.Untracked
	leg.Chain, leg.Handle, leg.Line = met.Chain, met.Handle, met.Line
	leg.Chains, leg.Backend, leg.Zone, leg.Doubts = met.Chains, met.Backend, met.Zone, met.Doubts
	leg.Family, leg.Table, leg.Base = met.Family, met.Table, met.Base
	if !met.Taken {
		return leg
	}
	leg.Kind = string(met.Diversion.Kind)
	addr, port := met.Diversion.Addr, met.Diversion.Port
	if !addr.IsValid() || addr.IsUnspecified() {
		addr = h.landing(s)
	}
	if port == 0 {
		port = s.Tuple.Dst.Port()
	}
	leg.Target = netip.AddrPortFrom(addr, port)
	moved := leg.Kind == string(netfilter.DivertDNAT) && addr == s.Tuple.Dst.Addr() // as Docker's own DNS does
	if moved || s.Tuple.Dst == leg.Target || addr != s.Tuple.Dst.Addr() && !addr.IsLoopback() && !h.addresses[addr] {
		leg.Taken, leg.Excused = false, false // to another host: that is no proxy's redirection
		leg.Target = netip.AddrPort{}
	}
	return leg
}

// landing is the address that a redirect gives: the loopback's for what is made
// here, else the one of the device (nf_nat_redirect in net/netfilter/nf_nat_redirect.c).
func (h *half) landing(s netfilter.Sample) netip.Addr {
	if s.Hook == trace.Output {
		return loopback(h.six)
	}
	return s.Tuple.Dst.Addr()
}

// outbound is a connection from here to another host.
func (h *half) outbound(protocol trace.Protocol, to netip.AddrPort, owner netfilter.Owner) netfilter.Sample {
	s := netfilter.Sample{Hook: trace.Output, Out: h.outside(), Owner: owner,
		Tuple: trace.Tuple{Protocol: protocol, Src: netip.AddrPortFrom(h.own(), clientPort), Dst: to}}
	if to.Addr().IsLoopback() || h.addresses[to.Addr()] || to.Addr() == passthrough(h.six) {
		s.Out = h.lo()
		s.Tuple.Src = netip.AddrPortFrom(to.Addr(), clientPort)
		if to.Addr().IsLoopback() || to.Addr() == passthrough(h.six) {
			s.Tuple.Src = netip.AddrPortFrom(loopback(h.six), clientPort)
		}
	}
	return s
}

// inbound is a connection from another host.
func (h *half) inbound(port uint16, from netip.Addr) netfilter.Sample {
	return netfilter.Sample{Hook: trace.Prerouting, In: h.outside(),
		Tuple: trace.Tuple{Protocol: trace.TCP, Src: netip.AddrPortFrom(from, clientPort), Dst: netip.AddrPortFrom(h.own(), port)}}
}

// applications asks what becomes of the traffic of applications.
func (h *half) applications() {
	add := func(l trace.RedirectLeg) { h.family.Legs = append(h.family.Legs, l) }
	h.ports = h.services()
	port := h.port()

	add(h.ask(trace.RoleOutbound, h.outbound(trace.TCP, netip.AddrPortFrom(h.remote(), port), h.app)))
	h.partly(trace.RoleOutbound, h.outboundSamples())
	for _, p := range append([]uint16{port}, h.ports...) {
		add(h.ask(trace.RoleInbound, h.inbound(p, h.remote())))
	}
	h.partly(trace.RoleInbound, h.inboundSamples())
	for role, protocol := range map[trace.RedirectRole]trace.Protocol{trace.RoleDNS: trace.UDP, trace.RoleDNSTCP: trace.TCP} {
		for _, server := range h.nameServers() {
			add(h.ask(role, h.outbound(protocol, netip.AddrPortFrom(server, dnsPort), h.app)))
		}
	}
	h.dnsOnly()
	h.dnsPort()
	h.excusedOwners()
}

// dnsPort finds the port to which DNS is redirected, to whichever server.
func (h *half) dnsPort() {
	f := h.family
	f.KnowsDNS = slices.Contains(h.mentions.Ports, dnsPort)
	f.ResolversKnown = slices.ContainsFunc(h.resolvers, func(a netip.Addr) bool { return a.Is6() == h.six })
	servers := append(h.nameServers(), h.remote())
	for _, a := range h.mentions.Dests {
		if a.Is6() == h.six {
			servers = append(servers, a)
		}
	}
	for _, a := range servers {
		if l := h.ask(trace.RoleDNS, h.outbound(trace.UDP, netip.AddrPortFrom(a, dnsPort), h.app)); l.Taken {
			f.DNSPort = l.Target.Port()
			return
		}
	}
}

// dnsOnly takes legs of DNS by TCP for what they are: to the port of all other
// TCP they are no redirection of DNS.
func (h *half) dnsOnly() {
	out := h.family.Leg(trace.RoleOutbound)
	for i := range h.family.Legs {
		l := &h.family.Legs[i]
		if l.Role == trace.RoleDNSTCP && l.Taken && out != nil && out.Taken && l.Target == out.Target {
			l.Role = trace.RoleOutbound
		}
	}
}

// partly adds the first of the samples that is redirected, where none is yet:
// rules may be about some traffic alone.
func (h *half) partly(role trace.RedirectRole, samples []netfilter.Sample) {
	if h.family.Takes(role) {
		return
	}
	for _, s := range samples {
		if l := h.ask(role, s); l.Taken {
			if role == trace.RoleOutbound {
				h.app = s.Owner
			}
			h.family.Legs = append(h.family.Legs, l)
			return
		}
	}
}

// outboundSamples are connections that rules may be limited to: by destination, user, or device.
func (h *half) outboundSamples() []netfilter.Sample {
	owners := []netfilter.Owner{h.app}
	for _, uid := range h.mentions.UIDs {
		o := h.app
		o.UID = uid
		owners = append(owners, o)
	}
	for _, gid := range h.mentions.GIDs {
		o := h.app
		o.GID = gid
		owners = append(owners, o)
	}
	var out []netfilter.Sample
	for _, owner := range owners {
		for _, to := range h.destinations() {
			s := h.outbound(trace.TCP, to, owner)
			out = append(out, s)
			for _, d := range h.others() {
				s.Out = d
				out = append(out, s)
			}
			if len(out) > mostTries {
				return out
			}
		}
	}
	return out
}

// inboundSamples are the same for connections from outside: by port, device or client.
func (h *half) inboundSamples() []netfilter.Sample {
	clients := []netip.Addr{h.remote()}
	for _, a := range h.mentions.Sources {
		if a.Is6() == h.six && !a.IsLoopback() && a != passthrough(h.six) {
			clients = append(clients, a)
			if next := a.Next(); next.IsValid() {
				clients = append(clients, next)
			}
		}
	}
	var out []netfilter.Sample
	for _, from := range clients {
		for _, p := range append(append([]uint16{h.port()}, h.ports...), h.mentions.Ports...) {
			s := h.inbound(p, from)
			out = append(out, s)
			for _, d := range h.others() {
				s.In = d
				out = append(out, s)
			}
			if len(out) > mostTries {
				return out
			}
		}
	}
	return out
}

// others are the devices beside outside.
func (h *half) others() []trace.Interface {
	var out []trace.Interface
	first := h.outside()
	usable := func(a netip.Addr) bool { return a.Is6() == h.six && !a.IsLinkLocalUnicast() }
	for i := range h.links {
		if l := &h.links[i]; !l.loopback && l.Up && l.Name != first.Name && slices.ContainsFunc(l.addrs, usable) && len(out) < 8 {
			out = append(out, l.Interface)
		}
	}
	return out
}

// destinations are what rules about outbound traffic may be limited to.
func (h *half) destinations() []netip.AddrPort {
	var out []netip.AddrPort
	addrs := []netip.Addr{h.remote()}
	for _, a := range h.mentions.Dests {
		if a.Is6() == h.six && !a.IsLoopback() && !a.IsUnspecified() {
			addrs = append(addrs, a)
			if next := a.Next(); next.IsValid() {
				addrs = append(addrs, next) // the first of a prefix may be excused
			}
		}
	}
	ports := []uint16{h.port()}
	for _, p := range h.mentions.Ports {
		if p != dnsPort && p != 0 {
			ports = append(ports, p)
		}
	}
	for _, a := range addrs {
		for _, p := range ports {
			if len(out) < mostSamples {
				out = append(out, netip.AddrPortFrom(a, p))
			}
		}
	}
	return out
}

// nameServers are those of the application and, where they are not known, those that rules mention.
func (h *half) nameServers() []netip.Addr {
	var out []netip.Addr
	for _, a := range h.resolvers {
		if a.Is6() == h.six {
			out = append(out, a)
		}
	}
	if len(out) > 0 {
		return out
	}
	out = append(out, h.remote())
	for _, a := range h.mentions.Dests {
		if a.Is6() == h.six && a != loopback(h.six) && a != passthrough(h.six) && !slices.Contains(out, a) && len(out) < mostSamples/4 {
			out = append(out, a)
		}
	}
	return out
}

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
		p.GID, p.HasGID = groupOf(int(p.Process.PID))
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

// groupOf is the group of a process with which it opens files, and sockets.
func groupOf(pid int) (uint32, bool) {
	if pid <= 0 {
		return 0, false
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "Gid:"); ok {
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
	return slices.Contains(h.mentions.Sources, passthrough(h.six))
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
			h.family.Distinguished = true
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

// exclusions finds what rules let go past the redirects.
func (h *half) exclusions() {
	f := h.family
	if in := f.Leg(trace.RoleInbound); in != nil && in.Taken {
		for _, p := range h.mentions.Ports {
			if l := h.ask(trace.RoleInbound, h.inbound(p, h.remote())); !l.Taken {
				f.Excluded.InboundPorts = append(f.Excluded.InboundPorts, p)
			}
		}
	}
	out := f.Leg(trace.RoleOutbound)
	if out == nil || !out.Taken {
		return
	}
	for _, p := range h.mentions.Ports {
		if l := h.ask(trace.RoleOutbound, h.outbound(trace.TCP, netip.AddrPortFrom(out.Packet.Dst.Addr(), p), h.app)); !l.Taken {
			f.Excluded.OutboundPorts = append(f.Excluded.OutboundPorts, p)
		}
	}
	for _, a := range h.mentions.Dests {
		if a.Is6() != h.six || a.IsLoopback() {
			continue
		}
		if l := h.ask(trace.RoleOutbound, h.outbound(trace.TCP, netip.AddrPortFrom(a, out.Packet.Dst.Port()), h.app)); !l.Taken {
			f.Excluded.Destinations = append(f.Excluded.Destinations, a)
		}
	}
	for _, d := range h.mentions.Out {
		s := h.outbound(trace.TCP, out.Packet.Dst, h.app)
		s.Out = trace.Interface{Device: trace.Device{Name: d}}
		if l := h.ask(trace.RoleOutbound, s); !l.Taken && d != "lo" {
			f.Excluded.Devices = append(f.Excluded.Devices, d)
		}
	}
}

// dangling finds chains that would divert packets but have no part in it.
func (h *half) dangling() {
	for _, c := range h.mentions.Chains {
		if len(c.Reached) == 0 && !c.Base {
			h.family.Dangling = append(h.family.Dangling, trace.RedirectChain{Name: c.Name, Table: c.Table, Backend: c.Backend,
				Family: c.Family, Ports: c.Ports, Role: roleOf(c.Name, c.Ports)})
		}
	}
	h.unmatched()
	h.shadowed()
	for _, c := range h.rules.Chains() {
		if mesh.OfChain(c.Name) != nil && !slices.ContainsFunc(h.mentions.Chains, func(d netfilter.DivertingChain) bool { return d.Name == c.Name && d.Table == c.Table }) {
			h.family.IdleChains = append(h.family.IdleChains, c.Name)
		}
	}
	// Chains that packets come through, of a mesh, where nothing takes them and nothing lets them go.
	for _, role := range []trace.RedirectRole{trace.RoleInbound, trace.RoleOutbound} {
		l := h.family.Leg(role)
		if l == nil || l.Taken || l.Excused {
			continue
		}
		for _, chain := range l.Chains {
			if mesh.OfChain(chain) == nil {
				continue
			}
			at := h.rules.Chain(chain)
			h.family.Dangling = append(h.family.Dangling, trace.RedirectChain{Name: chain, Table: at.Table, Backend: at.Backend,
				Family: at.Family, Role: role, Hooked: true})
		}
	}
}

// shadowed finds rules that divert, before which another lets all the traffic go.
func (h *half) shadowed() {
	for _, role := range []trace.RedirectRole{trace.RoleInbound, trace.RoleOutbound} {
		l := h.family.Leg(role)
		if l == nil || l.Taken || !l.Excused || len(l.Doubts) > 0 {
			continue
		}
		var known []uint16 // ports of other roles
		if role == trace.RoleOutbound {
			for i := range h.family.Legs {
				if o := &h.family.Legs[i]; o.Taken {
					known = append(known, o.Target.Port())
				}
			}
			for _, m := range mesh.Known {
				known = append(append(known, m.Inbound...), m.DNS...)
			}
		}
		for _, c := range h.mentions.Chains {
			ports := slices.DeleteFunc(slices.Clone(c.Ports), func(p uint16) bool { return slices.Contains(known, p) })
			if c.Name == l.Chain && c.Table == l.Table && len(ports) > 0 {
				h.family.Dangling = append(h.family.Dangling, trace.RedirectChain{Name: c.Name, Table: c.Table, Backend: c.Backend,
					Family: c.Family, Ports: ports, Role: role, Shadowed: true})
				break
			}
		}
	}
}

// unmatched finds a mesh's chains that rules lead to, none of which fits what the chain is for.
func (h *half) unmatched() {
	for _, role := range []trace.RedirectRole{trace.RoleInbound, trace.RoleOutbound} {
		l := h.family.Leg(role)
		if l == nil || l.Taken || l.Excused || len(l.Doubts) > 0 || len(l.Chains) > 0 {
			continue
		}
		hook := map[bool]trace.NetfilterHook{true: trace.Prerouting, false: trace.Output}[role == trace.RoleInbound]
		for _, c := range h.mentions.Chains {
			if !c.Base && slices.Contains(c.Reached, hook) && mesh.OfChain(c.Name) != nil && roleOf(c.Name, c.Ports) == role {
				h.family.Dangling = append(h.family.Dangling, trace.RedirectChain{Name: c.Name, Table: c.Table, Backend: c.Backend,
					Family: c.Family, Ports: c.Ports, Role: role, Unmatched: true})
				break
			}
		}
	}
}

// roleOf tells what a chain is for: by its name, or else by its ports.
func roleOf(chain string, ports []uint16) trace.RedirectRole {
	if m := mesh.OfChain(chain); m != nil {
		if m.IsInbound(chain) {
			return trace.RoleInbound
		}
		return trace.RoleOutbound
	}
	for _, m := range mesh.Known {
		for _, p := range ports {
			switch {
			case slices.Contains(m.Inbound, p):
				return trace.RoleInbound
			case slices.Contains(m.DNS, p):
				return trace.RoleDNS
			case slices.Contains(m.Outbound, p):
				return trace.RoleOutbound
			}
		}
	}
	if strings.Contains(strings.ToLower(chain), "in") && !strings.Contains(strings.ToLower(chain), "out") {
		return trace.RoleInbound
	}
	return trace.RoleOutbound
}

// strays finds sockets at a proxy's well-known ports to which nothing is redirected.
func (n *inspection) strays() {
	meshes := mesh.Known[:2] // of none by name: the ports that most have
	if m := mesh.Named(n.r.Mesh); m != nil {
		meshes = []mesh.Mesh{*m}
	}
	for _, m := range meshes {
		n.stray(trace.RoleOutbound, trace.TCP, m.Outbound)
		n.stray(trace.RoleInbound, trace.TCP, m.Inbound)
		n.stray(trace.RoleDNS, trace.UDP, m.DNS)
	}
}

func (n *inspection) stray(role trace.RedirectRole, protocol trace.Protocol, ports []uint16) {
	at := func(s trace.Socket) int { return slices.Index(ports, s.Local.Port()) }
	sockets := slices.Clone(n.sockets)
	slices.SortStableFunc(sockets, func(a, b trace.Socket) int { return at(a) - at(b) })
	for _, s := range sockets {
		if s.Protocol != protocol || at(s) < 0 {
			continue
		}
		if slices.ContainsFunc(n.r.Strays, func(t trace.RedirectStray) bool { return t.Inode == s.Inode }) {
			continue
		}
		named := []trace.Socket{s}
		netstate.NameOwners(n.ctx, named)
		n.r.Strays = append(n.r.Strays, trace.RedirectStray{Role: role, Socket: named[0]})
	}
}
