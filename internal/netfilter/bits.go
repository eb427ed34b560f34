package netfilter

import (
	"bytes"
	"encoding/binary"
)

// bits is a byte string of which each bit is known or not: a bit of known that
// is set says that the same bit of data is true. Unknown bits are zero in data.
type bits struct {
	data, known []byte
}

// knownBits is a byte string known as a whole.
func knownBits(data []byte) bits {
	return bits{data: data, known: bytes.Repeat([]byte{0xff}, len(data))}
}

// unknownBits is n bytes of which nothing is known.
func unknownBits(n int) bits {
	return bits{data: make([]byte, n), known: make([]byte, n)}
}

// native32 is a number in the byte order of the machine, as netfilter keeps
// marks, interface indexes and conntrack states.
func native32(v uint32) bits {
	return knownBits(binary.NativeEndian.AppendUint32(nil, v))
}

// native32Masked is native32 of which only the bits of mask are known.
func native32Masked(v, mask uint32) bits {
	return bits{
		data:  binary.NativeEndian.AppendUint32(nil, v&mask),
		known: binary.NativeEndian.AppendUint32(nil, mask),
	}
}

// network16 is a number in network byte order.
func network16(v uint16) bits {
	return knownBits(binary.BigEndian.AppendUint16(nil, v))
}

// flagBits is a byte that is 1 or 0.
func flagBits(set bool) bits {
	if set {
		return knownBits([]byte{1})
	}
	return knownBits([]byte{0})
}

// whole reports whether every bit is known.
func (b bits) whole() bool {
	for _, k := range b.known {
		if k != 0xff {
			return false
		}
	}
	return true
}

// equal compares with a byte string of the same length.
func (b bits) equal(to []byte) truth {
	if len(b.data) != len(to) {
		return no
	}
	for i, k := range b.known {
		if (b.data[i]^to[i])&k != 0 {
			return no
		}
	}
	return truthOf(b.whole()).or(maybe)
}

// bounds returns the least and the greatest value that the bits may have.
func (b bits) bounds() (low, high []byte) {
	high = make([]byte, len(b.data))
	for i, k := range b.known {
		high[i] = b.data[i] | ^k
	}
	return b.data, high
}

// less reports whether the value, as a big-endian number, is less than to.
func (b bits) less(to []byte) truth {
	low, high := b.bounds()
	switch {
	case bytes.Compare(high, to) < 0:
		return yes
	case bytes.Compare(low, to) >= 0:
		return no
	}
	return maybe
}

// greater reports whether the value, as a big-endian number, is greater than to.
func (b bits) greater(to []byte) truth {
	low, high := b.bounds()
	switch {
	case bytes.Compare(low, to) > 0:
		return yes
	case bytes.Compare(high, to) <= 0:
		return no
	}
	return maybe
}

// within reports whether the value lies between from and to, both included.
func (b bits) within(from, to []byte) truth {
	low, high := b.bounds()
	switch {
	case bytes.Compare(high, from) < 0 || bytes.Compare(low, to) > 0:
		return no
	case bytes.Compare(low, from) >= 0 && bytes.Compare(high, to) <= 0:
		return yes
	}
	return maybe
}

// maskXor returns (b & mask) ^ xor: a bit that the mask clears is known.
func (b bits) maskXor(mask, xor []byte) bits {
	out := unknownBits(len(b.data))
	for i := range out.data {
		var m, x byte
		if i < len(mask) {
			m = mask[i]
		}
		if i < len(xor) {
			x = xor[i]
		}
		out.known[i] = b.known[i] | ^m
		out.data[i] = (b.data[i]&m ^ x) & out.known[i]
	}
	return out
}

// shifted returns the value, as native 32-bit words of which the first is the
// highest, shifted by less than 32 bits (nft_bitwise_eval_lshift).
func (b bits) shifted(left bool, by uint32) bits {
	if len(b.data)%4 != 0 || by == 0 || by >= 32 {
		return unknownBits(len(b.data))
	}
	out := unknownBits(len(b.data))
	shiftWords(out.data, b.data, left, by, 0)
	shiftWords(out.known, b.known, left, by, ^uint32(0))
	return out
}

// shiftWords shifts words and fills with the bits of fill.
func shiftWords(to, from []byte, left bool, by, fill uint32) {
	n := len(from) / 4
	word := func(i int) uint32 {
		if i < 0 || i >= n {
			return fill
		}
		return binary.NativeEndian.Uint32(from[4*i:])
	}
	for i := range n {
		v := word(i)>>by | word(i-1)<<(32-by)
		if left {
			v = word(i)<<by | word(i+1)>>(32-by)
		}
		binary.NativeEndian.PutUint32(to[4*i:], v)
	}
}

// littleEndian is the byte order of this machine.
var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

// merge keeps the bits that both know and agree on.
func (b bits) merge(c bits) bits {
	out := unknownBits(len(b.data))
	for i := range out.data {
		if i >= len(c.data) {
			break
		}
		out.known[i] = b.known[i] & c.known[i] & ^(b.data[i] ^ c.data[i])
		out.data[i] = b.data[i] & out.known[i]
	}
	return out
}

// masked32 returns a native 32-bit number and the mask of its known bits.
func (b bits) masked32() (v, mask uint32) {
	if len(b.data) != 4 {
		return 0, 0
	}
	return binary.NativeEndian.Uint32(b.data), binary.NativeEndian.Uint32(b.known)
}

// registerBytes is the size of nftables' register file: NFT_REG32_00 to NFT_REG32_15.
const registerBytes = 64

// registers are nftables' registers (struct nft_regs in net/netfilter/nf_tables_core.c).
type registers struct {
	data, known [registerBytes]byte
}

// register is a register's number as netlink says it (enum nft_registers).
type register uint32

const (
	registerVerdict = 0 // NFT_REG_VERDICT
	register128     = 1 // NFT_REG_1: four registers of 16 bytes
	register32      = 8 // NFT_REG32_00: sixteen registers of 4 bytes
)

// offset returns where the register starts, in bytes; ok is false for the
// verdict register and for numbers that do not exist.
func (r register) offset() (int, bool) {
	switch {
	case r >= register128 && r < register128+4:
		return int(r-register128) * 16, true
	case r >= register32 && r < register32+16:
		return int(r-register32) * 4, true
	}
	return 0, false
}

// store writes a value; like the kernel it clears the rest of the last word.
func (s *registers) store(r register, b bits) {
	at, ok := r.offset()
	if !ok {
		return
	}
	n := min(len(b.data), registerBytes-at)
	end := min(at+(n+3)/4*4, registerBytes)
	copy(s.data[at:], b.data[:n])
	copy(s.known[at:], b.known[:n])
	for i := at + n; i < end; i++ {
		s.data[i], s.known[i] = 0, 0xff
	}
}

// load reads n bytes; bytes outside the register file are unknown.
func (s *registers) load(r register, n int) bits {
	out := unknownBits(max(0, min(n, registerBytes)))
	if at, ok := r.offset(); ok {
		copy(out.data, s.data[at:])
		copy(out.known, s.known[at:])
	}
	return out
}

// forget makes every register unknown.
func (s *registers) forget() { *s = registers{} }
