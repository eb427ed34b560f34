package netfilter

import (
	"bytes"
	"slices"
	"strings"
)

func (e lookup) write(w *writer) {
	s := w.table.sets[e.set]
	parts := w.concatenation(e.from, s)
	t := term{}
	var names []string
	for _, p := range parts {
		names = append(names, p.text)
		t.needs = append(t.needs, p.needs)
	}
	left := strings.Join(names, " . ")
	text := setText(e.set, s, parts)
	switch {
	case e.isMap && e.to == registerVerdict:
		t.nft = left + " vmap " + text
	case e.isMap:
		w.load(e.to, symbol{text: left + " map " + text, needs: strings.Join(t.needs, "")})
		return
	case e.invert:
		t.nft = left + " != " + text
	default:
		t.nft = left + " " + text
	}
	w.add(t)
}

// concatenation returns the symbols that make up a set's key.
func (w *writer) concatenation(from register, s *set) []symbol {
	at, ok := from.offset()
	if !ok || s == nil {
		return []symbol{w.symbol(from)}
	}
	var out []symbol
	for end := at + s.keySize; at < end; {
		p, ok := w.symbols[at]
		if !ok || p.size == 0 {
			return append(out, symbol{text: "…"})
		}
		out = append(out, p)
		at += (p.size + 3) / 4 * 4
	}
	return out
}

// mostShown bounds the elements of a set that are written out.
const mostShown = 16

// setText writes a set: its name, or its elements when it has none.
func setText(name string, s *set, parts []symbol) string {
	if s == nil || !s.anonymous {
		return "@" + name
	}
	if err := s.load(); err != nil {
		return "@" + name
	}
	var out []string
	sorted := slices.Clone(s.elements)
	slices.SortFunc(sorted, func(a, b element) int {
		if a.catchAll() != b.catchAll() {
			return len(b.low) - len(a.low) // the catch-all element comes last
		}
		return bytes.Compare(a.low, b.low)
	})
	for i := range sorted {
		if i == mostShown {
			out = append(out, "…")
			break
		}
		e := &sorted[i]
		text := "*"
		if !e.catchAll() {
			text = e.text(parts)
		}
		switch {
		case e.data != nil:
			text += " : " + formatValue(kindHex, e.data)
		case e.verdict != verdict{} || s.isVerdictMap:
			text += " : " + e.verdict.String()
		}
		out = append(out, text)
	}
	return "{ " + strings.Join(out, ", ") + " }"
}

// text writes an element's key, field by field.
func (e *element) text(parts []symbol) string {
	var out []string
	at := 0
	for _, p := range parts {
		end := at + p.size
		if len(parts) == 1 {
			end = len(e.low)
		}
		if end > len(e.low) {
			return strings.Join(append(out, "…"), " . ")
		}
		text := formatValue(p.kind, e.low[at:end])
		if e.high != nil && end <= len(e.high) {
			text = formatRange(p.kind, e.low[at:end], e.high[at:end])
		}
		out = append(out, text)
		at = (end + 3) / 4 * 4
	}
	return strings.Join(out, " . ")
}
