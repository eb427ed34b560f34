package correlate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// The exchange of these tests: the client asks the VIP, n1 translates that to the
// pod and sends it through a tunnel to n2, which has the pod.
var (
	toVIP = tcp("198.51.100.7:41822", "203.0.113.80:80")
	toPod = tcp("198.51.100.7:41822", "10.9.0.5:8080")
)

// at makes a hop of a node: "in>out" are its devices, ttl what the packet has left as it comes in.
func at(node string, ns trace.Netns, devices string, ttl uint8, arrived, left trace.Tuple) trace.Hop {
	in, out, _ := strings.Cut(devices, ">")
	h := trace.Hop{Place: trace.Place{Node: node, Netns: ns}, In: trace.Device{Name: in}, Out: trace.Device{Name: out}, TTL: ttl, Tuple: left, Count: 1}
	if in != "" {
		h.Arrived = arrived
	}
	return h
}

// seen makes a node's path; times are by its own clock.
func seen(seq uint32, first time.Time, request, reply []trace.Hop) trace.Path {
	t := request[0].Tuple
	if request[0].Arrived.IsValid() {
		t = request[0].Arrived
	}
	for _, hops := range [][]trace.Hop{request, reply} {
		for i := range hops {
			hops[i].First = first.Add(time.Duration(i) * time.Microsecond)
		}
	}
	return trace.Path{Protocol: t.Protocol, Client: t.Src, Server: t.Dst, Connection: t, Request: request, Reply: reply,
		First: first, Last: first, Requests: 1, Sequence: seq}
}

// onTwo is the exchange as two nodes see it; the clock of the second is far behind.
func onTwo(seq uint32, first time.Time, toVIP, toPod trace.Tuple) (one, two trace.Path) {
	one = seen(seq, first,
		[]trace.Hop{at("one", 1, ">eth0", 64, toVIP, toVIP), at("one", 2, "wan0>t0", 64, toVIP, toPod)},
		[]trace.Hop{at("one", 2, "t0>wan0", 62, toPod.Reverse(), toVIP.Reverse()), at("one", 1, "eth0>", 61, toVIP.Reverse(), toVIP.Reverse())})
	two = seen(seq, first.Add(-7*time.Minute),
		[]trace.Hop{at("two", 2, "t0>cni0", 63, toPod, toPod), at("two", 5, "eth0>", 62, toPod, toPod)},
		[]trace.Hop{at("two", 5, ">eth0", 64, toPod.Reverse(), toPod.Reverse()), at("two", 2, "cni0>t0", 63, toPod.Reverse(), toPod.Reverse())})
	return one, two
}

// drawn tells an exchange in a line.
func drawn(p *trace.Path) string {
	text := p.Connection.String() + ":"
	for _, h := range p.Request {
		text += fmt.Sprintf(" %s/%d", h.Place.Node, h.Place.Netns)
	}
	text += " back"
	for _, h := range p.Reply {
		text += fmt.Sprintf(" %s/%d", h.Place.Node, h.Place.Netns)
	}
	return text
}

