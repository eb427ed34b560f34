package diagnose

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/replypath/replypath/pkg/trace"
)

func init() {
	for _, id := range []string{"dns-tcp-fallback-blocked", "conntrack-insert-race", "dns-unanswered", "dns-error-response", "dns-late-reply", "dns-search-amplification", "redirect-target-not-listening", "redirect-loop"} {
		explainedElsewhere[id] = true
	}
}

var (
	podPlace = trace.Place{Netns: 21, Name: "pod"}
	nodeNode = trace.Place{Netns: 22, Name: "node"}
	dnsPlace = trace.Place{Netns: 23, Name: "resolver"}
	askedAs  = udp("10.244.0.7:40000", "10.96.0.10:53")
	askedAt  = udp("10.244.0.7:40000", "10.244.1.53:53")
)

func udp(src, dst string) trace.Tuple {
	t := tuple(src, dst)
	t.Protocol = trace.UDP
	return t
}

// sighted is a query's way from pod to resolver, and the response's back as far as it came.
func sighted(replies int) []trace.Sighting {
	all := []trace.Sighting{
		{Place: &podPlace, Device: eth0, Transmit: true, Made: true}, {Place: &nodeNode, Device: eth0}, {Place: &nodeNode, Device: vx0, Tuple: 1, Transmit: true}, {Place: &dnsPlace, Device: eth0, Tuple: 1},
		{Place: &dnsPlace, Device: eth0, Tuple: 1, Reply: true, Transmit: true, Made: true}, {Place: &podPlace, Device: eth0, Reply: true},
	}[:4+replies]
	for i := range all {
		all[i].Time, all[i].Count = now.Add(time.Duration(i)*time.Millisecond), 1
		if all[i].Reply {
			all[i].Time = all[i].Time.Add(3 * time.Second)
		}
	}
	return all
}

func query(o trace.Outcome, replies int) *trace.Exchange {
	x := &trace.Exchange{
		Protocol: trace.UDP, Client: askedAs.Src, Server: askedAs.Dst, Process: trace.Process{PID: 7, Comm: "dig"}, ID: 1, Type: dns.TypeA, Class: dns.ClassINET,
		Name: `www\.x.example.com.`, First: now, Last: now.Add(5 * time.Second), Attempts: 1, Outcome: o, Stage: trace.StageReceived, Tuples: []trace.Tuple{askedAs, askedAt}, Sightings: sighted(replies),
	}
	if replies > 0 {
		x.Stage, x.Responder, x.Latency = trace.StageHome, askedAt.Dst, 3*time.Second
	}
	return x
}

// troubled is a case about a query, at one of its sightings.
func troubled(s trace.Symptom, d trace.Direction, x *trace.Exchange, at int) trace.Case {
	sight := &x.Sightings[at]
	ev := trace.Event{Time: sight.Time, Hook: trace.HookReceive, Netns: sight.Place.Netns, Device: sight.Device, Tuple: x.TupleOf(sight)}
	return trace.Case{
		Symptom: s, Direction: d, Place: *sight.Place, Event: ev, Trouble: &trace.Trouble{Exchange: x}, DNS: `A www\.x.example.com`,
		Path: trace.Path{Protocol: x.Protocol, Client: x.Client, Server: x.Server, Connection: askedAs},
	}
}

