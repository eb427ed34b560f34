package netfilter

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// String writes a verdict as nft does.
func (v verdict) String() string {
	switch v.code {
	case verdictDrop:
		return "drop"
	case verdictAccept:
		return "accept"
	case verdictReturn:
		return "return"
	case verdictContinue:
		return "continue"
	case verdictJump:
		return "jump " + v.chain
	case verdictGoto:
		return "goto " + v.chain
	case verdictQueue:
		return "queue"
	}
	return fmt.Sprintf("verdict %d", v.code)
}

// rangeTerm writes "tcp dport 1-1023".
func (s symbol) rangeTerm(low, high []byte, invert bool) term {
	t := term{nft: s.text + " ", needs: []string{s.needs}}
	if invert {
		t.nft += "!= "
	}
	a, b := formatValue(s.kind, low), formatValue(s.kind, high)
	t.nft += a + "-" + b
	if strings.HasPrefix(s.option, "--") {
		t.iptables = s.iptablesOption(a+":"+b, invert)
	}
	return t
}

// iptablesOption writes an option with its match: "-m tcp --dport 80".
func (s symbol) iptablesOption(value string, invert bool) string {
	text := negated(invert, s.option+" "+value)
	switch {
	case s.option == "--mark":
		return "-m mark " + text
	case strings.HasPrefix(s.option, "--"):
		return "-m " + s.needs + " " + text
	}
	return text
}

// compareTerm writes a comparison.
func (s symbol) compareTerm(op cmpOp, data []byte) term {
	t := term{needs: []string{s.needs}}
	if s.kind == kindState || s.kind == kindStatus || s.kind == kindTCPFlags {
		if text, ok := s.flagTest(op, data); ok {
			t.nft = text
			if s.kind == kindTCPFlags && (op == cmpEq || op == cmpNeq) && s.mask != nil && len(data) == 1 {
				t.iptables = "-m tcp " + negated(op == cmpNeq, "--tcp-flags "+tcpFlagNames(s.mask[0], "NONE")+" "+tcpFlagNames(data[0], "NONE"))
			}
			return t
		}
	}
	value, ok := s.masked(data)
	left := s.text
	if !ok {
		left, value = s.text+" & "+formatValue(s.kind, s.mask), formatValue(s.kind, data)
		if s.option == "--mark" {
			t.iptables = s.iptablesOption(maskedNumber(nativeNumber(data), nativeNumber(s.mask)), op == cmpNeq)
		}
	}
	switch {
	case op == cmpEq && ok:
		t.nft = left + " " + value
	case op == cmpEq:
		t.nft = left + " == " + value
	default:
		t.nft = left + " " + op.String() + " " + value
	}
	if ok && s.option != "" && (op == cmpEq || op == cmpNeq) {
		t.iptables = s.iptablesOption(s.iptablesValue(value, data), op == cmpNeq)
	}
	if op == cmpEq {
		t.implies, t.written = s.implied(data), !s.isCheck
	}
	return t
}

// iptablesValue writes a value where iptables' words differ from nft's.
func (s symbol) iptablesValue(value string, data []byte) string {
	switch s.kind {
	case kindIfName:
		if isPrefixName(data) {
			return string(data) + "+"
		}
		return cString(data)
	case kindIP4:
		if !strings.Contains(value, "/") {
			return value + "/32"
		}
	case kindIP6:
		if !strings.Contains(value, "/") {
			return value + "/128"
		}
	case kindMark:
		return maskedNumber(nativeNumber(data), ^uint32(0))
	}
	return value
}

// implied is the dependency that an equality states.
func (s symbol) implied(data []byte) string {
	if len(data) == 0 {
		return ""
	}
	switch s.kind {
	case kindProtocol:
		return protocolName(data[0])
	case kindNFProto:
		return formatValue(kindNFProtoShort, data)
	case kindEtherType:
		return formatValue(kindEtherType, data)
	case kindDeviceType:
		return formatValue(kindDeviceType, data)
	}
	return ""
}

// masked writes a value under the symbol's mask: an address prefix for leading
// bits, the value itself when there is no mask.
func (s symbol) masked(data []byte) (string, bool) {
	isAddress := s.kind == kindIP4 || s.kind == kindIP6
	switch {
	case s.mask == nil && isAddress && len(data) < s.size: // a prefix of whole bytes
		full := make([]byte, s.size)
		copy(full, data)
		return fmt.Sprintf("%s/%d", formatValue(s.kind, full), 8*len(data)), true
	case s.mask == nil && s.names != nil && len(data) == 4:
		if name := s.names(nativeNumber(data)); name != "" {
			return quoted(name), true
		}
		return formatValue(s.kind, data), true
	case s.mask == nil:
		return formatValue(s.kind, data), true
	case s.kind == kindDSCP && len(data) == 1:
		return fmt.Sprintf("0x%02x", data[0]>>2), true
	case s.kind == kindVersion && len(data) == 1 && s.mask[0] == 0xf0:
		return fmt.Sprint(data[0] >> 4), true
	case isAddress && len(data) == len(s.mask):
		if n, ok := prefixLength(s.mask); ok {
			full := make([]byte, max(s.size, len(data)))
			copy(full, data)
			return fmt.Sprintf("%s/%d", formatValue(s.kind, full), n), true
		}
	}
	return "", false
}

// flagTest writes tests of single bits: "ct state new,related", "tcp flags syn / syn,ack".
func (s symbol) flagTest(op cmpOp, data []byte) (string, bool) {
	zero := !slices.ContainsFunc(data, func(b byte) bool { return b != 0 })
	switch {
	case s.mask == nil:
		return "", false
	case op == cmpNeq && zero:
		return s.text + " " + formatValue(s.kind, s.mask), true
	case op == cmpEq && zero && s.kind != kindTCPFlags:
		return s.text + " ! " + formatValue(s.kind, s.mask), true
	case op == cmpEq:
		return s.text + " " + formatValue(s.kind, data) + " / " + formatValue(s.kind, s.mask), true
	case op == cmpNeq:
		return s.text + " != " + formatValue(s.kind, data) + " / " + formatValue(s.kind, s.mask), true
	}
	return "", false
}

// String writes a comparison's sign.
func (o cmpOp) String() string {
	if signs := []string{"==", "!=", "<", "<=", ">", ">="}; int(o) < len(signs) {
		return signs[o]
	}
	return "?"
}

// operation writes what was done to the bits: "& 0xff", "| 0x10", "^ 0x1" or both.
func (s symbol) operation() string {
	cleared := make([]byte, len(s.mask))
	for i, m := range s.mask {
		cleared[i] = ^m
	}
	zero := func(b []byte) bool { return !slices.ContainsFunc(b, func(x byte) bool { return x != 0 }) }
	switch {
	case zero(s.set):
		return "& " + formatValue(s.kind, s.mask)
	case bytes.Equal(cleared, s.set):
		return "| " + formatValue(s.kind, s.set)
	case zero(cleared):
		return "^ " + formatValue(s.kind, s.set)
	}
	return "& " + formatValue(s.kind, s.mask) + " ^ " + formatValue(s.kind, s.set)
}
