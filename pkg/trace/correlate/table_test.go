package correlate

import (
	"slices"
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

var (
	vip     = tcp("198.51.100.7:41822", "203.0.113.80:80")
	ownAddr = tcp("198.51.100.7:41822", "10.2.0.20:8080")
)

// dsrRequest sends a SYN through router, bridge and load balancer to the backend.
func (s *scene) dsrRequest(seq uint32) {
	s.syn(vip, seq).tx(client, 0, 2).rx(router, 2).tx(router, 2, 3).
		otherHost().rx(bridge, 3).tx(bridge, 3, 4)
	s.syn(vip, seq).rx(lb, 2).tx(lb, 2, 2).otherHost().rx(bridge, 4).tx(bridge, 4, 5)
	s.syn(vip, seq).rx(backend, 2)
}

func (s *scene) dsrReply(seq uint32) {
	s.synack(vip.Reverse(), seq).tx(backend, 0, 2).rx(router, 3).tx(router, 3, 2).rx(client, 2)
}

func TestHealthyDSR(t *testing.T) {
	s := newScene(t, Config{})
	s.dsrRequest(1000)
	s.dsrReply(1000)
	s.wait(time.Second)
	s.cases(0)
	p := s.path()
	if !p.Answered || p.Client != vip.Src || p.Server != vip.Dst || p.Requests != 1 {
		t.Errorf("path = %+v", p)
	}
	if got, want := namespaces(p.Request), []trace.Netns{client, router, bridge, lb, bridge, backend}; !slices.Equal(got, want) {
		t.Errorf("request passes %v, want %v", got, want)
	}
	if got, want := namespaces(p.Reply), []trace.Netns{backend, router, client}; !slices.Equal(got, want) {
		t.Errorf("reply passes %v, want %v", got, want)
	}
}

func TestSilence(t *testing.T) {
	s := newScene(t, Config{})
	s.dsrRequest(1000)
	s.wait(150 * time.Millisecond)
	s.cases(0) // it still may answer
	s.wait(100 * time.Millisecond)
	c := s.cases(1)[0]
	if c.Symptom != trace.SymptomSilence || c.Direction != trace.Reply || c.Place.Netns != backend || c.Event.Tuple != vip {
		t.Errorf("case = %s %s in %d about %s", c.Symptom, c.Direction, c.Place.Netns, c.Event.Tuple)
	}
	if c.Arrival.Netns != backend || c.Arrival.Device.Index != 2 {
		t.Errorf("arrival = %+v", c.Arrival)
	}
	s.wait(time.Second)
	s.cases(0) // once for each request
	s.dsrRequest(1000)
	s.wait(250 * time.Millisecond)
	// The load balancer turned the request back to its LAN, so it is looked at too.
	if c := s.cases(2)[1]; c.Symptom != trace.SymptomSilence || c.Path.Requests != 2 || len(c.Path.Request) != 6 {
		t.Errorf("after a retransmission: %d requests over %d hops", c.Path.Requests, len(c.Path.Request))
	}
}

// A request that is on its way somewhere, or was answered by a reset, is not silence.
func TestNoSilence(t *testing.T) {
	tests := map[string]func(*scene){
		"sent on to where nobody looks": func(s *scene) { s.syn(vip, 1).rx(router, 2).tx(router, 2, 3) },
		"flooded to a host that it is not for": func(s *scene) {
			s.syn(vip, 1).tx(client, 0, 2).otherHost().rx(other, 2)
		},
		"answered with a reset": func(s *scene) {
			s.syn(vip, 1).tx(client, 0, 2).rx(backend, 2)
			s.send(vip.Reverse(), trace.RST|trace.ACK, 0, 2).tx(backend, 0, 2).rx(client, 2)
		},
		"redirected into another namespace by a program": func(s *scene) {
			s.syn(vip, 1).rx(router, 2)
			s.synack(vip.Reverse(), 1).tx(backend, 0, 2)
		},
		"moved into another namespace without a device event": func(s *scene) {
			s.syn(vip, 1).rx(router, 2)
			s.syn(vip, 1).rx(backend, 2)
			s.synack(vip.Reverse(), 1).tx(backend, 0, 2)
		},
	}
	for name, play := range tests {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, Config{})
			play(s)
			s.wait(time.Second)
			s.cases(0)
		})
	}
}

