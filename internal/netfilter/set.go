package netfilter

import (
	"bytes"
	"slices"
)

// set is a set or map of nftables.
type set struct {
	table        *table
	name         string
	anonymous    bool
	keyType      uint32 // nft's data types, six bits for each field
	keySize      int
	dataSize     int
	interval     bool // elements are ranges
	isVerdictMap bool
	fields       []int // sizes of a concatenation's fields without their padding; nil: one field

	elements []element
	fetch    func(*set) ([]element, error) // nil: elements is all
	err      error
}

// element is a member of a set: a key, or the keys from low to high.
type element struct {
	low, high []byte // high is nil for a single key; both are nil for the catch-all element
	data      []byte
	verdict   verdict
	// opaque says that expressions of the element (a limit) decide as well.
	opaque bool
}

// catchAll reports whether the element stands for every key that no other holds.
func (e *element) catchAll() bool { return e.low == nil }

// load fetches the elements when it is the first time.
func (s *set) load() error {
	if s.fetch != nil {
		s.elements, s.err = s.fetch(s)
		s.fetch = nil
	}
	return s.err
}

// found is what a set says of a key.
type found struct {
	match    truth
	elements []*element // those that may hold the key
}

// find looks a key up. With a key that is partly unknown several elements may fit.
func (s *set) find(key bits) found {
	var out found
	var rest *element
	for i := range s.elements {
		e := &s.elements[i]
		if e.catchAll() {
			rest = e
			continue
		}
		t := s.holds(e, key)
		if t == no {
			continue
		}
		if t == yes && !e.opaque {
			return found{match: yes, elements: []*element{e}}
		}
		out.match = maybe
		out.elements = append(out.elements, e)
	}
	if rest != nil {
		out.elements = append(out.elements, rest)
		out.match = yes
		if rest.opaque {
			out.match = maybe
		}
	}
	return out
}

// holds compares an element with a key, field by field.
func (s *set) holds(e *element, key bits) truth {
	if e.high == nil {
		if len(e.low) != len(key.data) {
			return no
		}
		return key.equal(e.low)
	}
	if len(s.fields) == 0 {
		return key.within(e.low, e.high)
	}
	t, at := yes, 0
	for _, n := range s.fields {
		end := at + n
		if end > len(key.data) || end > len(e.low) || end > len(e.high) {
			return maybe
		}
		field := bits{key.data[at:end], key.known[at:end]}
		t = t.and(field.within(e.low[at:end], e.high[at:end]))
		at = (end + 3) / 4 * 4
	}
	return t
}

// value is what a map says: known where all elements that may fit agree.
func (f found) value(size int) bits {
	if len(f.elements) == 0 {
		return unknownBits(size)
	}
	out := padded(f.elements[0].data, size)
	for _, e := range f.elements[1:] {
		out = out.merge(padded(e.data, size))
	}
	return out
}

func padded(data []byte, size int) bits {
	b := make([]byte, size)
	copy(b, data)
	return knownBits(b)
}

// boundary is an element of an interval set as the kernel lists it: the start
// of a range, or where a range has just ended (NFT_SET_ELEM_INTERVAL_END).
type boundary struct {
	element
	end bool
}

// ranges joins the boundaries of an interval set into elements. A start without
// an end after it is open to the top.
func ranges(list []boundary, keySize int) []element {
	slices.SortStableFunc(list, func(a, b boundary) int {
		if d := bytes.Compare(a.low, b.low); d != 0 {
			return d
		}
		if a.end == b.end {
			return 0
		}
		if a.end {
			return -1
		}
		return 1
	})
	var out []element
	for i, b := range list {
		switch {
		case b.end:
			continue
		case b.low == nil || b.high != nil:
			out = append(out, b.element)
			continue
		}
		b.high = bytes.Repeat([]byte{0xff}, keySize)
		if i+1 < len(list) {
			b.high = before(list[i+1].low)
		}
		out = append(out, b.element)
	}
	return out
}

// before returns the number before a big-endian number.
func before(n []byte) []byte {
	out := slices.Clone(n)
	for i := len(out) - 1; i >= 0; i-- {
		out[i]--
		if out[i] != 0xff {
			break
		}
	}
	return out
}
