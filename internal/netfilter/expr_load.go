package netfilter

import (
	"encoding/binary"
	"net/netip"

	"github.com/replypath/replypath/pkg/trace"
	"golang.org/x/sys/unix"
)

// Keys of meta that are known of a packet (enum nft_meta_keys).
const (
	metaProtocol  = unix.NFT_META_PROTOCOL
	metaMark      = unix.NFT_META_MARK
	metaIIF       = unix.NFT_META_IIF
	metaOIF       = unix.NFT_META_OIF
	metaIIFName   = unix.NFT_META_IIFNAME
	metaOIFName   = unix.NFT_META_OIFNAME
	metaIIFType   = unix.NFT_META_IIFTYPE
	metaOIFType   = unix.NFT_META_OIFTYPE
	metaNFProto   = unix.NFT_META_NFPROTO
	metaL4Proto   = unix.NFT_META_L4PROTO
	metaBridgeIn  = unix.NFT_META_BRI_IIFNAME
	metaBridgeOut = unix.NFT_META_BRI_OIFNAME
	metaPktType   = unix.NFT_META_PKTTYPE
	metaIIFKind   = 26
	metaOIFKind   = 27
)

// meta loads a property of the packet that is not in its headers.
type meta struct {
	key uint32
	to  register
}

func (e meta) run(m *machine) {
	b, t := m.packet.meta(e.key)
	m.test(t)
	m.store(e.to, b)
}

// meta returns a property; the truth is no where the kernel would not match.
func (p *packet) meta(key uint32) (bits, truth) {
	switch key {
	case metaProtocol:
		return network16(p.etherType()), yes
	case metaMark:
		p.markRead = true
		return p.mark, yes
	case metaIIF:
		return p.in.indexBits(), yes
	case metaOIF:
		return p.out.indexBits(), yes
	case metaIIFName:
		return p.in.nameBits(), yes
	case metaOIFName:
		return p.out.nameBits(), yes
	case metaIIFType:
		return p.in.typeBits()
	case metaOIFType:
		return p.out.typeBits()
	case metaNFProto:
		return knownBits([]byte{byte(p.family())}), yes
	case metaL4Proto:
		return knownBits([]byte{byte(p.tuple.Protocol)}), yes
	case metaPktType:
		return p.packetType(), yes
	case unix.NFT_META_SKUID, unix.NFT_META_SKGID:
		return p.owner.idBits(key)
	case metaIIFKind:
		return p.in.kindBits()
	case metaOIFKind:
		return p.out.kindBits()
	}
	return unknownBits(unix.IFNAMSIZ), maybe
}

// packetType is PACKET_HOST and its like: known for TCP alone, which the kernel
// takes for broadcasts nowhere (tcp_v4_rcv in net/ipv4/tcp_ipv4.c).
func (p *packet) packetType() bits {
	if p.tuple.Protocol == trace.TCP && p.hook == trace.Input {
		return knownBits([]byte{0})
	}
	return unknownBits(1)
}

// typeBits is the ARPHRD type of a device, where its kind tells.
func (d device) typeBits() (bits, truth) {
	if d.there == no {
		return unknownBits(2), no
	}
	for _, t := range []uint16{unix.ARPHRD_ETHER, unix.ARPHRD_LOOPBACK} {
		if d.hasType(t) == yes {
			return knownBits(binary.NativeEndian.AppendUint16(nil, t)), yes
		}
	}
	return unknownBits(2), yes
}

// kindBits is the kind of a device; one without kind does not match.
func (d device) kindBits() (bits, truth) {
	if d.there == no {
		return unknownBits(unix.IFNAMSIZ), no
	}
	if d.kind == "" {
		return unknownBits(unix.IFNAMSIZ), maybe
	}
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, d.kind)
	return knownBits(b), yes
}

// Keys of ct (enum nft_ct_keys).
const (
	ctState     = 0
	ctDirection = 1
	ctStatus    = 2
	ctMark      = 3
	ctL3Proto   = 7
	ctSrc       = 8
	ctDst       = 9
	ctProto     = 10
	ctProtoSrc  = 11
	ctProtoDst  = 12
	ctSrcIP     = 19
	ctDstIP     = 20
	ctSrcIP6    = 21
	ctDstIP6    = 22
)

