package netfilter

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// xtComment is the match comment: always true.
type xtComment string

func (xtComment) matches(*packet) truth { return yes }

func (x xtComment) option() string { return "-m comment --comment " + quoted(string(x)) }

// xtMark is the match mark (struct xt_mark_mtinfo1).
type xtMark struct {
	value, mask uint32
	invert      bool
}

func (x *xtMark) matches(p *packet) truth {
	p.markRead = true
	return p.mark.maskXor(native32(x.mask).data, nil).equal(native32(x.value).data).xor(x.invert)
}

func (x *xtMark) option() string {
	return "-m mark " + negated(x.invert, "--mark "+maskedNumber(x.value, x.mask))
}

// maskedNumber writes a mark as iptables does.
func maskedNumber(v, mask uint32) string {
	if mask == ^uint32(0) {
		return fmt.Sprintf("0x%x", v)
	}
	return fmt.Sprintf("0x%x/0x%x", v, mask)
}

// xtAddrType is the match addrtype (struct xt_addrtype_info_v1).
type xtAddrType struct {
	source, dest       uint16
	invSource, invDest bool
	limited            bool // to one interface
}

func decodeAddrType(r *reader, revision uint8) matcher {
	x := &xtAddrType{source: r.u16(), dest: r.u16()}
	if revision == 0 {
		x.invSource, x.invDest = r.u32() != 0, r.u32() != 0
		return x
	}
	flags := r.u32()
	x.invSource, x.invDest, x.limited = flags&1 != 0, flags&2 != 0, flags&0xc != 0
	return x
}

func (x *xtAddrType) matches(p *packet) truth {
	t := yes
	if x.source != 0 {
		t = t.and(p.isType(p.tuple.Src.Addr(), x.source).xor(x.invSource))
	}
	if x.dest != 0 {
		t = t.and(p.isType(p.tuple.Dst.Addr(), x.dest).xor(x.invDest))
	}
	if x.limited {
		t = t.and(maybe)
	}
	return t
}

// isType compares an address's type with a mask of types (match_type in
// net/netfilter/xt_addrtype.c).
func (p *packet) isType(a netip.Addr, mask uint16) truth {
	if a.Is6() {
		const plain = 1<<unix.RTN_UNSPEC | 1<<unix.RTN_UNICAST | 1<<unix.RTN_MULTICAST
		if mask&(1<<unix.RTN_MULTICAST) != 0 && !a.IsMulticast() ||
			mask&(1<<unix.RTN_UNICAST) != 0 && (a.IsMulticast() || a.IsUnspecified()) ||
			mask&(1<<unix.RTN_UNSPEC) != 0 && !a.IsUnspecified() {
			return no
		}
		if mask &^= plain; mask == 0 {
			return yes
		}
	}
	if p.routes == nil {
		return maybe
	}
	t, ok := p.routes.addrType(a)
	if !ok || t > 15 {
		return maybe
	}
	return truthOf(mask&(1<<t) != 0)
}

func (x *xtAddrType) option() string {
	out := []string{"-m addrtype"}
	if x.source != 0 {
		out = append(out, negated(x.invSource, "--src-type "+addrTypes(x.source)))
	}
	if x.dest != 0 {
		out = append(out, negated(x.invDest, "--dst-type "+addrTypes(x.dest)))
	}
	return strings.Join(out, " ")
}

// addrTypeNames are RTN_* in iptables' words.
var addrTypeNames = []string{"UNSPEC", "UNICAST", "LOCAL", "BROADCAST", "ANYCAST", "MULTICAST", "BLACKHOLE",
	"UNREACHABLE", "PROHIBIT", "THROW", "NAT", "XRESOLVE"}

func addrTypes(mask uint16) string {
	var out []string
	for i, name := range addrTypeNames {
		if mask&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	return strings.Join(out, ",")
}

// xtIPRange is the match iprange (struct xt_iprange_mtinfo).
type xtIPRange struct {
	src, dst       [2]netip.Addr
	hasSrc, hasDst bool
	invSrc, invDst bool
}

func decodeIPRange(r *reader, is6 bool) matcher {
	x := &xtIPRange{}
	for i := range x.src {
		x.src[i] = r.address(is6)
	}
	for i := range x.dst {
		x.dst[i] = r.address(is6)
	}
	flags := r.u8()
	x.hasSrc, x.hasDst = flags&1 != 0, flags&2 != 0
	x.invSrc, x.invDst = flags&0x10 != 0, flags&0x20 != 0
	return x
}

func (x *xtIPRange) matches(p *packet) truth {
	in := func(a netip.Addr, r [2]netip.Addr) bool { return a.Compare(r[0]) >= 0 && a.Compare(r[1]) <= 0 }
	return truthOf((!x.hasSrc || in(p.tuple.Src.Addr(), x.src) != x.invSrc) &&
		(!x.hasDst || in(p.tuple.Dst.Addr(), x.dst) != x.invDst))
}

func (x *xtIPRange) option() string {
	out := []string{"-m iprange"}
	if x.hasSrc {
		out = append(out, negated(x.invSrc, fmt.Sprintf("--src-range %s-%s", x.src[0], x.src[1])))
	}
	if x.hasDst {
		out = append(out, negated(x.invDst, fmt.Sprintf("--dst-range %s-%s", x.dst[0], x.dst[1])))
	}
	return strings.Join(out, " ")
}

// xtMAC is the match mac (struct xt_mac_info).
type xtMAC struct {
	addr   [6]byte
	invert bool
}

func (x *xtMAC) matches(p *packet) truth {
	b, t := p.field(baseLink, 6, 6)
	return t.and(b.equal(x.addr[:]).xor(x.invert))
}

func (x *xtMAC) option() string {
	a := x.addr
	return "-m mac " + negated(x.invert, fmt.Sprintf("--mac-source %02x:%02x:%02x:%02x:%02x:%02x", a[0], a[1], a[2], a[3], a[4], a[5]))
}

// xtPacketType is the match pkttype (struct xt_pkttype_info).
type xtPacketType struct {
	kind   uint32
	invert bool
}

func (x *xtPacketType) matches(p *packet) truth {
	return p.packetType().equal([]byte{byte(x.kind)}).xor(x.invert)
}

func (x *xtPacketType) option() string {
	name := fmt.Sprint(x.kind)
	if names := []string{"unicast", "broadcast", "multicast"}; x.kind < uint32(len(names)) {
		name = names[x.kind]
	}
	return "-m pkttype " + negated(x.invert, "--pkt-type "+name)
}
