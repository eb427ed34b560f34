package netfilter

import (
	"slices"

	"golang.org/x/sys/unix"
)

// mostExprs bounds a rule's expressions (NFT_RULE_MAXEXPRS).
const mostExprs = 128

// decodeRule reads a rule and the names of its table and chain.
func decodeRule(b []byte, t *table) (r rule, tableName, chainName string) {
	for kind, v := range attributes(b) {
		switch kind {
		case unix.NFTA_RULE_TABLE:
			tableName = cString(v)
		case unix.NFTA_RULE_CHAIN:
			chainName = cString(v)
		case unix.NFTA_RULE_HANDLE:
			r.handle = be64(v)
		case unix.NFTA_RULE_USERDATA:
			r.comment = commentOf(v)
		case unix.NFTA_RULE_EXPRESSIONS:
			for _, e := range attributes(v) {
				if len(r.exprs) < mostExprs {
					r.addExpr(e, t)
				}
			}
		}
	}
	for _, e := range r.exprs {
		if m, ok := e.(xtMatch); ok && r.comment == "" {
			if c, ok := m.matcher.(xtComment); ok {
				r.comment = string(c)
			}
		}
	}
	return r, tableName, chainName
}

// userdataComment is NFTNL_UDATA_RULE_COMMENT (libnftnl's udata.h).
const userdataComment = 0

// commentOf reads the comment from a rule's user data, a list of type, length, value.
func commentOf(b []byte) string {
	for len(b) >= 2 {
		kind, n := b[0], int(b[1])
		if len(b) < 2+n {
			return ""
		}
		if kind == userdataComment {
			return cString(b[2 : 2+n])
		}
		b = b[2+n:]
	}
	return ""
}

// addExpr decodes one expression.
func (r *rule) addExpr(b []byte, t *table) {
	var name string
	var data []byte
	for kind, v := range attributes(b) {
		switch kind {
		case unix.NFTA_EXPR_NAME:
			name = cString(v)
		case unix.NFTA_EXPR_DATA:
			data = v
		}
	}
	if name == "counter" {
		c := decodeCounter(data)
		if !r.counted {
			r.counter = c
		}
		r.exprs = append(r.exprs, passive{text: "counter"})
		return
	}
	a := values(data)
	switch name {
	case "match":
		r.exprs = append(r.exprs, decodeMatch(cString(a[unix.NFTA_MATCH_NAME]), uint8(be32(a[unix.NFTA_MATCH_REV])),
			a[unix.NFTA_MATCH_INFO], t.family == familyIP6))
		return
	case "target":
		r.exprs = append(r.exprs, decodeTarget(cString(a[unix.NFTA_TARGET_NAME]), uint8(be32(a[unix.NFTA_TARGET_REV])),
			a[unix.NFTA_TARGET_INFO], t.family == familyIP6)...)
		return
	}
	r.exprs = append(r.exprs, decodeExpr(name, a))
}

// attributeValues are the attributes of an expression by their type.
type attributeValues [32][]byte

func values(b []byte) *attributeValues {
	var out attributeValues
	for kind, v := range attributes(b) {
		if int(kind) < len(out) {
			out[kind] = v
		}
	}
	return &out
}

// register reads an attribute that names a register.
func (a *attributeValues) register(kind int) register { return register(be32(a[kind])) }

// size reads an attribute that is a number of bytes.
func (a *attributeValues) size(kind int) int { return int(min(be32(a[kind]), registerBytes)) }

// value reads an attribute that holds data.
func (a *attributeValues) value(kind int) []byte {
	v, _ := decodeData(a[kind])
	return v
}

// decodeExpr decodes an expression of nftables by its name.
func decodeExpr(name string, a *attributeValues) expr {
	switch name {
	case "immediate":
		if a.register(unix.NFTA_IMMEDIATE_DREG) == registerVerdict {
			_, v := decodeData(a[unix.NFTA_IMMEDIATE_DATA])
			return decide{v}
		}
		return immediate{to: a.register(unix.NFTA_IMMEDIATE_DREG), data: a.value(unix.NFTA_IMMEDIATE_DATA)}
	case "cmp":
		return comparison{from: a.register(unix.NFTA_CMP_SREG), op: cmpOp(be32(a[unix.NFTA_CMP_OP])), data: a.value(unix.NFTA_CMP_DATA)}
	case "range":
		return interval{from: a.register(unix.NFTA_RANGE_SREG), invert: be32(a[unix.NFTA_RANGE_OP]) != 0,
			low: a.value(unix.NFTA_RANGE_FROM_DATA), high: a.value(unix.NFTA_RANGE_TO_DATA)}
	case "bitwise":
		return decodeBitwise(a)
	case "byteorder":
		return byteorder{from: a.register(unix.NFTA_BYTEORDER_SREG), to: a.register(unix.NFTA_BYTEORDER_DREG),
			size: a.size(unix.NFTA_BYTEORDER_LEN), elt: a.size(unix.NFTA_BYTEORDER_SIZE)}
	case "lookup":
		return lookup{from: a.register(unix.NFTA_LOOKUP_SREG), set: cString(a[unix.NFTA_LOOKUP_SET]),
			invert: be32(a[unix.NFTA_LOOKUP_FLAGS])&unix.NFT_LOOKUP_F_INV != 0,
			isMap:  a[unix.NFTA_LOOKUP_DREG] != nil, to: a.register(unix.NFTA_LOOKUP_DREG)}
	case "payload", "meta", "ct", "fib":
		return decodeLoad(name, a)
	}
	if name == "exthdr" {
		return decodeExthdr(a)
	}
	return decodeStatement(name, a)
}

