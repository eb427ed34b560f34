package netstate

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"

	"github.com/replypath/replypath/pkg/trace"
)

// attributesOf writes netlink attributes, in the order of the arguments.
func attributesOf(parts ...*nl.RtAttr) (b []byte) {
	for _, p := range parts {
		b = append(b, p.Serialize()...)
	}
	return b
}

func number(kind int, n uint32) *nl.RtAttr { return nl.NewRtAttr(kind, nl.Uint32Attr(n)) }

// pair is two numbers of 16 bits in network order: an Ethernet type (the first), or ports.
func pair(kind int, n ...uint16) *nl.RtAttr {
	var b []byte
	for _, v := range n {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return nl.NewRtAttr(kind, b)
}

// ipv4 is struct ovs_key_ipv4.
func ipv4(src, dst string, protocol byte) *nl.RtAttr {
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	return nl.NewRtAttr(fieldIPv4, append(append(s[:], d[:]...), protocol, 0, 0, 0))
}

func ipv6(src, dst string, protocol byte) *nl.RtAttr {
	s, d := netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16()
	return nl.NewRtAttr(fieldIPv6, append(append(append(s[:], d[:]...), 0, 0, 0, 0), protocol, 0, 0, 0))
}

func TestMatchFlow(t *testing.T) {
	packet := trace.Tuple{Protocol: trace.TCP, Src: netip.MustParseAddrPort("10.2.0.7:40000"), Dst: netip.MustParseAddrPort("10.2.0.20:80")}
	packet6 := trace.Tuple{Protocol: trace.TCP, Src: netip.MustParseAddrPort("[2001:db8::7]:40000"), Dst: netip.MustParseAddrPort("[2001:db8::20]:80")}
	type attrs = []*nl.RtAttr
	const none = "0.0.0.0"
	key := attrs{number(fieldInPort, 3), pair(fieldEthertype, 0x0800), ipv4("10.2.0.7", "10.2.0.20", 6), pair(fieldTCP, 40000, 80)}
	all := ^uint32(0)
	tests := map[string]struct {
		packet    trace.Tuple
		key, mask attrs
		fits      bool
		certain   bool
		text      string
	}{
		"exactly": {packet, key, attrs{number(fieldInPort, all), pair(fieldEthertype, 0xffff), ipv4("255.255.255.255", "255.255.255.255", 255), pair(fieldTCP, 0xffff, 0xffff)},
			true, true, "in_port(3),eth_type(0x0800),ipv4(src=10.2.0.7,dst=10.2.0.20,proto=6),tcp(src=40000,dst=80)"},
		"by port and prefix": {packet, attrs{number(fieldInPort, 3), pair(fieldEthertype, 0x0800), ipv4(none, "10.2.0.0", 6), pair(fieldTCP, 0, 80)},
			attrs{number(fieldInPort, all), pair(fieldEthertype, 0xffff), ipv4(none, "255.255.255.0", 255), pair(fieldTCP, 0, 0xffff)},
			true, true, "in_port(3),eth_type(0x0800),ipv4(dst=10.2.0.0/24,proto=6),tcp(dst=80)"},
		"another port of the switch": {packet, attrs{number(fieldInPort, 4)}, attrs{number(fieldInPort, all)}, false, true, "in_port(4)"},
		"another destination port":   {packet, attrs{pair(fieldTCP, 0, 81)}, attrs{pair(fieldTCP, 0, 0xffff)}, false, true, "tcp(dst=81)"},
		"a range of ports":           {packet, attrs{pair(fieldTCP, 0, 80)}, attrs{pair(fieldTCP, 0, 0xfff0)}, true, true, "tcp(dst=80/0xfff0)"},
		"another protocol":           {packet, attrs{pair(fieldUDP, 0, 80)}, attrs{pair(fieldUDP, 0, 0xffff)}, false, true, "udp(dst=80)"},
		"another network":            {packet, attrs{ipv4("10.3.0.0", none, 0)}, attrs{ipv4("255.255.0.0", none, 0)}, false, true, "ipv4(src=10.3.0.0/16)"},
		"a state that is not known":  {packet, attrs{number(22, 0x21)}, attrs{number(22, 0x21)}, true, false, "ct_state(...)"},
		"a state that is not looked at": {packet, attrs{number(22, 0x21), number(fieldRecirculation, 0)}, attrs{number(22, 0), number(fieldRecirculation, all)},
			true, true, ""},
		"IPv6": {packet6, attrs{pair(fieldEthertype, 0x86dd), ipv6("::", "2001:db8::20", 6), pair(fieldTCP, 0, 80)},
			attrs{pair(fieldEthertype, 0xffff), ipv6("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 255), pair(fieldTCP, 0, 0xffff)},
			true, true, "eth_type(0x86dd),ipv6(dst=2001:db8::20,proto=6),tcp(dst=80)"},
		"IPv4 alone": {packet6, key, attrs{pair(fieldEthertype, 0xffff)}, false, true, "eth_type(0x0800)"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m := matchFlow(attributesOf(tt.key...), attributesOf(tt.mask...), true, tt.packet, 3)
			if text := strings.Join(m.text, ","); m.fits != tt.fits || m.certain != tt.certain || text != tt.text {
				t.Errorf("fits %t, certain %t, %q; want %t, %t, %q", m.fits, m.certain, text, tt.fits, tt.certain, tt.text)
			}
		})
	}
	if m := matchFlow(attributesOf(key...), nil, false, packet, 3); !m.fits || !m.certain {
		t.Errorf("a flow without a mask, which is exact, does not fit: %+v", m)
	}
}

func TestDropsAll(t *testing.T) {
	const output = 1
	for name, tt := range map[string]struct {
		actions []byte
		want    bool
	}{
		"no action": {nil, true},
		"drop":      {attributesOf(number(actionDrop, 0)), true},
		"output":    {attributesOf(number(output, 2)), false},
	} {
		if got := dropsAll(tt.actions); got != tt.want {
			t.Errorf("%s: drops %t, want %t", name, got, tt.want)
		}
	}
}

func TestGenericSockets(t *testing.T) {
	open, err := genericSockets(strings.NewReader(`sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode
0000000000000000 0   1234       00000110 0        0        0     2        0        1
0000000000000000 16  3157524921 00000000 0        0        0     2        0        2
`))
	if err != nil || len(open) != 1 || !open[3157524921] {
		t.Errorf("sockets %v, %v; want the one of generic netlink", open, err)
	}
}

// FuzzSwitchFlow: whatever a datapath says, it must not end the program.
func FuzzSwitchFlow(f *testing.F) {
	packet := trace.Tuple{Protocol: trace.TCP, Src: netip.MustParseAddrPort("10.2.0.7:40000"), Dst: netip.MustParseAddrPort("10.2.0.20:80")}
	key := attributesOf(number(fieldInPort, 3), pair(fieldEthertype, 0x0800), ipv4("10.2.0.7", "10.2.0.20", 6), pair(fieldTCP, 40000, 80))
	f.Add(attributesOf(nl.NewRtAttr(flowKey, key), nl.NewRtAttr(flowMask, key), nl.NewRtAttr(flowActions, nil)))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := trace.SwitchState{Number: 3}
		addFlow(b, packet, &s)
	})
}
