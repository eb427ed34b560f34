package netfilter

import (
	"bytes"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// With br_netfilter a packet that crosses a bridge meets the hooks of its
// protocol too. There its devices are the bridge; the ports are told apart
// (net/bridge/br_netfilter_hooks.c).

// ports are the ports by which a packet came into a bridge and is to leave it.
type ports struct {
	crosses truth // the packet crosses a bridge, and is not for its host
	in, out device
}

// atHook describes the packet of q at a hook.
func atHook(q trace.Question, in, out trace.Interface, hook trace.NetfilterHook, routes routes) *packet {
	if hook == trace.Ingress || hook == trace.Egress {
		return newPacket(q, in, out, hook, routes)
	}
	crossing := ports{}
	if bridge, ok := bridgeAbove(q.In, routes); ok {
		crossing.in = device{there: yes, index: q.In, name: in.Name, kind: in.Kind}
		crossing.crosses = yes
		if hook == trace.Prerouting {
			crossing.crosses = maybe // it may be for the bridge's own host
		}
		in, q.In = bridge, bridge.Index
		crossing.out.there = maybe
	}
	if bridge, ok := bridgeAbove(q.Out, routes); ok {
		crossing.out = device{there: yes, index: q.Out, name: out.Name, kind: out.Kind}
		out, q.Out = bridge, bridge.Index
	}
	p := newPacket(q, in, out, hook, routes)
	p.ports = crossing
	return p
}

func bridgeAbove(index uint32, routes routes) (trace.Interface, bool) {
	if index == 0 {
		return trace.Interface{}, false
	}
	return routes.bridgeOf(index)
}

// Bits of xt_physdev_info.bitmask and invert.
const (
	physIn      = 0x01
	physOut     = 0x02
	physBridged = 0x04
	physIsIn    = 0x08
	physIsOut   = 0x10
)

// xtPhysDev is the match physdev (struct xt_physdev_info).
type xtPhysDev struct {
	in, inMask, out, outMask []byte
	invert, asked            uint8
}

func decodePhysDev(r *reader) matcher {
	x := &xtPhysDev{}
	for _, field := range []*[]byte{&x.in, &x.inMask, &x.out, &x.outMask} {
		*field = bytes.Clone(r.bytes(unix.IFNAMSIZ))
	}
	x.invert, x.asked = r.u8(), r.u8()
	return x
}

// matches follows physdev_mt in net/netfilter/xt_physdev.c.
func (x *xtPhysDev) matches(p *packet) truth {
	t := yes
	test := func(bit uint8, is truth) {
		if x.asked&bit != 0 {
			t = t.and(is.xor(x.invert&bit != 0))
		}
	}
	if p.ports.in.there == no && p.ports.out.there == no {
		for _, bit := range []uint8{physBridged, physIsIn, physIsOut, physIn, physOut} {
			test(bit, no)
		}
		return t
	}
	outThere := p.ports.out.there
	test(physBridged, outThere.and(p.ports.crosses.or(maybe)))
	test(physIsIn, p.ports.in.there)
	test(physIsOut, outThere)
	test(physIn, p.ports.in.there.and(interfaceMatches(p.ports.in, x.in, x.inMask)))
	test(physOut, outThere.and(interfaceMatches(p.ports.out, x.out, x.outMask)))
	return t
}

func (x *xtPhysDev) option() string {
	out := []string{"-m physdev"}
	for _, o := range []struct {
		bit  uint8
		text string
	}{
		{physIsIn, "--physdev-is-in"}, {physIn, maskedInterface("--physdev-in", x.in, x.inMask)},
		{physIsOut, "--physdev-is-out"}, {physOut, maskedInterface("--physdev-out", x.out, x.outMask)}, {physBridged, "--physdev-is-bridged"},
	} {
		if x.asked&o.bit != 0 {
			out = append(out, negated(x.invert&o.bit != 0, o.text))
		}
	}
	return strings.Join(out, " ")
}