// Attributes of bitwise that x/sys/unix lacks.
const (
	nftaBitwiseOp   = 6
	nftaBitwiseData = 7
)

func decodeBitwise(a *attributeValues) expr {
	e := bitwise{from: a.register(unix.NFTA_BITWISE_SREG), to: a.register(unix.NFTA_BITWISE_DREG),
		size: a.size(unix.NFTA_BITWISE_LEN), op: be32(a[nftaBitwiseOp])}
	e.mask, e.xor = a.value(unix.NFTA_BITWISE_MASK), a.value(unix.NFTA_BITWISE_XOR)
	if v := a.value(nftaBitwiseData); len(v) >= 4 {
		e.shift = nativeNumber(v)
	}
	return e
}

// decodeLoad decodes the expressions that load something into a register, or
// write it to the packet when they name a source register.
func decodeLoad(name string, a *attributeValues) expr {
	switch name {
	case "payload":
		if a[unix.NFTA_PAYLOAD_SREG] != nil {
			return rewrite{from: a.register(unix.NFTA_PAYLOAD_SREG), base: int(be32(a[unix.NFTA_PAYLOAD_BASE])),
				offset: int(be32(a[unix.NFTA_PAYLOAD_OFFSET])), size: a.size(unix.NFTA_PAYLOAD_LEN)}
		}
		return payload{to: a.register(unix.NFTA_PAYLOAD_DREG), base: int(be32(a[unix.NFTA_PAYLOAD_BASE])),
			offset: int(be32(a[unix.NFTA_PAYLOAD_OFFSET])), size: a.size(unix.NFTA_PAYLOAD_LEN)}
	case "meta":
		key := be32(a[unix.NFTA_META_KEY])
		if a[unix.NFTA_META_SREG] != nil {
			return setMeta{key: key, from: a.register(unix.NFTA_META_SREG)}
		}
		return meta{key: key, to: a.register(unix.NFTA_META_DREG)}
	case "ct":
		key := be32(a[unix.NFTA_CT_KEY])
		if a[unix.NFTA_CT_SREG] != nil {
			if key == ctMark {
				return setConnMark{from: a.register(unix.NFTA_CT_SREG), text: "ct " + ctName(key) + " set …"}
			}
			if key == ctZone {
				return setZone{from: a.register(unix.NFTA_CT_SREG), text: "ct zone set …"}
			}
			return passive{text: "ct " + ctName(key) + " set …"}
		}
		direction := -1
		if d := a[unix.NFTA_CT_DIRECTION]; len(d) == 1 {
			direction = int(d[0] & 1)
		}
		return connection{key: key, direction: direction, to: a.register(unix.NFTA_CT_DREG)}
	}
	return fib{to: a.register(unix.NFTA_FIB_DREG), flags: be32(a[unix.NFTA_FIB_FLAGS]), result: be32(a[unix.NFTA_FIB_RESULT])}
}

// Types of named objects (NFT_OBJECT_*) that only watch the packet.
var passiveObjects = []uint32{1 /* counter */, 3 /* ct helper */, 6 /* tunnel */, 7 /* ct timeout */, 8 /* secmark */, 9 /* ct expectation */}

// decodeStatement decodes the rest.
func decodeStatement(name string, a *attributeValues) expr {
	switch name {
	case "reject":
		code := uint8(0)
		if v := a[unix.NFTA_REJECT_ICMP_CODE]; len(v) == 1 {
			code = v[0]
		}
		return rejecting{kind: be32(a[unix.NFTA_REJECT_TYPE]), code: code}
	case "log":
		return passive{text: logText(a)}
	case "notrack":
		return untrack{text: name}
	case "last", "flow_offload", "dup":
		return passive{text: name}
	case "nat":
		if be32(a[unix.NFTA_NAT_TYPE]) == unix.NFT_NAT_DNAT {
			return translate{text: "dnat to …", to: decodeNAT(a)}
		}
		return translate{text: "snat to …", to: decodeNAT(a)}
	case "masq":
		return translate{text: "masquerade", to: newAddress{kind: Masquerade}}
	case "redir":
		return translate{text: "redirect", to: newAddress{kind: Redirect, port: a.register(unix.NFTA_REDIR_REG_PROTO_MIN)}}
	case "queue":
		return opaqueEnd{text: queueText(a), sure: true, queue: true, queues: queuesOf(a)}
	case "fwd":
		return opaqueEnd{text: "fwd", sure: true}
	case "tproxy":
		return decodeTProxyStatement(a)
	case "socket":
		const key, to = 1, 2 // NFTA_SOCKET_KEY, NFTA_SOCKET_DREG
		return socketState{key: be32(a[key]), to: a.register(to)}
	case "synproxy":
		return opaqueEnd{text: name}
	case "objref":
		if slices.Contains(passiveObjects, be32(a[unix.NFTA_OBJREF_IMM_TYPE])) {
			return passive{text: "object " + quoted(cString(a[unix.NFTA_OBJREF_IMM_NAME]))}
		}
	case "dynset":
		const exprs, list = 7, 10 // NFTA_DYNSET_EXPR, NFTA_DYNSET_EXPRESSIONS
		text := "update @" + cString(a[1])
		if (a[exprs] == nil || countersOnly(a[exprs], false)) && (a[list] == nil || countersOnly(a[list], true)) {
			return passive{text: text}
		}
		return opaque{text: text + " { … }"}
	case "limit":
		return opaque{text: limitText(a)}
	}
	return opaque{text: name + " …"}
}
