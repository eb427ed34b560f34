package correlate

import (
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// icmp is an ICMP error about the packet.
func (p packet) icmp(hook trace.Hook, ns trace.Netns, kind, code uint8) packet {
	ev := p.ev
	ev.Hook, ev.Netns, ev.Inner, ev.ICMPType, ev.ICMPCode = hook, ns, true, kind, code
	if hook == trace.HookDrop {
		ev.Reason = "NETFILTER_DROP"
	}
	p.add(ev)
	return p
}

func TestTooBig(t *testing.T) {
	data := func(s *scene) packet { return s.send(vip, trace.ACK|trace.PSH, 2, 5001) }
	tell := func(s *scene) { data(s).icmp(trace.HookICMPSent, router, 3, 4) }
	tests := map[string]struct {
		play func(*scene)
		want int
	}{
		"told once": {tell, 0},
		"told about each of the packets under way": {func(s *scene) { tell(s); tell(s); tell(s) }, 0},
		"told again and again":                     {func(s *scene) { tell(s); s.wait(time.Second); tell(s) }, 1},
		"told again much later":                    {func(s *scene) { tell(s); s.wait(40 * time.Second); s.dsrReply(1); tell(s) }, 0},
		"the message is dropped": {func(s *scene) {
			tell(s)
			data(s).icmp(trace.HookDrop, client, 3, 4)
		}, 1},
		"another message is dropped": {func(s *scene) { data(s).icmp(trace.HookDrop, client, 3, 1) }, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, Config{})
			s.dsrRequest(1)
			s.dsrReply(1)
			tt.play(s)
			for _, c := range s.cases(tt.want) {
				if c.Symptom != trace.SymptomTooBig || c.Direction != trace.Request {
					t.Errorf("case = %s %s", c.Symptom, c.Direction)
				}
			}
		})
	}
}

// A fragment that is dropped belongs to the datagram whose first fragment was seen.
func TestFragmentDrop(t *testing.T) {
	first := func(s *scene) packet {
		p := s.datagram(ask)
		p.ev.MoreFragments, p.ev.ID = true, 77
		return p.tx(client, 0, 2).rx(router, 2)
	}
	later := func(s *scene, id uint16) packet {
		p := s.datagram(udp("198.51.100.7:0", "203.0.113.80:0"))
		p.ev.Fragment, p.ev.ID = true, id
		return p
	}
	tests := map[string]struct {
		play func(*scene)
		want int
	}{
		"of this datagram":                          {func(s *scene) { first(s); later(s, 77).drop(router, 2, "NETFILTER_DROP", "x") }, 1},
		"of the next, whose first one was not told": {func(s *scene) { first(s); later(s, 78).drop(router, 2, "NETFILTER_DROP", "x") }, 1},
		"of one long ago":                           {func(s *scene) { first(s); s.wait(2 * fragmentAge); later(s, 77).drop(router, 2, "NETFILTER_DROP", "x") }, 0},
		"of nobody we know":                         {func(s *scene) { later(s, 77).drop(router, 2, "NETFILTER_DROP", "x") }, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, Config{})
			tt.play(s)
			for _, c := range s.cases(tt.want) {
				if !c.Event.Fragment || c.Event.Tuple != ask || c.Direction != trace.Request {
					t.Errorf("case about %s, %s", c.Event.Tuple, c.Direction)
				}
			}
		})
	}
}
