package render

import (
	"fmt"
	"net"
	"strings"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

// Path returns one line for a path that has no finding.
func (t Text) Path(p *tracev1.Path) string {
	mark, state, s := "+", "ANSWERED", green
	if p.GetLastSeen() == nil {
		return t.foretoldPath(p)
	}
	switch {
	case !p.GetAnswered() && p.GetReset_():
		mark, state, s = "!", "REFUSED", yellow
	case !p.GetAnswered():
		mark, state, s = "?", "NO ANSWER", yellow
	}
	var b strings.Builder
	b.WriteString(t.paint(s, fmt.Sprintf("%s %-9s", mark, state)) + "  ")
	b.WriteString(t.clock(p.GetLastSeen().AsTime()) + "  ")
	b.WriteString(Escape(tuple(p.GetProtocol(), p.GetClient(), p.GetServer())))
	b.WriteString(t.paint(dim, Escape("  "+t.requestTold(p)+"; "+t.replyTold(p))))
	b.WriteByte('\n')
	return b.String()
}

// foretoldPath is the line for a path that nothing has gone yet.
func (t Text) foretoldPath(p *tracev1.Path) string {
	return t.paint(green, "+ WOULD GO ") + "  " + Escape(tuple(p.GetProtocol(), p.GetClient(), p.GetServer())) +
		t.paint(dim, Escape("  "+t.requestTold(p)+"; "+t.replyTold(p))) + "\n"
}

func (t Text) requestTold(p *tracev1.Path) string {
	told := "by " + t.namesOf(p, p.GetRequest())
	if len(p.GetRequest()) == 0 {
		told = "request not seen"
	}
	if n := p.GetRequests(); n > 1 {
		told += fmt.Sprintf(" (%s)", packets(p.GetProtocol(), n, "SYN"))
	}
	return told
}

func (t Text) replyTold(p *tracev1.Path) string {
	if len(p.GetReply()) == 0 {
		return "no reply seen"
	}
	return "back by " + t.namesOf(p, p.GetReply())
}

func (t Text) namesOf(p *tracev1.Path, hops []*tracev1.Hop) string {
	nodes := severalNodes(p)
	names := make([]string, len(hops))
	for i, h := range hops {
		names[i] = placeName(strings.TrimPrefix(h.GetNetns(), t.Trim), h.GetNetnsInode(), h.GetWorkload())
		if nodes {
			names[i] = onNode(h.GetNode(), names[i])
		}
		if kind := h.GetInTunnel(); kind != "" {
			names[i] = kind + " to " + names[i]
		}
	}
	return strings.Join(names, ", ")
}

func tuple(protocol, client, server string) string {
	return protocol + " " + client + " -> " + server
}

// packets counts packets of a handshake by the name that the protocol has for them.
func packets(protocol string, n uint32, tcpName string) string {
	name := "packet"
	if protocol == "tcp" {
		name = tcpName
	} else if n != 1 {
		name = "packets"
	}
	return grouped(uint64(n)) + " " + name
}

// host returns the address of address:port.
func host(hostport string) string {
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		return h
	}
	return hostport
}

func port(hostport string) string {
	_, p, _ := net.SplitHostPort(hostport)
	return p
}

// grouped writes a number with a comma before every third digit.
func grouped(n uint64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