func TestNATIsOnePath(t *testing.T) {
	masqueraded := tcp("10.2.0.1:50001", "10.2.0.20:8080")
	for name, inside := range map[string]trace.Tuple{"destination": ownAddr, "both": masqueraded} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, Config{})
			s.syn(vip, 77).tx(client, 0, 2).rx(lb, 2).nat(inside).tx(lb, 2, 3).rx(backend, 2)
			p := s.synack(inside.Reverse(), 77).tx(backend, 0, 2).rx(lb, 3)
			p.ev.Tuple = vip.Reverse()
			p.tx(lb, 3, 2).rx(client, 2)
			s.wait(time.Second)
			s.cases(0)
			got := s.path()
			if got.Client != vip.Src || got.Server != vip.Dst || !got.Answered || len(got.Request) != 3 || len(got.Reply) != 3 {
				t.Errorf("path = %+v", got)
			}
		})
	}
}

// A client whose own namespace rewrites the destination meant the original one.
func TestClientsViewBeforeItsOwnNAT(t *testing.T) {
	s := newScene(t, Config{})
	s.syn(vip, 5).nat(ownAddr).tx(client, 0, 2).rx(backend, 2)
	if p := s.path(); p.Server != vip.Dst {
		t.Errorf("server = %s, want %s", p.Server, vip.Dst)
	}
}

// The same addresses in other namespaces are other paths.
func TestSameTupleElsewhere(t *testing.T) {
	s := newScene(t, Config{})
	s.syn(vip, 1).tx(client, 0, 2).rx(backend, 2)
	s.syn(vip, 2).tx(router, 0, 2).rx(other, 2)
	s.synack(vip.Reverse(), 2).tx(other, 0, 2).rx(router, 2)
	s.wait(time.Second)
	if c := s.cases(1)[0]; c.Place.Netns != backend || len(c.Path.Request) != 2 {
		t.Errorf("case in %d with hops %v", c.Place.Netns, namespaces(c.Path.Request))
	}
}

// A socket is established by a SYN-ACK that no device has shown.
func TestEstablishedIsAnswered(t *testing.T) {
	s := newScene(t, Config{})
	s.syn(vip, 1).tx(client, 0, 2).rx(router, 2)
	s.add(trace.Event{Hook: trace.HookSocketState, Netns: client, NewState: stateEstablished, Tuple: vip})
	s.wait(time.Second)
	s.cases(0)
	if p := s.path(); !p.Answered {
		t.Error("the path is not answered")
	}
}

// Two connections may draw the same sequence number.
func TestSameSequenceNumber(t *testing.T) {
	s := newScene(t, Config{})
	a, b := tcp("10.0.0.1:1111", "10.0.0.9:80"), tcp("10.9.0.1:2222", "10.9.0.9:443")
	s.syn(a, 42).tx(client, 0, 2)
	s.syn(b, 42).tx(other, 0, 2)
	s.synack(b.Reverse(), 42).rx(other, 2)
	s.table.Flush()
	for _, p := range s.table.Done() {
		if want := p.Client == b.Src; p.Answered != want {
			t.Errorf("%s answered = %v, want %v", p.Connection, p.Answered, want)
		}
	}
}

// finish ends the connection of the tests from both sides.
func (s *scene) finish() {
	s.send(vip, trace.FIN|trace.ACK, 2, 1).tx(client, 0, 2).rx(backend, 2)
	s.send(vip.Reverse(), trace.FIN|trace.ACK, 5001, 3).tx(backend, 0, 2)
}

// Some clients always draw the same sequence number, and the same port.
func TestSameSequenceNumberAndPort(t *testing.T) {
	s := newScene(t, Config{})
	s.syn(tcp("10.0.0.1:20", "10.0.0.9:81"), 0).tx(client, 0, 2)
	s.syn(tcp("10.0.0.1:20", "10.0.0.9:90"), 0).tx(client, 0, 2)
	if s.table.Len() != 2 {
		t.Errorf("%d paths, want 2", s.table.Len())
	}
}

