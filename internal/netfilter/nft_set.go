package netfilter

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// sets reads the sets of a table, without their elements.
func (r *nftReader) sets(t *table) error {
	attrs := appendAttribute(nil, unix.NFTA_SET_TABLE, append([]byte(t.name), 0))
	return r.socket.dump(unix.NFT_MSG_GETSET, t.family, attrs, func(f family, b []byte) error {
		s := decodeSet(b)
		if len(t.sets) >= mostChains {
			return errMany
		}
		s.table, s.fetch = t, r.fetchElements
		t.sets[s.name] = s
		return nil
	})
}

// Flags of sets and their attributes that x/sys/unix lacks.
const (
	nftSetConcat       = 0x80
	nftaSetDescConcat  = 2
	nftaSetFieldLen    = 1
	nftaElemKeyEnd     = 10
	nftaElemExprs      = 11
	nftElemCatchAll    = 2
	nftaListElem       = 1
	nftaElemKey        = unix.NFTA_SET_ELEM_KEY
	nftaElemData       = unix.NFTA_SET_ELEM_DATA
	nftaElemFlags      = unix.NFTA_SET_ELEM_FLAGS
	nftaElemExpr       = unix.NFTA_SET_ELEM_EXPR
	nftElemIntervalEnd = 1
)

func decodeSet(b []byte) *set {
	s := &set{}
	for kind, v := range attributes(b) {
		switch kind {
		case unix.NFTA_SET_NAME:
			s.name = cString(v)
		case unix.NFTA_SET_FLAGS:
			s.anonymous = be32(v)&unix.NFT_SET_ANONYMOUS != 0
			s.interval = be32(v)&unix.NFT_SET_INTERVAL != 0
		case unix.NFTA_SET_KEY_TYPE:
			s.keyType = be32(v)
		case unix.NFTA_SET_KEY_LEN:
			s.keySize = int(min(be32(v), registerBytes))
		case unix.NFTA_SET_DATA_TYPE:
			s.isVerdictMap = be32(v) == unix.NFT_DATA_VERDICT
		case unix.NFTA_SET_DATA_LEN:
			s.dataSize = int(min(be32(v), registerBytes))
		case unix.NFTA_SET_DESC:
			s.fields = decodeFields(v)
		}
	}
	return s
}

// decodeFields reads the sizes of a concatenation's fields.
func decodeFields(b []byte) []int {
	var out []int
	for kind, v := range attributes(b) {
		if kind != nftaSetDescConcat {
			continue
		}
		for _, field := range attributes(v) {
			for kind, n := range attributes(field) {
				if kind == nftaSetFieldLen && len(out) < registerBytes {
					out = append(out, int(min(be32(n), registerBytes)))
				}
			}
		}
	}
	return out
}

// fetchElements reads the elements of a set.
func (r *nftReader) fetchElements(s *set) ([]element, error) {
	attrs := appendAttribute(nil, unix.NFTA_SET_ELEM_LIST_TABLE, append([]byte(s.table.name), 0))
	attrs = appendAttribute(attrs, unix.NFTA_SET_ELEM_LIST_SET, append([]byte(s.name), 0))
	var list []boundary
	err := r.socket.dump(unix.NFT_MSG_GETSETELEM, s.table.family, attrs, func(_ family, b []byte) error {
		for kind, v := range attributes(b) {
			if kind != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				continue
			}
			for _, e := range attributes(v) {
				if r.elements++; r.elements > mostElements {
					return errMany
				}
				list = append(list, decodeElement(e))
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read elements of set %q: %w", s.name, err)
	}
	if s.interval && len(s.fields) < 2 {
		return ranges(list, s.keySize), nil
	}
	out := make([]element, 0, len(list))
	for _, b := range list {
		out = append(out, b.element)
	}
	return out, nil
}

func decodeElement(b []byte) boundary {
	var e boundary
	for kind, v := range attributes(b) {
		switch kind {
		case nftaElemKey:
			e.low, _ = decodeData(v)
		case nftaElemKeyEnd:
			e.high, _ = decodeData(v)
		case nftaElemData:
			e.data, e.verdict = decodeData(v)
		case nftaElemFlags:
			e.end = be32(v)&nftElemIntervalEnd != 0
		case nftaElemExpr, nftaElemExprs:
			e.opaque = e.opaque || !countersOnly(v, kind == nftaElemExprs)
		}
	}
	return e
}

// countersOnly reports whether the expressions of an element only count.
func countersOnly(b []byte, list bool) bool {
	if list {
		for _, v := range attributes(b) {
			if !countersOnly(v, false) {
				return false
			}
		}
		return true
	}
	for kind, v := range attributes(b) {
		if kind == unix.NFTA_EXPR_NAME {
			name := cString(v)
			return name == "counter" || name == "last"
		}
	}
	return false
}
