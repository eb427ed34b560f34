package netfilter

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// writer turns a rule's expressions back into the language that it was written
// in. It follows what each register stands for.
type writer struct {
	table   *table
	names   func(uint32) string // names of devices by their index; nil: not known
	symbols map[int]symbol      // by their offset in the register file
	terms   []term
	// foreign says that an expression has no counterpart in iptables' language.
	foreign bool
}

// term is a piece of a rule: one match or statement.
type term struct {
	nft, iptables string
	implies       string      // the dependency that the term states: "tcp", "ip", "ether"
	needs         []string    // the dependencies that the term implies by itself
	written       bool        // it implies that, but somebody wrote it on purpose
	low           *comparison // it is the lower end of what may become a range
}

// symbol is what a register holds.
type symbol struct {
	text    string // in nft's words: "tcp dport"
	option  string // in iptables' words: "--dport"; "" when it has none
	kind    valueKind
	size    int
	needs   string
	mask    []byte // bits that were kept; nil: all
	set     []byte // bits that were flipped afterwards
	data    []byte // of a constant
	names   func(uint32) string
	isCheck bool // it is what nft checks by itself: meta l4proto, meta nfproto, …
}

// text writes a rule out, in the language of its table.
func (r *rule) text(c *chain, names func(uint32) string) string {
	w := &writer{table: c.table, names: names, symbols: map[int]symbol{}}
	for _, e := range r.exprs {
		e.write(w)
	}
	if c.table.iptables() && !w.foreign {
		return w.iptables(c.name)
	}
	text := w.nft()
	if r.comment != "" {
		text += " comment " + quoted(r.comment)
	}
	return text
}

// nft joins the terms, leaving out checks that later terms imply.
func (w *writer) nft() string {
	var out []string
	for i, t := range w.terms {
		if t.nft != "" && !t.impliedBy(w.terms[i+1:]) {
			out = append(out, t.nft)
		}
	}
	return strings.Join(out, " ")
}

// impliedBy reports a check that the next term implies: nft adds such checks
// right before what needs them, and does not print them.
func (t term) impliedBy(rest []term) bool {
	if t.implies == "" || t.written {
		return false
	}
	for _, u := range rest {
		switch {
		case slices.Contains(u.needs, t.implies):
			return true
		case u.implies == "" || u.written:
			return false
		}
	}
	return false
}

// iptablesOrder is the order of iptables-save: addresses, devices, protocol, then the rest.
var iptablesOrder = []string{"-s ", "-d ", "-i ", "-o ", "-p ", "-f"}

// iptables joins the terms in the order of iptables-save.
func (w *writer) iptables(chain string) string {
	out := []string{"-A " + chain}
	rank := func(t string) int {
		t = strings.TrimPrefix(t, "! ")
		for i, p := range iptablesOrder {
			if strings.HasPrefix(t, p) {
				return i
			}
		}
		if strings.HasPrefix(t, "-j ") || strings.HasPrefix(t, "-g ") {
			return len(iptablesOrder) + 1
		}
		return len(iptablesOrder)
	}
	var parts []string
	for _, t := range w.terms {
		if t.iptables != "" {
			parts = append(parts, t.iptables)
		}
	}
	slices.SortStableFunc(parts, func(a, b string) int { return rank(a) - rank(b) })
	return strings.Join(append(out, parts...), " ")
}

// add appends a term. One without iptables text makes the rule foreign to iptables.
func (w *writer) add(t term) {
	w.foreign = w.foreign || t.iptables == ""
	w.terms = append(w.terms, t)
}

// load says what a register holds from here on.
func (w *writer) load(r register, s symbol) {
	if at, ok := r.offset(); ok {
		w.symbols[at] = s
	}
}

// symbol returns what a register holds.
func (w *writer) symbol(r register) symbol {
	if at, ok := r.offset(); ok {
		if s, ok := w.symbols[at]; ok {
			return s
		}
	}
	return symbol{text: fmt.Sprintf("reg %d", r)}
}

// quoted puts text that others wrote between quotes, with control characters escaped.
func quoted(s string) string { return strconv.Quote(s) }