func TestPortReuse(t *testing.T) {
	s := newScene(t, Config{})
	s.dsrRequest(1)
	s.dsrReply(1)
	s.finish()
	s.dsrRequest(900)
	s.wait(time.Second)
	if c := s.cases(1)[0]; c.Event.Seq != 900 || c.Path.Answered {
		t.Errorf("case about seq %d, answered %v; want the second connection", c.Event.Seq, c.Path.Answered)
	}
}

func TestRefused(t *testing.T) {
	s := newScene(t, Config{})
	p := s.syn(vip, 9).tx(client, 0, 2).rx(backend, 2)
	ev := p.ev
	ev.Hook, ev.Netns, ev.Reason = trace.HookResetSent, backend, "NO_SOCKET"
	s.add(ev)
	if c := s.cases(1)[0]; c.Symptom != trace.SymptomRefused || c.Direction != trace.Request || c.Place.Netns != backend {
		t.Errorf("case = %s %s in %d", c.Symptom, c.Direction, c.Place.Netns)
	}
	p.drop(backend, 2, "NO_SOCKET", "tcp_v4_rcv")
	s.cases(0) // the same packet
	ev.Reason = "TCP_TIMEWAIT_SOCKET"
	s.add(ev)
	s.wait(time.Second)
	s.cases(0)
}

// Kernels before 6.10 tell of no reset without a socket, those before 5.17 give no drop reason.
func TestRefusedOnOlderKernels(t *testing.T) {
	for name, reason := range map[string]string{"6.1": "NO_SOCKET", "5.10": ""} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, Config{})
			p := s.syn(vip, 9).tx(client, 0, 2).rx(backend, 2)
			s.send(vip.Reverse(), trace.RST|trace.ACK, 0, 10).tx(backend, 0, 2)
			p.drop(backend, 2, reason, "tcp_v4_rcv")
			if c := s.cases(1)[0]; c.Symptom != trace.SymptomRefused {
				t.Errorf("case = %s", c.Symptom)
			}
		})
	}
	s := newScene(t, Config{})
	s.syn(vip, 9).tx(client, 0, 2).rx(backend, 2).drop(backend, 2, "", "tcp_v4_rcv")
	s.cases(0) // a duplicate: no reset left
}

// Where the reset must wait for its next hop's MAC, it leaves after the drop.
func TestRefusedByALateReset(t *testing.T) {
	reset := func(s *scene) packet { return s.send(vip.Reverse(), trace.RST|trace.ACK, 0, 10) }
	tests := map[string]struct {
		play func(*scene)
		want int
	}{
		"late": {func(s *scene) { s.wait(time.Second); reset(s).tx(backend, 0, 2).rx(client, 2) }, 1},
		"late, by a device of a namespace below": {func(s *scene) {
			reset(s).tx(backend, 0, 2).tx(router, 0, 3).rx(client, 2)
		}, 1},
		"of somebody else":    {func(s *scene) { reset(s).tx(router, 0, 2) }, 0},
		"only passing":        {func(s *scene) { reset(s).tx(backend, 3, 2) }, 0},
		"of another exchange": {func(s *scene) { s.send(vip.Reverse(), trace.RST, 4711, 4712).tx(backend, 0, 2) }, 0},
		"of a socket that answered": {func(s *scene) {
			s.synack(vip.Reverse(), 9).tx(backend, 0, 2)
			reset(s).tx(backend, 0, 2)
		}, 0},
		"much too late": {func(s *scene) { s.wait(10 * time.Second); reset(s).tx(backend, 0, 2) }, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, Config{Silence: time.Hour})
			s.syn(vip, 9).tx(client, 0, 2).rx(backend, 2).drop(backend, 2, "", "tcp_v6_rcv")
			s.cases(0)
			tt.play(s)
			for _, c := range s.cases(tt.want) {
				if c.Symptom != trace.SymptomRefused || c.Place.Netns != backend || c.Event.Symbol != "tcp_v6_rcv" {
					t.Errorf("case = %s in %d", c.Symptom, c.Place.Netns)
				}
			}
		})
	}
}

