package correlate

import (
	"hash/maphash"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/replypath/replypath/pkg/trace"
)

// Namespaces of the tests: a client's, the node's, a resolver's.
const (
	clientNS trace.Netns = 11 + iota
	nodeNS
	resolverNS
)

// dnsRun hands a table the packets of a test; times are milliseconds.
type dnsRun struct {
	t     *testing.T
	table *DNSTable
	skb   uint64
	gone  map[uint32]bool
	// short: what comes further is told without its payload.
	short bool
	seed  maphash.Seed
}

func newDNSRun(t *testing.T) *dnsRun {
	r := &dnsRun{t: t, gone: make(map[uint32]bool), seed: maphash.MakeSeed()}
	place := func(ns trace.Netns, _ time.Time) trace.Place { return trace.Place{Netns: ns, Host: ns == nodeNS} }
	r.table = NewDNS(DNSConfig{Place: place, Exited: func(pid uint32) bool { return r.gone[pid] }})
	return r
}

var dnsStart = time.Unix(1_700_000_000, 0)

func ms(n float64) time.Time { return dnsStart.Add(time.Duration(n * float64(time.Millisecond))) }

// dnsPacket is one of DNS at a hook.
type dnsPacket struct {
	at       float64
	hook     trace.Hook
	ns       trace.Netns
	device   uint32
	src, dst string
	id       uint16
	name     string // "www.test. A"
	rcode    int
	reply    bool
	again    bool // the skb of the packet before: it has come further
	in       uint32
	ct       trace.Conntrack
	pid      uint32
}

func dnsMessage(t *testing.T, p dnsPacket) []byte {
	t.Helper()
	name, kind := p.name[:len(p.name)-2], dns.TypeA
	if p.name[len(p.name)-1] == '6' {
		kind = dns.TypeAAAA
	}
	m := new(dns.Msg).SetQuestion(name, kind)
	m.Id, m.Response, m.Rcode = p.id, p.reply, p.rcode
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func udpTuple(src, dst string) trace.Tuple {
	return trace.Tuple{Protocol: trace.UDP, Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst)}
}

func (r *dnsRun) see(packets ...dnsPacket) {
	r.t.Helper()
	for _, p := range packets {
		if !p.again {
			r.skb += 0x1040
		}
		b := dnsMessage(r.t, p)
		ev := &trace.Event{
			Time: ms(p.at), Hook: p.hook, Netns: p.ns, Device: trace.Device{Index: p.device, Name: "eth0"}, Tuple: udpTuple(p.src, p.dst),
			SKB: r.skb, InIndex: p.in, Conntrack: p.ct, Payload: b, PayloadLength: uint32(len(b)), Process: trace.Process{PID: p.pid},
		}
		if r.short {
			ev.Datagram = maphash.Bytes(r.seed, b) | 1
			if p.again {
				ev.Payload, ev.PayloadLength, ev.Conntrack, ev.Process = nil, 0, trace.Conntrack{}, trace.Process{}
			}
		}
		r.table.Add(ev)
	}
}

// until lets time pass and returns what was handed out.
func (r *dnsRun) until(at float64) []*trace.Exchange {
	var all []*trace.Exchange
	for now := ms(at - 6000); !now.After(ms(at)); now = now.Add(advanceStep) {
		r.table.Advance(now)
	}
	r.table.Advance(ms(at))
	for _, x := range r.table.Done() {
		copied := *x
		all = append(all, &copied)
	}
	return all
}

func (r *dnsRun) one(at float64) *trace.Exchange {
	r.t.Helper()
	all := r.until(at)
	if len(all) != 1 {
		for _, x := range all {
			r.t.Logf("%s from %v to %v: %v", x.Name, x.Client, x.Server, x.Outcome)
		}
		r.t.Fatalf("%d exchanges, want one", len(all))
	}
	return all[0]
}

const (
	rx = trace.HookReceive
	tx = trace.HookTransmit
)

// direct are the packets of a query without NAT from client to resolver, and of its response.
func direct(at float64, id uint16, client, name string) (query, reply []dnsPacket) {
	const server = "10.0.0.53:53"
	query = []dnsPacket{
		{at: at, hook: tx, ns: clientNS, device: 2, src: client, dst: server, id: id, name: name, pid: 7},
		{at: at + 0.1, hook: rx, ns: resolverNS, device: 3, src: client, dst: server, id: id, name: name, again: true},
	}
	reply = []dnsPacket{
		{at: at + 0.2, hook: tx, ns: resolverNS, device: 3, src: server, dst: client, id: id, name: name, reply: true},
		{at: at + 0.3, hook: rx, ns: clientNS, device: 2, src: server, dst: client, id: id, name: name, reply: true, again: true},
	}
	return query, reply
}

