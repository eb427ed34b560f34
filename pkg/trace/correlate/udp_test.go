package correlate

import (
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

func udp(src, dst string) trace.Tuple {
	return trace.Tuple{Protocol: trace.UDP, Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst)}
}

var ask = udp("198.51.100.7:41822", "203.0.113.80:53")

func (s *scene) datagram(t trace.Tuple) packet { return s.send(t, 0, 0, 0) }

// udpRequest goes from the client by router and load balancer to the backend.
func (s *scene) udpRequest() packet {
	return s.datagram(ask).tx(client, 0, 2).rx(router, 2).tx(router, 2, 3).rx(lb, 2).tx(lb, 2, 2).rx(backend, 2)
}

// miss is a lookup for the answer that fails in one table.
func (s *scene) miss(ns trace.Netns) {
	s.add(trace.Event{Hook: trace.HookRouteMiss4, Netns: ns, InIndex: 2, Tuple: ask.Reverse(), Errno: syscall.EAGAIN})
}

// The answer takes another way than the request, and both are one path.
func TestDatagramPath(t *testing.T) {
	s := newScene(t, Config{})
	s.udpRequest()
	s.datagram(ask.Reverse()).tx(backend, 0, 2).rx(router, 3).tx(router, 3, 2).rx(client, 2)
	s.cases(0)
	p := s.path()
	if p.Client != ask.Src || p.Server != ask.Dst || !p.Answered || p.Guessed {
		t.Errorf("path = %+v", p)
	}
	if got, want := namespaces(p.Request), []trace.Netns{client, router, lb, backend}; !slices.Equal(got, want) {
		t.Errorf("request passes %v, want %v", got, want)
	}
	if got, want := namespaces(p.Reply), []trace.Netns{backend, router, client}; !slices.Equal(got, want) {
		t.Errorf("reply passes %v, want %v", got, want)
	}
}

// Two clients with the same addresses and ports in networks of their own are two paths.
func TestDatagramsOfOtherNetworks(t *testing.T) {
	s := newScene(t, Config{})
	s.datagram(ask).tx(client, 0, 2).rx(router, 2)
	s.datagram(ask).tx(other, 0, 2).rx(lb, 2)
	s.table.Flush()
	if n := len(s.table.Done()); n != 2 {
		t.Errorf("%d paths, want 2", n)
	}
}

// Destination NAT changes the tuple within a host.
func TestDatagramNAT(t *testing.T) {
	s := newScene(t, Config{})
	pod := udp("198.51.100.7:41822", "10.244.1.53:5353")
	s.datagram(ask).tx(client, 0, 2).rx(lb, 2).nat(pod).tx(lb, 2, 3).rx(backend, 2)
	s.datagram(pod.Reverse()).tx(backend, 0, 2).rx(lb, 3)
	s.cases(0)
	if p := s.path(); p.Server != ask.Dst || len(p.Request) != 3 || len(p.Reply) != 2 {
		t.Errorf("path = %+v", p)
	}
}