// A macvlan's or ipvlan's packets leave also by the device below, in another namespace.
func TestResetThroughTheDeviceBelow(t *testing.T) {
	s := newScene(t, Config{})
	p := s.syn(vip, 9).tx(client, 0, 2).rx(router, 2)
	s.send(vip.Reverse(), trace.RST|trace.ACK, 0, 10).tx(backend, 0, 2).tx(router, 0, 2)
	p.drop(backend, 3, "", "tcp_v4_rcv")
	if c := s.cases(1)[0]; c.Symptom != trace.SymptomRefused || c.Place.Netns != backend {
		t.Errorf("case = %s in %d", c.Symptom, c.Place.Netns)
	}
}

func TestDrops(t *testing.T) {
	data := func(s *scene) packet { return s.send(vip, trace.ACK|trace.PSH, 2, 3) }
	tests := map[string]struct {
		play func(*scene)
		want int
		dir  trace.Direction
	}{
		"SYN": {func(s *scene) {
			s.syn(vip, 1).tx(client, 0, 2).rx(router, 2).drop(router, 2, "NETFILTER_DROP", "nft_do_chain")
		}, 1, trace.Request},
		"SYN where it is made": {func(s *scene) { s.syn(vip, 1).drop(client, 0, "NETFILTER_DROP", "nft_do_chain") }, 1, trace.Request},
		"SYN-ACK": {func(s *scene) {
			s.dsrRequest(1)
			s.synack(vip.Reverse(), 1).tx(backend, 0, 2).rx(router, 3).drop(router, 3, "IP_RPFILTER", "ip_rcv_finish_core")
		}, 1, trace.Reply},
		"SYN-ACK whose SYN was not seen": {func(s *scene) { s.synack(vip.Reverse(), 1).rx(router, 3).drop(router, 3, "IP_RPFILTER", "x") }, 1, trace.Reply},
		"TCP's own housekeeping":         {func(s *scene) { s.syn(vip, 1).rx(backend, 2).drop(backend, 2, "NOT_SPECIFIED", "tcp_v4_rcv") }, 0, 0},
		"nobody's socket":                {func(s *scene) { s.synack(vip.Reverse(), 1).rx(client, 2).drop(client, 2, "NO_SOCKET", "tcp_v4_rcv") }, 0, 0},
		"a flooded copy":                 {func(s *scene) { s.syn(vip, 1).otherHost().rx(other, 2).drop(other, 2, "NOT_SPECIFIED", "ip_rcv_core") }, 0, 0},
		"two packets of a connection": {func(s *scene) {
			s.dsrRequest(1)
			s.dsrReply(1)
			data(s).drop(router, 2, "NETFILTER_DROP", "x")
			data(s).drop(router, 2, "NETFILTER_DROP", "x")
		}, 0, 0},
		"three packets of a connection": {func(s *scene) {
			s.dsrRequest(1)
			s.dsrReply(1)
			for range 3 {
				data(s).drop(router, 2, "NETFILTER_DROP", "x")
			}
		}, 1, trace.Request},
		"three packets of a connection older than we are": {func(s *scene) {
			for range 3 {
				s.send(vip.Reverse(), trace.ACK, 7, 8).drop(router, 3, "NETFILTER_DROP", "x")
			}
		}, 1, trace.Reply},
		"the rest of a closed connection": {func(s *scene) {
			s.dsrRequest(1)
			s.dsrReply(1)
			s.finish()
			for range 5 {
				data(s).drop(router, 2, "NETFILTER_DROP", "x")
			}
		}, 0, 0},
		"an answer that is sent and closed at once, and dropped": {func(s *scene) {
			s.dsrRequest(1)
			s.dsrReply(1)
			for range 3 {
				s.send(vip.Reverse(), trace.FIN|trace.PSH|trace.ACK, 5001, 3).tx(backend, 0, 2).drop(router, 3, "NETFILTER_DROP", "x")
			}
		}, 1, trace.Reply},
		"a socket that finds no route": {func(s *scene) {
			s.dsrRequest(1)
			s.dsrReply(1)
			s.add(trace.Event{Hook: trace.HookDrop, Netns: backend, Tuple: vip.Reverse(), Unbuilt: true, Reason: "IP_OUTNOROUTES", Symbol: "__ip_queue_xmit"})
		}, 1, trace.Reply},
		"on a bridge": {func(s *scene) {
			s.syn(vip, 1).otherHost().rx(bridge, 3).drop(bridge, 3, "NETFILTER_DROP", "nft_do_chain")
		}, 1, trace.Request},
		"on a bridge, no reason given": {func(s *scene) {
			s.syn(vip, 1).otherHost().rx(bridge, 3).drop(bridge, 3, "", "nf_hook_slow")
		}, 1, trace.Request},
		"early in a bridge, no reason given": {func(s *scene) {
			s.syn(vip, 1).otherHost().rx(bridge, 3).drop(bridge, 3, "NOT_SPECIFIED", "br_handle_frame")
		}, 1, trace.Request},
		"a flooded copy, no reason given": {func(s *scene) { s.syn(vip, 1).otherHost().rx(other, 2).drop(other, 2, "", "ip_rcv_core") }, 0, 0},
		"to a group":                      {func(s *scene) { s.syn(tcp("198.51.100.7:1", "224.0.0.1:80"), 1).drop(client, 0, "NETFILTER_DROP", "x") }, 0, 0},
		"a connection older than we are, as conntrack knows it": {func(s *scene) {
			for range 3 {
				p := s.send(tcp("10.0.0.9:55555", "10.0.0.1:20001"), trace.ACK, 7, 8)
				p.ev.Conntrack = trace.Conntrack{Original: tcp("10.0.0.1:20001", "10.0.0.9:55555"), Reply: p.ev.Tuple, Info: 3}
				p.drop(router, 3, "NETFILTER_DROP", "x")
			}
		}, 1, trace.Reply},
		"the request inside an ICMP error": {func(s *scene) {
			p := s.syn(vip, 1).tx(client, 0, 2).rx(router, 2).tx(router, 2, 3)
			p.ev.Inner, p.ev.ICMPType, p.ev.ICMPCode = true, 3, 1
			p.drop(client, 2, "NETFILTER_DROP", "x")
		}, 0, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, Config{})
			tt.play(s)
			for _, c := range s.cases(tt.want) {
				if c.Symptom != trace.SymptomDrop || c.Direction != tt.dir {
					t.Errorf("case = %s %s, want drop %s", c.Symptom, c.Direction, tt.dir)
				}
			}
		})
	}
}