func TestDNSAnswered(t *testing.T) {
	r := newDNSRun(t)
	query, reply := direct(0, 1, "10.0.0.7:40000", "wWw.test. 4")
	r.see(query...)
	r.see(reply...)
	x := r.one(100)
	if x.Outcome != trace.Answered || x.Latency != 300*time.Microsecond || x.Name != "wWw.test." || x.Via != trace.ViaDirect || x.Stage != trace.StageHome {
		t.Errorf("%v after %v, %s, %v, %v", x.Outcome, x.Latency, x.Name, x.Via, x.Stage)
	}
	if x.Responder.String() != "10.0.0.53:53" || x.Attempts != 1 || x.Process.PID != 7 || len(x.Response) == 0 {
		t.Errorf("%+v", x)
	}
	if q, a := x.Hops(trace.Request), x.Hops(trace.Reply); len(q) != 2 || len(a) != 2 || q[0].Place.Netns != clientNS || a[0].Place.Netns != resolverNS {
		t.Errorf("hops %+v and %+v", q, a)
	}
	if r.table.Len() != 0 || len(r.table.messages) != 0 || len(r.table.askers) != 0 {
		t.Error("something is left of it")
	}
}

func TestDNSError(t *testing.T) {
	for rcode, want := range map[int]trace.Outcome{dns.RcodeServerFailure: trace.Failed, dns.RcodeRefused: trace.Failed, dns.RcodeNameError: trace.Answered} {
		r := newDNSRun(t)
		query, reply := direct(0, 1, "10.0.0.7:40000", "www.test. 4")
		reply[0].rcode, reply[1].rcode = rcode, rcode
		r.see(append(query, reply...)...)
		if x := r.one(100); x.Outcome != want || int(x.Rcode) != rcode {
			t.Errorf("rcode %d: %v", rcode, x.Outcome)
		}
	}
}

// The stage is where query or response was seen last.
func TestDNSUnanswered(t *testing.T) {
	query, reply := direct(0, 1, "10.0.0.7:40000", "www.test. 4")
	all := append(query, reply...)
	for n, want := range []trace.Stage{1: trace.StageClient, 2: trace.StageReceived, 3: trace.StageAnswered} {
		if n == 0 {
			continue
		}
		r := newDNSRun(t)
		r.see(all[:n]...)
		if x := r.one(5100); x.Outcome != trace.Unanswered || x.Stage != want || x.Latency != 0 {
			t.Errorf("after %d packets: %v at %v, want at %v", n, x.Outcome, x.Stage, want)
		}
		if again := r.until(20000); len(again) != 0 || r.table.Len() != 0 {
			t.Errorf("handed out again: %v, left %d", again, r.table.Len())
		}
	}
}

// kubeProxy are the packets of a query to a service address that the node gives to a resolver.
func kubeProxy(at float64, id uint16, client string) []dnsPacket {
	const service, resolver, name = "10.96.0.10:53", "10.244.1.53:53", "svc.test. 4"
	ct := trace.Conntrack{Original: udpTuple(client, service), Reply: udpTuple(resolver, client)}
	return []dnsPacket{
		{at: at, hook: tx, ns: clientNS, device: 2, src: client, dst: service, id: id, name: name},
		{at: at + 0.1, hook: rx, ns: nodeNS, device: 5, src: client, dst: service, id: id, name: name, again: true},
		{at: at + 0.2, hook: tx, ns: nodeNS, device: 6, src: client, dst: resolver, id: id, name: name, again: true, in: 5, ct: ct},
		{at: at + 0.3, hook: rx, ns: resolverNS, device: 2, src: client, dst: resolver, id: id, name: name, again: true},
		{at: at + 1, hook: tx, ns: resolverNS, device: 2, src: resolver, dst: client, id: id, name: name, reply: true},
		{at: at + 1.1, hook: rx, ns: nodeNS, device: 6, src: resolver, dst: client, id: id, name: name, reply: true, again: true},
		{at: at + 1.2, hook: tx, ns: nodeNS, device: 5, src: service, dst: client, id: id, name: name, reply: true, again: true, in: 6, ct: ct},
		{at: at + 1.3, hook: rx, ns: clientNS, device: 2, src: service, dst: client, id: id, name: name, reply: true, again: true},
	}
}

