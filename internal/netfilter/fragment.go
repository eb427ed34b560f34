package netfilter

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// someOffset stands for the offset of a later fragment, in units of eight bytes:
// what it is does not matter to rules, that it is not zero does.
const someOffset = 185 // of the second fragment of a datagram on a link with an MTU of 1500

// isPiece reports whether the packet is a fragment, the first one included.
func (p *packet) isPiece() bool { return (p.asked.Fragment || p.asked.MoreFragments) && !p.whole }

// isLater reports whether the packet is a fragment without a transport header.
func (p *packet) isLater() bool { return p.asked.Fragment && !p.whole }

// fragmentField is IPv4's offset with its flag "more fragments", which is bit 13.
func (p *packet) fragmentField() (value, known uint16) {
	switch {
	case p.isPiece():
		known = 0x3fff
	case p.hasPorts(), p.asked.Ahead: // so it is whole or the first fragment: its offset is zero
		known = 0x1fff
	}
	if p.isLater() {
		value = someOffset
	}
	if p.asked.MoreFragments && p.isPiece() {
		value |= 0x2000
	}
	return value, known
}

// fragmentHeader is that of IPv6 (RFC 8200, section 4.5), as far as it is known.
func (p *packet) fragmentHeader() bits {
	b := unknownBits(8)
	b.set(0, []byte{byte(p.tuple.Protocol)})
	b.data[2], b.known[2] = 0, 0xff
	b.data[3], b.known[3] = 0, 0xf9
	if p.isLater() {
		b.data[2], b.data[3] = someOffset>>5, someOffset<<3&0xff
	}
	if p.asked.MoreFragments {
		b.data[3] |= 1
	}
	return b
}

// fragmentExtension loads from IPv6's fragment header, or asks whether there is one (nft's exthdr).
type fragmentExtension struct {
	to           register
	offset, size int
	present      bool
}

const (
	exthdrPresent = 1 // NFT_EXTHDR_F_PRESENT
	exthdrIPv6    = 0 // NFT_EXTHDR_OP_IPV6
	exthdrTCP     = 1 // NFT_EXTHDR_OP_TCPOPT
	optionMaxSeg  = 2 // RFC 9293
)

// decodeExthdr knows IPv6's fragment header, and that TCP's segment size is written.
func decodeExthdr(a *attributeValues) expr {
	kind := a[unix.NFTA_EXTHDR_TYPE]
	if be32(a[unix.NFTA_EXTHDR_OP]) == exthdrTCP && a[unix.NFTA_EXTHDR_SREG] != nil && len(kind) == 1 && kind[0] == optionMaxSeg {
		return clamp{text: "tcp option maxseg size set …"}
	}
	if be32(a[unix.NFTA_EXTHDR_OP]) != exthdrIPv6 || len(kind) != 1 || kind[0] != unix.IPPROTO_FRAGMENT || a[unix.NFTA_EXTHDR_SREG] != nil {
		return opaque{text: "exthdr …"}
	}
	return fragmentExtension{to: a.register(unix.NFTA_EXTHDR_DREG), offset: int(be32(a[unix.NFTA_EXTHDR_OFFSET])),
		size: a.size(unix.NFTA_EXTHDR_LEN), present: be32(a[unix.NFTA_EXTHDR_FLAGS])&exthdrPresent != 0}
}

func (e fragmentExtension) run(m *machine) {
	p := m.packet
	there := maybe
	switch {
	case !p.is6():
		there = no
	case p.isPiece():
		there = yes
	case p.asked.Ahead:
		there = no
	}
	if e.present {
		b := unknownBits(1)
		if there != maybe {
			b = knownBits([]byte{0})
		}
		if there == yes {
			b.data[0] = 1
		}
		m.store(e.to, b)
		return
	}
	m.test(there)
	header, out := p.fragmentHeader(), unknownBits(e.size)
	if there == yes && e.offset >= 0 && e.offset < len(header.data) {
		copy(out.data, header.data[e.offset:])
		copy(out.known, header.known[e.offset:])
	}
	m.store(e.to, out)
}

func (e fragmentExtension) write(w *writer) {
	s := symbol{text: fmt.Sprintf("@frag,%d,%d", e.offset*8, e.size*8), kind: kindPort, size: e.size}
	switch {
	case e.present:
		s.text, s.kind = "exthdr frag exists", kindHex
	case e.offset == 0 && e.size == 1:
		s.text, s.kind = "frag nexthdr", kindProtocol
	case e.offset == 2 && e.size == 2:
		s.text = "frag frag-off"
	}
	w.load(e.to, s)
}

// xtICMP are the matches icmp and icmp6 (struct ipt_icmp, struct ip6t_icmp).
type xtICMP struct {
	is6       bool
	kind      uint8
	low, high uint8 // codes
	invert    bool
}

// anyICMP is the type that stands for all of them in IPv4.
const anyICMP = 0xff

func (x *xtICMP) matches(p *packet) truth {
	if p.tuple.Protocol != icmpProtocol(x.is6) || p.isLater() {
		return no
	}
	if x.kind == anyICMP && !x.is6 {
		return truthOf(!x.invert)
	}
	kind, code := p.asked.ICMPType, p.asked.ICMPCode
	if kind == 0 {
		return maybe
	}
	return truthOf((kind == x.kind && code >= x.low && code <= x.high) != x.invert)
}

func (x *xtICMP) option() string {
	name, flag := "-m icmp", "--icmp-type "
	if x.is6 {
		name, flag = "-m icmp6", "--icmpv6-type "
	}
	value := fmt.Sprint(x.kind)
	switch {
	case x.kind == anyICMP && !x.is6:
		value = "any"
	case x.low == x.high:
		value = fmt.Sprintf("%d/%d", x.kind, x.low)
	}
	return name + " " + negated(x.invert, flag+value)
}

func decodeICMP(r *reader, is6 bool) matcher {
	return &xtICMP{is6: is6, kind: r.u8(), low: r.u8(), high: r.u8(), invert: r.u8()&1 != 0}
}

func icmpProtocol(is6 bool) trace.Protocol {
	if is6 {
		return trace.ICMPv6
	}
	return trace.ICMP
}
