package netfilter

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// xtHeader is what every rule of iptables-legacy can say without an extension
// (struct ipt_ip, struct ip6t_ip6).
type xtHeader struct {
	src, dst         netip.Addr
	srcMask, dstMask []byte
	in, out          [unix.IFNAMSIZ]byte
	inMask, outMask  [unix.IFNAMSIZ]byte
	protocol         uint16
	hasProtocol      bool
	fragment         bool
	tos              bool // matches the TOS byte, which is not known
	invert           uint8
}

// Bits of ipt_ip.invflags, the same for IPv6.
const (
	invertIn       = 0x01
	invertOut      = 0x02
	invertSrc      = 0x08
	invertDst      = 0x10
	invertFragment = 0x20
	invertProtocol = 0x40
)

func (x *xtHeader) run(m *machine) { m.test(x.matches(m.packet)) }

func (x *xtHeader) matches(p *packet) truth {
	has := func(bit uint8) bool { return x.invert&bit != 0 }
	t := truthOf(maskedEqual(p.tuple.Src.Addr(), x.src, x.srcMask) != has(invertSrc)).and(
		truthOf(maskedEqual(p.tuple.Dst.Addr(), x.dst, x.dstMask) != has(invertDst)))
	t = t.and(interfaceMatches(p.in, x.in[:], x.inMask[:]).xor(has(invertIn)))
	t = t.and(interfaceMatches(p.out, x.out[:], x.outMask[:]).xor(has(invertOut)))
	if x.hasProtocol {
		t = t.and(truthOf((uint16(p.tuple.Protocol) == x.protocol) != has(invertProtocol)))
	}
	if x.fragment {
		f := maybe
		switch {
		case p.isLater():
			f = yes
		case p.hasPorts(), p.asked.Ahead:
			f = no
		}
		t = t.and(f.xor(has(invertFragment)))
	}
	if x.tos {
		t = t.and(maybe)
	}
	return t
}

// maskedEqual compares the bits of the mask.
func maskedEqual(a, b netip.Addr, mask []byte) bool {
	x, y := a.AsSlice(), b.AsSlice()
	if len(x) != len(y) || len(mask) != len(x) {
		return false
	}
	for i := range x {
		if (x[i]^y[i])&mask[i] != 0 {
			return false
		}
	}
	return true
}

// interfaceMatches compares a device's name under a mask (ifname_compare_aligned).
func interfaceMatches(d device, name, mask []byte) truth {
	b := d.nameBits().maskXor(mask, nil)
	want := make([]byte, len(name))
	for i := range want {
		want[i] = name[i] & mask[i]
	}
	return b.equal(want)
}

func (x *xtHeader) option() string {
	has := func(bit uint8) bool { return x.invert&bit != 0 }
	var out []string
	add := func(text string, invert bool) {
		if text != "" {
			out = append(out, negated(invert, text))
		}
	}
	add(maskedAddress("-s", x.src, x.srcMask), has(invertSrc))
	add(maskedAddress("-d", x.dst, x.dstMask), has(invertDst))
	add(maskedInterface("-i", x.in[:], x.inMask[:]), has(invertIn))
	add(maskedInterface("-o", x.out[:], x.outMask[:]), has(invertOut))
	if x.hasProtocol {
		add("-p "+protocolName(uint8(x.protocol)), has(invertProtocol))
	}
	if x.fragment {
		add("-f", has(invertFragment))
	}
	return strings.Join(out, " ")
}

// maskedAddress writes "-s 10.0.0.0/8", or "" when every address fits.
func maskedAddress(option string, a netip.Addr, mask []byte) string {
	if !slices.ContainsFunc(mask, func(b byte) bool { return b != 0 }) {
		return ""
	}
	if n, ok := prefixLength(mask); ok {
		return fmt.Sprintf("%s %s/%d", option, a, n)
	}
	m, _ := netip.AddrFromSlice(mask)
	return fmt.Sprintf("%s %s/%s", option, a, m)
}

// prefixLength returns the length of a mask that is a prefix.
func prefixLength(mask []byte) (int, bool) {
	n := 0
	for n < len(mask)*8 && mask[n/8]&(0x80>>(n%8)) != 0 {
		n++
	}
	for i := n; i < len(mask)*8; i++ {
		if mask[i/8]&(0x80>>(i%8)) != 0 {
			return 0, false
		}
	}
	return n, true
}

// maskedInterface writes "-i eth+", or "" when every device fits.
func maskedInterface(option string, name, mask []byte) string {
	if mask[0] == 0 {
		return ""
	}
	text := cString(name)
	if int(mask[min(len(text), len(mask)-1)]) == 0 {
		text += "+"
	}
	return option + " " + text
}
