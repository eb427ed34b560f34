package netfilter

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
)

// matcher is a match extension of iptables (struct xt_match), with its data
// decoded. It is the same in iptables-legacy and in nftables' compat layer.
type matcher interface {
	matches(*packet) truth
	// option is the match as iptables-save writes it.
	option() string
}

// xtMatch is a match extension in a rule.
type xtMatch struct{ matcher }

func (e xtMatch) run(m *machine) { m.test(e.matches(m.packet)) }

// decodeMatch reads a match extension. What is not known, or has another
// length than its revision says, is opaque.
func decodeMatch(name string, revision uint8, data []byte, is6 bool) expr {
	if m := decodeMatcher(name, revision, data, is6); m != nil {
		return xtMatch{m}
	}
	return opaque{text: "-m " + name + " …"}
}

func decodeMatcher(name string, revision uint8, data []byte, is6 bool) matcher {
	r := &reader{data: data}
	var m matcher
	switch {
	case name == "tcp" && revision == 0:
		m = decodeTCP(r)
	case name == "udp" && revision == 0:
		m = decodeUDP(r)
	case name == "multiport" && revision <= 1:
		m = decodeMultiport(r, revision)
	case name == "state" && revision == 0:
		m = &xtState{mask: r.u32()}
	case name == "conntrack" && revision >= 1 && revision <= 3:
		m = decodeConntrack(r, revision, is6)
	case (name == "icmp" || name == "icmp6") && revision == 0:
		m = decodeICMP(r, is6)
	case name == "frag" && revision == 0:
		m = decodeFrag(r)
	case name == "comment" && revision == 0:
		return xtComment(cString(data))
	case name == "mark" && revision == 1:
		m = &xtMark{value: r.u32(), mask: r.u32(), invert: r.u8() != 0}
	case name == "connmark" && revision == 1:
		m = &xtConnMarked{xtMark{value: r.u32(), mask: r.u32(), invert: r.u8() != 0}}
	case name == "addrtype" && revision <= 1:
		m = decodeAddrType(r, revision)
	case name == "iprange" && revision == 1:
		m = decodeIPRange(r, is6)
	case name == "mac" && revision == 0:
		x := &xtMAC{}
		copy(x.addr[:], r.bytes(6))
		r.skip(2)
		x.invert = r.u32() != 0
		m = x
	case name == "pkttype" && revision == 0:
		m = &xtPacketType{kind: r.u32(), invert: r.u32() != 0}
	case name == "physdev" && revision == 0:
		m = decodePhysDev(r)
	case name == "owner" && revision == 1:
		m = decodeOwner(r)
	case name == "socket" && revision <= 3:
		x := &xtSocket{}
		if revision > 0 {
			x.flags = r.u8()
		}
		m = x
	case name == "rpfilter" && revision == 0:
		m = &xtReversePath{flags: r.u8()}
	default:
		return nil
	}
	if r.short {
		return nil
	}
	return m
}

// reader reads C structures in the byte order of the machine. A read past the
// end gives zeros and sets short.
type reader struct {
	data  []byte
	short bool
}

func (r *reader) bytes(n int) []byte {
	if n < 0 || n > len(r.data) {
		r.short = true
		return make([]byte, max(0, min(n, 4096)))
	}
	b := r.data[:n]
	r.data = r.data[n:]
	return b
}

func (r *reader) skip(n int)  { r.bytes(n) }
func (r *reader) u8() uint8   { return r.bytes(1)[0] }
func (r *reader) u16() uint16 { return binary.NativeEndian.Uint16(r.bytes(2)) }
func (r *reader) be16() uint16 {
	return binary.BigEndian.Uint16(r.bytes(2))
}
func (r *reader) u32() uint32 { return binary.NativeEndian.Uint32(r.bytes(4)) }

// address reads a union nf_inet_addr.
func (r *reader) address(is6 bool) netip.Addr {
	b := r.bytes(16)
	if is6 {
		return netip.AddrFrom16([16]byte(b))
	}
	return netip.AddrFrom4([4]byte(b))
}

// cString is the text before the first NUL.
func cString(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}

// decodeTarget reads a target extension.
func decodeTarget(name string, revision uint8, data []byte, is6 bool) []expr {
	r := &reader{data: data}
	if name == "CT" {
		if e, ok := decodeZone(data); ok {
			return []expr{e}
		}
	}
	switch name {
	case "DROP":
		return []expr{decide{verdict{code: verdictDrop}}}
	case "ACCEPT":
		return []expr{decide{verdict{code: verdictAccept}}}
	case "RETURN":
		return []expr{decide{verdict{code: verdictReturn}}}
	case "REJECT":
		return []expr{xtReject{with: r.u32(), is6: is6}}
	case "MARK":
		if revision == 2 && len(data) >= 8 {
			return []expr{xtSetMark{value: r.u32(), mask: r.u32()}}
		}
		return []expr{xtSetMark{unknown: true, name: name}}
	case "CONNMARK":
		if e, ok := decodeConnMark(r, revision); ok {
			return []expr{e}
		}
		return []expr{xtSetMark{unknown: true, name: name}}
	case "HMARK":
		return []expr{xtSetMark{unknown: true, name: name}}
	case "DNAT", "SNAT", "MASQUERADE", "REDIRECT", "NETMAP":
		return []expr{translate{text: "-j " + name, to: decodeTargetNAT(name, revision, data, is6)}}
	case "NFQUEUE":
		to := decodeQueues(r, revision)
		return []expr{opaqueEnd{text: fmt.Sprintf("-j NFQUEUE --queue-num %d", to.first), sure: true, queue: true, queues: to}}
	case "TPROXY":
		return []expr{decodeTProxy(r, revision, is6)}
	case "SYNPROXY":
		return []expr{opaqueEnd{text: "-j " + name}}
	case "NOTRACK":
		return []expr{untrack{text: "-j NOTRACK"}}
	case "CT":
		if r.u16()&ctNotrack != 0 {
			return []expr{untrack{text: "-j CT --notrack"}}
		}
		return []expr{passive{text: "-j CT"}}
	case "TCPMSS":
		return []expr{clamp{text: "-j TCPMSS"}}
	case "LOG", "NFLOG", "TCPOPTSTRIP", "DSCP", "TOS", "TTL", "HL", "CHECKSUM",
		"CLASSIFY", "SET", "TRACE", "AUDIT", "SECMARK", "CONNSECMARK", "TEE", "LED", "IDLETIMER", "RATEEST", "ECN", "ULOG":
		return []expr{passive{text: "-j " + name}}
	}
	return []expr{opaqueEnd{text: "-j " + name}}
}

// xtReject is the REJECT target.
type xtReject struct {
	with uint32
	is6  bool
}

func (e xtReject) run(m *machine) { m.give(verdict{code: verdictDrop, reject: true}) }

// xtSetMark is the MARK target, or one that sets the mark to what is not known.
type xtSetMark struct {
	value, mask uint32
	unknown     bool
	name        string
}

func (e xtSetMark) run(m *machine) {
	if e.unknown {
		m.setMark(unknownBits(4))
		return
	}
	m.setMark(m.packet.mark.maskXor(native32(^e.mask).data, native32(e.value).data))
}
