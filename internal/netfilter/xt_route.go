package netfilter

import (
	"net/netip"
	"strings"

	"github.com/replypath/replypath/pkg/trace"
)

// Flags of the match rpfilter (include/uapi/linux/netfilter/xt_rpfilter.h).
const (
	reversePathLoose       = 1 << 0
	reversePathMark        = 1 << 1
	reversePathAcceptLocal = 1 << 2
	reversePathInvert      = 1 << 3
)

// xtReversePath is the match rpfilter: is the packet's source reached by the
// device that it came in by? (rpfilter_mt in net/ipv4/netfilter/ipt_rpfilter.c)
type xtReversePath struct{ flags uint8 }

func (x *xtReversePath) matches(p *packet) truth {
	return x.reached(p).xor(x.flags&reversePathInvert != 0)
}

func (x *xtReversePath) reached(p *packet) truth {
	var mark uint32
	if x.flags&reversePathMark != 0 {
		v, known := p.mark.masked32()
		if known != ^uint32(0) {
			return maybe
		}
		p.markRead, mark = true, v
	}
	t := p.reversePath(p.tuple.Src.Addr(), mark)
	if t == no && x.flags&(reversePathLoose|reversePathAcceptLocal) != 0 {
		return maybe
	}
	return t
}

// reversePath tells whether packets to an address leave by the device that the
// packet came in by. On lo everything does.
func (p *packet) reversePath(to netip.Addr, mark uint32) truth {
	switch {
	case p.in.name == "lo" && p.hook == trace.Prerouting:
		return yes
	case p.routes == nil || p.in.there != yes || p.in.index == 0:
		return maybe
	}
	reached, known := p.routes.reaches(to, p.tuple.Dst.Addr(), p.in.index, mark)
	if !known {
		return maybe
	}
	return truthOf(reached)
}

func (x *xtReversePath) option() string {
	out := []string{"-m rpfilter"}
	for bit, name := range []string{"--loose", "--validmark", "--accept-local", "--invert"} {
		if x.flags&(1<<bit) != 0 {
			out = append(out, name)
		}
	}
	return strings.Join(out, " ")
}
