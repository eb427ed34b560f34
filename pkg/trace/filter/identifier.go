package filter

import (
	"fmt"
	"math/bits"
	"net/netip"
	"strings"

	"github.com/replypath/replypath/pkg/trace"
)

// identifier reads the address, network or port that the qualifiers announce.
func (p *parser) identifier(q qualifiers) (*node, error) {
	p.implied = q
	switch q.valueType {
	case typePort:
		return p.port(q)
	case typePortRange:
		return p.portRange(q)
	}
	at := p.peek()
	n, err := p.network(q)
	if err != nil {
		return nil, err
	}
	if q.scope.family == 4 && n.is6() || q.scope.protocol == trace.ICMP && n.is6() {
		return nil, p.fail(at, "%s is an IPv6 address, but follows %q", quote(at.text), q.scope.word)
	}
	if q.scope.family == 6 && !n.is6() || q.scope.protocol == trace.ICMPv6 && !n.is6() {
		return nil, p.fail(at, "%s is an IPv4 address, but follows %q", quote(at.text), q.scope.word)
	}
	q.valueType = typeNet
	if n.single() {
		q.valueType = typeHost
	}
	return &node{primitive: primitive{qualifiers: q, network: n}}, nil
}

// network reads an address, prefix, short IPv4 network or masked address.
func (p *parser) network(q qualifiers) (network, error) {
	at := p.peek()
	if at.kind != tokenWord || isKeyword(at.word) {
		return network{}, p.expected("an address", q)
	}
	p.next()
	text, length, slash := strings.Cut(at.word, "/")
	address, width, err := p.address(at, text, q, slash)
	if err != nil {
		return network{}, err
	}
	if p.peek().is("mask") {
		return p.masked(at, address, width, slash, q)
	}
	if slash {
		if q.valueType == typeHost {
			return network{}, p.fail(at, "%s is a network: write \"net %s\"", quote(at.text), at.text)
		}
		number, ok := parseNumber(length, uint64(address.BitLen()))
		if !ok {
			return network{}, p.fail(at, "%s: expected a prefix length from 0 to %d", quote(at.text), address.BitLen())
		}
		width = int(number)
	}
	prefix := netip.PrefixFrom(address, width)
	if prefix.Masked() != prefix {
		return network{}, p.fail(at, "%s has bits set beyond its prefix: write \"%s\"", quote(at.text), prefix.Masked())
	}
	return network{prefix: prefix}, nil
}

// address reads an address, or the first numbers of an IPv4 one where a
// network may stand, and the width in bits of what was written.
func (p *parser) address(at token, text string, q qualifiers, slash bool) (netip.Addr, int, error) {
	if address, err := netip.ParseAddr(text); err == nil {
		if address.Zone() != "" {
			return netip.Addr{}, 0, p.fail(at, "%s has a zone: write the address alone", quote(at.text))
		}
		if address.Is4In6() && slash {
			return netip.Addr{}, 0, p.fail(at, "%s is an IPv4 prefix in IPv6 form: write it as IPv4", quote(at.text))
		}
		address = address.Unmap() // tuples never hold the mapped form
		return address, address.BitLen(), nil
	}
	short, width, ok := shortNetwork(text)
	dotted := strings.Contains(text, ".") || slash
	switch {
	case ok && (q.valueType == typeNet || q.valueType == typeDefault && dotted):
		return short, width, nil
	case ok && dotted:
		return netip.Addr{}, 0, p.fail(at, "%s is not a whole address: write \"net %s\"", quote(at.text), at.text)
	case ok:
		return netip.Addr{}, 0, p.fail(at, "expected an address%s, got %s: for a port write \"port %s\"", after(q), quote(at.text), at.text)
	}
	if pair, err := netip.ParseAddrPort(text); err == nil {
		return netip.Addr{}, 0, p.fail(at, "%s is an address and a port: write \"host %s and port %d\"", quote(at.text), pair.Addr(), pair.Port())
	}
	if looksNumeric(text) {
		return netip.Addr{}, 0, p.fail(at, "expected an address%s, got %s", after(q), quote(at.text))
	}
	return netip.Addr{}, 0, p.fail(at, "%s is not an address, and names are not resolved: use an address", quote(at.text))
}

// masked reads "mask MASK" after an IPv4 address.
func (p *parser) masked(at token, address netip.Addr, width int, slash bool, q qualifiers) (network, error) {
	keyword := p.next()
	if q.valueType != typeNet || slash || !address.Is4() {
		return network{}, p.fail(keyword, "\"mask\" follows \"net\" and an IPv4 address only")
	}
	word := p.peek()
	mask, err := netip.ParseAddr(word.word)
	if word.kind != tokenWord || err != nil || !mask.Is4() {
		return network{}, p.fail(word, "expected an IPv4 mask after \"mask\", got %s", word)
	}
	p.next()
	m := bits4(mask)
	if bits4(address)&^m != 0 {
		return network{}, p.fail(at, "%s has bits set beyond its mask: write \"%s\"", quote(at.text), addr4(bits4(address)&m))
	}
	if ones := bits.LeadingZeros32(^m); ones == bits.OnesCount32(m) {
		return network{prefix: netip.PrefixFrom(address, ones)}, nil
	}
	return network{prefix: netip.PrefixFrom(address, width), mask: m}, nil
}

