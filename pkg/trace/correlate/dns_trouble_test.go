package correlate

import (
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/replypath/replypath/pkg/trace"
)

// cases lets time pass and returns the cases that were opened.
func (r *dnsRun) cases(at float64) []trace.Case {
	r.until(at)
	return r.table.Cases()
}

// asks are the packets of a query to a server that is not seen, and of its response.
func asks(at float64, id uint16, client, server, name string, rcode int) (query, reply dnsPacket) {
	query = dnsPacket{at: at, hook: tx, ns: clientNS, device: 2, src: client, dst: server, id: id, name: name, pid: 7}
	reply = query
	reply.hook, reply.src, reply.dst, reply.reply, reply.rcode, reply.at = rx, server, client, true, rcode, at+1
	return query, reply
}

func TestTroubles(t *testing.T) {
	const one, two = "10.0.0.53:53", "10.0.0.54:53"
	later := func(p dnsPacket, at float64) dnsPacket { p.at = at; return p }
	tests := map[string]struct {
		see  func(r *dnsRun)
		want []trace.Symptom
		dead bool
	}{
		"answered": {func(r *dnsRun) { q, a := asks(0, 1, "10.0.0.7:1000", one, "www.test. 4", 0); r.see(q, a) }, nil, false},
		"no such name": {func(r *dnsRun) {
			q, a := asks(0, 1, "10.0.0.7:1000", one, "www.test. 4", dns.RcodeNameError)
			r.see(q, a)
		}, nil, false},
		"an error": {func(r *dnsRun) {
			q, a := asks(0, 1, "10.0.0.7:1000", one, "www.test. 4", dns.RcodeRefused)
			r.see(q, a)
		}, []trace.Symptom{trace.SymptomErrorResponse}, false},
		"unanswered": {func(r *dnsRun) { q, _ := asks(0, 1, "10.0.0.7:1000", one, "www.test. 4", 0); r.see(q) }, []trace.Symptom{trace.SymptomUnanswered}, true},
		"answered too late": {func(r *dnsRun) {
			q, a := asks(0, 1, "10.0.0.7:1000", one, "www.test. 4", 0)
			r.see(q, later(a, 5500))
			r.drop(5500)
		}, []trace.Symptom{trace.SymptomLate}, false},
		"answered after the deadline to a client that waits": {func(r *dnsRun) { q, a := asks(0, 1, "10.0.0.7:1000", one, "www.test. 4", 0); r.see(q, later(a, 5500)) }, nil, false},
		"slow, and sent again as it is": {func(r *dnsRun) {
			q, a := asks(0, 1, "10.0.0.7:1000", one, "www.test. 4", 0)
			r.see(q, later(q, 5003), later(a, 5500))
		}, []trace.Symptom{trace.SymptomLate}, false},
		"slow, and sent again sooner": {func(r *dnsRun) {
			q, a := asks(0, 1, "10.0.0.7:1000", one, "www.test. 4", 0)
			r.see(q, later(q, 2500), later(a, 3000))
		}, []trace.Symptom{trace.SymptomLate}, false},
		"lost, and sent again as it is": {func(r *dnsRun) {
			q, a := asks(0, 1, "10.0.0.7:1000", one, "www.test. 4", 0)
			r.see(q, later(q, 5003), later(a, 5020))
		}, nil, false},
		"lost, and sent again as it is, in vain": {func(r *dnsRun) {
			q, _ := asks(0, 1, "10.0.0.7:1000", one, "www.test. 4", 0)
			r.see(q, later(q, 5003))
		}, []trace.Symptom{trace.SymptomUnanswered}, true},
		"lost, and asked again": {func(r *dnsRun) {
			q, _ := asks(0, 1, "10.0.0.7:1000", one, "www.test. 4", 0)
			again, a := asks(1000, 2, "10.0.0.7:1001", one, "www.test. 4", 0)
			r.see(q, again, a)
		}, nil, false},
		"a dead first server": {func(r *dnsRun) {
			q, _ := asks(0, 1, "10.0.0.7:1000", one, "www.test. 4", 0)
			again, a := asks(1000, 2, "10.0.0.7:1001", two, "www.test. 4", 0)
			r.see(q, again, a)
		}, []trace.Symptom{trace.SymptomUnanswered}, true},
		"two asked side by side, one slow": {func(r *dnsRun) {
			q, a := asks(0, 1, "10.0.0.7:1000", one, "www.test. 4", 0)
			p, b := asks(0.1, 1, "10.0.0.7:1000", two, "www.test. 4", 0)
			r.see(q, p, a, later(b, 700))
			r.drop(700)
		}, nil, false},
		"two asked side by side, by different devices": {func(r *dnsRun) {
			q, a := asks(0, 1, "10.0.7.1:1000", one, "www.test. 4", 0)
			p, b := asks(0.1, 1, "10.0.8.1:1001", two, "www.test. 4", 0)
			r.see(p, q, b, later(a, 700))
			r.table.Add(&trace.Event{Time: ms(700.01), Hook: trace.HookDrop, Netns: clientNS, SKB: r.skb, InIndex: 2, Reason: "NO_SOCKET", Tuple: udpTuple(one, "10.0.7.1:1000")})
		}, nil, false},
		"a slow one, asked when another had answered": {func(r *dnsRun) {
			q, a := asks(0, 1, "10.0.7.1:1000", one, "www.test. 4", 0)
			p, b := asks(0, 1, "10.0.8.1:1001", two, "www.test. 4", 0)
			b.at = 0.1
			r.see(p, b, later(q, 0.2), later(a, 700))
			r.table.Add(&trace.Event{Time: ms(700.01), Hook: trace.HookDrop, Netns: clientNS, SKB: r.skb, InIndex: 2, Reason: "NO_SOCKET", Tuple: udpTuple(one, "10.0.7.1:1000")})
		}, nil, false},
		"slow for a process of another address": {func(r *dnsRun) {
			q, a := asks(0, 1, "10.0.7.1:1000", one, "www.test. 4", 0)
			p, b := asks(0.1, 1, "10.0.8.1:1001", two, "www.test. 4", 0)
			p.pid, b.pid = 8, 8
			r.see(p, q, b, later(a, 700))
			r.table.Add(&trace.Event{Time: ms(700.01), Hook: trace.HookDrop, Netns: clientNS, SKB: r.skb, InIndex: 2, Reason: "NO_SOCKET", Tuple: udpTuple(one, "10.0.7.1:1000")})
		}, []trace.Symptom{trace.SymptomLate}, false},
		"asked again in simpler words": {func(r *dnsRun) {
			q, a := asks(0, 1, "10.0.0.7:1000", one, "www.test. 4", dns.RcodeFormatError)
			p, b := asks(5, 2, "10.0.0.7:1001", one, "www.test. 4", 0)
			r.see(q, a, p, b)
		}, nil, false},
		"an error, and the second server answers": {func(r *dnsRun) {
			q, a := asks(0, 1, "10.0.0.7:1000", one, "www.test. 4", dns.RcodeServerFailure)
			p, b := asks(2, 1, "10.0.0.7:1000", two, "www.test. 4", 0)
			r.see(q, a, p, b)
		}, nil, false},
		"a query that only passes here": {func(r *dnsRun) {
			q, _ := asks(0, 1, "10.0.0.7:1000", one, "www.test. 4", 0)
			in := q
			in.hook, in.in, in.device = rx, 3, 3
			q.in, q.again, q.at = 3, true, 0.1
			r.see(in, q)
		}, nil, false},
		"a response that no hook shows at the client": {func(r *dnsRun) {
			q, a := asks(0, 1, "10.0.0.7:1000", one, "www.test. 4", 0)
			a.ns, a.device = nodeNS, 4
			r.see(q, a)
		}, nil, false},
		"a client that went away": {func(r *dnsRun) {
			q, _ := asks(0, 1, "10.0.0.7:1000", one, "www.test. 4", 0)
			r.see(q)
			r.gone[7] = true
			r.until(300)
		}, nil, false},
		"a response to a client that had gone away": {func(r *dnsRun) {
			q, a := asks(0, 1, "10.0.0.7:1000", one, "www.test. 4", 0)
			r.see(q)
			r.gone[7] = true
			r.until(600)
			r.see(later(a, 1000))
			r.drop(1000)
		}, nil, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newDNSRun(t)
			tt.see(r)
			cases := r.cases(12000)
			if len(cases) != len(tt.want) {
				t.Fatalf("%d cases, want %d: %+v", len(cases), len(tt.want), cases)
			}
			for i, c := range cases {
				if c.Symptom != tt.want[i] || c.Trouble.Dead != tt.dead || c.DNS != "A www.test" || c.Path.Server.Addr() != netip.MustParseAddr("10.0.0.53") {
					t.Errorf("%v, dead %v, %q to %v", c.Symptom, c.Trouble.Dead, c.DNS, c.Path.Server)
				}
			}
		})
	}
}

