package netfilter

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

func (e immediate) write(w *writer) {
	w.load(e.to, symbol{text: formatValue(kindHex, e.data), size: len(e.data), data: e.data})
}

func (e decide) write(w *writer) {
	t := term{nft: e.verdict.String()}
	switch e.code {
	case verdictDrop:
		t.iptables = "-j DROP"
	case verdictAccept:
		t.iptables = "-j ACCEPT"
	case verdictReturn:
		t.iptables = "-j RETURN"
	case verdictJump:
		t.iptables = "-j " + e.chain
	case verdictGoto:
		t.iptables = "-g " + e.chain
	}
	w.add(t)
}

func (e payload) write(w *writer) {
	w.load(e.to, e.symbol(w.dependency(), w.table.family))
}

// dependency is the protocol that the terms so far have settled.
func (w *writer) dependency() []string {
	var out []string
	for _, t := range w.terms {
		if t.implies != "" {
			out = append(out, t.implies)
		}
	}
	return out
}

func (e comparison) write(w *writer) {
	s := w.symbol(e.from)
	if n := len(w.terms); e.op == cmpLte && n > 0 {
		if low := w.terms[n-1].low; low != nil && low.op == cmpGte && low.from == e.from {
			w.terms = w.terms[:n-1]
			w.add(s.rangeTerm(low.data, e.data, false))
			return
		}
	}
	t := s.compareTerm(e.op, e.data)
	t.low = &e
	w.add(t)
}

func (e interval) write(w *writer) {
	w.add(w.symbol(e.from).rangeTerm(e.low, e.high, e.invert))
}

func (e bitwise) write(w *writer) {
	s := w.symbol(e.from)
	if e.op != bitwiseMaskXor {
		sign := ">>"
		if e.op == bitwiseLeft {
			sign = "<<"
		}
		s = symbol{text: fmt.Sprintf("%s %s %d", s.text, sign, e.shift), kind: s.kind, size: s.size, needs: s.needs}
		w.load(e.to, s)
		return
	}
	s.mask, s.set = e.mask, e.xor
	w.load(e.to, s)
}

func (e byteorder) write(w *writer) {
	s := w.symbol(e.from)
	switch s.kind {
	case kindMark:
		s.kind = kindMarkNetwork
	case kindIndex:
		s.kind = kindNumber
	}
	w.load(e.to, s)
}

func (e passive) write(w *writer) {
	t := term{nft: e.text}
	switch {
	case strings.HasPrefix(e.text, "-j "):
		t.iptables = e.text
	case e.text == "counter":
		w.terms = append(w.terms, t) // iptables counts always and does not say so
		return
	}
	w.add(t)
}

func (e opaque) write(w *writer) {
	t := term{nft: e.text}
	switch {
	case strings.HasPrefix(e.text, "-m "):
		t.iptables = e.text
	case strings.HasPrefix(e.text, "limit rate "):
		t.iptables = "-m limit …"
	}
	w.add(t)
}

func (e opaqueEnd) write(w *writer) { passive{e.text}.write(w) }

func (e translate) write(w *writer) { passive{text: e.text}.write(w) }

func (e xtMatch) write(w *writer) {
	text := e.option()
	if _, ok := e.matcher.(xtComment); ok {
		w.terms = append(w.terms, term{iptables: text})
		return
	}
	w.add(term{nft: text, iptables: text})
}

func (x *xtHeader) write(w *writer) {
	if text := x.option(); text != "" {
		w.add(term{nft: text, iptables: text})
	}
}

func (e xtSetMark) write(w *writer) {
	text := "-j MARK --set-xmark " + maskedNumber(e.value, e.mask)
	if e.unknown {
		text = "-j " + e.name
	}
	w.add(term{nft: text, iptables: text})
}

func (e setMeta) write(w *writer) {
	to, ok := metaNames[e.key]
	if !ok {
		to.text = fmt.Sprintf("key %d", e.key)
	}
	s := w.symbol(e.from)
	value := s.text
	switch {
	case s.data != nil:
		value = formatValue(to.kind, s.data)
	case s.mask != nil:
		value += " " + s.operation()
	}
	w.add(term{nft: "meta " + strings.TrimPrefix(to.text, "meta ") + " set " + value, needs: []string{s.needs}})
}

func (e meta) write(w *writer) {
	s, ok := metaNames[e.key]
	if !ok {
		s = symbol{text: fmt.Sprintf("meta key %d", e.key)}
	}
	switch e.key {
	case metaIIF, metaOIF:
		s.names = w.names
	case metaL4Proto, metaNFProto, metaIIFType:
		s.isCheck = true
	case metaProtocol:
		s.isCheck = w.table.family == familyNetdev || w.table.family == familyBridge
	}
	w.load(e.to, s)
}

func (e connection) write(w *writer) {
	s := symbol{text: "ct " + ctName(e.key), kind: ctKinds[e.key], size: 4}
	switch e.direction {
	case 0:
		s.text = "ct original " + ctName(e.key)
	case 1:
		s.text = "ct reply " + ctName(e.key)
	}
	switch s.kind {
	case kindIP6:
		s.size = 16
	case kindPort:
		s.size = 2
	}
	w.load(e.to, s)
}

func (e fib) write(w *writer) {
	var parts []string
	for _, n := range []named{{fibSource, "saddr"}, {fibDest, "daddr"}, {fibMark, "mark"}, {fibIn, "iif"}, {fibOut, "oif"}} {
		if e.flags&n.bit != 0 {
			parts = append(parts, n.name)
		}
	}
	s := symbol{text: "fib " + strings.Join(parts, " . "), kind: kindIndex, size: 4}
	switch e.result {
	case fibResultAddrType:
		s.text, s.kind = s.text+" type", kindAddrType
	case fibResultOIFName:
		s.text, s.kind, s.size = s.text+" oifname", kindIfName, unix.IFNAMSIZ
	default:
		s.text += " oif"
	}
	if e.flags&fibPresent != 0 {
		s.kind = kindPresent
	}
	w.load(e.to, s)
}
