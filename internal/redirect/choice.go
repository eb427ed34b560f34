package redirect

import (
	"net/netip"
	"slices"

	"github.com/replypath/replypath/internal/netfilter"
	"github.com/replypath/replypath/pkg/trace"
)

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
			l := h.ask(role, h.outbound(protocol, netip.AddrPortFrom(server, dnsPort), h.app))
			l.Excused = l.Excused || h.answersItself(l)
			add(l)
		}
	}
	h.dnsOnly()
	h.dnsPort()
	h.excusedOwners()
}

// answersItself reports DNS that is not redirected and that a resolver in the same namespace takes (127.0.0.53): what
// that one asks is another's matter.
func (h *half) answersItself(l trace.RedirectLeg) bool {
	if l.Taken || l.Device != "lo" {
		return false
	}
	l.Target = l.Packet.Dst
	h.listen(&l)
	return len(l.Sockets) > 0
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
