package netfilter

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
)

// tproxy hands the packet to a local socket without rewriting it: the target
// TPROXY (net/netfilter/xt_TPROXY.c), or nftables' tproxy statement, which goes
// on with the rule.
type tproxy struct {
	text     string
	iptables bool
	addr     netip.Addr // invalid or unspecified: the device's
	port     uint16     // 0: the packet's, or in portFrom
	portFrom register
	addrFrom register
	// mask and value are what the target of iptables makes of the packet's mark.
	mask, value uint32
}

func (e tproxy) run(m *machine) {
	if e.portFrom != 0 {
		if b := m.load(e.portFrom, 2); b.whole() {
			e.port = binary.BigEndian.Uint16(b.data)
		}
	}
	if e.addrFrom != 0 {
		size := 4
		if m.packet.is6() {
			size = 16
		}
		if b := m.load(e.addrFrom, size); b.whole() {
			e.addr, _ = netip.AddrFromSlice(b.data)
		}
	}
	if e.port == 0 {
		e.port = m.packet.tuple.Dst.Port()
	}
	if m.sure && m.match == yes && m.packet.proxied == nil {
		m.packet.proxied = &e
	}
	switch {
	case e.iptables:
		if m.packet.sample && e.mask != 0 {
			m.setMark(m.packet.mark.maskXor(native32(^e.mask).data, native32(e.value).data))
		}
		m.give(verdict{code: verdictOpaque})
	case !m.packet.sample: // whether there is a socket is not known here
		m.unclear()
	}
}

func (e tproxy) write(w *writer) {
	if e.iptables {
		opaqueEnd{text: e.text}.write(w)
		return
	}
	opaque{text: e.text}.write(w)
}

// decodeTProxy decodes struct xt_tproxy_target_info and its revision 1.
func decodeTProxy(r *reader, revision uint8, is6 bool) expr {
	e := tproxy{iptables: true}
	e.mask, e.value = r.u32(), r.u32()
	if revision == 0 {
		e.addr = netip.AddrFrom4([4]byte(r.bytes(4)))
	} else {
		e.addr = r.address(is6)
	}
	e.port = r.be16()
	if r.short || revision > 1 {
		return opaqueEnd{text: "-j TPROXY"}
	}
	e.text = fmt.Sprintf("-j TPROXY --on-port %d --on-ip %s --tproxy-mark 0x%x/0x%x", e.port, e.addr, e.value, e.mask)
	return e
}

// decodeTProxyStatement decodes nftables' tproxy (enum nft_tproxy_attributes).
func decodeTProxyStatement(a *attributeValues) expr {
	const addr, port = 2, 3 // NFTA_TPROXY_REG_ADDR, NFTA_TPROXY_REG_PORT
	return tproxy{text: "tproxy …", portFrom: a.register(port), addrFrom: a.register(addr)}
}

// Flags of the match socket (include/uapi/linux/netfilter/xt_socket.h).
const socketTransparent = 1 << 0

// xtSocket is the match socket: does a socket of this host take the packet already?
type xtSocket struct{ flags uint8 }

// matches: of the samples that are made here none belongs to a transparent socket.
func (x *xtSocket) matches(p *packet) truth {
	if p.sample && x.flags&socketTransparent != 0 {
		return no
	}
	return maybe
}

func (x *xtSocket) option() string {
	out := []string{"-m socket"}
	for bit, name := range []string{"--transparent", "--nowildcard", "--restore-skmark"} {
		if x.flags&(1<<bit) != 0 {
			out = append(out, name)
		}
	}
	return strings.Join(out, " ")
}

// socketState is nftables' socket expression.
type socketState struct {
	key uint32 // enum nft_socket_keys; 0: transparent
	to  register
}

func (e socketState) run(m *machine) {
	if e.key == 0 && m.packet.sample {
		m.test(no)
		return
	}
	m.unclear()
}

func (e socketState) write(w *writer) { opaque{text: "socket …"}.write(w) }
