package netfilter

import (
	"fmt"
	"strings"

	"github.com/replypath/replypath/pkg/trace"
)

// portRange is a range of ports, both ends included.
type portRange struct {
	low, high uint16
	invert    bool
}

func (p portRange) has(port uint16) bool { return (port >= p.low && port <= p.high) != p.invert }

func (p portRange) any() bool { return p.low == 0 && p.high == 0xffff && !p.invert }

func (p portRange) String() string {
	if p.low == p.high {
		return fmt.Sprint(p.low)
	}
	return fmt.Sprintf("%d:%d", p.low, p.high)
}

// xtPorts are the matches tcp and udp (struct xt_tcp, struct xt_udp).
type xtPorts struct {
	protocol         trace.Protocol
	src, dst         portRange
	tcpOption        uint8
	flagMask, flags  uint8
	invFlags, invOpt bool
}

func decodeTCP(r *reader) matcher {
	x := decodePorts(r, trace.TCP)
	x.tcpOption, x.flagMask, x.flags = r.u8(), r.u8(), r.u8()
	inv := r.u8()
	x.src.invert, x.dst.invert = inv&1 != 0, inv&2 != 0
	x.invFlags, x.invOpt = inv&4 != 0, inv&8 != 0
	return x
}

func decodeUDP(r *reader) matcher {
	x := decodePorts(r, trace.UDP)
	inv := r.u8()
	x.src.invert, x.dst.invert = inv&1 != 0, inv&2 != 0
	return x
}

func decodePorts(r *reader, p trace.Protocol) *xtPorts {
	return &xtPorts{
		protocol: p,
		src:      portRange{low: r.u16(), high: r.u16()},
		dst:      portRange{low: r.u16(), high: r.u16()},
	}
}

func (x *xtPorts) matches(p *packet) truth {
	if p.tuple.Protocol != x.protocol || p.isLater() {
		return no
	}
	t := yes
	switch {
	case x.src.any() && x.dst.any():
	case !p.hasPorts():
		t = maybe
	default:
		t = truthOf(x.src.has(p.tuple.Src.Port()) && x.dst.has(p.tuple.Dst.Port()))
	}
	if x.flagMask != 0 || x.flags != 0 || x.invFlags {
		f := maybe
		if p.flags != 0 {
			f = truthOf((uint8(p.flags)&x.flagMask == x.flags) != x.invFlags)
		}
		t = t.and(f)
	}
	if x.tcpOption != 0 {
		t = t.and(maybe)
	}
	return t
}

func (x *xtPorts) option() string {
	out := []string{"-m " + x.protocol.String()}
	add := func(r portRange, name string) {
		if !r.any() {
			out = append(out, negated(r.invert, name+" "+r.String()))
		}
	}
	add(x.src, "--sport")
	add(x.dst, "--dport")
	if x.flagMask != 0 || x.flags != 0 {
		out = append(out, negated(x.invFlags, "--tcp-flags "+tcpFlagNames(x.flagMask, "NONE")+" "+tcpFlagNames(x.flags, "NONE")))
	}
	if x.tcpOption != 0 {
		out = append(out, negated(x.invOpt, fmt.Sprintf("--tcp-option %d", x.tcpOption)))
	}
	return strings.Join(out, " ")
}

// negated puts iptables' "!" before an option.
func negated(invert bool, option string) string {
	if invert {
		return "! " + option
	}
	return option
}

// tcpFlagNames are the flags in the order of iptables-save.
func tcpFlagNames(f uint8, none string) string {
	if f == 0 {
		return none
	}
	var out []string
	for i, name := range []string{"FIN", "SYN", "RST", "PSH", "ACK", "URG"} {
		if f&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	return strings.Join(out, ",")
}

// xtMultiport matches a list of ports (struct xt_multiport_v1).
type xtMultiport struct {
	which  uint8 // enum xt_multiport_flags
	ranges []portRange
	invert bool
}

const (
	multiportSource = 0
	multiportDest   = 1
)

func decodeMultiport(r *reader, revision uint8) matcher {
	const most = 15 // XT_MULTI_PORTS
	x := &xtMultiport{which: r.u8()}
	count := int(r.u8())
	var ports [most]uint16
	for i := range ports {
		ports[i] = r.u16()
	}
	var opens []byte
	if revision == 1 {
		opens = r.bytes(most)
		x.invert = r.u8() != 0
	}
	if count > most {
		r.short = true
		return x
	}
	for i := 0; i < count; i++ {
		p := portRange{low: ports[i], high: ports[i]}
		if opens != nil && opens[i] != 0 && i+1 < count {
			i++
			p.high = ports[i]
		}
		x.ranges = append(x.ranges, p)
	}
	return x
}

func (x *xtMultiport) matches(p *packet) truth {
	switch {
	case p.isLater():
		return no
	case !p.hasPorts():
		return maybe
	}
	src, dst := p.tuple.Src.Port(), p.tuple.Dst.Port()
	for _, r := range x.ranges {
		if x.which != multiportDest && r.has(src) || x.which != multiportSource && r.has(dst) {
			return truthOf(!x.invert)
		}
	}
	return truthOf(x.invert)
}

func (x *xtMultiport) option() string {
	var list []string
	for _, r := range x.ranges {
		list = append(list, r.String())
	}
	name := "--ports"
	switch x.which {
	case multiportSource:
		name = "--sports"
	case multiportDest:
		name = "--dports"
	}
	return "-m multiport " + negated(x.invert, name+" "+strings.Join(list, ","))
}