// connection loads a property of the packet's conntrack entry.
type connection struct {
	key       uint32
	direction int // 0 original, 1 reply
	to        register
}

func (e connection) run(m *machine) {
	c := &m.packet.conntrack
	if e.key == ctState {
		m.store(e.to, native32Masked(c.state, c.stateKnown))
		return
	}
	m.test(c.there)
	if e.key == ctMark {
		m.store(e.to, m.packet.connMark)
		return
	}
	b, t := c.property(e.key, e.direction&1)
	m.test(t)
	m.store(e.to, b)
}

// property reads an entry (nft_ct_get_eval in net/netfilter/nft_ct.c).
func (c *entry) property(key uint32, direction int) (bits, truth) {
	tuple := c.tuples[direction]
	known := tuple.IsValid()
	switch key {
	case ctDirection:
		if c.there == yes {
			return flagBits(c.reply), yes
		}
		return unknownBits(1), yes
	case ctStatus:
		return native32Masked(c.status, c.statusKnown), yes
	case ctMark:
		return unknownBits(4), yes
	}
	if !known {
		return unknownBits(16), yes
	}
	switch key {
	case ctL3Proto:
		if tuple.Is6() {
			return knownBits([]byte{unix.NFPROTO_IPV6}), yes
		}
		return knownBits([]byte{unix.NFPROTO_IPV4}), yes
	case ctProto:
		return knownBits([]byte{byte(tuple.Protocol)}), yes
	case ctProtoSrc:
		return network16(tuple.Src.Port()), yes
	case ctProtoDst:
		return network16(tuple.Dst.Port()), yes
	case ctSrc, ctSrcIP, ctSrcIP6:
		return addressBits(tuple.Src.Addr(), key)
	case ctDst, ctDstIP, ctDstIP6:
		return addressBits(tuple.Dst.Addr(), key)
	}
	return unknownBits(16), maybe
}

// addressBits is an address, if it is of the family that the key asks for.
func addressBits(a netip.Addr, key uint32) (bits, truth) {
	switch key {
	case ctSrcIP, ctDstIP:
		if a.Is6() {
			return unknownBits(4), no
		}
	case ctSrcIP6, ctDstIP6:
		if a.Is4() {
			return unknownBits(16), no
		}
	}
	return knownBits(a.AsSlice()), yes
}

// Flags and results of fib (enum nft_fib_flags, enum nft_fib_result).
const (
	fibSource  = unix.NFTA_FIB_F_SADDR
	fibDest    = unix.NFTA_FIB_F_DADDR
	fibMark    = unix.NFTA_FIB_F_MARK
	fibIn      = unix.NFTA_FIB_F_IIF
	fibOut     = unix.NFTA_FIB_F_OIF
	fibPresent = unix.NFTA_FIB_F_PRESENT

	fibResultOIF      = 1
	fibResultOIFName  = 2
	fibResultAddrType = 3
)

// fib asks the routing tables about an address of the packet.
type fib struct {
	to     register
	flags  uint32
	result uint32
}

func (e fib) run(m *machine) {
	p := m.packet
	addr := p.tuple.Src.Addr()
	if e.flags&fibDest != 0 {
		addr = p.tuple.Dst.Addr()
	}
	switch {
	case e.result == fibResultAddrType && p.routes != nil && e.flags&(fibIn|fibOut|fibMark) == 0:
		if t, ok := p.routes.addrType(addr); ok {
			m.store(e.to, native32(uint32(t)))
			return
		}
	case e.result == fibResultOIF || e.result == fibResultOIFName:
		if b, ok := e.device(p, addr); ok {
			m.store(e.to, b)
			return
		}
	}
	m.store(e.to, unknownBits(unix.IFNAMSIZ))
}

// device answers `fib saddr . iif oif` as far as it asks whether there is one,
// which is what reverse path rules do.
func (e fib) device(p *packet, addr netip.Addr) (bits, bool) {
	if e.flags&fibPresent == 0 || e.flags&(fibIn|fibSource) != fibIn|fibSource {
		return bits{}, false
	}
	var mark uint32
	if e.flags&fibMark != 0 {
		v, known := p.mark.masked32()
		if known != ^uint32(0) {
			return bits{}, false
		}
		p.markRead, mark = true, v
	}
	t := p.reversePath(addr, mark)
	return flagBits(t == yes), t != maybe
}