// A bridge that drops is a hop, though the packet was for another MAC.
func TestBridgeThatDropsIsAHop(t *testing.T) {
	s := newScene(t, Config{})
	s.syn(vip, 1).tx(client, 0, 2).otherHost().rx(bridge, 3).drop(bridge, 3, "NETFILTER_DROP", "nft_do_chain")
	if got, want := namespaces(s.cases(1)[0].Path.Request), []trace.Netns{client, bridge}; !slices.Equal(got, want) {
		t.Errorf("request passes %v, want %v", got, want)
	}
}

func TestRejectionBelongsToTheDrop(t *testing.T) {
	s := newScene(t, Config{})
	p := s.syn(vip, 1).tx(client, 0, 2).rx(router, 2)
	icmp := p.ev
	icmp.Hook, icmp.Netns, icmp.ICMPType, icmp.ICMPCode = trace.HookICMPSent, router, 3, 13
	s.add(icmp)
	p.drop(router, 2, "NETFILTER_DROP", "nft_do_chain")
	if c := s.cases(1)[0]; !c.Rejected {
		t.Error("the drop does not know of the ICMP error that was sent for it")
	}
	s.wait(time.Second)
	s.syn(vip, 1).rx(router, 2).drop(router, 2, "NETFILTER_DROP", "nft_do_chain")
	if c := s.cases(1)[0]; c.Rejected {
		t.Error("a drop a second later is called rejected")
	}
}

