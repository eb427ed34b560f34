package redirect

import (
	"net/netip"

	"github.com/replypath/replypath/internal/netfilter"
	"github.com/replypath/replypath/pkg/trace"
)

// packets asks what becomes of packets that were really seen, and of their like in the other IP version.
func (n *inspection) packets() {
	for _, p := range n.o.Packets {
		for _, h := range n.halves {
			if h.six == p.Tuple.Is6() {
				n.r.Asked = append(n.r.Asked, h.met(p))
			} else if twin, ok := h.twin(p); ok {
				n.r.Twins = append(n.r.Twins, h.met(twin))
			}
		}
	}
}

// met asks for one packet. Its sockets are those that take it in the end.
func (h *half) met(p Packet) trace.RedirectLeg {
	s := h.sample(p)
	leg := h.ask(p.Role, s)
	to := leg.Target
	if !leg.Taken {
		to = p.Tuple.Dst
	}
	whole := leg
	whole.Target = to
	h.listen(&whole)
	leg.Sockets, leg.Others = whole.Sockets, whole.Others
	h.answerZone(&leg)
	return leg
}

func (h *half) sample(p Packet) netfilter.Sample {
	if p.Role == trace.RoleInbound {
		s := h.inbound(p.Tuple.Dst.Port(), p.Tuple.Src.Addr())
		s.Tuple = p.Tuple
		return s
	}
	owner := h.app
	if p.UID != nil {
		owner.UID = *p.UID
		if *p.UID == h.r.Proxy.UID && h.r.Proxy.HasGID {
			owner.GID = h.r.Proxy.GID
		}
	}
	s := h.outbound(p.Tuple.Protocol, p.Tuple.Dst, owner)
	if p.Tuple.Src.Port() != 0 {
		s.Tuple.Src = p.Tuple.Src
	}
	return s
}

// twin is the like of a packet in this IP version: the same ports and sender, between hosts that nobody mentions.
func (h *half) twin(p Packet) (Packet, bool) {
	remote, own := netip.AddrPortFrom(h.remote(), p.Tuple.Dst.Port()), netip.AddrPortFrom(h.own(), p.Tuple.Src.Port())
	switch p.Role {
	case trace.RoleOutbound, trace.RoleDNS, trace.RoleDNSTCP:
		p.Tuple.Src, p.Tuple.Dst = own, remote
	case trace.RoleInbound:
		p.Tuple.Dst = netip.AddrPortFrom(h.own(), p.Tuple.Dst.Port())
		p.Tuple.Src = netip.AddrPortFrom(h.remote(), p.Tuple.Src.Port())
	default:
		return p, false
	}
	return p, true
}