func TestDNSThroughNAT(t *testing.T) {
	stages := []trace.Stage{trace.StageClient, trace.StageHop, trace.StageNAT, trace.StageReceived, trace.StageAnswered, trace.StageReply, trace.StageReply}
	for n := 1; n <= 8; n++ {
		r := newDNSRun(t)
		packets := kubeProxy(0, 9, "10.244.0.7:5353")
		r.see(packets[:n]...)
		x := r.one(5100)
		if n == 8 {
			if x.Outcome != trace.Answered || x.Responder.String() != "10.244.1.53:53" || x.Server.String() != "10.96.0.10:53" || x.Via != trace.ViaNAT {
				t.Errorf("%v by %v, asked %v, via %v", x.Outcome, x.Responder, x.Server, x.Via)
			}
			continue
		}
		// A packet that a node has received and was not seen to drop is the node's to answer.
		want := stages[n-1]
		if n == 2 {
			want = trace.StageReceived
		}
		if x.Outcome != trace.Unanswered || x.Stage != want {
			t.Errorf("after %d packets: %v at %v, want at %v", n, x.Outcome, x.Stage, want)
		}
	}
}

// A mesh proxy takes the pod's queries within the pod.
func TestDNSRedirected(t *testing.T) {
	const client, meant, proxy, name = "10.244.0.7:40000", "10.96.0.10:53", "127.0.0.1:15053", "virtual.mesh. 4"
	ct := trace.Conntrack{Original: udpTuple(client, meant), Reply: udpTuple(proxy, client)}
	packets := []dnsPacket{
		{hook: tx, ns: clientNS, device: 1, src: client, dst: proxy, id: 3, name: name, ct: ct},
		{at: 0.1, hook: rx, ns: clientNS, device: 1, src: client, dst: proxy, id: 3, name: name, ct: ct, again: true},
		{at: 1, hook: tx, ns: clientNS, device: 1, src: meant, dst: client, id: 3, name: name, ct: ct, reply: true},
		{at: 1.1, hook: rx, ns: clientNS, device: 1, src: meant, dst: client, id: 3, name: name, ct: ct, reply: true, again: true},
	}
	r := newDNSRun(t)
	r.see(packets...)
	if x := r.one(100); x.Outcome != trace.Answered || x.Via != trace.ViaRedirected || x.Server.String() != meant || x.Responder.String() != proxy {
		t.Errorf("%v via %v, asked %v, answered by %v", x.Outcome, x.Via, x.Server, x.Responder)
	}
	// Nobody listens on the proxy's port.
	r = newDNSRun(t)
	r.see(packets[:2]...)
	r.table.Add(&trace.Event{Time: ms(0.2), Hook: trace.HookDrop, Netns: clientNS, SKB: r.skb, Tuple: udpTuple(client, proxy), Reason: "NO_SOCKET"})
	if x := r.one(5100); x.Outcome != trace.Unanswered || x.Stage != trace.StageRedirect || x.Drop == nil || x.Drop.Reason != "NO_SOCKET" || x.Drop.Direction != trace.Request {
		t.Errorf("%v at %v, dropped %+v", x.Outcome, x.Stage, x.Drop)
	}
}

// Two clients that ask the same with the same id at the same time are two.
func TestDNSSameID(t *testing.T) {
	r := newDNSRun(t)
	q1, a1 := direct(0, 1, "10.0.0.7:40000", "www.test. 4")
	q2, a2 := direct(0.01, 1, "10.0.0.8:40000", "www.test. 4")
	q3, _ := direct(0.02, 1, "10.0.0.7:40001", "www.test. 4")
	for i := range q1 {
		q2[i].again, q1[i].again, q3[i].again = false, false, false
		r.see(q1[i], q2[i], q3[i])
	}
	r.see(a2...)
	r.see(a1...)
	ends := make(map[string]trace.Outcome)
	for _, x := range r.until(5200) {
		ends[x.Client.String()] = x.Outcome
	}
	if ends["10.0.0.7:40000"] != trace.Answered || ends["10.0.0.8:40000"] != trace.Answered || ends["10.0.0.7:40001"] != trace.Unanswered || len(ends) != 3 {
		t.Errorf("%v", ends)
	}
}

