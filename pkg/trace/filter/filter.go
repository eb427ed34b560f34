package filter

import (
	"strings"

	"github.com/replypath/replypath/pkg/trace"
)

// Filter is a parsed expression. The zero value matches everything. A Filter
// is not changed by use and may be shared between goroutines.
type Filter struct {
	root *node
	nots []*node // every negation, inner ones first; node.slot is the index
	text string
}

// operator joins nodes.
type operator uint8

const (
	leaf operator = iota
	conjunction
	disjunction
	negation
)

// node is one operator or primitive of the parsed expression.
type node struct {
	operator    operator
	left, right *node // right is nil for a negation; both are for a leaf
	slot        int   // of a negation: its place in verdicts
	primitive   primitive
}

// verdicts holds what each negation says of the path at hand, one bit each. A
// negation takes two bytes of the expression at least.
type verdicts [maxLength / 2 / 64]uint64

func (v *verdicts) set(i int)      { v[i/64] |= 1 << (i % 64) }
func (v *verdicts) get(i int) bool { return v[i/64]&(1<<(i%64)) != 0 }

// Match reports whether a path matches: see the package comment for what that
// means where NAT gives a path several tuples.
func (f Filter) Match(p trace.Path) bool {
	if f.root == nil {
		return true
	}
	var buf [24]trace.Tuple // eleven hops each way without an allocation
	return f.MatchTuples(Tuples(buf[:0], &p))
}

// MatchTuple reports whether a tuple in the direction of the request matches.
func (f Filter) MatchTuple(t trace.Tuple) bool {
	one := [1]trace.Tuple{t}
	return f.MatchTuples(one[:])
}

// MatchTuples reports whether a path with these tuples, in the direction of the request, matches.
func (f Filter) MatchTuples(tuples []trace.Tuple) bool {
	if f.root == nil {
		return true
	}
	if len(tuples) == 0 {
		tuples = make([]trace.Tuple, 1) // of which only negations are true
	}
	if len(f.nots) == 0 {
		return f.root.any(tuples, nil)
	}
	// A negation is about the whole path, so each is settled once, before what
	// uses it. Settling it again for each tuple would cost exponential time.
	var v verdicts
	for i, n := range f.nots {
		if !n.left.any(tuples, &v) {
			v.set(i)
		}
	}
	return f.root.any(tuples, &v)
}

// any reports whether the node holds for one of the tuples.
func (n *node) any(tuples []trace.Tuple, v *verdicts) bool {
	for i := range tuples {
		if n.holds(&tuples[i], v) {
			return true
		}
	}
	return false
}

// holds evaluates the node for one tuple.
func (n *node) holds(t *trace.Tuple, v *verdicts) bool {
	switch n.operator {
	case conjunction:
		return n.left.holds(t, v) && n.right.holds(t, v)
	case disjunction:
		return n.left.holds(t, v) || n.right.holds(t, v)
	case negation:
		return v.get(n.slot)
	}
	return n.primitive.matches(t)
}

// Tuples appends to dst the tuples of a path in the direction of the request:
// what the client meant, then what each hop saw, without neighbouring duplicates.
func Tuples(dst []trace.Tuple, p *trace.Path) []trace.Tuple {
	start := len(dst)
	add := func(t trace.Tuple) {
		if t.IsValid() && (len(dst) == start || dst[len(dst)-1] != t) {
			dst = append(dst, t)
		}
	}
	add(p.Connection)
	add(trace.Tuple{Protocol: p.Protocol, Src: p.Client, Dst: p.Server})
	for i := range p.Request {
		add(p.Request[i].Tuple)
	}
	for i := range p.Reply {
		add(p.Reply[i].Tuple.Reverse())
	}
	return dst
}

// String returns the expression in canonical form, with every qualifier
// written out and services as numbers. Parsing it gives the same filter. It is
// "" for the filter that matches everything.
func (f Filter) String() string { return f.text }

// write appends the canonical form of the node.
func (n *node) write(b *strings.Builder) {
	switch n.operator {
	case leaf:
		b.WriteString(n.primitive.String())
	case negation:
		b.WriteString("not ")
		n.left.writeOperand(b)
	default:
		n.left.write(b) // and and or associate to the left: no parentheses needed
		if n.operator == conjunction {
			b.WriteString(" and ")
		} else {
			b.WriteString(" or ")
		}
		n.right.writeOperand(b)
	}
}

// writeOperand appends the node, in parentheses if it joins two others.
func (n *node) writeOperand(b *strings.Builder) {
	if n.right == nil {
		n.write(b)
		return
	}
	b.WriteByte('(')
	n.write(b)
	b.WriteByte(')')
}
