package correlate

import (
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

var (
	asked = tcp("10.1.0.7:40000", "203.0.113.80:80")
	taken = tcp("10.1.0.7:40000", "10.1.0.20:8080")
)

// hairpin sends a request from the client to lb, which translates it, to the
// backend, all on one bridge, and the answer straight back.
func hairpin(s *scene) {
	s.syn(asked, 100).tx(client, 0, 2).otherHost().rx(bridge, 3).tx(bridge, 3, 4).to(lb, 2).nat(taken).tx(lb, 2, 2).
		otherHost().rx(bridge, 4).tx(bridge, 4, 5).to(backend, 2)
	s.synack(taken.Reverse(), 100).tx(backend, 0, 2).otherHost().rx(bridge, 5).tx(bridge, 5, 3).to(client, 2)
}

// to is the arrival at the host whose MAC the packet has.
func (p packet) to(ns trace.Netns, dev uint32) packet {
	p.ev.OtherHost = false
	return p.rx(ns, dev)
}

func TestAnswerFromElsewhere(t *testing.T) {
	s := newScene(t, Config{})
	hairpin(s)
	s.cases(0) // it may be of no harm
	s.send(taken, trace.RST, 5101, 0).tx(client, 0, 2)
	c := s.cases(1)[0]
	if c.Symptom != trace.SymptomMisaddressed || c.Direction != trace.Reply || c.Event.Netns != client || c.Path.Answered {
		t.Errorf("case %s %s in %d", c.Symptom, c.Direction, c.Event.Netns)
	}
	if h := c.Path.Request[2]; h.Place.Netns != lb || h.Arrived != asked || h.Tuple != taken {
		t.Errorf("lb translates %s to %s", h.Arrived, h.Tuple)
	}
	if h := c.Path.Request[3]; !h.Bridged || h.Arrived != taken || h.Tuple != taken {
		t.Errorf("bridge %+v", h)
	}
}

// No reset: the request is repeated.
func TestAnswerFromElsewhereUnheard(t *testing.T) {
	s := newScene(t, Config{})
	hairpin(s)
	s.wait(time.Second)
	s.syn(asked, 100).tx(client, 0, 2)
	if c := s.cases(1)[0]; c.Symptom != trace.SymptomMisaddressed {
		t.Errorf("case %s", c.Symptom)
	}
}

func TestVanishedAnswer(t *testing.T) {
	s := newScene(t, Config{})
	s.syn(asked, 100).tx(client, 0, 2).rx(backend, 2)
	s.synack(asked.Reverse(), 100).tx(backend, 0, 9)
	s.wait(time.Second)
	s.syn(asked, 100).tx(client, 0, 2).rx(backend, 2)
	c := s.cases(1)[0]
	if c.Symptom != trace.SymptomVanished || c.Direction != trace.Reply || c.Event.Netns != backend || c.Event.Device.Index != 9 {
		t.Errorf("case %s %s in %d by %d", c.Symptom, c.Direction, c.Event.Netns, c.Event.Device.Index)
	}
}

// ttl sets what the packet has left to live.
func (p packet) ttl(n uint8) packet {
	p.ev.TTL = n
	return p
}

func TestCircle(t *testing.T) {
	s := newScene(t, Config{})
	p := s.syn(asked, 100).ttl(64).tx(client, 0, 2)
	for n := uint8(64); n > 40; n -= 2 {
		p.ttl(n).rx(router, 2).tx(router, 2, 3).ttl(n-1).rx(other, 2).tx(other, 2, 2)
	}
	c := s.cases(1)[0]
	if c.Symptom != trace.SymptomLoop || c.Path.Requests != 1 {
		t.Errorf("case %s after %d requests", c.Symptom, c.Path.Requests)
	}
	for _, h := range c.Path.Request[1:] {
		if h.Rounds < 2 || h.Count != 1 {
			t.Errorf("hop in %d: %d rounds, %d packets", h.Place.Netns, h.Rounds, h.Count)
		}
	}
}

// A service on the way hands each packet back to the router, which has it twice.
func TestDetourIsNoCircle(t *testing.T) {
	s := newScene(t, Config{})
	for range 5 {
		s.syn(asked, 100).ttl(64).tx(client, 0, 2).rx(router, 2).tx(router, 2, 2).ttl(63).rx(lb, 2).tx(lb, 2, 2).ttl(62).rx(router, 2).tx(router, 2, 3).ttl(61).rx(backend, 2)
		s.synack(asked.Reverse(), 100).tx(backend, 0, 2).rx(router, 3).tx(router, 3, 2).rx(client, 2)
		s.wait(time.Second)
	}
	s.cases(0)
}

func TestUnmatched(t *testing.T) {
	live := func() *scene {
		s := newScene(t, Config{})
		s.syn(asked, 100).tx(client, 0, 2).rx(lb, 2).nat(taken).tx(lb, 2, 3).rx(backend, 2)
		s.synack(taken.Reverse(), 100).tx(backend, 0, 2).rx(lb, 3).nat(asked.Reverse()).tx(lb, 3, 2).rx(client, 2)
		s.cases(0)
		return s
	}
	for name, tt := range map[string]struct {
		in     trace.Netns
		packet trace.Tuple // what the reset answers
		want   trace.Direction
	}{
		"an answer that was not translated back":           {client, taken.Reverse(), trace.Reply},
		"a request that the balancer takes for its own":    {lb, asked, trace.Request},
		"a request that went to another backend":           {other, tcp("10.1.0.7:40000", "10.1.0.21:8080"), trace.Request},
		"a request that the backend has closed":            {backend, taken, 0},
		"an answer that the client has closed":             {client, asked.Reverse(), 0},
		"another connection to a port that nobody listens": {lb, tcp("10.1.0.9:40000", "203.0.113.80:80"), 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := live()
			s.send(tt.packet.Reverse(), trace.RST, 7, 0).tx(tt.in, 0, 2)
			if tt.want == 0 {
				s.cases(0)
				return
			}
			if c := s.cases(1)[0]; c.Symptom != trace.SymptomUnmatched || c.Direction != tt.want || c.Event.Tuple != tt.packet {
				t.Errorf("case %s %s about %s", c.Symptom, c.Direction, c.Event.Tuple)
			}
		})
	}
}

