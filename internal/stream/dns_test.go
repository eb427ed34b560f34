package stream

import (
	"io"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
	"google.golang.org/protobuf/types/known/timestamppb"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
	"github.com/replypath/replypath/pkg/trace"
)

// query is the n-th client's, answered over a NAT, its process in group n.
func query(t *testing.T, n int) *trace.Exchange {
	t.Helper()
	rr, err := dns.NewRR(`www.test. 30 IN A 192.0.2.1`)
	if err != nil {
		t.Fatal(err)
	}
	m := new(dns.Msg).SetQuestion("www.test.", dns.TypeA)
	m.Response, m.Answer = true, []dns.RR{rr}
	b, err := m.SetEdns0(1232, false).Pack()
	if err != nil {
		t.Fatal(err)
	}
	client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, 0, byte(n)}), 40000)
	meant := trace.Tuple{Protocol: trace.UDP, Src: client, Dst: netip.MustParseAddrPort("10.96.0.10:53")}
	real := trace.Tuple{Protocol: trace.UDP, Src: client, Dst: netip.MustParseAddrPort("10.244.1.53:53")}
	return &trace.Exchange{
		Number: uint64(n), Protocol: trace.UDP, Client: client, Server: meant.Dst, Responder: real.Dst, Process: trace.Process{PID: 7, PGID: uint32(n), Comm: "dig"},
		Name: "www.test.", Type: dns.TypeA, Class: dns.ClassINET, First: at(float64(n)), Last: at(float64(n)), Latency: 2 * time.Millisecond, Attempts: 1,
		Outcome: trace.Answered, Stage: trace.StageHome, Via: trace.ViaNAT, Response: b, ResponseLength: uint32(len(b)), Tuples: []trace.Tuple{meant, real},
		Sightings: []trace.Sighting{
			{Place: &trace.Place{Name: "pod", Netns: 11}, Device: trace.Device{Index: 2, Name: "eth0"}, Transmit: true, Made: true, Count: 1},
			{Place: &trace.Place{Name: "resolver", Netns: 12}, Device: trace.Device{Index: 3, Name: "eth1"}, Tuple: 1, Count: 1},
		},
	}
}

// numbers reads queries until there are so many, or the end.
func numbers(t *testing.T, stream interface {
	Recv() (*tracev1.DnsResponse, error)
}, want int) (got []uint64, last *tracev1.DnsQuery, end *tracev1.DnsEnd) {
	t.Helper()
	for len(got) < want {
		m, err := stream.Recv()
		if err == io.EOF {
			return got, last, end
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range m.GetQueries().GetQueries() {
			got, last = append(got, q.GetNumber()), q
		}
		if m.GetEnd() != nil {
			end = m.GetEnd()
		}
	}
	return got, last, end
}

func TestQueries(t *testing.T) {
	s := newSource()
	for n := 1; n <= 3; n++ {
		s.recorder.AddExchange(query(t, n))
	}
	s.losses.Observe(at(5), map[string]uint64{"dns_table_full": 4})
	conn, _ := serve(t, s)
	client := tracev1.NewTracerClient(conn)
	for name, test := range map[string]struct {
		request *tracev1.DnsRequest
		want    []uint64
	}{
		"all":          {&tracev1.DnsRequest{}, []uint64{1, 2, 3}},
		"as meant":     {&tracev1.DnsRequest{Filter: "dst host 10.96.0.10 and src host 10.244.0.2"}, []uint64{2}},
		"as answered":  {&tracev1.DnsRequest{Filter: "host 10.244.1.53"}, []uint64{1, 2, 3}},
		"none":         {&tracev1.DnsRequest{Filter: "host 192.0.2.1"}, nil},
		"since":        {&tracev1.DnsRequest{Since: timestamppb.New(at(3))}, []uint64{3}},
		"of a command": {&tracev1.DnsRequest{ProcessGroup: 2}, []uint64{2}},
		"losses":       {&tracev1.DnsRequest{LossesOnly: true}, nil},
	} {
		stream, err := client.Queries(t.Context(), test.request)
		if err != nil {
			t.Fatal(err)
		}
		got, _, end := numbers(t, stream, 1000)
		if !slices.Equal(got, test.want) || end == nil || end.GetLosses()[0].GetCount() != 4 {
			t.Errorf("%s: %v, want %v; end %v", name, got, test.want, end)
		}
	}
	stream, err := client.Queries(t.Context(), &tracev1.DnsRequest{Filter: "port"})
	if err == nil {
		_, err = stream.Recv()
	}
	if err == nil {
		t.Error("took half a filter")
	}
	// What was lost of DNS alone says nothing of paths.
	explained, err := client.Explain(t.Context(), &tracev1.ExplainRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := explained.Recv(); err != nil || m.GetSummary().GetVerdict() != "ok" {
		t.Errorf("%v, %v", m, err)
	}
}

// A follower gets what was kept and what ends from now on, each once.
func TestQueriesFollow(t *testing.T) {
	s := newSource()
	s.recorder.AddExchange(query(t, 1))
	conn, _ := serve(t, s)
	stream, err := tracev1.NewTracerClient(conn).Queries(t.Context(), &tracev1.DnsRequest{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	for n := 2; n <= 600; n++ {
		s.recorder.AddExchange(query(t, n%250+1))
	}
	got, q, _ := numbers(t, stream, 600)
	if len(got) != 600 || got[0] != 1 || got[599] != 600%250+1 {
		t.Errorf("%d queries, from %d to %d", len(got), got[0], got[len(got)-1])
	}
	if q.GetName() != "www.test." || q.GetType() != "A" || q.GetRcode() != "NOERROR" || q.GetEdnsSize() != 1232 || q.GetCut() ||
		len(q.GetAnswers()) != 1 || q.GetAnswers()[0].GetTtl() != 30 || q.GetAnswers()[0].GetData() != "192.0.2.1" {
		t.Errorf("%v", q)
	}
	if q.GetNetns() != "pod" || len(q.GetRequest()) != 2 || q.GetRequest()[1].GetDestination() != "10.244.1.53:53" || q.GetVia() != "nat" || q.GetLatencySeconds() != 0.002 {
		t.Errorf("%v", q)
	}
}