// drop drops the packet seen last: no socket took it.
func (r *dnsRun) drop(at float64) {
	r.table.Add(&trace.Event{Time: ms(at + 0.01), Hook: trace.HookDrop, Netns: clientNS, SKB: r.skb, InIndex: 2, Reason: "NO_SOCKET", Tuple: udpTuple("10.0.0.53:53", "10.0.0.7:1000")})
	if x := r.table.lingering.last; x != nil && !x.Gone { // another server's
		r.table.Add(&trace.Event{Time: ms(at + 0.01), Hook: trace.HookDrop, Netns: clientNS, SKB: r.skb, InIndex: 2, Reason: "NO_SOCKET", Tuple: udpTuple("10.0.0.54:53", "10.0.0.7:1000")})
	}
}

// A resolver is not blamed for the one that it asks.
func TestUpstreamTrouble(t *testing.T) {
	r := newDNSRun(t)
	query, reply := direct(0, 1, "10.0.0.7:40000", "www.test. 4")
	up := dnsPacket{at: 0.15, hook: tx, ns: resolverNS, device: 3, src: "10.0.0.53:5000", dst: "192.0.2.53:53", id: 9, name: "www.test. 4", pid: 8}
	r.see(query...)
	r.see(up)
	for i := range reply {
		reply[i].at += 2000
		reply[i].rcode = dns.RcodeServerFailure
	}
	r.see(reply...)
	cases := r.cases(15000)
	if len(cases) != 1 {
		t.Fatalf("%d cases: %+v", len(cases), cases)
	}
	c := cases[0]
	if c.Symptom != trace.SymptomUnanswered || c.Trouble.Upstream == nil || c.Place.Netns != resolverNS || c.Direction != trace.Request || c.Path.Client.Addr() != netip.MustParseAddr("10.0.0.7") {
		t.Errorf("%v at %v, %v of %v", c.Symptom, c.Place, c.Direction, c.Path)
	}
	if len(c.Trouble.Related) != 2 || c.Trouble.Related[1].Dst.String() != "192.0.2.53:53" {
		t.Errorf("related: %v", c.Trouble.Related)
	}
}

