package redirect

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/internal/netfilter"
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

func loopback(six bool) netip.Addr { return choose(six, loop4, loop6) }

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
	switch {
	case met.Taken:
		h.takenBy(&leg, s, met.Diversion)
		h.answersByMark(&leg, s, met.Mark)
	case s.Hook == trace.Output:
		h.byMark(&leg, s, met.Mark)
	}
	return leg
}

// takenBy notes where a sample ends that a rule takes.
func (h *half) takenBy(leg *trace.RedirectLeg, s netfilter.Sample, d netfilter.Diversion) {
	leg.Taken, leg.Kind = true, string(d.Kind)
	addr, port := d.Addr, d.Port
	if !addr.IsValid() || addr.IsUnspecified() {
		addr = h.landing(s, d.Kind)
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
}

// landing is the address that a redirect gives: the loopback's for what is made
// here, else the one of the device (nf_nat_redirect in net/netfilter/nf_nat_redirect.c).
func (h *half) landing(s netfilter.Sample, kind netfilter.DiversionKind) netip.Addr {
	if s.Hook == trace.Output && kind != netfilter.DivertTProxy {
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
