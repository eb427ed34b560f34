package correlate

import (
	"slices"
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// pod is a namespace in which connections are redirected to a proxy.
const pod = backend

// enter is a client's connection to the pod, which a proxy takes.
func (s *scene) enter(from string, seq uint32) {
	meant, redirected := tcp(from, "10.0.0.5:8080"), tcp(from, "10.0.0.5:15006")
	s.syn(meant, seq).tx(client, 0, 2).rx(pod, 3)
	answer := s.synack(redirected.Reverse(), seq)
	answer.ev.Tuple = meant.Reverse()
	answer.ev.Conntrack = trace.Conntrack{Original: meant, Reply: redirected.Reverse(), Info: 4}
	answer.tx(pod, 0, 3).rx(client, 2)
}

// passOn is the proxy's call to its application.
func (s *scene) passOn(from string, seq uint32) packet {
	return s.syn(tcp(from, "10.0.0.5:8080"), seq).tx(pod, 0, 1)
}

func TestLegsAreJoined(t *testing.T) {
	s := newScene(t, Config{})
	s.enter("198.51.100.7:40000", 100)
	s.passOn("127.0.0.6:50000", 900).rx(pod, 1)
	s.synack(tcp("10.0.0.5:8080", "127.0.0.6:50000"), 900).tx(pod, 0, 1).rx(pod, 1)
	s.table.Done()
	s.table.Flush()
	done := s.table.Done()
	if len(done) != 0 && len(done) != 1 {
		t.Fatalf("%d paths", len(done))
	}
	p := s.table.whole(s.table.legs.proxied[pod][0])
	if got := namespaces(p.Request); !slices.Equal(got, []trace.Netns{client, pod, pod, pod}) {
		t.Errorf("request through %v", got)
	}
	if p.Client.String() != "198.51.100.7:40000" || p.Server.String() != "10.0.0.5:8080" || !p.Answered || p.Joined != trace.Certain {
		t.Errorf("joined %s: %s -> %s, answered %t", p.Joined, p.Client, p.Server, p.Answered)
	}
}

// What happens to the proxy's own connection is told of the client's.
func TestDropOfALegIsTheClients(t *testing.T) {
	s := newScene(t, Config{})
	s.enter("198.51.100.7:40000", 100)
	s.passOn("127.0.0.6:50000", 900).drop(pod, 1, "NETFILTER_DROP", "nft_do_chain")
	c := s.cases(1)[0]
	if c.Path.Client.String() != "198.51.100.7:40000" || c.Leg.Src.String() != "127.0.0.6:50000" || c.Path.Answered {
		t.Errorf("client %s, leg %s, answered %t", c.Path.Client, c.Leg, c.Path.Answered)
	}
}

func TestJoinIsHonest(t *testing.T) {
	s := newScene(t, Config{})
	s.enter("198.51.100.7:40000", 100)
	s.enter("198.51.100.7:40002", 200)
	s.passOn("127.0.0.6:50000", 900)
	first := s.table.legs.proxied[pod][0]
	if p := s.table.whole(first); p.Joined != trace.Likely {
		t.Errorf("one of two: %s", p.Joined)
	}
	s.passOn("127.0.0.6:50002", 901)
	if p := s.table.whole(s.table.legs.proxied[pod][1]); p.Joined != trace.Certain {
		t.Errorf("the one that is left: %s", p.Joined)
	}
	s.passOn("127.0.0.6:50004", 902)
	if p := s.table.whole(first); p.Joined != trace.Possible {
		t.Errorf("a third one: %s", p.Joined)
	}
}

func TestWhoIsNoProxyJoinsNothing(t *testing.T) {
	const proxy = 77
	for name, pid := range map[string]uint32{"the proxy": proxy, "an application": 78} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, Config{Proxy: func(ns trace.Netns, pid uint32) (is, known bool) { return ns == pod && pid == proxy, true }})
			s.enter("198.51.100.7:40000", 100)
			onward := tcp("10.0.0.5:50000", "203.0.113.9:80")
			s.add(trace.Event{Hook: trace.HookSocketState, NewState: stateSYNSent, Netns: pod, Tuple: trace.Tuple{Protocol: trace.TCP, Dst: onward.Dst, Src: onward.Src}, Process: trace.Process{PID: pid}})
			s.syn(onward, 900).tx(pod, 0, 3)
			p := s.table.whole(s.table.legs.proxied[pod][0])
			if joined := p.Joined != 0; joined != (pid == proxy) {
				t.Errorf("joined: %t", joined)
			}
		})
	}
}