// A forwarder's query of its own is another, even where it keeps the id, and where
// the kernel gives its packet the address of the one that was just received.
func TestDNSForwarder(t *testing.T) {
	r := newDNSRun(t)
	query, reply := direct(0, 1, "10.0.0.7:40000", "www.test. 4")
	r.see(query...)
	r.see(dnsPacket{at: 0.15, hook: tx, ns: resolverNS, device: 4, src: "10.0.0.53:33333", dst: "192.0.2.1:53", id: 1, name: "www.test. 4", again: true})
	r.see(reply...)
	var outcomes []trace.Outcome
	for _, x := range r.until(5200) {
		outcomes = append(outcomes, x.Outcome)
		if x.Outcome == trace.Unanswered && (x.Client.String() != "10.0.0.53:33333" || x.Stage != trace.StageClient) {
			t.Errorf("upstream query from %v at %v", x.Client, x.Stage)
		}
	}
	if len(outcomes) != 2 {
		t.Errorf("%v", outcomes)
	}
}

func TestDNSWrongSource(t *testing.T) {
	r := newDNSRun(t)
	query, reply := direct(0, 1, "10.0.0.7:40000", "www.test. 4")
	for i := range reply {
		reply[i].src = "10.9.9.9:53"
	}
	r.see(append(query, reply...)...)
	r.table.Add(&trace.Event{Time: ms(0.4), Hook: trace.HookDrop, Netns: clientNS, SKB: r.skb, Tuple: udpTuple("10.9.9.9:53", "10.0.0.7:40000"), Reason: "NO_SOCKET"})
	x := r.one(5100)
	if x.Outcome != trace.WrongSource || x.Responder.String() != "10.9.9.9:53" || x.Server.String() != "10.0.0.53:53" || !x.Gone {
		t.Errorf("%v by %v", x.Outcome, x.Responder)
	}
	// What comes from the right one in the end is the response.
	r = newDNSRun(t)
	_, right := direct(1, 1, "10.0.0.7:40000", "www.test. 4")
	r.see(append(append(query, reply...), right...)...)
	if x := r.one(5100); x.Outcome != trace.Answered {
		t.Errorf("with the right response too: %v", x.Outcome)
	}
}

// A query that is dropped before it leaves is seen nowhere else; one that was given up may be dropped after that.
func TestDNSDropped(t *testing.T) {
	r := newDNSRun(t)
	query, _ := direct(0, 1, "10.0.0.7:40000", "www.test. 4")
	b := dnsMessage(t, query[0])
	drop := trace.Event{
		Hook: trace.HookDrop, Netns: clientNS, SKB: 0x77000, Tuple: udpTuple(query[0].src, query[0].dst), Payload: b, PayloadLength: uint32(len(b)),
		Reason: "NETFILTER_DROP", Process: trace.Process{PID: 7},
	}
	for _, at := range []float64{0, 1000} {
		drop.Time = ms(at)
		r.table.Add(&drop)
	}
	r.gone[7] = true
	if x := r.one(1500); x.Outcome != trace.Unanswered || x.Stage != trace.StageClient || x.Drop == nil || x.Drop.Reason != "NETFILTER_DROP" || x.Attempts != 2 || x.Home().Netns != clientNS {
		t.Errorf("%v at %v, dropped %+v, %d attempts", x.Outcome, x.Stage, x.Drop, x.Attempts)
	}
	r = newDNSRun(t)
	packets := kubeProxy(0, 9, "10.244.0.7:40000")[:2]
	r.see(packets...)
	if x := r.one(5100); x.Stage != trace.StageReceived || x.Drop != nil {
		t.Errorf("first at %v", x.Stage)
	}
	r.table.Add(&trace.Event{Time: ms(5200), Hook: trace.HookDrop, Netns: nodeNS, SKB: r.skb, Tuple: udpTuple(packets[1].src, packets[1].dst), Reason: "NEIGH_FAILED"})
	if x := r.one(5300); !x.Revised || x.Stage != trace.StageHop || x.Drop == nil || x.Outcome != trace.Unanswered {
		t.Errorf("then %v at %v", x.Outcome, x.Stage)
	}
}

