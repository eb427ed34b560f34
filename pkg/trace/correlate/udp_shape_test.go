package correlate

import (
	"net/netip"
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// The backend's own address, instead of the one that the client asked.
var elsewhere = udp("10.2.0.20:53", "198.51.100.7:41822")

// Datagrams whose answers are lost by the shape of their path.
func TestDatagramShapes(t *testing.T) {
	reply := ask.Reverse()
	pod := udp("198.51.100.7:41822", "10.244.1.53:5353")
	answered := func(s *scene) {
		s.datagram(ask).tx(client, 0, 2).rx(lb, 2).nat(pod).tx(lb, 2, 3).rx(backend, 2)
		s.datagram(pod.Reverse()).tx(backend, 0, 2).rx(lb, 3).nat(reply).tx(lb, 3, 2).rx(client, 2)
		s.wait(time.Second)
	}
	straight := func(s *scene) { s.datagram(ask).tx(client, 0, 2).rx(router, 2).tx(router, 2, 3).rx(backend, 2) }
	astray := func(s *scene) packet { return s.datagram(elsewhere).tx(backend, 0, 2).rx(client, 2) }
	for name, tt := range map[string]struct {
		play    func(*scene)
		want    int
		symptom trace.Symptom
		dir     trace.Direction
	}{
		"an answer from elsewhere that no socket takes": {func(s *scene) { s.udpRequest(); astray(s).drop(client, 2, "NO_SOCKET", "x") }, 1, trace.SymptomMisaddressed, trace.Reply},
		"an answer from elsewhere, and the question again": {func(s *scene) {
			s.udpRequest()
			astray(s)
			s.wait(time.Second)
			s.udpRequest()
		}, 1, trace.SymptomMisaddressed, trace.Reply},
		"an answer from elsewhere that is taken": {func(s *scene) { s.udpRequest(); astray(s); s.wait(time.Second) }, 0, 0, 0},
		"an answer that went around the host that translates": {func(s *scene) {
			s.datagram(ask).tx(client, 0, 2).rx(lb, 2).nat(pod).tx(lb, 2, 3).rx(backend, 2)
			s.datagram(pod.Reverse()).tx(backend, 0, 2).rx(client, 2)
		}, 1, trace.SymptomMisaddressed, trace.Reply},
		"an answer from another port, and the question again": {func(s *scene) {
			s.udpRequest()
			s.datagram(udp("203.0.113.80:6969", "198.51.100.7:41822")).tx(backend, 0, 2).rx(client, 2)
			s.wait(time.Second)
			s.udpRequest()
		}, 0, 0, 0},
		"the late answer of a server asked before": {func(s *scene) {
			s.udpRequest()
			s.datagram(udp("198.51.100.7:41822", "203.0.113.81:53")).tx(client, 0, 2).rx(router, 2)
			s.datagram(reply).tx(backend, 0, 2).rx(client, 2).drop(client, 2, "NO_SOCKET", "x")
		}, 0, 0, 0},
		"the server of another client sends": {func(s *scene) {
			straight(s)
			s.datagram(udp("10.2.0.20:53", "198.51.100.9:40000")).tx(backend, 0, 2).rx(client, 2)
			s.wait(time.Second)
			straight(s)
		}, 0, 0, 0},
		"an answer that begins an entry of its own, as the question was not tracked": {func(s *scene) {
			s.udpRequest()
			s.datagram(reply).nat(elsewhere).tx(backend, 0, 2).rx(client, 2).drop(client, 2, "NO_SOCKET", "x")
		}, 1, trace.SymptomMisaddressed, trace.Reply},
		"an answer that left and was not seen again": {func(s *scene) {
			s.udpRequest()
			s.datagram(reply).tx(backend, 0, 3)
			s.wait(time.Second)
			s.udpRequest()
		}, 1, trace.SymptomVanished, trace.Reply},
		"an answer that is on its way still": {func(s *scene) {
			s.udpRequest()
			s.wait(time.Second)
			s.datagram(reply).tx(backend, 0, 3)
			s.udpRequest()
		}, 0, 0, 0},
		"an answer to another machine's client": {func(s *scene) {
			s.datagram(ask).rx(router, 2).tx(router, 2, 3).rx(backend, 2)
			s.datagram(reply).tx(backend, 0, 3)
			s.wait(time.Second)
			s.datagram(ask).rx(router, 2).tx(router, 2, 3).rx(backend, 2)
		}, 0, 0, 0},
		"a question that stays unanswered": {func(s *scene) { straight(s); s.wait(time.Second); straight(s) }, 0, 0, 0},
		"a question that went out and was not seen again": {func(s *scene) {
			for range 6 {
				s.datagram(ask).tx(client, 0, 2).rx(router, 2).tx(router, 2, 3)
				s.wait(udpCases)
			}
		}, udpStrays - 1, trace.SymptomStray, trace.Request},
		"a question that was sent back": {func(s *scene) { s.udpRequest(); s.wait(time.Second); s.udpRequest() }, 1, trace.SymptomStray, trace.Request},
		"answers that went well, and one that is no longer translated": {func(s *scene) {
			answered(s)
			s.datagram(pod.Reverse()).tx(backend, 0, 2).rx(lb, 3).tx(lb, 3, 2).rx(client, 2).drop(client, 2, "NO_SOCKET", "x")
		}, 1, trace.SymptomUnmatched, trace.Reply},
		"its client is gone by now": {func(s *scene) {
			answered(s)
			s.datagram(pod.Reverse()).tx(backend, 0, 2).rx(lb, 3).nat(reply).tx(lb, 3, 2).rx(client, 2).drop(client, 2, "NO_SOCKET", "x")
		}, 0, 0, 0},
		"a circle": {func(s *scene) {
			s.datagram(ask).tx(client, 0, 2).rx(router, 2).tx(router, 2, 3).rx(lb, 2).tx(lb, 2, 2).rx(router, 3).tx(router, 3, 3).
				ttl(1).drop(lb, 2, "IP_INHDR", "ip_forward")
		}, 1, trace.SymptomLoop, trace.Request},
		"a circle through NAT that gives the packet another port each time": {func(s *scene) {
			p := s.datagram(ask).tx(client, 0, 2).ttl(63).rx(router, 2).nat(pod).tx(router, 2, 3)
			for i := range byte(30) {
				next := pod
				next.Src = netip.AddrPortFrom(pod.Src.Addr(), 50000+uint16(i))
				p = p.ttl(62-2*i).rx(lb, 2).tx(lb, 2, 2).ttl(61-2*i).rx(router, 3).nat(next).tx(router, 3, 3)
			}
			p.ttl(1).drop(lb, 2, "IP_INHDR", "ip_forward")
		}, 1, trace.SymptomLoop, trace.Request},
		"datagrams of one socket that live shorter and shorter": {func(s *scene) {
			for i := range byte(10) {
				s.datagram(ask).ttl(60-i).tx(client, 0, 2).rx(router, 2).tx(router, 2, 3).rx(backend, 2)
			}
		}, 0, 0, 0},
		"a hop limit that traceroute chose": {func(s *scene) {
			s.datagram(ask).tx(client, 0, 2).rx(router, 2).tx(router, 2, 3).rx(lb, 2).ttl(1).drop(lb, 2, "IP_INHDR", "ip_forward")
		}, 1, trace.SymptomDrop, trace.Request},
		"too big for a bridge's port": {func(s *scene) {
			s.datagram(ask).tx(client, 0, 2).otherHost().rx(bridge, 3).drop(bridge, 3, "", "br_dev_queue_push_xmit")
		}, 1, trace.SymptomDrop, trace.Request},
		"flooded by a bridge, and let go": {func(s *scene) {
			s.datagram(ask).tx(client, 0, 2).otherHost().rx(bridge, 3).drop(bridge, 3, "", "ip_rcv_core")
		}, 0, 0, 0},
	} {
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

// An answer from elsewhere is part of the exchange, wherever it is seen.
func TestAstrayDatagramPath(t *testing.T) {
	s := newScene(t, Config{})
	s.udpRequest()
	s.datagram(elsewhere).tx(backend, 0, 2).rx(router, 3).tx(router, 3, 2).rx(client, 2)
	p := s.path()
	if p.Answered || len(p.Reply) != 3 || p.Reply[0].Tuple != elsewhere || p.Server != ask.Dst {
		t.Errorf("path = %+v", p)
	}
}