func TestExplainDNS(t *testing.T) {
	here := trace.HostState{DstLocal: true, Onward: found, Sockets: []trace.Socket{{Local: askedAt.Dst, Process: trace.Process{PID: 9, Comm: "dnsmasq"}}}}
	stuck := here
	stuck.Sockets = []trace.Socket{{Local: askedAt.Dst, Used: 2304, Buffer: 212992, Process: trace.Process{PID: 9, Comm: "dnsmasq"}}}
	raced := trace.HostState{Onward: found, Tracking: trace.ConntrackState{Known: true, InsertFailed: 3}}
	with := func(c trace.Case, change func(*trace.Trouble)) trace.Case {
		change(c.Trouble)
		return c
	}
	failed := query(trace.Failed, 2)
	failed.Rcode = dns.RcodeServerFailure
	silent := func() trace.Case {
		return troubled(trace.SymptomUnanswered, trace.Reply, query(trace.Unanswered, 0), 3)
	}
	atNode := func() trace.Case {
		return troubled(trace.SymptomUnanswered, trace.Reply, query(trace.Unanswered, 0), 1)
	}
	upstream := query(trace.Unanswered, 0)
	upstream.Server = netip.MustParseAddrPort("192.0.2.53:53")
	overTCP := query(trace.Unanswered, 0)
	overTCP.Protocol = trace.TCP
	race := dropped(askedAt, "NETFILTER_DROP", "nf_hook_slow")
	race.Event.HasRoute, race.Event.Input, race.Event.OutIndex, race.Event.Device = true, "ip_forward", vx0.Index, vx0
	race.Event.Conntrack = trace.Conntrack{Original: askedAs, Reply: askedAt.Reverse()}
	race.DNS = "A www.test"
	tests := map[string]struct {
		c    trace.Case
		s    trace.HostState
		id   string
		dir  trace.Direction
		conf trace.Confidence
		text string // in the cause
	}{
		"a resolver that keeps silent":             {silent(), here, "dns-unanswered", trace.Reply, trace.Certain, "dnsmasq (pid 9) has been read"},
		"a resolver that does not read":            {silent(), stuck, "dns-unanswered", trace.Reply, trace.Certain, "2304 bytes wait"},
		"a resolver that cannot be asked":          {silent(), trace.HostState{}, "dns-unanswered", trace.Reply, trace.Likely, "no response left there"},
		"a host that keeps what is not for it":     {atNode(), trace.HostState{Onward: found}, "dns-unanswered", trace.Request, trace.Likely, "did not send it on"},
		"a query that left and was not seen again": {troubled(trace.SymptomUnanswered, trace.Request, query(trace.Unanswered, 0), 2), trace.HostState{}, "dns-unanswered", trace.Request, trace.Likely, "was not seen again"},
		"a response that was lost":                 {troubled(trace.SymptomUnanswered, trace.Reply, func() *trace.Exchange { x := query(trace.Unanswered, 1); x.Stage = trace.StageAnswered; return x }(), 4), trace.HostState{}, "dns-unanswered", trace.Reply, trace.Likely, "did not reach the client"},
		"lost once, and asked again":               {with(silent(), func(d *trace.Trouble) { d.Served = true }), here, "", 0, 0, ""},
		"events were lost meanwhile":               {with(silent(), func(d *trace.Trouble) { d.Lossy = true }), here, "", 0, 0, ""},
		"events were lost, and it answers nothing": {with(silent(), func(d *trace.Trouble) { d.Lossy, d.Dead = true, true }), here, "dns-unanswered", trace.Reply, trace.Possible, "no response left"},
		"a dead first server":                      {with(silent(), func(d *trace.Trouble) { d.Served, d.Dead = true, true }), here, "dns-unanswered", trace.Reply, trace.Certain, "Another server answered"},
		"a query in front of what found no room": {troubled(trace.SymptomUnanswered, trace.Reply, query(trace.Unanswered, 0), 3),
			trace.HostState{Onward: found, DstLocal: true, Sockets: []trace.Socket{{Process: trace.Process{PID: 9, Comm: "coredns"}, Used: 4160, Buffer: 4608, Drops: 1}}}, "socket-buffer-full", trace.Request, trace.Certain, "run full since"},
		"a query that is not read, where there is room": {troubled(trace.SymptomUnanswered, trace.Reply, query(trace.Unanswered, 0), 3),
			trace.HostState{Onward: found, DstLocal: true, Sockets: []trace.Socket{{Process: trace.Process{PID: 9, Comm: "coredns"}, Used: 768, Buffer: 212992, Drops: 1}}}, "dns-unanswered", trace.Reply, trace.Certain, "does not read them"},
		"an upstream that keeps silent":               {with(troubled(trace.SymptomUnanswered, trace.Reply, upstream, 3), func(d *trace.Trouble) { d.Exchange, d.Upstream = failed, upstream }), here, "dns-unanswered", trace.Reply, trace.Certain, "asked 192.0.2.53:53 for it"},
		"a proxy that asks itself":                    {with(troubled(trace.SymptomUnanswered, trace.Reply, upstream, 3), func(d *trace.Trouble) { d.Exchange, d.Upstream, d.Loop = failed, upstream, true }), here, "redirect-loop", trace.Request, trace.Certain, "came back to it"},
		"an error":                                    {troubled(trace.SymptomErrorResponse, trace.Reply, failed, 4), here, "dns-error-response", trace.Reply, trace.Certain, "answered SERVFAIL"},
		"an error of a server elsewhere":              {troubled(trace.SymptomErrorResponse, trace.Reply, failed, 0), trace.HostState{}, "dns-error-response", trace.Reply, trace.Certain, "not among the namespaces"},
		"a late answer":                               {troubled(trace.SymptomLate, trace.Reply, query(trace.Late, 2), 4), here, "dns-late-reply", trace.Reply, trace.Certain, "dnsmasq (pid 9) in resolver took to answer"},
		"TCP that is not answered after a truncation": {with(troubled(trace.SymptomUnanswered, trace.Request, overTCP, 0), func(d *trace.Trouble) { d.Truncated = true }), trace.HostState{}, "dns-tcp-fallback-blocked", trace.Request, trace.Likely, "again by TCP"},
		"a search list":                               {with(troubled(trace.SymptomAmplified, trace.Request, query(trace.Answered, 2), 0), func(d *trace.Trouble) { d.Steps, d.Queries = []string{"a.", "b.", "c."}, 8 }), trace.HostState{}, "dns-search-amplification", trace.Request, trace.Certain, "ndots"},
		"a twin that was lost where it is translated": {with(atNode(), func(d *trace.Trouble) { d.Lost, d.Served = true, true }), raced, "conntrack-insert-race", trace.Request, trace.Likely, "raced for one conntrack entry"},
		"a twin that was lost, and no race":           {with(atNode(), func(d *trace.Trouble) { d.Lost, d.Served = true, true }), trace.HostState{Onward: found}, "", 0, 0, ""},
		"a datagram dropped where it is confirmed":    {race, raced, "conntrack-insert-race", trace.Request, trace.Likely, "DNS query A www.test to"},
	}
	for title, tt := range tests {
		t.Run(title, func(t *testing.T) {
			if _, asks := Question(&tt.c); !asks {
				t.Error("nothing is asked")
			}
			tt.s.ReadAt = now
			f, ok := Explain(&tt.c, &tt.s)
			if !ok && tt.id == "" {
				return
			}
			if f.ID != tt.id || f.Direction != tt.dir || f.Confidence != tt.conf {
				t.Fatalf("%s %v %v, want %s %v %v: %s", f.ID, f.Direction, f.Confidence, tt.id, tt.dir, tt.conf, f.Cause)
			}
			if !strings.Contains(f.Cause, tt.text) {
				t.Errorf("cause %q lacks %q", f.Cause, tt.text)
			}
			if tt.c.Trouble != nil && !strings.Contains(f.Summary+f.Cause, `www\.x.example.com`) {
				t.Errorf("the question is not told: %s", f.Cause)
			}
			f.Where.Place = be // as it expects
			checkComplete(t, &f)
		})
	}
}