func TestDNSLate(t *testing.T) {
	// After the deadline: handed out twice.
	r := newDNSRun(t)
	query, _ := direct(0, 1, "10.0.0.7:40000", "www.test. 4")
	_, reply := direct(7000, 1, "10.0.0.7:40000", "www.test. 4")
	r.see(query...)
	if x := r.one(6500); x.Outcome != trace.Unanswered || x.Revised {
		t.Errorf("first %v", x.Outcome)
	}
	r.see(reply...)
	if x := r.one(7100); x.Outcome != trace.Late || !x.Revised || x.Latency.Round(time.Second) != 7*time.Second {
		t.Errorf("then %v after %v", x.Outcome, x.Latency)
	}
	// The socket was gone.
	for latency, want := range map[float64]trace.Outcome{2000: trace.Late, 3: trace.Cancelled} {
		r = newDNSRun(t)
		_, reply = direct(latency, 1, "10.0.0.7:40000", "www.test. 4")
		r.see(query...)
		r.see(reply...)
		r.table.Add(&trace.Event{Time: ms(latency + 1), Hook: trace.HookDrop, Netns: clientNS, SKB: r.skb, Tuple: udpTuple("10.0.0.53:53", "10.0.0.7:40000"), Reason: "NO_SOCKET"})
		if x := r.one(latency + 100); x.Outcome != want || !x.Gone {
			t.Errorf("no socket after %v ms: %v, want %v", latency, x.Outcome, want)
		}
	}
}

// A resolver that gets no answer asks again: from the same socket, or another.
func TestDNSRetries(t *testing.T) {
	r := newDNSRun(t)
	query, _ := direct(0, 1, "10.0.0.7:40000", "www.test. 4")
	same, _ := direct(3000, 1, "10.0.0.7:40000", "www.test. 4")
	r.see(query...)
	r.see(same...)
	if early := r.until(7900); len(early) != 0 {
		t.Fatalf("given up %v after it was asked again", early[0].Last.Sub(ms(3000)))
	}
	if x := r.one(8100); x.Attempts != 2 || x.Outcome != trace.Unanswered {
		t.Errorf("%d attempts, %v", x.Attempts, x.Outcome)
	}
	r = newDNSRun(t)
	other, reply := direct(2000, 2, "10.0.0.7:40001", "www.test. 4")
	_, late := direct(2100, 1, "10.0.0.7:40000", "www.test. 4")
	r.see(query...)
	r.see(other...)
	r.see(reply...)
	r.see(late...)
	byID := make(map[uint16]*trace.Exchange)
	for _, x := range r.until(2300) {
		byID[x.ID] = x
	}
	if byID[1] == nil || byID[2] == nil || byID[2].Repeats != byID[1].Number || byID[2].Outcome != trace.Answered || byID[1].Outcome != trace.Late {
		t.Errorf("%+v", byID)
	}
}

func TestDNSTwins(t *testing.T) {
	r := newDNSRun(t)
	q4, a4 := direct(0, 1, "10.0.0.7:40000", "www.test. 4")
	q6, a6 := direct(0.05, 2, "10.0.0.7:40000", "www.test. 6")
	r.see(q4...)
	r.see(q6...)
	r.see(a4...)
	r.see(a6...)
	all := r.until(100)
	if len(all) != 2 || all[0].Twin != all[1].Number || all[1].Twin != all[0].Number || all[0].Repeats+all[1].Repeats != 0 {
		t.Errorf("%+v", all)
	}
	// Both are asked again, and know whom they repeat.
	r = newDNSRun(t)
	p4, _ := direct(5000, 3, "10.0.0.7:40001", "www.test. 4")
	p6, _ := direct(5000.1, 4, "10.0.0.7:40001", "www.test. 6")
	r.see(q4...)
	r.see(q6...)
	r.see(p4...)
	r.see(p6...)
	byID := make(map[uint16]*trace.Exchange)
	for _, x := range r.until(10200) {
		byID[x.ID] = x
	}
	if len(byID) != 4 || byID[3].Repeats != byID[1].Number || byID[4].Repeats != byID[2].Number || byID[3].Twin != byID[4].Number {
		t.Errorf("%+v", byID)
	}
}

// A client that goes away at once did not want the answer; one that goes after it has waited has got none.
func TestDNSClientExits(t *testing.T) {
	for at, want := range map[float64]trace.Outcome{200: trace.Cancelled, 2000: trace.Unanswered} {
		r := newDNSRun(t)
		query, _ := direct(0, 1, "10.0.0.7:40000", "www.test. 4")
		r.see(query...)
		if early := r.until(at); len(early) != 0 {
			t.Fatal("ended before its client")
		}
		r.gone[7] = true
		if x := r.one(at + 300); x.Outcome != want {
			t.Errorf("client exited after %v ms: %v, want %v", at, x.Outcome, want)
		}
	}
}

