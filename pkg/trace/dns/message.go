package dns

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// Message is a whole message, or what there was of it.
type Message struct {
	Header
	Rcode   uint16 // with EDNS' upper bits
	Records []Record
	// EDNS is the size of UDP messages that the sender takes (RFC 6891); 0: it says nothing.
	EDNS uint16
	Cut  bool // the bytes end before the message does
}

// Record is one of the answer section.
type Record struct {
	Name  string // presentation form
	Type  uint16
	Class uint16
	TTL   uint32 // seconds
	Addr  netip.Addr
	Data  string // presentation form
}

// maxRecords bounds what is kept of one message.
const maxRecords = 64

// Parse reads a message whose length as sent is known: bytes may be fewer. What is
// broken beyond the question is as good as cut off.
func Parse(message []byte, length int) (Message, error) {
	h, err := Peek(message)
	if err != nil {
		return Message{}, err
	}
	m := Message{Header: h, Rcode: uint16(h.Rcode), Cut: length > len(message)}
	if h.Questions > 1 {
		m.Cut = true // nobody does
		return m, nil
	}
	off := h.records
	authority, additional := int(binary.BigEndian.Uint16(message[8:])), int(binary.BigEndian.Uint16(message[10:]))
	for i := range int(h.Answers) + authority + additional {
		next, ok := m.record(message, off, i < int(h.Answers))
		if !ok {
			m.Cut = true
			break
		}
		off = next
	}
	return m, nil
}

// record reads the record at off, and returns where the next one begins.
func (m *Message) record(message []byte, off int, isAnswer bool) (int, bool) {
	name, at, err := dns.UnpackDomainName(message, off)
	if err != nil || len(message) < at+10 {
		return 0, false
	}
	r := Record{Name: name, Type: binary.BigEndian.Uint16(message[at:]), Class: binary.BigEndian.Uint16(message[at+2:]), TTL: binary.BigEndian.Uint32(message[at+4:])}
	end := at + 10 + int(binary.BigEndian.Uint16(message[at+8:]))
	if end > len(message) {
		return 0, false
	}
	if r.Type == dns.TypeOPT {
		m.EDNS, m.Rcode = r.Class, m.Rcode|uint16(r.TTL>>24)<<4
		return end, true
	}
	if !isAnswer || len(m.Records) >= maxRecords {
		return end, true
	}
	r.Addr = address(r.Type, message[at+10:end])
	if r.Data, err = data(message, off); err != nil {
		return 0, false
	}
	m.Records = append(m.Records, r)
	return end, true
}

// address returns the address that a record of type A or AAAA holds.
func address(t uint16, data []byte) netip.Addr {
	if t == dns.TypeA && len(data) == 4 || t == dns.TypeAAAA && len(data) == 16 {
		a, _ := netip.AddrFromSlice(data)
		return a
	}
	return netip.Addr{}
}

// data returns what the record at off holds, as zone files write it.
func data(message []byte, off int) (string, error) {
	rr, _, err := dns.UnpackRR(message, off)
	if err != nil {
		return "", err
	}
	return strings.TrimPrefix(rr.String(), rr.Header().String()), nil
}

func decimal(n uint16) string { return strconv.Itoa(int(n)) }
