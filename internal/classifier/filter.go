package classifier

import (
	"bytes"
	"encoding/binary"

	"github.com/vishvananda/netlink/nl"

	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/pkg/trace"
)

// match is whether a filter fits the packet.
type match uint8

const (
	fits match = iota
	differs
	unclear
)

// filtered judges a filter that is no program.
func filtered(c *netstate.Classifier, p *Packet) (v Verdict, ended bool) {
	switch matches(c, p) {
	case differs:
		return Pass, false
	case unclear:
		if harmless(c) {
			return Pass, false
		}
		return Unknown, true
	}
	for _, a := range c.Actions() {
		if !a.Known {
			return Unknown, true
		}
		if v, ended = ofCode(a.Verdict); ended || a.Verdict != actPipe {
			return v, ended
		}
	}
	return Pass, true
}

// harmless reports whether it makes no difference if the filter fits, as it lets everything go on.
func harmless(c *netstate.Classifier) bool {
	for _, a := range c.Actions() {
		if !a.Known || a.Verdict != actPipe && a.Verdict != actUnspec {
			return false
		}
	}
	return len(c.Actions()) > 0
}

func matches(c *netstate.Classifier, p *Packet) match {
	options := netstate.Options(c.Options)
	switch c.Kind {
	case "matchall":
		return fits
	case "u32":
		return matchU32(options, p)
	case "flower":
		return matchFlower(options, p)
	}
	return unclear
}

// matchU32 compares words of the packet from its IP header on (struct
// tc_u32_sel of include/uapi/linux/pkt_cls.h). Offsets that depend on other headers,
// marks and links to other tables are not followed.
func matchU32(options map[uint16][]byte, p *Packet) match {
	const (
		header, key = 16, 16
		terminal    = 1
		variable    = 2 | 4 | 8 // TC_U32_OFFSET, TC_U32_VAROFFSET, TC_U32_EAT
	)
	selector := options[nl.TCA_U32_SEL]
	if len(selector) == 0 {
		return differs // a hash table
	}
	if len(selector) < header || options[nl.TCA_U32_LINK] != nil || options[nl.TCA_U32_MARK] != nil ||
		selector[0]&variable != 0 || selector[0]&terminal == 0 {
		return unclear
	}
	packet := append(p.network(), p.transport()...)
	result := fits
	for i := range int(selector[2]) {
		at := header + i*key
		if at+key > len(selector) {
			return unclear
		}
		k := selector[at:]
		offset := int(int32(binary.NativeEndian.Uint32(k[8:])))
		if offset < 0 || offset+4 > len(packet) || binary.NativeEndian.Uint32(k[12:]) != 0 {
			result = max(result, unclear)
			continue
		}
		mask := binary.BigEndian.Uint32(k)
		if (binary.BigEndian.Uint32(packet[offset:])^binary.BigEndian.Uint32(k[4:]))&mask != 0 {
			return differs
		}
	}
	return result
}

// matchFlower compares the keys of a flower filter.
func matchFlower(options map[uint16][]byte, p *Packet) match {
	result := fits
	for key, want := range options {
		have, mask, known := flowerKey(key, options, p)
		switch {
		case !known:
			result = unclear
		case have == nil:
		case len(have) != len(want) || !sameUnder(have, want, mask):
			return differs
		}
	}
	return result
}

func sameUnder(a, b, mask []byte) bool {
	if len(mask) != len(a) {
		return bytes.Equal(a, b)
	}
	for i := range a {
		if (a[i]^b[i])&mask[i] != 0 {
			return false
		}
	}
	return true
}

// absent is what no key equals: the packet has no such header.
var absent = []byte{}

// flowerKey is what the packet has for a key, and the mask under which it is
// compared. It is nil for attributes that are no keys.
func flowerKey(key uint16, options map[uint16][]byte, p *Packet) (have, mask []byte, known bool) {
	t := &p.Tuple
	ofFamily := func(six bool, b []byte, maskKey uint16) ([]byte, []byte, bool) {
		if t.Is6() != six {
			return absent, nil, true
		}
		return b, options[maskKey], true
	}
	port := func(protocol trace.Protocol, n uint16, maskKey uint16) ([]byte, []byte, bool) {
		if t.Protocol != protocol {
			return absent, nil, true
		}
		return binary.BigEndian.AppendUint16(nil, n), options[maskKey], true
	}
	switch key {
	case nl.TCA_FLOWER_KEY_ETH_TYPE:
		return binary.BigEndian.AppendUint16(nil, p.etherType()), nil, true
	case nl.TCA_FLOWER_KEY_IP_PROTO:
		return []byte{byte(t.Protocol)}, nil, true
	case nl.TCA_FLOWER_KEY_IPV4_SRC:
		return ofFamily(false, t.Src.Addr().AsSlice(), nl.TCA_FLOWER_KEY_IPV4_SRC_MASK)
	case nl.TCA_FLOWER_KEY_IPV4_DST:
		return ofFamily(false, t.Dst.Addr().AsSlice(), nl.TCA_FLOWER_KEY_IPV4_DST_MASK)
	case nl.TCA_FLOWER_KEY_IPV6_SRC:
		return ofFamily(true, t.Src.Addr().AsSlice(), nl.TCA_FLOWER_KEY_IPV6_SRC_MASK)
	case nl.TCA_FLOWER_KEY_IPV6_DST:
		return ofFamily(true, t.Dst.Addr().AsSlice(), nl.TCA_FLOWER_KEY_IPV6_DST_MASK)
	case nl.TCA_FLOWER_KEY_TCP_SRC:
		return port(trace.TCP, t.Src.Port(), nl.TCA_FLOWER_KEY_TCP_SRC_MASK)
	case nl.TCA_FLOWER_KEY_TCP_DST:
		return port(trace.TCP, t.Dst.Port(), nl.TCA_FLOWER_KEY_TCP_DST_MASK)
	case nl.TCA_FLOWER_KEY_UDP_SRC:
		return port(trace.UDP, t.Src.Port(), nl.TCA_FLOWER_KEY_UDP_SRC_MASK)
	case nl.TCA_FLOWER_KEY_UDP_DST:
		return port(trace.UDP, t.Dst.Port(), nl.TCA_FLOWER_KEY_UDP_DST_MASK)
	case nl.TCA_FLOWER_KEY_TCP_FLAGS:
		if t.Protocol != trace.TCP {
			return absent, nil, true
		}
		return []byte{0, byte(p.Flags)}, options[nl.TCA_FLOWER_KEY_TCP_FLAGS_MASK], true
	}
	return nil, nil, passiveKey(key)
}

// inHardware is TCA_FLOWER_IN_HW_COUNT.
const inHardware = 86

// passiveKey reports an attribute that is no key, or the mask of one that is known.
func passiveKey(key uint16) bool {
	switch key {
	case nl.TCA_FLOWER_CLASSID, nl.TCA_FLOWER_ACT, nl.TCA_FLOWER_FLAGS, inHardware,
		nl.TCA_FLOWER_KEY_IPV4_SRC_MASK, nl.TCA_FLOWER_KEY_IPV4_DST_MASK, nl.TCA_FLOWER_KEY_IPV6_SRC_MASK, nl.TCA_FLOWER_KEY_IPV6_DST_MASK,
		nl.TCA_FLOWER_KEY_TCP_SRC_MASK, nl.TCA_FLOWER_KEY_TCP_DST_MASK, nl.TCA_FLOWER_KEY_UDP_SRC_MASK, nl.TCA_FLOWER_KEY_UDP_DST_MASK,
		nl.TCA_FLOWER_KEY_TCP_FLAGS_MASK:
		return true
	}
	return false
}