// However many queries there are, memory is bounded and each is handed out.
func TestDNSBounded(t *testing.T) {
	r := newDNSRun(t)
	r.table.cfg.MaxExchanges = 100
	for i := range 1000 {
		query, _ := direct(float64(i), uint16(i), "10.0.0.7:40000", "www.test. 4")
		r.see(query[0])
	}
	if r.table.Len() > 100 || len(r.table.messages) > 100 {
		t.Errorf("%d live", r.table.Len())
	}
	if n := len(r.until(7000)); n != 1000 || r.table.Stats().Evicted != 900 {
		t.Errorf("%d handed out, %d evicted", n, r.table.Stats().Evicted)
	}
}

func TestDNSStreams(t *testing.T) {
	message := func(id uint16) []byte {
		m := new(dns.Msg).SetQuestion("www.test.", dns.TypeA).SetEdns0(1232, false)
		m.Id = id
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return append([]byte{0, byte(len(b))}, b...)
	}
	two := append(message(1), message(2)...)
	for name, test := range map[string]struct {
		segments [][2]int // of the bytes, from and to
		read     int      // of each segment; 0: all
		ids      int
		lost     uint64
	}{
		"at once":        {segments: [][2]int{{0, len(two)}}, ids: 2},
		"length apart":   {segments: [][2]int{{0, 2}, {2, len(two)}}, ids: 2},
		"bit by bit":     {segments: [][2]int{{0, 1}, {1, 9}, {9, 20}, {20, 40}, {40, len(two)}}, ids: 2},
		"sent again":     {segments: [][2]int{{0, 20}, {0, 20}, {10, len(two)}, {0, len(two)}}, ids: 2},
		"not read":       {segments: [][2]int{{0, len(two)}}, read: len(two) - 4, ids: 2},
		"second unread":  {segments: [][2]int{{0, len(two)}}, read: len(two)/2 - 3, ids: 1, lost: 1},
		"first one lost": {segments: [][2]int{{0, 5}, {len(two) / 2, len(two)}}, ids: 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := newDNSRun(t)
			for i, s := range test.segments {
				b := two[s[0]:s[1]]
				length := uint32(len(b))
				if test.read > 0 {
					b = b[:test.read]
				}
				tuple := udpTuple("10.0.0.7:40000", "10.0.0.53:53")
				tuple.Protocol = trace.TCP
				r.table.Add(&trace.Event{
					Time: ms(float64(i)), Hook: tx, Netns: clientNS, Device: trace.Device{Index: 2}, Tuple: tuple, SKB: uint64(i+1) << 12,
					Seq: 0xfffffff0 + uint32(s[0]), Payload: b, PayloadLength: length,
				})
			}
			if n := len(r.until(5200)); n != test.ids || r.table.Stats().Unfollowed != test.lost {
				t.Errorf("%d queries, %d lost; want %d and %d", n, r.table.Stats().Unfollowed, test.ids, test.lost)
			}
		})
	}
}

// BenchmarkDNS is one exchange: four packets.
func BenchmarkDNS(b *testing.B) {
	table := NewDNS(DNSConfig{})
	m := new(dns.Msg).SetQuestion("www.example.test.", dns.TypeA)
	events := make([]trace.Event, 4)
	for i := range events {
		tuple := udpTuple("10.0.0.7:40000", "10.0.0.53:53")
		if m.Response = i > 1; m.Response {
			tuple = tuple.Reverse()
		}
		payload, err := m.Pack()
		if err != nil {
			b.Fatal(err)
		}
		ns := []trace.Netns{clientNS, resolverNS, resolverNS, clientNS}[i]
		events[i] = trace.Event{
			Hook: []trace.Hook{tx, rx, tx, rx}[i], Netns: ns, Device: trace.Device{Index: 2, Name: "eth0"}, Tuple: tuple, Payload: payload, PayloadLength: uint32(len(payload)),
		}
	}
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		for i := range events {
			ev := &events[i]
			ev.Payload[0], ev.Payload[1] = byte(n>>8), byte(n)
			ev.Time, ev.SKB = ms(float64(n)/20), uint64(n*2+i/2+1)<<8
			table.Add(ev)
		}
		table.Done()
	}
}