func TestJoin(t *testing.T) {
	const whole = ": one/1 one/2 two/2 two/5 back two/5 two/2 one/2 one/1"
	one, two := onTwo(1000, start, toVIP, toPod)
	one.Answered = true
	again1, again2 := onTwo(2000, start.Add(time.Second), toVIP, toPod) // the port is used again
	bare := one
	bare.Reply, bare.Answered = nil, false
	udp := func(tuple trace.Tuple) trace.Tuple { tuple.Protocol = trace.UDP; return tuple }
	udp1, udp2 := onTwo(0, start, udp(toVIP), udp(toPod))
	later1, _ := onTwo(0, start.Add(2*time.Minute), udp(toVIP), udp(toPod))
	local := func(node string) trace.Path { // a pod asks its node, on a bridge that each node has
		tuple := udp(tcp("172.17.0.2:40000", "172.17.0.1:53"))
		return seen(0, start, []trace.Hop{at(node, 8, ">eth0", 64, tuple, tuple), at(node, 9, "br0>", 64, tuple, tuple)}, nil)
	}
	hidden := tcp("192.0.2.1:41822", "10.9.0.5:8080") // both addresses are changed between the nodes, and not the port
	behind := seen(1000, start, []trace.Hop{at("two", 5, "eth0>", 60, hidden, hidden)}, nil)
	stranger := tcp("192.0.2.1:555", "10.9.0.9:99")
	unlike := seen(1000, start, []trace.Hop{at("two", 5, "eth0>", 60, stranger, stranger)}, nil)
	late := two
	late.Sequence = 0 // its agent was started when the connection was there
	back := seen(1000, start, []trace.Hop{at("three", 3, "a>b", 62, toPod, toPod)}, []trace.Hop{at("three", 3, "b>a", 63, toPod.Reverse(), toPod.Reverse())})
	for name, test := range map[string]struct {
		views [][]trace.Path
		want  []string
	}{
		"through NAT and a tunnel":       {[][]trace.Path{{one}, {two}}, []string{toVIP.String() + whole}},
		"asked in another order":         {[][]trace.Path{{two}, {one}}, []string{toVIP.String() + whole}},
		"the port is used again":         {[][]trace.Path{{one, again1}, {again2, two}}, []string{toVIP.String() + whole, toVIP.String() + whole}},
		"the second came not through":    {[][]trace.Path{{one, again1}, {two}}, []string{toVIP.String() + whole, toVIP.String() + ": one/1 one/2 back one/2 one/1"}},
		"the reply has not come back":    {[][]trace.Path{{bare}, {two}}, []string{toVIP.String() + ": one/1 one/2 two/2 two/5 back two/5 two/2"}},
		"one agent is asked twice":       {[][]trace.Path{{one}, {two}, {one}}, []string{toVIP.String() + whole}},
		"datagrams":                      {[][]trace.Path{{udp1}, {udp2}}, []string{udp(toVIP).String() + whole}},
		"datagrams after a pause":        {[][]trace.Path{{udp1, later1}, {udp2}}, []string{udp(toVIP).String() + whole}},
		"private addresses on each node": {[][]trace.Path{{local("one")}, {local("two")}}, []string{local("one").Connection.String() + ": one/8 one/9 back", local("two").Connection.String() + ": two/8 two/9 back"}},
		"NAT between the nodes":          {[][]trace.Path{{bare}, {behind}}, []string{toVIP.String() + ": one/1 one/2 two/5 back"}},
		"a number by chance":             {[][]trace.Path{{bare}, {unlike}}, []string{toVIP.String() + ": one/1 one/2 back", stranger.String() + ": two/5 back"}},
		"an agent that came late":        {[][]trace.Path{{one}, {late}}, []string{toVIP.String() + whole}},
		"late, and which one is unclear": {[][]trace.Path{{bare, again1}, {late}}, []string{toVIP.String() + ": one/1 one/2 back", toVIP.String() + ": one/1 one/2 back one/2 one/1", toPod.String() + ": two/2 two/5 back two/5 two/2"}},
		"three nodes":                    {[][]trace.Path{{one}, {two}, {back}}, []string{toVIP.String() + ": one/1 one/2 two/2 two/5 three/3 back two/5 two/2 three/3 one/2 one/1"}},
		"nothing":                        {[][]trace.Path{nil, nil}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var views []View
			for _, paths := range test.views {
				views = append(views, View{Paths: paths})
			}
			exchanges, _ := Join(views, nil)
			var got []string
			for i := range exchanges {
				got = append(got, drawn(&exchanges[i].Path))
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(test.want, "\n  "))
			}
		})
	}
}

// TestJoinScan: a scanner may use one number, and one port, for all that it asks.
func TestJoinScan(t *testing.T) {
	var views [2]View
	for port := range uint16(500) {
		server := netip.AddrPortFrom(netip.MustParseAddr("203.0.113.80"), port+1)
		tuple := trace.Tuple{Protocol: trace.TCP, Src: toVIP.Src, Dst: server}
		one, two := onTwo(7, start, tuple, tuple)
		views[0].Paths = append(views[0].Paths, one)
		views[1].Paths = append(views[1].Paths, two)
	}
	exchanges, _ := Join(views[:], nil)
	if len(exchanges) != 500 {
		t.Fatalf("%d exchanges", len(exchanges))
	}
	for i := range exchanges {
		if n := len(exchanges[i].Path.Request); n != 4 {
			t.Fatalf("%s", drawn(&exchanges[i].Path))
		}
	}
}

// TestJoinAnswered: only where the request comes from can it be said that the answer is back.
func TestJoinAnswered(t *testing.T) {
	one, two := onTwo(1000, start, toVIP, toPod)
	two.Answered = true // it left the second node
	two.Reset = true
	one.Process, one.Requests, two.Requests = trace.Process{PID: 7, Comm: "curl"}, 3, 1
	joined := func() trace.Path {
		exchanges, _ := Join([]View{{Paths: []trace.Path{two}}, {Paths: []trace.Path{one}}}, nil)
		return exchanges[0].Path
	}
	if p := joined(); p.Answered || !p.Reset || p.Requests != 3 || p.Process.PID != 7 || p.Server != toVIP.Dst || !p.First.Equal(start) {
		t.Errorf("got %+v", p)
	}
	two.Established = true
	if p := joined(); !p.Answered {
		t.Error("the server's socket has heard of the client again, so the answer was there")
	}
}

