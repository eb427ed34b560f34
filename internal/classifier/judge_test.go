package classifier

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/pkg/trace"
)

// attribute writes struct nlattr.
func attribute(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

// gact writes a list with one action.
func gact(listKind uint16, code int32) []byte {
	parameters := make([]byte, 20)
	binary.NativeEndian.PutUint32(parameters[8:], uint32(code))
	action := append(attribute(1, []byte("gact\x00")), attribute(2, attribute(2, parameters))...)
	return attribute(listKind, attribute(1, action))
}

// key is struct tc_u32_key.
func key(mask, value string, offset int) []byte {
	m, _ := hex.DecodeString(mask)
	v, _ := hex.DecodeString(value)
	b := append(m, v...)
	b = binary.NativeEndian.AppendUint32(b, uint32(offset))
	return append(b, 0, 0, 0, 0)
}

func u32(priority uint16, code int32, keys ...[]byte) netstate.Classifier {
	selector := make([]byte, 16)
	selector[0], selector[2] = 1, byte(len(keys))
	for _, k := range keys {
		selector = append(selector, k...)
	}
	return netstate.Classifier{Point: trace.TCIngress, Kind: "u32", Priority: priority, Protocol: unix.ETH_P_IP,
		Options: append(attribute(nl.TCA_U32_SEL, selector), gact(7, code)...)}
}

func flower(code int32, keys ...[]byte) netstate.Classifier {
	c := netstate.Classifier{Point: trace.TCIngress, Kind: "flower", Protocol: unix.ETH_P_IP}
	for _, k := range keys {
		c.Options = append(c.Options, k...)
	}
	c.Options = append(c.Options, gact(nl.TCA_FLOWER_ACT, code)...)
	return c
}

func TestJudge(t *testing.T) {
	p := &Packet{Flags: trace.SYN, Tuple: trace.Tuple{Protocol: trace.TCP,
		Src: netip.MustParseAddrPort("198.51.100.7:41000"), Dst: netip.MustParseAddrPort("10.2.0.20:80")}}
	toServer, other := key("ffffffff", "0a020014", 16), key("ffffffff", "0a020015", 16)
	port80 := attribute(nl.TCA_FLOWER_KEY_TCP_DST, []byte{0, 80})
	tcp := attribute(nl.TCA_FLOWER_KEY_IP_PROTO, []byte{6})
	all := netstate.Classifier{Point: trace.TCIngress, Kind: "matchall", Protocol: unix.ETH_P_ALL, Options: gact(2, actOK)}
	six := u32(1, actShot, toServer)
	six.Protocol = unix.ETH_P_IPV6
	tests := []struct {
		name  string
		found []netstate.Classifier
		want  Verdict
	}{
		{"nothing", nil, Pass},
		{"u32", []netstate.Classifier{u32(1, actShot, toServer)}, Drop},
		{"u32, and a port", []netstate.Classifier{u32(1, actShot, toServer, key("0000ffff", "00000050", 20))}, Drop},
		{"u32 of another address", []netstate.Classifier{u32(1, actShot, other)}, Pass},
		{"u32 of another family", []netstate.Classifier{six}, Pass},
		{"u32 beyond what is known", []netstate.Classifier{u32(1, actShot, toServer, key("ffffffff", "00000000", 400))}, Unknown},
		{"let pass before", []netstate.Classifier{all, u32(2, actShot, toServer)}, Pass},
		{"asked, and goes on", []netstate.Classifier{u32(1, actUnspec, toServer), u32(2, actShot, toServer)}, Drop},
		{"flower", []netstate.Classifier{flower(actShot, tcp, port80)}, Drop},
		{"flower of another port", []netstate.Classifier{flower(actShot, tcp, attribute(nl.TCA_FLOWER_KEY_TCP_DST, []byte{0, 81}))}, Pass},
		{"flower of another protocol", []netstate.Classifier{flower(actShot, attribute(nl.TCA_FLOWER_KEY_UDP_DST, []byte{0, 80}))}, Pass},
		{"flower with a key that is not known", []netstate.Classifier{flower(actShot, tcp, attribute(nl.TCA_FLOWER_KEY_IP_TTL, []byte{1}))}, Unknown},
		{"another kind", []netstate.Classifier{{Point: trace.TCIngress, Kind: "basic", Protocol: unix.ETH_P_ALL, Options: gact(3, actShot)}}, Unknown},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Judge(tt.found, p, 1, false); got.Verdict != tt.want {
				t.Errorf("verdict %d, want %d", got.Verdict, tt.want)
			}
		})
	}
}

// TestProgram has the kernel run real programs on a copy of a packet: one that
// only looks at it always, one that keeps state only where that is allowed.
func TestProgram(t *testing.T) {
	counts, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Skipf("needs CAP_BPF: %v", err)
	}
	defer counts.Close()
	drop := asm.Instructions{asm.Mov.Imm(asm.R0, xdpDrop), asm.Return()}
	stateful := append(asm.Instructions{asm.LoadMapPtr(asm.R1, counts.FD())}, drop...)
	p := &Packet{Tuple: trace.Tuple{Protocol: trace.UDP, Src: netip.MustParseAddrPort("[2001:db8::7]:41000"), Dst: netip.MustParseAddrPort("[2001:db8::20]:53")}}
	for _, tt := range []struct {
		name         string
		instructions asm.Instructions
		all          bool
		want         Judgement
	}{
		{"looks", drop, false, Judgement{Verdict: Drop}},
		{"keeps state, and may not run", stateful, false, Judgement{Verdict: Unknown}},
		{"keeps state, and may run", stateful, true, Judgement{Verdict: Drop, Ran: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "Apache-2.0", Instructions: tt.instructions})
			if err != nil {
				t.Fatal(err)
			}
			defer program.Close()
			info, err := program.Info()
			if err != nil {
				t.Fatal(err)
			}
			id, _ := info.ID()
			got := Judge([]netstate.Classifier{{Point: trace.XDPNative, Program: uint32(id), Direct: true}}, p, 1, tt.all)
			got.By = ""
			if got != tt.want {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestFrame(t *testing.T) {
	for _, a := range []string{"198.51.100.7:41000", "[2001:db8::7]:41000"} {
		src := netip.MustParseAddrPort(a)
		for _, protocol := range []trace.Protocol{trace.TCP, trace.UDP} {
			p := Packet{Flags: trace.SYN, Tuple: trace.Tuple{Protocol: protocol, Src: src, Dst: src}}
			b := p.transport()
			if got := fold(p.pseudo(len(b)) + sum(b)); got != 0xffff {
				t.Errorf("%s %s: the checksum adds up to %#x", a, protocol, got)
			}
			if n := p.network(); src.Addr().Is4() && fold(sum(n)) != 0xffff {
				t.Errorf("%s: checksum of the IP header", a)
			}
		}
	}
}
