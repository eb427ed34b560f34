package filter

import (
	"fmt"
	"strings"
)

const (
	maxLength = 4096 // of an expression and of its canonical form, in bytes
	maxDepth  = 100  // of parentheses
)

// Parse reads an expression. Empty text gives the filter that matches
// everything. The error is a *SyntaxError.
func Parse(text string) (Filter, error) {
	if len(text) > maxLength {
		return Filter{}, &SyntaxError{Column: maxLength + 1, Reason: fmt.Sprintf("the expression is longer than %d bytes", maxLength)}
	}
	tokens, err := lex(text)
	if err != nil {
		return Filter{}, err
	}
	p := &parser{input: text, tokens: tokens}
	if p.peek().kind == tokenEnd {
		return Filter{}, nil
	}
	root, err := p.expression((*parser).term)
	if err != nil {
		return Filter{}, err
	}
	if t := p.peek(); t.kind != tokenEnd {
		if t.kind == tokenClose {
			return Filter{}, p.fail(t, "\")\" without \"(\"")
		}
		return Filter{}, p.fail(t, "expected \"and\" or \"or\", got %s", t)
	}
	return p.finish(root)
}

// finish numbers the negations and writes the canonical form.
func (p *parser) finish(root *node) (Filter, error) {
	f := Filter{root: root}
	f.number(root)
	var b strings.Builder
	root.write(&b)
	if b.Len() > maxLength {
		return Filter{}, p.fail(token{}, "the expression with its qualifiers written out is longer than %d bytes", maxLength)
	}
	f.text = b.String()
	return f, nil
}

// number gives each negation its slot, inner ones first.
func (f *Filter) number(n *node) {
	if n == nil {
		return
	}
	f.number(n.left)
	f.number(n.right)
	if n.operator == negation {
		n.slot = len(f.nots)
		f.nots = append(f.nots, n)
	}
}

// parser reads tokens by recursive descent.
type parser struct {
	input    string
	tokens   []token
	position int
	depth    int
	previous token      // the token consumed last
	implied  qualifiers // of the identifier read last, for one that has none
}

func (p *parser) peek() token { return p.tokens[p.position] }

func (p *parser) next() token {
	t := p.tokens[p.position]
	if t.kind != tokenEnd {
		p.position++
	}
	p.previous = t
	return t
}

func (p *parser) fail(at token, format string, args ...any) error {
	return syntaxError(p.input, at.offset, fmt.Sprintf(format, args...))
}

// expected says what should stand where the next token is.
func (p *parser) expected(what string, q qualifiers) error {
	t := p.peek()
	if reason := unsupported(t); reason != "" {
		return p.fail(t, "%s", reason)
	}
	where := after(q)
	if where == "" && p.position > 0 {
		where = fmt.Sprintf(" after %s", p.previous)
	}
	return p.fail(t, "expected %s%s, got %s", what, where, t)
}

// expression reads operands joined with and and or, which have equal
// precedence and associate to the left.
func (p *parser) expression(operand func(*parser) (*node, error)) (*node, error) {
	left, err := p.negated(operand)
	for err == nil {
		n := &node{left: left}
		switch p.peek().kind {
		case tokenAnd:
			n.operator = conjunction
		case tokenOr:
			n.operator = disjunction
		default:
			return left, nil
		}
		p.next()
		n.right, err = p.negated(operand)
		left = n
	}
	return nil, err
}

// negated reads an operand after any number of nots.
func (p *parser) negated(operand func(*parser) (*node, error)) (*node, error) {
	negate := false
	for p.peek().kind == tokenNot {
		p.next()
		negate = !negate
	}
	n, err := operand(p)
	switch {
	case err != nil || !negate:
		return n, err
	case n.operator == negation: // "not (not …)"
		return n.left, nil
	}
	return &node{operator: negation, left: n}, nil
}

// parenthesised reads an expression and the parentheses around it.
func (p *parser) parenthesised(operand func(*parser) (*node, error)) (*node, error) {
	open := p.next()
	if p.depth++; p.depth > maxDepth {
		return nil, p.fail(open, "parentheses are nested more than %d deep", maxDepth)
	}
	n, err := p.expression(operand)
	if err != nil {
		return nil, err
	}
	if t := p.peek(); t.kind != tokenClose {
		if t.kind == tokenEnd {
			return nil, p.fail(open, "\"(\" without \")\"")
		}
		return nil, p.fail(t, "expected \"and\", \"or\" or \")\", got %s", t)
	}
	p.next()
	p.depth--
	return n, nil
}

