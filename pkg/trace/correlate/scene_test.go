package correlate

import (
	"net/netip"
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// Namespaces of the tests.
const (
	client trace.Netns = 1 + iota
	router
	lb
	backend
	bridge
	other
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// scene plays events into a table, one microsecond apart.
type scene struct {
	t     *testing.T
	table *Table
	now   time.Time
	skb   uint64
}

func newScene(t *testing.T, cfg Config) *scene {
	return &scene{t: t, table: New(cfg), now: start, skb: 0xffff888000000100}
}

func tcp(src, dst string) trace.Tuple {
	return trace.Tuple{Protocol: trace.TCP, Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst)}
}

func (s *scene) add(ev trace.Event) {
	s.now = s.now.Add(time.Microsecond)
	ev.Time = s.now
	if ev.SKB == 0 {
		ev.SKB = s.skb
	}
	s.table.Add(&ev)
}

// packet is one that a test sends along; each send is another skb.
type packet struct {
	*scene
	ev trace.Event
}

func (s *scene) send(t trace.Tuple, flags trace.TCPFlags, seq, ack uint32) packet {
	s.skb += 0x100
	return packet{s, trace.Event{Tuple: t, Flags: flags, Seq: seq, Ack: ack, SKB: s.skb}}
}

func (s *scene) syn(t trace.Tuple, seq uint32) packet { return s.send(t, trace.SYN, seq, 0) }

func (s *scene) synack(t trace.Tuple, seq uint32) packet {
	return s.send(t, trace.SYN|trace.ACK, seq+5000, seq+1)
}

func (p packet) rx(ns trace.Netns, dev uint32) packet {
	ev := p.ev
	ev.Hook, ev.Netns, ev.Device = trace.HookReceive, ns, trace.Device{Index: dev, Name: "in"}
	p.add(ev)
	return p
}

func (p packet) tx(ns trace.Netns, in, dev uint32) packet {
	ev := p.ev
	ev.Hook, ev.Netns, ev.InIndex, ev.Device = trace.HookTransmit, ns, in, trace.Device{Index: dev, Name: "out"}
	p.add(ev)
	return p
}

// nat changes the packet's tuple, and lets it carry the entry that did.
func (p packet) nat(t trace.Tuple) packet {
	p.ev.Conntrack = trace.Conntrack{Original: p.ev.Tuple, Reply: t.Reverse(), Info: 2}
	p.ev.Tuple = t
	return p
}

func (p packet) otherHost() packet {
	p.ev.OtherHost = true
	return p
}

func (p packet) drop(ns trace.Netns, in uint32, reason, symbol string) packet {
	ev := p.ev
	ev.Hook, ev.Netns, ev.InIndex, ev.Reason, ev.Symbol = trace.HookDrop, ns, in, reason, symbol
	ev.Device = trace.Device{Index: in, Name: "in"}
	p.add(ev)
	return p
}

// verdict is what a function of netfilter says of the packet.
func (p packet) verdict(ns trace.Netns, v trace.Verdict) packet {
	p.add(trace.Event{Hook: trace.HookVerdict, Netns: ns, SKB: p.ev.SKB, Verdict: v})
	return p
}

func (s *scene) wait(d time.Duration) {
	s.now = s.now.Add(d)
	s.table.Advance(s.now)
}

// cases takes the open cases and checks how many there are.
func (s *scene) cases(want int) []trace.Case {
	s.t.Helper()
	s.table.releaseRefusals(s.now)
	cases := append(s.table.Cases(), s.table.verdicts.flush()...)
	if len(cases) != want {
		for _, c := range cases {
			s.t.Logf("case: %s %s in %d, %s", c.Symptom, c.Direction, c.Place.Netns, c.Event.Tuple)
		}
		s.t.Fatalf("%d cases, want %d", len(cases), want)
	}
	return cases
}

// path takes the paths that are done, and wants one.
func (s *scene) path() trace.Path {
	s.t.Helper()
	s.table.Flush()
	done := s.table.Done()
	if len(done) != 1 {
		s.t.Fatalf("%d paths are done, want 1", len(done))
	}
	return done[0]
}

func namespaces(hops []trace.Hop) []trace.Netns {
	var out []trace.Netns
	for _, h := range hops {
		out = append(out, h.Place.Netns)
	}
	return out
}
