package dns

import (
	"encoding/binary"
	"net/netip"

	"github.com/miekg/dns"
)

// Addresses tells the addresses in a response's answer section, each with its TTL,
// as far as the message goes.
func Addresses(message []byte, tell func(netip.Addr, uint32)) {
	h, err := Peek(message)
	if err != nil || h.Questions > 1 {
		return
	}
	off := h.records
	for range min(int(h.Answers), maxRecords) {
		if off = skipName(message, off); off == 0 || len(message) < off+10 {
			return
		}
		end := off + 10 + int(binary.BigEndian.Uint16(message[off+8:]))
		if end > len(message) {
			return
		}
		if a := address(binary.BigEndian.Uint16(message[off:]), message[off+10:end]); a.IsValid() && binary.BigEndian.Uint16(message[off+2:]) == dns.ClassINET {
			tell(a, binary.BigEndian.Uint32(message[off+4:]))
		}
		off = end
	}
}

// skipName returns where a name ends; 0 when the message ends before.
func skipName(message []byte, off int) int {
	for off < len(message) {
		switch n := int(message[off]); {
		case n == 0:
			return off + 1
		case n >= 0xc0:
			return off + 2
		default:
			off += n + 1
		}
	}
	return 0
}