// term reads a parenthesised expression or a primitive.
func (p *parser) term() (*node, error) {
	t := p.peek()
	switch t.kind {
	case tokenOpen:
		return p.parenthesised((*parser).term)
	case tokenWord:
		if reason := unsupported(t); reason != "" {
			return nil, p.fail(t, "%s", reason)
		}
		switch {
		case t.is("mask"): // only within "net"
		case isKeyword(t.word):
			return p.qualified()
		default:
			return p.identifier(p.implied)
		}
	}
	return nil, p.expected("a primitive such as \"host ADDRESS\" or \"port NUMBER\"", qualifiers{})
}

// qualified reads qualifiers and what follows them: nothing (a protocol
// alone), an identifier, or identifiers in parentheses.
func (p *parser) qualified() (*node, error) {
	first := p.peek()
	q := p.qualifiers()
	next := p.peek()
	onlyScope := q.direction == either && q.valueType == typeDefault && q.last == q.scope.word
	if onlyScope {
		if next.kind != tokenWord || isKeyword(next.word) {
			p.implied = qualifiers{}
			return &node{primitive: primitive{qualifiers: q}}, nil
		}
	}
	if q.valueType >= typePort {
		if s := q.scope.word; s == "icmp" || s == "icmp6" {
			return nil, p.fail(first, "%q has no ports", s)
		}
	}
	if next.kind == tokenOpen && !onlyScope {
		p.implied = q
		return p.parenthesised((*parser).impliedIdentifier)
	}
	return p.identifier(q)
}

// impliedIdentifier reads an identifier, or a group of them, that takes its
// qualifiers from in front of the parentheses around it.
func (p *parser) impliedIdentifier() (*node, error) {
	if p.peek().kind == tokenOpen {
		return p.parenthesised((*parser).impliedIdentifier)
	}
	return p.identifier(p.implied)
}

// qualifiers reads protocol, direction and type, each of which may be missing.
func (p *parser) qualifiers() qualifiers {
	var q qualifiers
	if s, ok := scopes[p.peek().word]; ok && p.peek().kind == tokenWord {
		q.scope, q.last = s, p.next().word
	}
	if d, words := p.direction(); words > 0 {
		for range words {
			q.last = p.next().word
		}
		q.direction = d
	}
	for t, word := range typeWords {
		if word != "" && p.peek().is(word) {
			q.valueType, q.last = valueType(t), p.next().word
			break
		}
	}
	return q
}

// direction recognises src, dst and their pairs, and counts the words.
func (p *parser) direction() (direction, int) {
	ends := map[string]direction{"src": source, "dst": destination}
	first, ok := ends[p.peek().word]
	if !ok || p.peek().kind != tokenWord {
		return either, 0
	}
	if p.position+2 < len(p.tokens) {
		joint, other := p.tokens[p.position+1], p.tokens[p.position+2]
		second, ok := ends[other.word]
		if ok && other.kind == tokenWord && second != first {
			switch joint.kind {
			case tokenOr:
				return either, 3
			case tokenAnd:
				return both, 3
			}
		}
	}
	return first, 1
}

// isKeyword reports whether the word has a meaning of its own, so that it is no identifier.
func isKeyword(word string) bool {
	switch word {
	case "src", "dst", "host", "net", "port", "portrange", "mask":
		return true
	}
	_, ok := scopes[word]
	return ok
}

// unsupported explains the words of pcap-filter(7) that have no meaning for paths.
func unsupported(t token) string {
	if t.kind != tokenWord {
		return ""
	}
	const instead = "replypath matches addresses, ports and protocols"
	if strings.ContainsAny(t.word, "[]<>=") {
		return fmt.Sprintf("%s: packet contents cannot be matched; %s", quote(t.text), instead)
	}
	switch t.word {
	case "ether", "fddi", "tr", "wlan", "arp", "rarp", "decnet", "sctp", "igmp", "ah", "esp", "pim", "vrrp", "proto", "protochain",
		"gateway", "broadcast", "multicast", "less", "greater", "len", "inbound", "outbound", "ifname", "on", "ifindex",
		"vlan", "mpls", "pppoed", "pppoes", "geneve", "vxlan", "iso", "stp", "atalk", "llc":
		return fmt.Sprintf("%s is not supported; %s", quote(t.text), instead)
	}
	return ""
}