// shortNetwork reads the first one to three numbers of an IPv4 address, as
// pcap-filter(7) allows: "10.1" is 10.1.0.0/16.
func shortNetwork(text string) (netip.Addr, int, bool) {
	parts := strings.Split(text, ".")
	if len(parts) > 3 {
		return netip.Addr{}, 0, false
	}
	var b [4]byte
	for i, part := range parts {
		number, ok := parseNumber(part, 255)
		if !ok {
			return netip.Addr{}, 0, false
		}
		b[i] = byte(number)
	}
	return netip.AddrFrom4(b), 8 * len(parts), true
}

// looksNumeric reports whether the word holds only what addresses are made of.
func looksNumeric(text string) bool {
	return text == "" || strings.Trim(text, "0123456789.") == "" ||
		strings.Contains(text, ":") && strings.Trim(text, "0123456789abcdef.:") == ""
}

// port reads a port or a service's name.
func (p *parser) port(q qualifiers) (*node, error) {
	at := p.peek()
	if at.kind != tokenWord || isKeyword(at.word) {
		return nil, p.expected("a port", q)
	}
	p.next()
	services := lookupService(at.word)
	if services == nil {
		return nil, p.portError(at, q)
	}
	return p.services(at, services, q)
}

// services makes a test of each service and joins them.
func (p *parser) services(at token, services []service, q qualifiers) (*node, error) {
	var joined *node
	for _, s := range services {
		if s.protocol != 0 && q.scope.protocol != 0 && q.scope.protocol != s.protocol {
			continue // "tcp port syslog", and syslog is UDP's
		}
		n := serviceTest(s, q)
		if joined != nil {
			n = &node{operator: disjunction, left: joined, right: n}
		}
		joined = n
	}
	if joined == nil {
		return nil, p.fail(at, "%s is not a service of %s", quote(at.text), q.scope.word)
	}
	return joined, nil
}

// serviceTest makes the test of one service. A primitive has one protocol
// qualifier, so "ip port ssh" becomes "ip and tcp port 22".
func serviceTest(s service, q qualifiers) *node {
	family := q.scope
	if s.protocol != 0 {
		q.scope = scopes[s.protocol.String()]
	}
	n := &node{primitive: primitive{qualifiers: q, first: s.port, last: s.port}}
	if s.protocol == 0 || family.family == 0 {
		return n
	}
	return &node{operator: conjunction, left: &node{primitive: primitive{qualifiers: qualifiers{scope: family}}}, right: n}
}

// portError says why a word is no port.
func (p *parser) portError(at token, q qualifiers) error {
	if _, err := netip.ParseAddr(at.word); err == nil {
		return p.fail(at, "expected a port%s, got %s: for an address write \"host %s\"", after(q), quote(at.text), at.text)
	}
	if _, _, ok := parseRange(at.word); ok {
		return p.fail(at, "expected one port%s, got %s: write \"portrange %s\"", after(q), quote(at.text), at.text)
	}
	if strings.Trim(at.word, "0123456789") == "" {
		return p.fail(at, "expected a port from 0 to 65535%s, got %s", after(q), quote(at.text))
	}
	return p.fail(at, "unknown port or service %s", quote(at.text))
}

// portRange reads FIRST-LAST, each a number or a service's name.
func (p *parser) portRange(q qualifiers) (*node, error) {
	at := p.peek()
	if at.kind != tokenWord || isKeyword(at.word) {
		return nil, p.expected("two ports FIRST-LAST", q)
	}
	p.next()
	if services := lookupService(at.word); services != nil && !strings.Contains(at.word, "-") {
		return nil, p.fail(at, "expected two ports FIRST-LAST%s, got %s: write \"port %s\"", after(q), quote(at.text), at.text)
	}
	first, last, ok := parseRange(at.word)
	if !ok {
		return nil, p.fail(at, "expected two ports FIRST-LAST%s, got %s", after(q), quote(at.text))
	}
	if first.protocol == last.protocol && first.protocol != 0 && q.scope.word == "" {
		q.scope = scopes[first.protocol.String()]
	}
	if first.port > last.port { // as libpcap does
		first, last = last, first
	}
	if first.port == last.port {
		q.valueType = typePort
	}
	return &node{primitive: primitive{qualifiers: q, first: first.port, last: last.port}}, nil
}

// parseRange splits FIRST-LAST; a service's name may hold a hyphen itself.
func parseRange(word string) (first, last service, ok bool) {
	if strings.Count(word, "-") > 8 {
		return first, last, false // no service is called so; each try may read /etc/services
	}
	for i := range word {
		if word[i] != '-' {
			continue
		}
		a, b := lookupService(word[:i]), lookupService(word[i+1:])
		if len(a) > 0 && len(b) > 0 {
			return a[0], b[0], true
		}
	}
	return first, last, false
}

// after names the qualifier that an identifier follows: ` after "host"`.
func after(q qualifiers) string {
	if q.last == "" {
		return ""
	}
	return fmt.Sprintf(" after %q", q.last)
}