// fault makes a finding of a node about one of its paths.
func fault(id string, d trace.Direction, sure trace.Confidence, node string, ns trace.Netns, p trace.Path) trace.Finding {
	return trace.Finding{ID: id, Direction: d, Confidence: sure, Where: trace.Where{Node: node, Place: trace.Place{Node: node, Netns: ns}}, Path: p, Count: 2,
		LastSeen: p.Last, Evidence: []trace.Evidence{{Text: "seen on " + node}},
		Connections: []trace.Connection{{Tuple: p.Connection, Count: 2, Last: p.Last}}}
}

func TestJoinFindings(t *testing.T) {
	one, two := onTwo(1000, start, toVIP, toPod)
	one.Reply = nil
	certain := fault("rp-filter-drop", trace.Reply, trace.Certain, "one", 2, one)
	same := fault("rp-filter-drop", trace.Reply, trace.Likely, "two", 2, two)
	other := fault("neighbor-unresolved", trace.Reply, trace.Certain, "two", 2, two)
	early := fault("netfilter-drop", trace.Request, trace.Certain, "two", 2, two)
	wide := fault("rp-filter-drop", trace.Reply, trace.Likely, "two", 2, two)
	elsewhere := tcp("198.51.100.9:1", "10.9.0.5:8080") // a path that is forgotten
	wide.Connections = append(wide.Connections, trace.Connection{Tuple: elsewhere, Count: 3})
	wide.Count = 5
	crowded := wide
	crowded.Omitted = 40
	for name, test := range map[string]struct {
		views [][]trace.Finding
		want  string
	}{
		"one node":                       {[][]trace.Finding{{certain}, nil}, "rp-filter-drop one 2 " + toVIP.String() + " [seen on one]"},
		"only the other end":             {[][]trace.Finding{nil, {same}}, "rp-filter-drop two 2 " + toVIP.String() + " [seen on two]"},
		"the same fault from two nodes":  {[][]trace.Finding{{certain}, {same}}, "rp-filter-drop one 2 " + toVIP.String() + " [seen on one seen on two]"},
		"what comes first on the way":    {[][]trace.Finding{{certain}, {other}}, "neighbor-unresolved two 2 " + toVIP.String() + " [seen on two]"},
		"the request comes first":        {[][]trace.Finding{{certain}, {early}}, "netfilter-drop two 2 " + toVIP.String() + " [seen on two]"},
		"other connections stay":         {[][]trace.Finding{{certain}, {wide}}, "rp-filter-drop one 2 " + toVIP.String() + " [seen on one seen on two]; rp-filter-drop two 3 " + elsewhere.String() + " [seen on two]"},
		"not all connections are listed": {[][]trace.Finding{{certain}, {crowded}}, "rp-filter-drop one 2 " + toVIP.String() + " [seen on one seen on two]"},
	} {
		t.Run(name, func(t *testing.T) {
			views := []View{{Paths: []trace.Path{one}, Findings: test.views[0]}, {Paths: []trace.Path{two}, Findings: test.views[1]}}
			exchanges, findings := Join(views, nil)
			var got []string
			for _, f := range findings {
				var met, evidence []string
				for _, c := range f.Connections {
					met = append(met, c.Tuple.String())
				}
				for _, e := range f.Evidence {
					evidence = append(evidence, e.Text)
				}
				got = append(got, fmt.Sprintf("%s %s %d %s %v", f.ID, f.Where.Node, f.Count, strings.Join(met, ", "), evidence))
			}
			if text := strings.Join(got, "; "); text != test.want {
				t.Errorf("got  %s\nwant %s", text, test.want)
			}
			if len(exchanges) != 1 || !exchanges[0].Faulty || len(findings[0].Path.Request) != 4 {
				t.Errorf("exchanges %+v", exchanges)
			}
		})
	}
}

// TestJoinKeep: what is asked for is told by all tuples of an exchange.
func TestJoinKeep(t *testing.T) {
	one, two := onTwo(1000, start, toVIP, toPod)
	lost := fault("rp-filter-drop", trace.Reply, trace.Certain, "two", 2, two)
	views := []View{{Paths: []trace.Path{one}}, {Paths: []trace.Path{two}, Findings: []trace.Finding{lost}}}
	for server, want := range map[string]int{"203.0.113.80:80": 1, "10.9.0.5:8080": 1, "203.0.113.80:81": 0} {
		keep := func(tuples []trace.Tuple) bool {
			return slices.ContainsFunc(tuples, func(t trace.Tuple) bool { return t.Dst.String() == server })
		}
		if exchanges, findings := Join(views, keep); len(exchanges) != want || len(findings) != want {
			t.Errorf("%s: %d exchanges, %d findings, want %d", server, len(exchanges), len(findings), want)
		}
	}
}
