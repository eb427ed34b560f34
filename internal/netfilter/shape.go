package netfilter

import (
	"net/netip"
	"slices"

	"github.com/replypath/replypath/pkg/trace"
)

// untrack exempts the packet from connection tracking.
type untrack struct{ text string }

func (e untrack) run(m *machine) {
	if m.sure && m.match == yes && m.packet.priority < priorityConntrack {
		m.packet.untracked = true
		m.packet.asked.Conntrack = trace.Conntrack{Info: infoUntracked}
	}
}

// ctNotrack is XT_CT_NOTRACK of include/uapi/linux/netfilter/xt_CT.h.
const ctNotrack = 1

// clamp makes TCP agree on smaller segments.
type clamp struct{ text string }

func (e clamp) run(m *machine) { m.packet.clamped = true }

// rewrite writes bytes of the packet: it matters where it changes an address or port.
type rewrite struct {
	from         register
	base         int
	offset, size int
}

func (e rewrite) run(m *machine) {
	b := m.load(e.from, e.size)
	if !m.packet.asked.Ahead || !m.sure || m.match != yes || !b.whole() {
		return // of a packet that was seen, the addresses are those that it had when it was dropped
	}
	was := m.packet.asked.Packet
	to := was
	switch at := [3]int{e.base, e.offset, e.size}; {
	case was.Is6() && at == [3]int{baseNetwork, 8, 16}, !was.Is6() && at == [3]int{baseNetwork, 12, 4}:
		to.Src = withAddress(to.Src, b.data)
	case was.Is6() && at == [3]int{baseNetwork, 24, 16}, !was.Is6() && at == [3]int{baseNetwork, 16, 4}:
		to.Dst = withAddress(to.Dst, b.data)
	case at == [3]int{baseTransport, 0, 2}:
		to.Src = netip.AddrPortFrom(to.Src.Addr(), uint16(b.data[0])<<8|uint16(b.data[1]))
	case at == [3]int{baseTransport, 2, 2}:
		to.Dst = netip.AddrPortFrom(to.Dst.Addr(), uint16(b.data[0])<<8|uint16(b.data[1]))
	}
	m.packet.asked.Packet, m.packet.tuple = to, to
}

func withAddress(old netip.AddrPort, b []byte) netip.AddrPort {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return old
	}
	return netip.AddrPortFrom(a, old.Port())
}

// xtFrag is the match frag (struct ip6t_frag): only whether it is a fragment at
// all, and whether it is the first, is known.
type xtFrag struct {
	flags uint8
	plain bool // it asks for nothing else
}

// Flags of xtFrag (include/uapi/linux/netfilter_ipv6/ip6t_frag.h).
const (
	fragFirst = 0x04
	fragMore  = 0x08
	fragLast  = 0x10
)

func decodeFrag(r *reader) matcher {
	low, high := r.u32(), r.u32()
	r.u32() // length
	x := &xtFrag{flags: r.u8()}
	x.plain = low == 0 && high == ^uint32(0) && r.u8() == 0
	r.skip(2)
	return x
}

func (x *xtFrag) matches(p *packet) truth {
	switch {
	case !p.isPiece() && !p.asked.Ahead:
		return maybe
	case !p.isPiece(), x.flags&fragFirst != 0 && p.isLater():
		return no
	case !x.plain || x.flags&(fragMore|fragLast) != 0:
		return maybe
	}
	return yes
}

func (x *xtFrag) option() string { return "-m frag …" }

func (e untrack) write(w *writer) { passive(e).write(w) }

func (e clamp) write(w *writer) { passive(e).write(w) }

func (e rewrite) write(w *writer) { passive{"@payload set …"}.write(w) }

// tracks reports whether a rule has the kernel track connections of a family in
// this namespace, and so put fragments together (nf_ct_netns_get).
func (s *ruleset) tracks(f family) bool {
	for _, t := range s.tables {
		if t.family != f && t.family != familyInet {
			continue
		}
		for _, c := range t.chains {
			if c.base != nil && c.base.kind == "nat" {
				return true
			}
			rules, _ := c.load()
			for i := range rules {
				if slices.ContainsFunc(rules[i].exprs, needsTracking) {
					return true
				}
			}
		}
	}
	return false
}

func needsTracking(e expr) bool {
	switch e := e.(type) {
	case connection, translate:
		return true
	case untrack:
		return e.text != "notrack"
	case passive:
		return e.text == "-j CT"
	case xtMatch:
		switch e.matcher.(type) {
		case *xtState, *xtConntrack:
			return true
		}
	}
	return false
}