// What befalls the packets of DNS keeps its id, and tells the question.
func TestDNSAroundOthers(t *testing.T) {
	c := dropped(vip4, "NETFILTER_DROP", "nft_do_chain")
	c.Truncated = "TXT big.test"
	f, _ := Explain(&c, &trace.HostState{Filters: []trace.FilterVerdict{rule(true)}, ReadAt: now})
	if f.ID != "dns-tcp-fallback-blocked" || !strings.Contains(f.Cause, "TXT big.test") || !strings.Contains(f.Cause, "tcp dport 80 drop") {
		t.Errorf("%s: %s", f.ID, f.Cause)
	}
	c = dropped(udp4, "NETFILTER_DROP", "nft_do_chain")
	c.DNS = "A www.test"
	if f, _ = Explain(&c, &trace.HostState{Filters: []trace.FilterVerdict{rule(true)}, ReadAt: now}); f.ID != "netfilter-drop" || !strings.Contains(f.Cause, "DNS query A www.test to 203.0.113.80:53") {
		t.Errorf("%s: %s", f.ID, f.Cause)
	}
}

// An address that DNS gave long ago is told, one that it gave a moment ago is not, unless it is a mesh's.
func TestOldAddress(t *testing.T) {
	for name, tt := range map[string]struct {
		server   string
		ttl, age uint32
		text     string
	}{
		"fresh":            {"203.0.113.80:80", 3600, 10, ""},
		"old":              {"203.0.113.80:80", 3600, 1000, "changed or removed meanwhile"},
		"over":             {"203.0.113.80:80", 5, 10, "its time was over"},
		"virtual":          {"240.0.0.3:80", 3600, 2, "changed or removed meanwhile"},
		"virtual and over": {"240.0.0.3:80", 3600, 3700, "its time was over"},
	} {
		c := request(trace.SymptomRefused, tuple("198.51.100.7:41822", tt.server))
		c.Resolved = trace.Resolved{Name: "ext.mesh.", Server: netip.MustParseAddrPort("10.96.0.10:53"), TTL: tt.ttl, Age: tt.age}
		f, _ := Explain(&c, &trace.HostState{DstLocal: true, Onward: found, ReadAt: now})
		if f.ID != "port-not-listening" || strings.Contains(f.Cause, "for ext.mesh. with a TTL") != (tt.text != "") || !strings.Contains(f.Cause, tt.text) {
			t.Errorf("%s: %s %s", name, f.ID, f.Cause)
		}
	}
}

func TestRefusedRedirect(t *testing.T) {
	proxy := udp("10.244.0.7:40000", "127.0.0.1:15053")
	c := request(trace.SymptomRefused, proxy)
	c.Path.Protocol, c.Path.Server, c.Path.Connection = trace.UDP, askedAs.Dst, askedAs
	c.Path.Request = []trace.Hop{{Place: be, Out: trace.Device{Index: 1, Name: "lo"}, Tuple: proxy}}
	c.DNS = "A www.test"
	f, _ := Explain(&c, &trace.HostState{DstLocal: true, Onward: found, ReadAt: now})
	if f.ID != "redirect-target-not-listening" || !strings.Contains(f.Summary, "10.96.0.10:53 to 127.0.0.1:15053") {
		t.Errorf("%s: %s", f.ID, f.Summary)
	}
	checkComplete(t, &f)
	c.Path.Server, c.Path.Connection = proxy.Dst, proxy
	if f, _ = Explain(&c, &trace.HostState{DstLocal: true, Onward: found, ReadAt: now}); f.ID != "port-not-listening" {
		t.Errorf("without a redirect: %s", f.ID)
	}
}
