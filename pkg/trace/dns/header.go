package dns

import (
	"encoding/binary"
	"errors"
	"hash/maphash"

	"github.com/miekg/dns"
)

const (
	// headerLength: RFC 1035, section 4.1.1.
	headerLength = 12
	// maxName is the longest name on the wire: RFC 1035, section 2.3.4.
	maxName = 255
	// maxQuestions is more than anybody asks at once: all but one is refused by everybody.
	maxQuestions = 4
)

// ErrNotDNS says that bytes are no DNS message, or too few to tell.
var ErrNotDNS = errors.New("read DNS message: not one")

// Header is the beginning of a message, with where its question is.
type Header struct {
	ID       uint16
	Response bool
	Opcode   uint8
	Rcode    uint8 // the header's four bits: EDNS adds eight to them
	TC, AA   bool
	RD, RA   bool
	// Questions is how many the message says it has; of several only the first is read.
	Questions uint16
	Answers   uint16 // records in the answer section, as the message says
	Type      uint16
	Class     uint16
	name      []byte // on the wire, within the message; nil: no question
	records   int    // where the first record begins
}

// Peek reads a message's header and question, without allocating. It refuses what
// can be none: a question that ends beyond the bytes that there are, or one whose name
// points elsewhere (it is the first name, so there is nothing to point to).
func Peek(message []byte) (Header, error) {
	if len(message) < headerLength {
		return Header{}, ErrNotDNS
	}
	bits := binary.BigEndian.Uint16(message[2:])
	h := Header{
		ID: binary.BigEndian.Uint16(message), Response: bits&(1<<15) != 0, Opcode: uint8(bits >> 11 & 15), Rcode: uint8(bits & 15),
		AA: bits&(1<<10) != 0, TC: bits&(1<<9) != 0, RD: bits&(1<<8) != 0, RA: bits&(1<<7) != 0,
		Questions: binary.BigEndian.Uint16(message[4:]), Answers: binary.BigEndian.Uint16(message[6:]), records: headerLength,
	}
	if h.Questions > maxQuestions || !isOpcode(h.Opcode) {
		return Header{}, ErrNotDNS
	}
	if h.Questions == 0 {
		return h, nil
	}
	end := headerLength
	for {
		if end >= len(message) || message[end] > 63 || end-headerLength >= maxName {
			return Header{}, ErrNotDNS
		}
		if message[end] == 0 {
			break
		}
		end += int(message[end]) + 1
	}
	end++
	if len(message) < end+4 {
		return Header{}, ErrNotDNS
	}
	h.name = message[headerLength:end]
	h.Type, h.Class = binary.BigEndian.Uint16(message[end:]), binary.BigEndian.Uint16(message[end+2:])
	h.records = end + 4
	return h, nil
}

// isOpcode: those that IANA has assigned.
func isOpcode(code uint8) bool { return code <= 6 && code != 3 }

// HasQuestion reports whether there is one: a few responses carry none.
func (h *Header) HasQuestion() bool { return h.name != nil }

// Name returns the question's name in presentation form, with the final dot.
func (h *Header) Name() string {
	if h.name == nil {
		return ""
	}
	name, _, err := dns.UnpackDomainName(h.name, 0)
	if err != nil {
		return ""
	}
	return name
}

// Key is the same for all messages about one question, whatever their names' case
// (resolvers play with it to make guessing hard).
type Key uint64

var seed = maphash.MakeSeed()

// Keys return what a question's message is found by: with its id, type and class, and by its name alone.
func (h *Header) Keys() (message, name Key) {
	var folded [maxName + 9]byte
	n := 0
	for _, c := range h.name {
		// A length is 63 at most, so it is never taken for a letter.
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		folded[n] = c
		n++
	}
	name = Key(maphash.Bytes(seed, folded[:n]))
	binary.BigEndian.PutUint16(folded[n:], h.ID)
	binary.BigEndian.PutUint16(folded[n+2:], h.Type)
	binary.BigEndian.PutUint16(folded[n+4:], h.Class)
	return Key(maphash.Bytes(seed, folded[:n+6])), name
}

// TypeName returns a record type as it is written: "AAAA", or "TYPE4242".
func TypeName(t uint16) string { return dns.Type(t).String() }

// Question returns a question as people write it: "A www.example.com"; "" without a name.
func Question(t uint16, name string) string {
	if name == "" {
		return ""
	}
	if name != "." {
		name = name[:len(name)-1] // all names are absolute
	}
	return TypeName(t) + " " + name
}

// ClassName returns a class as it is written: "IN", or "CLASS42".
func ClassName(c uint16) string { return dns.Class(c).String() }

// RcodeName returns a response code as it is written: "NXDOMAIN", or "RCODE42".
func RcodeName(code uint16) string {
	if name, ok := dns.RcodeToString[int(code)]; ok && code != dns.RcodeBadVers {
		return name
	}
	if code == dns.RcodeBadVers {
		return "BADVERS" // 16 has two names; the other one is TSIG's
	}
	return "RCODE" + decimal(code)
}