func TestDatagramCases(t *testing.T) {
	reply := ask.Reverse()
	tests := map[string]struct {
		play    func(*scene)
		want    int
		symptom trace.Symptom
		dir     trace.Direction
	}{
		"no answer":          {func(s *scene) { s.udpRequest(); s.wait(time.Second) }, 0, 0, 0},
		"dropped on its way": {func(s *scene) { s.datagram(ask).tx(client, 0, 2).rx(router, 2).drop(router, 2, "NETFILTER_DROP", "x") }, 1, trace.SymptomDrop, trace.Request},
		"answer dropped": {func(s *scene) {
			s.udpRequest()
			s.datagram(reply).tx(backend, 0, 2).rx(router, 3).drop(router, 3, "NETFILTER_DROP", "x")
		}, 1, trace.SymptomDrop, trace.Reply},
		"a stream that is dropped": {func(s *scene) {
			for range 50 {
				s.datagram(ask).drop(router, 2, "NETFILTER_DROP", "x")
			}
		}, 1, trace.SymptomDrop, trace.Request},
		"a stream, for seconds": {func(s *scene) {
			for range 3 {
				s.datagram(ask).drop(router, 2, "NETFILTER_DROP", "x")
				s.wait(2 * udpCases)
			}
		}, 3, trace.SymptomDrop, trace.Request},
		"nobody takes it":               {func(s *scene) { s.udpRequest().drop(backend, 2, "NO_SOCKET", "__udp4_lib_rcv") }, 1, trace.SymptomRefused, trace.Request},
		"nobody takes it, 5.10":         {func(s *scene) { s.udpRequest().drop(backend, 2, "", "__udp4_lib_rcv") }, 1, trace.SymptomRefused, trace.Request},
		"a probe of traceroute":         {func(s *scene) { s.udpRequest().ttl(3).drop(backend, 2, "NO_SOCKET", "__udp4_lib_rcv") }, 0, 0, 0},
		"nobody takes it, 20 hops away": {func(s *scene) { s.udpRequest().ttl(44).drop(backend, 2, "NO_SOCKET", "__udp4_lib_rcv") }, 1, trace.SymptomRefused, trace.Request},
		"one answer that does not arrive": {func(s *scene) {
			s.udpRequest()
			s.datagram(reply).tx(backend, 0, 2).otherHost().rx(client, 2)
			s.wait(udpArrival)
			s.wait(udpArrival)
		}, 1, trace.SymptomVanished, trace.Reply},
		"an answer that goes to another machine": {func(s *scene) {
			s.udpRequest()
			s.datagram(reply).tx(backend, 0, 2).rx(other, 2).drop(other, 2, "NO_SOCKET", "__udp4_lib_rcv")
		}, 1, trace.SymptomVanished, trace.Reply},
		"its client is gone": {func(s *scene) {
			s.udpRequest()
			s.datagram(reply).tx(backend, 0, 2).rx(client, 2).drop(client, 2, "NO_SOCKET", "__udp4_lib_rcv")
		}, 0, 0, 0},
		"an answer from elsewhere": {func(s *scene) {
			s.udpRequest()
			s.datagram(udp("10.2.0.20:53", "198.51.100.7:41822")).tx(backend, 0, 2).rx(client, 2).drop(client, 2, "NO_SOCKET", "x")
		}, 1, trace.SymptomMisaddressed, trace.Reply},
		"no route for the answer": {func(s *scene) { s.udpRequest(); s.miss(backend); s.wait(time.Second) }, 1, trace.SymptomSilence, trace.Reply},
		"a miss in one of two tables": {func(s *scene) {
			s.udpRequest()
			s.miss(backend)
			s.datagram(reply).tx(backend, 0, 2).rx(client, 2)
			s.wait(time.Second)
		}, 0, 0, 0},
		"misses before answers not told": {func(s *scene) {
			s.udpRequest()
			s.datagram(reply).tx(backend, 0, 2).rx(client, 2)
			s.wait(time.Second / 2)
			s.miss(backend)
			s.wait(time.Second)
		}, 0, 0, 0},
		"somebody looks the way up later": {func(s *scene) { s.udpRequest(); s.wait(2 * udpAsked); s.miss(backend); s.wait(time.Second) }, 0, 0, 0},
		"the kernel answers a route query": {func(s *scene) {
			s.udpRequest()
			s.datagram(reply).drop(backend, 0, "NOT_SPECIFIED", "inet_rtm_getroute")
		}, 0, 0, 0},
		"broadcast": {func(s *scene) {
			p := s.datagram(ask)
			p.ev.Group = true
			p.drop(router, 2, "NETFILTER_DROP", "x")
		}, 0, 0, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, Config{})
			tt.play(s)
			for _, c := range s.cases(tt.want) {
				if c.Symptom != tt.symptom || c.Direction != tt.dir {
					t.Errorf("case = %s %s, want %s %s", c.Symptom, c.Direction, tt.symptom, tt.dir)
				}
			}
		})
	}
}

// A question that is answered again and again while tables are full costs nothing that stays.
func TestDatagramIndexesAreBounded(t *testing.T) {
	s := newScene(t, Config{MaxPaths: 100})
	for i := range 5000 {
		s.datagram(udp(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 40000).String(), "203.0.113.80:53")).tx(client, 0, 2)
	}
	if n, m := len(s.table.udp.bySKB), len(s.table.udp.byClient); n > 100 || m > 100 {
		t.Errorf("%d packets and %d clients are remembered for 100 paths", n, m)
	}
	if n := s.table.Evicted(); n != 0 {
		t.Errorf("%d evictions of datagrams are called losses", n)
	}
}