// Where the hook icmp_send is not there, an IPv4 error is seen as it leaves.
func TestRejectionSeenAsPacket(t *testing.T) {
	play := func(hooked bool) (cases []trace.Case) {
		s := newScene(t, Config{})
		p := s.syn(vip, 1).tx(client, 0, 2).rx(router, 2)
		icmp := p.ev
		icmp.ICMPType, icmp.ICMPCode = 11, 0
		if hooked {
			icmp.Hook, icmp.Netns = trace.HookICMPSent, router
			s.add(icmp)
		}
		icmp.Inner, icmp.SKB = true, 0xffff888000990000
		packet{s, icmp}.tx(router, 0, 2).tx(client, 0, 2)
		p.drop(router, 2, "", "nf_hook_slow")
		return s.cases(2)
	}
	for _, hooked := range []bool{false, true} {
		cases := play(hooked)
		if cases[0].Symptom != trace.SymptomLoop || cases[1].Symptom != trace.SymptomDrop || !cases[1].Rejected {
			t.Errorf("hooked %t: cases = %s, %s (rejected %t)", hooked, cases[0].Symptom, cases[1].Symptom, cases[1].Rejected)
		}
	}
}

func TestRouteMissBelongsToTheSilence(t *testing.T) {
	s := newScene(t, Config{})
	p := s.syn(vip, 1).tx(client, 0, 2).rx(backend, 2)
	miss := p.ev
	miss.Hook, miss.Netns, miss.Tuple, miss.Table = trace.HookRouteMiss4, backend, vip.Reverse(), 254
	s.add(miss)
	s.wait(time.Second)
	if c := s.cases(1)[0]; c.Miss.Table != 254 || c.Miss.Tuple != vip.Reverse() {
		t.Errorf("miss = %+v", c.Miss)
	}
}

func TestLoop(t *testing.T) {
	s := newScene(t, Config{})
	p := s.syn(vip, 1).tx(client, 0, 2).rx(router, 2).tx(router, 2, 3).rx(backend, 2).tx(backend, 2, 2).rx(router, 3)
	icmp := p.ev
	icmp.Hook, icmp.Netns, icmp.ICMPType = trace.HookICMPSent, router, 11
	s.add(icmp)
	c := s.cases(1)[0]
	if c.Symptom != trace.SymptomLoop || c.Direction != trace.Request {
		t.Errorf("case = %s %s", c.Symptom, c.Direction)
	}
	if got, want := namespaces(c.Path.Request), []trace.Netns{client, router, backend, router}; !slices.Equal(got, want) {
		t.Errorf("request passes %v, want %v", got, want)
	}
}

// A host that sends a request back where it came from is worth a look once nobody answers.
func TestStray(t *testing.T) {
	send := func(s *scene) {
		s.syn(vip, 1).tx(client, 0, 2).rx(backend, 2).tx(backend, 2, 2).rx(router, 2).tx(router, 2, 3)
	}
	s := newScene(t, Config{})
	send(s)
	s.wait(time.Second)
	s.cases(0)
	send(s)
	if c := s.cases(1)[0]; c.Symptom != trace.SymptomStray || c.Direction != trace.Request {
		t.Errorf("case = %s %s", c.Symptom, c.Direction)
	}
	answered := newScene(t, Config{})
	send(answered)
	answered.synack(vip.Reverse(), 1).tx(other, 0, 2).rx(client, 2)
	send(answered)
	answered.cases(0)
}

func TestProcess(t *testing.T) {
	curl := trace.Process{PID: 100, PGID: 90, Comm: "curl"}
	connectTo := func(s *scene, p trace.Process) {
		s.add(trace.Event{Hook: trace.HookSocketState, Netns: client, NewState: stateSYNSent, Process: p, Tuple: tcp("198.51.100.7:0", "203.0.113.80:80")})
	}
	tests := map[string]struct {
		play func(*scene)
		want trace.Process
	}{
		"its own": {func(s *scene) {
			connectTo(s, curl)
			p := s.syn(vip, 1)
			p.ev.Process = curl
			p.tx(client, 0, 2)
		}, curl},
		"a SYN that waited for a neighbour leaves under another task": {func(s *scene) {
			connectTo(s, curl)
			p := s.syn(vip, 1)
			p.ev.Process = trace.Process{PID: 7, Comm: "bystander"}
			p.tx(client, 0, 2)
		}, curl},
		"two at once": {func(s *scene) {
			connectTo(s, curl)
			connectTo(s, trace.Process{PID: 101, Comm: "wget"})
			s.syn(vip, 1).tx(client, 0, 2)
		}, trace.Process{}},
		"nobody connected": {func(s *scene) {
			p := s.syn(vip, 1)
			p.ev.Process = trace.Process{PID: 7, Comm: "bystander"}
			p.tx(client, 0, 2)
		}, trace.Process{}},
		"long ago": {func(s *scene) {
			connectTo(s, curl)
			s.wait(time.Minute)
			s.syn(vip, 1).tx(client, 0, 2)
		}, trace.Process{}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, Config{})
			tt.play(s)
			if p := s.path(); p.Process != tt.want {
				t.Errorf("process = %+v, want %+v", p.Process, tt.want)
			}
		})
	}
}

