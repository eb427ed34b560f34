package classifier

import (
	"encoding/binary"
	"net"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// Packet is the packet that is judged.
type Packet struct {
	Tuple    trace.Tuple
	Flags    trace.TCPFlags
	Mark     uint32
	Src, Dst net.HardwareAddr // nil: not known
}

const (
	ethernetHeader = 14
	segmentSize    = 1460
	hopLimit       = 64
)

// frame writes the packet as it would be on the cable.
func (p *Packet) frame() []byte {
	b := make([]byte, ethernetHeader, 128)
	copy(b, p.Dst)
	copy(b[6:], p.Src)
	binary.BigEndian.PutUint16(b[12:], p.etherType())
	b = append(b, p.network()...)
	return append(b, p.transport()...)
}

func (p *Packet) etherType() uint16 {
	if p.Tuple.Is6() {
		return unix.ETH_P_IPV6
	}
	return unix.ETH_P_IP
}

// network is the IP header.
func (p *Packet) network() []byte {
	payload := uint16(len(p.transport()))
	src, dst := p.Tuple.Src.Addr(), p.Tuple.Dst.Addr()
	if p.Tuple.Is6() {
		b := make([]byte, 8, 40)
		b[0], b[6], b[7] = 0x60, byte(p.Tuple.Protocol), hopLimit
		binary.BigEndian.PutUint16(b[4:], payload)
		return append(append(b, src.AsSlice()...), dst.AsSlice()...)
	}
	b := make([]byte, 12, 20)
	b[0], b[6], b[8], b[9] = 0x45, 0x40, hopLimit, byte(p.Tuple.Protocol)
	binary.BigEndian.PutUint16(b[2:], payload+20)
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(b[10:], ^fold(sum(b)))
	return b
}

// transport is the header of TCP, with the segment size that a handshake names,
// or of UDP.
func (p *Packet) transport() []byte {
	var b []byte
	switch p.Tuple.Protocol {
	case trace.TCP:
		b = make([]byte, 20)
		b[12], b[13] = 5<<4, byte(p.Flags)
		binary.BigEndian.PutUint16(b[14:], 0xfaf0)
		if p.Flags.Has(trace.SYN) {
			b = append(b, 2, 4, segmentSize>>8, segmentSize&0xff)
			b[12] = 6 << 4
		}
		p.ports(b)
		binary.BigEndian.PutUint16(b[16:], ^fold(p.pseudo(len(b))+sum(b)))
	case trace.UDP:
		b = make([]byte, 8)
		p.ports(b)
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
		binary.BigEndian.PutUint16(b[6:], ^fold(p.pseudo(len(b))+sum(b)))
	}
	return b
}

func (p *Packet) ports(b []byte) {
	binary.BigEndian.PutUint16(b, p.Tuple.Src.Port())
	binary.BigEndian.PutUint16(b[2:], p.Tuple.Dst.Port())
}

// pseudo sums what the checksum covers besides header and data (RFC 9293, RFC 8200).
func (p *Packet) pseudo(length int) uint32 {
	return sum(p.Tuple.Src.Addr().AsSlice()) + sum(p.Tuple.Dst.Addr().AsSlice()) + uint32(p.Tuple.Protocol) + uint32(length)
}

// sum adds the 16 bit words of the Internet checksum (RFC 1071).
func sum(b []byte) uint32 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 != 0 {
		s += uint32(b[len(b)-1]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