// A resolver that is asked again waits on for the query that it has made, or sends that again.
func TestUpstreamTroubleAskedAgain(t *testing.T) {
	r := newDNSRun(t)
	query, _ := direct(0, 1, "10.0.0.7:40000", "www.test. 4")
	up := dnsPacket{at: 0.15, hook: tx, ns: resolverNS, device: 3, src: "10.0.0.53:5000", dst: "192.0.2.53:53", id: 9, name: "www.test. 4", pid: 8}
	again, _ := direct(3000, 2, "10.0.0.7:40001", "www.test. 4")
	r.see(query...)
	r.see(up)
	r.see(again...)
	cases := r.cases(20000)
	for _, c := range cases {
		if c.Trouble.Upstream == nil || c.Place.Netns != resolverNS || c.Direction != trace.Request {
			t.Errorf("%v at %v, %v of %v", c.Symptom, c.Place, c.Direction, c.Path)
		}
	}
	if len(cases) != 2 {
		t.Errorf("%d cases", len(cases))
	}
}

func TestAmplification(t *testing.T) {
	search := func(r *dnsRun, names ...string) {
		for i, name := range names {
			q, a := asks(float64(10*i), uint16(i), "10.0.0.7:1000", "10.0.0.53:53", name+" 4", dns.RcodeNameError)
			r.see(q)
			if i == len(names)-1 {
				m := new(dns.Msg).SetQuestion(name, dns.TypeA)
				m.Id, m.Response = uint16(i), true
				rr, _ := dns.NewRR(name + " 60 IN A 240.0.0.3")
				m.Answer = []dns.RR{rr}
				b, _ := m.Pack()
				r.table.Add(&trace.Event{Time: ms(a.at), Hook: rx, Netns: clientNS, Device: trace.Device{Index: 2}, Tuple: udpTuple(a.src, a.dst), SKB: 77, InIndex: 2, Payload: b, PayloadLength: uint32(len(b))})
				break
			}
			r.see(a)
			r.until(float64(10*i) + 5)
		}
	}
	r := newDNSRun(t)
	search(r, "www.x.test.a.", "www.x.test.b.", "www.x.test.c.", "www.x.test.")
	cases := r.cases(1000)
	if len(cases) != 1 || cases[0].Symptom != trace.SymptomAmplified || len(cases[0].Trouble.Steps) != 3 || cases[0].Trouble.Queries != 4 {
		t.Errorf("%+v", cases)
	}
	// The address is remembered, and told of a connection that comes later.
	c := trace.Case{Path: trace.Path{Protocol: trace.TCP, Server: netip.MustParseAddrPort("240.0.0.3:80"), First: ms(0).Add(time.Hour), Request: []trace.Hop{{Place: trace.Place{Netns: clientNS}}}}}
	r.table.Annotate(&c)
	if c.Resolved.Name != "www.x.test." || c.Resolved.TTL != 60 || !c.Resolved.Stale() {
		t.Errorf("%+v", c.Resolved)
	}
	for name, names := range map[string][]string{
		"ends well":       {"www.a.", "www.b.", "www.c.", "www.d."},
		"a short list":    {"www.x.test.a.", "www.x.test.b.", "www.x.test."},
		"names of others": {"a.test.", "b.test.", "c.test.", "www.x.test."},
	} {
		r := newDNSRun(t)
		search(r, names...)
		if cases := r.cases(1000); len(cases) != 0 {
			t.Errorf("%s: %+v", name, cases)
		}
	}
}