func TestBounds(t *testing.T) {
	const limit = 100
	s := newScene(t, Config{MaxPaths: limit})
	for seq := range uint32(1000) {
		tuple := tcp("198.51.100.7:1", "203.0.113.80:80")
		s.syn(tuple, seq).tx(client, 0, 2).rx(backend, 2)
	}
	if s.table.Len() != limit || s.table.Evicted() != 900 {
		t.Errorf("%d paths live, %d evicted; want %d and 900", s.table.Len(), s.table.Evicted(), limit)
	}
	if n := len(s.table.bySeq); n != limit {
		t.Errorf("%d sequence numbers kept, want %d", n, limit)
	}
	if n := len(s.table.tuples); n > limit*maxHops {
		t.Errorf("%d tuples kept", n)
	}
	s.wait(5 * time.Minute)
	if s.table.Len() != 0 || len(s.table.bySeq) != 0 || len(s.table.tuples) != 0 {
		t.Errorf("after all ended: %d paths, %d sequence numbers, %d tuples", s.table.Len(), len(s.table.bySeq), len(s.table.tuples))
	}
}

// A packet that circles does not make its path grow for ever.
func TestHopsAreBounded(t *testing.T) {
	s := newScene(t, Config{})
	p := s.syn(vip, 1)
	for i := range uint32(500) {
		p.rx(trace.Netns(i+1), 2).tx(trace.Netns(i+1), 2, 3)
	}
	if p := s.path(); len(p.Request) != maxHops {
		t.Errorf("%d hops, want %d", len(p.Request), maxHops)
	}
}

func FuzzTable(f *testing.F) {
	f.Add([]byte{2, 1, 2, 1, 3, 2, 2, 1})
	f.Fuzz(func(t *testing.T, script []byte) {
		s := newScene(t, Config{MaxPaths: 8})
		tuples := []trace.Tuple{vip, vip.Reverse(), ownAddr, ownAddr.Reverse(), {}}
		for len(script) >= 6 {
			b := script[:6]
			script = script[6:]
			ev := trace.Event{
				Hook: trace.Hook(b[0]) % trace.HookCount, Netns: trace.Netns(b[1] % 4), Device: trace.Device{Index: uint32(b[1] >> 4)},
				Tuple: tuples[int(b[2])%len(tuples)], Flags: trace.TCPFlags(b[3]), Seq: uint32(b[4] % 4), Ack: uint32(b[4]>>4) % 4,
				InIndex: uint32(b[5] & 3), NewState: b[5] >> 6, Inner: b[5]&4 != 0, OtherHost: b[5]&8 != 0, ICMPType: b[5] >> 4,
			}
			ev.SKB = uint64(b[5]) + 1
			s.add(ev)
			s.wait(time.Duration(b[4]) * time.Millisecond)
			s.table.Cases()
			s.table.Done()
		}
		if s.table.Len() > 8 {
			t.Errorf("%d live paths", s.table.Len())
		}
		s.wait(time.Hour)
		if s.table.Len() != 0 || len(s.table.bySeq) != 0 || len(s.table.tuples) != 0 {
			t.Errorf("%d paths, %d sequence numbers, %d tuples are left", s.table.Len(), len(s.table.bySeq), len(s.table.tuples))
		}
	})
}
