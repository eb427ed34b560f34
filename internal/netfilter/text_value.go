package netfilter

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// valueKind is how the bytes of a register are to be read.
type valueKind uint8

const (
	kindHex valueKind = iota
	kindIP4
	kindIP6
	kindPort
	kindProtocol
	kindIfName
	kindIndex
	kindMark
	kindMarkNetwork
	kindNumber // big-endian
	kindState
	kindStatus
	kindDirection
	kindTCPFlags
	kindEther
	kindEtherType
	kindNFProto
	kindNFProtoShort
	kindDeviceType
	kindPacketType
	kindAddrType
	kindPresent
	kindDSCP
	kindVersion
	kindICMP4
	kindICMP6
)

// nativeNumber reads up to four bytes in the machine's byte order.
func nativeNumber(b []byte) uint32 {
	var full [4]byte
	copy(full[:], b)
	if len(b) < 4 && !littleEndian {
		full = [4]byte{}
		copy(full[4-len(b):], b)
	}
	return binary.NativeEndian.Uint32(full[:])
}

// bigNumber reads up to eight bytes as a big-endian number.
func bigNumber(b []byte) uint64 {
	var v uint64
	for _, x := range b[:min(len(b), 8)] {
		v = v<<8 | uint64(x)
	}
	return v
}

// formatValue writes bytes as nft would.
func formatValue(k valueKind, b []byte) string {
	switch k {
	case kindIP4, kindIP6:
		if a, ok := netip.AddrFromSlice(b); ok {
			return a.String()
		}
	case kindPort, kindNumber:
		if len(b) <= 8 {
			return fmt.Sprint(bigNumber(b))
		}
	case kindProtocol:
		if len(b) == 1 {
			return protocolName(b[0])
		}
	case kindIfName:
		return formatName(b)
	case kindIndex:
		if len(b) <= 4 {
			return fmt.Sprint(nativeNumber(b))
		}
	case kindMark:
		if len(b) <= 4 {
			return fmt.Sprintf("0x%08x", nativeNumber(b))
		}
	case kindMarkNetwork:
		return fmt.Sprintf("0x%08x", bigNumber(b))
	case kindEther:
		if len(b) == 6 {
			return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4], b[5])
		}
	}
	if text := formatWord(k, b); text != "" {
		return text
	}
	if len(b) == 0 {
		return "0"
	}
	return "0x" + hex.EncodeToString(b)
}

// isPrefixName reports a device name without the zero that ends it.
func isPrefixName(b []byte) bool {
	return len(b) < unix.IFNAMSIZ && len(b) > 0 && b[len(b)-1] != 0
}

// formatName writes a device's name.
func formatName(b []byte) string {
	if isPrefixName(b) {
		return quoted(string(b) + "*")
	}
	return quoted(cString(b))
}

// formatWord writes values that have names; "" when they have none.
func formatWord(k valueKind, b []byte) string {
	if len(b) == 0 || len(b) > 4 {
		return ""
	}
	n := nativeNumber(b)
	if names := flagWords[k]; names != nil {
		if n == 0 {
			return "0x0"
		}
		return strings.Join(namesOf(n, names), ",")
	}
	switch k {
	case kindEtherType:
		switch bigNumber(b) {
		case unix.ETH_P_IP:
			return "ip"
		case unix.ETH_P_IPV6:
			return "ip6"
		case unix.ETH_P_ARP:
			return "arp"
		case unix.ETH_P_8021Q:
			return "vlan"
		}
		return ""
	case kindDSCP:
		return fmt.Sprintf("0x%02x", n)
	}
	if names := words[k]; names != nil {
		if name := names[n]; name != "" {
			return name
		}
		return fmt.Sprint(n)
	}
	return ""
}

// formatRange writes a range; one that is a prefix as a prefix, and one of a
// single value as that value.
func formatRange(k valueKind, low, high []byte) string {
	a, b := formatValue(k, low), formatValue(k, high)
	if a == b {
		return a
	}
	if k == kindIP4 || k == kindIP6 {
		mask := make([]byte, len(low))
		prefix := true
		for i := range low {
			mask[i] = ^(low[i] ^ high[i])
			prefix = prefix && low[i]&^mask[i] == 0 && high[i]|mask[i] == 0xff
		}
		if n, ok := prefixLength(mask); ok && prefix {
			return fmt.Sprintf("%s/%d", a, n)
		}
	}
	return a + "-" + b
}