// As long as nobody knows the proxy, it is who calls the very server that another process was kept from calling.
func TestFirstLegOfAProxyIsJoined(t *testing.T) {
	const application, proxy = 70, 77
	begun := func(s *scene, t trace.Tuple, pid uint32) {
		s.add(trace.Event{Hook: trace.HookSocketState, NewState: stateSYNSent, Netns: pod, Tuple: t, Process: trace.Process{PID: pid}})
	}
	for name, tt := range map[string]struct {
		server string
		pid    uint32
		known  bool
		want   trace.Confidence
	}{
		"the proxy":           {"203.0.113.9:80", proxy, false, trace.Likely},
		"another server":      {"203.0.113.10:80", proxy, false, 0},
		"the application":     {"203.0.113.9:80", application, false, 0},
		"another is known":    {"203.0.113.9:80", proxy, true, 0},
		"nobody knows whose":  {"203.0.113.9:80", 0, false, 0},
		"another server port": {"203.0.113.9:81", proxy, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, Config{Proxy: func(trace.Netns, uint32) (is, known bool) { return false, tt.known }})
			meant, redirected := tcp("10.0.0.5:40000", "203.0.113.9:80"), tcp("10.0.0.5:40000", "127.0.0.1:15001")
			begun(s, meant, application)
			call, answer := s.syn(redirected, 100), s.synack(redirected.Reverse(), 100)
			call.ev.Conntrack = trace.Conntrack{Original: meant, Reply: redirected.Reverse(), Info: 2}
			call.tx(pod, 0, 1)
			answer.ev.Conntrack = trace.Conntrack{Original: meant, Reply: redirected.Reverse(), Info: 4}
			answer.tx(pod, 0, 1)
			if len(s.table.legs.proxied[pod]) != 1 {
				t.Fatal("it was not seen to be redirected")
			}
			onward := tcp("10.0.0.5:50000", tt.server)
			begun(s, onward, tt.pid)
			s.syn(onward, 900).tx(pod, 0, 3)
			if p := s.table.whole(s.table.legs.proxied[pod][0]); p.Joined != tt.want {
				t.Errorf("joined %s, want %s", p.Joined, tt.want)
			}
		})
	}
}

func TestLegsAreForgotten(t *testing.T) {
	s := newScene(t, Config{})
	s.enter("198.51.100.7:40000", 100)
	s.wait(legAge + time.Second)
	s.passOn("127.0.0.6:50000", 900)
	if p := s.table.whole(s.table.legs.proxied[pod][0]); p.Joined != 0 {
		t.Errorf("joined after %v: %s", legAge, p.Joined)
	}
	for i := range 3 * maxProxied {
		s.enter("198.51.100.7:"+string([]byte{'4', '1', byte('0' + i/100), byte('0' + i/10%10), byte('0' + i%10)}), uint32(1000+i))
	}
	if n := len(s.table.legs.proxied[pod]); n > maxProxied {
		t.Errorf("%d are remembered", n)
	}
}

func TestLookupThatLeadsAstray(t *testing.T) {
	s := newScene(t, Config{})
	s.enter("198.51.100.7:40000", 100)
	lookup := trace.Event{Hook: trace.HookAstray, Netns: pod, Tuple: tcp("127.0.0.6:0", "203.0.113.9:80"), Process: trace.Process{PID: 77}}
	s.add(lookup)
	s.add(lookup)
	lookup.Tuple.Dst = tcp("127.0.0.6:0", "203.0.113.9:0").Dst
	s.add(lookup) // ip-route(8)
	c := s.cases(1)[0]
	if c.Symptom != trace.SymptomUnsent || c.Path.Client.String() != "198.51.100.7:40000" || c.Path.Answered || c.Event.Process.PID != 77 {
		t.Errorf("%s of %s: %+v", c.Symptom, c.Path.Client, c)
	}
}

// What another node saw of the connection with which a proxy goes on belongs to the client's.
func TestLegsOverNodes(t *testing.T) {
	app, onward := tcp("10.0.0.5:40000", "203.0.113.9:80"), tcp("10.0.0.5:40002", "203.0.113.9:80")
	redirected := tcp("10.0.0.5:40000", "127.0.0.1:15001")
	one := seen(100, start, []trace.Hop{at("one", 5, ">lo", 64, app, redirected), at("one", 5, "lo>", 64, redirected, redirected), at("one", 5, ">eth0", 64, onward, onward)}, nil)
	one.Connection, one.Server = app, app.Dst
	two := seen(900, start.Add(-time.Minute), []trace.Hop{at("two", 7, "eth0>", 63, onward, onward)}, nil)
	other := seen(901, start, []trace.Hop{at("two", 7, "eth0>", 63, tcp("10.0.0.5:40009", "203.0.113.9:80"), tcp("10.0.0.5:40009", "203.0.113.9:80"))}, nil)
	exchanges, _ := Join([]View{{Paths: []trace.Path{one}}, {Paths: []trace.Path{two, other}}}, nil)
	if len(exchanges) != 2 {
		t.Fatalf("%d exchanges, want 2", len(exchanges))
	}
	p := exchanges[0].Path
	if got := namespaces(p.Request); !slices.Equal(got, []trace.Netns{5, 5, 5, 7}) || p.Connection != app {
		t.Errorf("%s through %v", p.Connection, got)
	}
}