// The reset that refuses an answer from elsewhere does not end the exchange: the request is repeated for seconds.
func TestAnswerFromElsewhereIsNoEnd(t *testing.T) {
	s := newScene(t, Config{})
	hairpin(s)
	s.send(taken, trace.RST, 5101, 0).tx(client, 0, 2).rx(backend, 2)
	s.wait(3 * time.Second)
	s.syn(asked, 100).tx(client, 0, 2)
	for _, c := range s.cases(1) {
		if c.Path.Reset || c.Path.Requests != 1 {
			t.Errorf("path: reset %t, %d requests", c.Path.Reset, c.Path.Requests)
		}
	}
	if p := s.path(); p.Reset || p.Requests != 2 {
		t.Errorf("path: reset %t, %d requests", p.Reset, p.Requests)
	}
}

// A host that the request did not come through refuses the answer: the client goes on waiting.
func TestMisdelivered(t *testing.T) {
	s := newScene(t, Config{})
	for range 4 {
		s.syn(vip, 1).tx(client, 0, 2).rx(backend, 2)
		s.synack(vip.Reverse(), 1).tx(backend, 0, 2).rx(other, 2)
		s.send(vip, trace.RST, 2, 0).tx(other, 0, 2).rx(backend, 2)
		c := s.cases(1)[0]
		if c.Symptom != trace.SymptomVanished || c.Direction != trace.Reply || c.Place.Netns != backend {
			t.Errorf("case %s %s in %d", c.Symptom, c.Direction, c.Place.Netns)
		}
		s.wait(time.Second)
	}
	if p := s.path(); p.Requests != 4 || p.Reset {
		t.Errorf("path = %+v", p)
	}
	refused := newScene(t, Config{})
	refused.syn(vip, 1).tx(client, 0, 2).rx(backend, 2)
	refused.synack(vip.Reverse(), 1).tx(backend, 0, 2).rx(client, 2)
	refused.send(vip, trace.RST, 2, 0).tx(client, 0, 2).rx(backend, 2)
	refused.cases(0)
}

// A balancer that hides the client behind its own address gets the server's packets
// itself once its entry is gone, and refuses them.
func TestUnmatchedBehindSourceNAT(t *testing.T) {
	hidden := tcp("10.1.0.1:40000", "10.1.0.20:8080")
	for name, tt := range map[string]struct {
		packet trace.Tuple
		want   int
	}{
		"to the address that the client is hidden behind": {hidden.Reverse(), 1},
		"to another port of it":                           {tcp("10.1.0.20:8080", "10.1.0.1:40001"), 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, Config{})
			s.syn(taken, 100).tx(client, 0, 2).rx(lb, 2).nat(hidden).tx(lb, 2, 3).rx(backend, 2)
			s.synack(hidden.Reverse(), 100).tx(backend, 0, 2).rx(lb, 3).nat(taken.Reverse()).tx(lb, 3, 2).rx(client, 2)
			s.send(tt.packet.Reverse(), trace.RST, 7, 0).tx(lb, 0, 3)
			for _, c := range s.cases(tt.want) {
				if c.Symptom != trace.SymptomUnmatched || c.Direction != trace.Reply {
					t.Errorf("case %s %s", c.Symptom, c.Direction)
				}
			}
		})
	}
}

// A filter that rejects the server's answer tells the server in the client's name:
// the exchange goes on, as the client's repetition shows.
func TestRejectedAnswerIsNoEnd(t *testing.T) {
	s := newScene(t, Config{})
	s.syn(taken, 100).tx(client, 0, 2).rx(backend, 2)
	s.send(taken, trace.RST, 101, 0).tx(backend, 0, 1).rx(backend, 1)
	s.synack(taken.Reverse(), 100).drop(backend, 0, "NETFILTER_DROP", "nft_do_chain")
	s.wait(3 * time.Second)
	s.syn(taken, 100).tx(client, 0, 2)
	s.cases(1)
	if p := s.path(); p.Reset || p.Requests != 2 {
		t.Errorf("path: reset %t, %d requests", p.Reset, p.Requests)
	}
}
