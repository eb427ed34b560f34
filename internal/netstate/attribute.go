package netstate

import (
	"encoding/binary"
	"errors"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"
)

// errTruncated says that a message of the kernel ends before its own lengths say.
var errTruncated = errors.New("message is truncated")

// attributeMask strips NLA_F_NESTED and NLA_F_NET_BYTEORDER (include/uapi/linux/netlink.h).
const attributeMask = 0x3fff

// attributes yields type and value of each netlink attribute in b
// (struct nlattr). It stops at the first one that does not fit, as the kernel's
// own nla_for_each_attr does.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			length := int(binary.NativeEndian.Uint16(b))
			if length < unix.SizeofNlAttr || length > len(b) {
				return
			}
			kind := binary.NativeEndian.Uint16(b[2:]) & attributeMask
			if !yield(kind, b[unix.SizeofNlAttr:length]) {
				return
			}
			b = b[min((length+3)&^3, len(b)):]
		}
	}
}

// uint32Of reads a host-endian number; what is too short is 0.
func uint32Of(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

// uint8Of reads one byte; what is too short is 0.
func uint8Of(b []byte) uint8 {
	if len(b) == 0 {
		return 0
	}
	return b[0]
}

// textOf reads a string that a zero byte ends.
func textOf(b []byte) string { return unix.ByteSliceToString(b) }

// addressOf reads 4 or 16 bytes as an address; anything else is invalid.
// Mapped addresses (::ffff:0:0/96) stay mapped.
func addressOf(b []byte) netip.Addr {
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

// prefixOf makes a prefix from an attribute that may be missing (all zeroes then).
func prefixOf(family uint8, b []byte, bits uint8) netip.Prefix {
	addr := addressOf(b)
	if !addr.IsValid() {
		addr = unspecified(family)
	}
	prefix, err := addr.Prefix(int(bits))
	if err != nil {
		return netip.Prefix{}
	}
	return prefix
}

// unspecified returns 0.0.0.0 or ::.
func unspecified(family uint8) netip.Addr {
	if family == unix.AF_INET6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// familyOf returns AF_INET or AF_INET6.
func familyOf(addr netip.Addr) uint8 {
	if addr.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
