package netfilter

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// icmpError is a question about "fragmentation needed", or "packet too big".
func icmpError(is6 bool) trace.Question {
	q := trace.Question{In: 2, ICMPType: 3, ICMPCode: 4,
		Packet: trace.Tuple{Protocol: trace.ICMP, Src: netip.MustParseAddrPort("10.0.0.9:0"), Dst: netip.MustParseAddrPort("10.0.0.2:0")}}
	if is6 {
		q.ICMPType, q.ICMPCode = 2, 0
		q.Packet = trace.Tuple{Protocol: trace.ICMPv6, Src: netip.MustParseAddrPort("[fd00::9]:0"), Dst: netip.MustParseAddrPort("[fd00::2]:0")}
	}
	return q
}

// piece is a question about a fragment.
func piece(is6, later, more bool) trace.Question {
	q := trace.Question{In: 2, Fragment: later, MoreFragments: more, Packet: synTuple}
	q.Packet.Protocol = trace.UDP
	if is6 {
		q.Packet.Src, q.Packet.Dst = netip.MustParseAddrPort("[fd00::9]:1000"), netip.MustParseAddrPort("[fd00::2]:80")
	}
	if later {
		q.Packet.Src, q.Packet.Dst = netip.AddrPortFrom(q.Packet.Src.Addr(), 0), netip.AddrPortFrom(q.Packet.Dst.Addr(), 0)
	}
	return q
}

// TestPortless walks ICMP errors and fragments, which have no ports.
func TestPortless(t *testing.T) {
	load16 := func(base, offset int) expr { return payload{to: 8, base: base, offset: offset, size: 2} }
	is := func(op cmpOp, n uint16) expr {
		return comparison{from: 8, op: op, data: binary.BigEndian.AppendUint16(nil, n)}
	}
	masked := func(n uint16) expr {
		return bitwise{from: 8, to: 8, size: 2, mask: binary.BigEndian.AppendUint16(nil, n), xor: []byte{0, 0}}
	}
	later := []expr{load16(baseNetwork, 6), masked(0x1fff), is(cmpNeq, 0)}
	any4 := []expr{load16(baseNetwork, 6), masked(0x3fff), is(cmpNeq, 0)}
	toPort := []expr{load16(baseTransport, 2), is(cmpEq, 80)}
	exists := []expr{fragmentExtension{to: 8, present: true, size: 1}, comparison{from: 8, op: cmpEq, data: []byte{1}}}
	later6 := []expr{fragmentExtension{to: 8, offset: 2, size: 2}, masked(0xfff8), is(cmpNeq, 0)}
	tooBig, tooBig6 := []expr{load16(baseTransport, 0), is(cmpEq, 0x0304)}, []expr{load16(baseTransport, 0), is(cmpEq, 0x0200)}
	ports := xtMatch{&xtPorts{protocol: trace.UDP, src: portRange{high: 0xffff}, dst: portRange{low: 80, high: 80}}}
	zero, none := netip.IPv4Unspecified(), make([]byte, 4)
	anybody := &xtHeader{src: zero, dst: zero, srcMask: none, dstMask: none, fragment: true}
	for name, tt := range map[string]struct {
		q    trace.Question
		rule rule
		want []string
	}{
		"ICMP by type and code":               {icmpError(false), list(tooBig, drops), []string{"1!"}},
		"ICMPv6 by type and code":             {icmpError(true), list(tooBig6, drops), []string{"1!"}},
		"another ICMP":                        {icmpError(false), list(tooBig6, drops), nil},
		"ICMP, iptables":                      {icmpError(false), list(xtMatch{&xtICMP{kind: 3, low: 4, high: 4}}, drops), []string{"1!"}},
		"ICMP, iptables, any":                 {icmpError(false), list(xtMatch{&xtICMP{kind: anyICMP, high: 255}}, drops), []string{"1!"}},
		"ICMP, iptables, other code":          {icmpError(false), list(xtMatch{&xtICMP{kind: 3, low: 1, high: 1}}, drops), nil},
		"ICMP, iptables, not":                 {icmpError(false), list(xtMatch{&xtICMP{kind: 3, low: 1, high: 1, invert: true}}, drops), []string{"1!"}},
		"ICMPv6, iptables":                    {icmpError(true), list(xtMatch{&xtICMP{is6: true, kind: 2, high: 255}}, drops), []string{"1!"}},
		"ICMP is no UDP":                      {icmpError(false), list(ports, drops), nil},
		"UDP is no ICMP":                      {piece(false, false, false), list(xtMatch{&xtICMP{kind: 3, high: 255}}, drops), nil},
		"a later fragment":                    {piece(false, true, true), list(later, drops), []string{"1!"}},
		"the last fragment":                   {piece(false, true, false), list(any4, drops), []string{"1!"}},
		"the first fragment is not later":     {piece(false, false, true), list(later, drops), nil},
		"the first fragment, by flag":         {piece(false, false, true), list(any4, drops), []string{"1!"}},
		"the first fragment has ports":        {piece(false, false, true), list(toPort, drops), []string{"1!"}},
		"a later one has none":                {piece(false, true, true), list(toPort, drops), nil},
		"a later one has none, iptables":      {piece(false, true, true), list(ports, drops), nil},
		"a later one, iptables -f":            {piece(false, true, true), list(anybody, drops), []string{"1!"}},
		"IPv6, exists":                        {piece(true, true, true), list(exists, drops), []string{"1!"}},
		"IPv6, first, exists":                 {piece(true, false, true), list(exists, drops), []string{"1!"}},
		"IPv6, later":                         {piece(true, true, false), list(later6, drops), []string{"1!"}},
		"IPv6, first is not later":            {piece(true, false, true), list(later6, drops), nil},
		"IPv6, whole as far as is known":      {piece(true, false, false), list(exists, drops), []string{"1"}},
		"IPv4 has no header for it":           {piece(false, true, true), list(later6, drops), nil},
		"a policy that ports would have kept": {piece(false, true, true), list(toPort, accepts), []string{"policy!"}},
	} {
		t.Run(name, func(t *testing.T) {
			rules := build(name == "a policy that ports would have kept", []rule{tt.rule})
			found, err := rules.drops(newPacket(tt.q, trace.Interface{}, trace.Interface{}, trace.Input, nil))
			if err != nil || !slices.Equal(told(found), slices.Concat([]string{}, tt.want)) {
				t.Errorf("dropped by %v, %v; want %v", told(found), err, tt.want)
			}
		})
	}
}

func TestDecodeExthdr(t *testing.T) {
	decoded := func(kind, op uint8) expr {
		return decodeExthdr(&attributeValues{unix.NFTA_EXTHDR_DREG: num(1), unix.NFTA_EXTHDR_TYPE: {kind}, unix.NFTA_EXTHDR_OFFSET: num(2),
			unix.NFTA_EXTHDR_LEN: num(2), unix.NFTA_EXTHDR_OP: num(uint32(op))})
	}
	if e, ok := decoded(unix.IPPROTO_FRAGMENT, 0).(fragmentExtension); !ok || e.offset != 2 || e.size != 2 || e.present {
		t.Errorf("decoded %+v", e)
	}
	for _, other := range []expr{decoded(unix.IPPROTO_ROUTING, 0), decoded(unix.IPPROTO_FRAGMENT, 1)} {
		if _, ok := other.(opaque); !ok {
			t.Errorf("decoded %+v, want something opaque", other)
		}
	}
}
