package render

import (
	"fmt"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

// maxOthers is how many lines, and maxPorts how many client ports on one of
// them, the text spends on the other connections that met a fault.
const (
	maxOthers = 3
	maxPorts  = 6
)

// fellows are connections that differ in their client's port alone.
type fellows struct {
	protocol, client, server string
	ports                    []string
}

// others tells in brief which connections, besides the one that is drawn, met the fault.
func others(f *tracev1.Finding) [][]word {
	var rows [][]word
	more, unsure := uint64(0), uint64(0)
	for i, g := range grouping(f) {
		if i >= maxOthers {
			more += uint64(len(g.ports))
			continue
		}
		rows = append(rows, g.words())
	}
	if omitted := uint64(f.GetConnectionsOmitted()); countsAll(f) {
		more += omitted
	} else {
		unsure = omitted
	}
	if more > 0 {
		rows = append(rows, words(dim, "and "+moreConnections(more)))
	}
	if unsure > 0 {
		rows = append(rows, words(dim, "and perhaps "+moreConnections(unsure)+": too little is kept of them to say whether they match"))
	}
	return rows
}

func moreConnections(n uint64) string {
	if n == 1 {
		return "1 more connection"
	}
	return grouped(n) + " more connections"
}

// countsAll reports whether a finding's count includes its omitted connections.
// An agent that was asked with a filter cannot tell whether those match, and
// counts only the listed ones.
func countsAll(f *tracev1.Finding) bool {
	listed := uint64(0)
	for _, c := range f.GetConnections() {
		listed += uint64(c.GetCount())
	}
	return f.GetConnectionsOmitted() == 0 || uint64(f.GetCount()) > listed
}

func grouping(f *tracev1.Finding) []*fellows {
	var order []*fellows
	index := make(map[[3]string]*fellows)
	p := f.GetPath()
	for _, c := range f.GetConnections() {
		if c.GetProtocol() == p.GetProtocol() && c.GetClient() == p.GetClient() && c.GetServer() == p.GetServer() {
			continue
		}
		key := [3]string{c.GetProtocol(), host(c.GetClient()), c.GetServer()}
		g := index[key]
		if g == nil {
			g = &fellows{protocol: c.GetProtocol(), client: c.GetClient(), server: c.GetServer()}
			index[key] = g
			order = append(order, g)
		}
		g.ports = append(g.ports, port(c.GetClient()))
	}
	return order
}

// words returns "tcp 198.51.100.7:41822, 41824 -> 203.0.113.10:80".
func (g *fellows) words() []word {
	ws := []word{unbroken(plain, g.protocol), unbroken(plain, g.client)}
	for i, p := range g.ports {
		switch {
		case i == 0:
			continue
		case i < maxPorts:
			ws[len(ws)-1] = append(ws[len(ws)-1], styled(plain, ","))
			ws = append(ws, unbroken(plain, p))
		}
	}
	if more := len(g.ports) - maxPorts; more > 0 {
		ws = append(ws, words(plain, fmt.Sprintf("and %d more", more))...)
	}
	return append(ws, unbroken(plain, "->"), unbroken(plain, g.server))
}
