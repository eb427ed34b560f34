package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
	"github.com/replypath/replypath/internal/recorder"
	"github.com/replypath/replypath/pkg/trace"
)

// source is an agent without a kernel.
type source struct {
	recorder *recorder.Recorder
	losses   LossLog
	settle   func(context.Context) error
}

func newSource() *source {
	return &source{recorder: recorder.New(recorder.Config{Now: func() time.Time { return at(60) }})}
}

func (s *source) Recorder() *recorder.Recorder  { return s.recorder }
func (s *source) Losses(since time.Time) []Loss { return s.losses.Since(since) }

func (s *source) Settle(ctx context.Context) error {
	if s.settle != nil {
		return s.settle(ctx)
	}
	return nil
}

func (s *source) Status() Status {
	return Status{
		Node: "node-1", Version: "v0.1.0", Kernel: "6.18.0", Tier: "base", Events: 42, Started: at(0), Live: 3,
		Hooks: []HookStatus{{Name: "kfree_skb", State: "attached"}, {Name: "icmp_send", State: "absent", Reason: "no such tracepoint"}},
	}
}

// serve runs a server for the source on a unix socket, and returns a client of it.
func serve(t *testing.T, s Source) (*grpc.ClientConn, func() error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "agent.sock")
	server, err := NewServer(Options{Source: s, Listen: []string{"unix://" + path}, StopTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	stop := sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return conn, stop
}

// path is the n-th client's, through a NAT, its process in group n.
func path(n int, first time.Time) trace.Path {
	c := trace.Tuple{
		Protocol: trace.TCP, Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(n)}), 40000),
		Dst: netip.MustParseAddrPort("203.0.113.80:80"),
	}
	behind := trace.Tuple{Protocol: trace.TCP, Src: c.Src, Dst: netip.MustParseAddrPort("10.244.1.9:8080")}
	return trace.Path{
		Protocol: c.Protocol, Client: c.Src, Server: c.Dst, Connection: c, First: first, Last: first, Requests: 1,
		Process: trace.Process{PID: uint32(n), PGID: uint32(n), Comm: "curl"},
		Request: []trace.Hop{{Tuple: c}, {Tuple: behind}},
	}
}

func finding(n int, when time.Time) trace.Finding {
	return trace.Finding{
		ID: "reply-no-route", Severity: trace.Error, Confidence: trace.Certain, Direction: trace.Reply,
		Summary: fmt.Sprint("client ", n), Fix: []string{"ip route add default via 10.2.0.1"},
		Where: trace.Where{Place: trace.Place{Netns: 2, Name: "backend"}},
		Path:  path(n, when), Count: 1, FirstSeen: when, LastSeen: when,
	}
}

// answer is what Explain streamed.
type answer struct {
	findings []*tracev1.Finding
	paths    []*tracev1.Path
	summary  *tracev1.Summary
}

func explain(t *testing.T, conn *grpc.ClientConn, request *tracev1.ExplainRequest) (answer, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	stream, err := tracev1.NewTracerClient(conn).Explain(ctx, request)
	if err != nil {
		return answer{}, err
	}
	var a answer
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return a, nil
		}
		if err != nil {
			return a, err
		}
		if a.summary != nil {
			t.Error("a message after the summary")
		}
		switch result := response.GetResult().(type) {
		case *tracev1.ExplainResponse_Finding:
			a.findings = append(a.findings, result.Finding)
		case *tracev1.ExplainResponse_Path:
			a.paths = append(a.paths, result.Path)
		case *tracev1.ExplainResponse_Summary:
			a.summary = result.Summary
		}
	}
}

// tuplesOf names a path by what it was behind the NAT.
func tuplesOf(p trace.Path) []*tracev1.Connection {
	return []*tracev1.Connection{ProtoTuple(p.Request[1].Tuple)}
}

// TestExplain: clients 1 to 3 meet one fault, 4 and 5 are well; client 3's path is known by its finding only.
func TestExplain(t *testing.T) {
	s := newSource()
	for n := 1; n <= 5; n++ {
		if n != 3 {
			s.recorder.AddPath(path(n, at(float64(n))))
		}
		if n <= 3 {
			s.recorder.AddFinding(finding(n, at(float64(n))))
		}
	}
	conn, _ := serve(t, s)
	tests := []struct {
		name     string
		request  *tracev1.ExplainRequest
		shown    string // client of the finding's path; "" no finding
		count    uint32
		paths    []string // clients
		summary  uint32   // paths in it
		verdict  string
		findings uint32
	}{
		{"all", &tracev1.ExplainRequest{}, "198.51.100.1:40000", 3, nil, 5, "fault", 1},
		{"all with paths", &tracev1.ExplainRequest{All: true}, "198.51.100.1:40000", 3, []string{"198.51.100.4:40000", "198.51.100.5:40000"}, 5, "fault", 1},
		{"one client", &tracev1.ExplainRequest{Filter: "host 198.51.100.2"}, "198.51.100.2:40000", 1, nil, 1, "fault", 1},
		{"known by its finding", &tracev1.ExplainRequest{Filter: "src host 198.51.100.3", All: true}, "198.51.100.3:40000", 1, nil, 1, "fault", 1},
		{"behind the NAT", &tracev1.ExplainRequest{Filter: "dst port 8080"}, "198.51.100.1:40000", 3, nil, 5, "fault", 1},
		{"well", &tracev1.ExplainRequest{Filter: "host 198.51.100.4", All: true}, "", 0, []string{"198.51.100.4:40000"}, 1, "ok", 0},
		{"not seen", &tracev1.ExplainRequest{Filter: "udp", All: true}, "", 0, nil, 0, "ok", 0},
		{"since", &tracev1.ExplainRequest{Since: timestamppb.New(at(2))}, "198.51.100.2:40000", 2, nil, 4, "fault", 1},
		{"after the fault", &tracev1.ExplainRequest{Since: timestamppb.New(at(3.5)), All: true}, "", 0, []string{"198.51.100.4:40000", "198.51.100.5:40000"}, 2, "ok", 0},
		{"group", &tracev1.ExplainRequest{ProcessGroup: 2}, "198.51.100.2:40000", 1, nil, 1, "fault", 1},
		{"healthy group", &tracev1.ExplainRequest{ProcessGroup: 5, All: true}, "", 0, []string{"198.51.100.5:40000"}, 1, "ok", 0},
		{"paths of findings too", &tracev1.ExplainRequest{All: true, Faulty: true, Filter: "host 198.51.100.2 or host 198.51.100.4"}, "198.51.100.2:40000", 1,
			[]string{"198.51.100.2:40000", "198.51.100.4:40000"}, 2, "fault", 1},
		{"ago", &tracev1.ExplainRequest{Ago: durationpb.New(time.Since(at(3.5))), All: true}, "", 0, []string{"198.51.100.4:40000", "198.51.100.5:40000"}, 2, "ok", 0},
		{"by its tuple", &tracev1.ExplainRequest{Filter: "udp", Connections: tuplesOf(path(4, at(4))), All: true}, "", 0, []string{"198.51.100.4:40000"}, 1, "ok", 0},
		{"a fault by its tuple", &tracev1.ExplainRequest{ProcessGroup: 99, Connections: tuplesOf(path(2, at(2)))}, "198.51.100.2:40000", 1, nil, 1, "fault", 1},
		{"group and filter", &tracev1.ExplainRequest{ProcessGroup: 2, Filter: "host 198.51.100.1"}, "", 0, nil, 0, "ok", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, err := explain(t, conn, tt.request)
			if err != nil {
				t.Fatal(err)
			}
			var shown string
			var count uint32
			for _, f := range a.findings {
				shown, count = f.GetPath().GetClient(), f.GetCount()
				if got := len(f.GetConnections()); uint32(got) != count {
					t.Errorf("%d connections, want %d", got, count)
				}
			}
			if shown != tt.shown || count != tt.count {
				t.Errorf("finding of %q, count %d; want %q, %d", shown, count, tt.shown, tt.count)
			}
			var clients []string
			for _, p := range a.paths {
				clients = append(clients, p.GetClient())
				if node := p.GetRequest()[0].GetNode(); node != "node-1" {
					t.Errorf("hop of node %q", node)
				}
			}
			if !slices.Equal(clients, tt.paths) {
				t.Errorf("paths of %v, want %v", clients, tt.paths)
			}
			sum := a.summary
			if sum.GetPaths() != tt.summary || sum.GetVerdict() != tt.verdict || sum.GetFindings() != tt.findings || sum.GetNodes() != 1 {
				t.Errorf("summary %v", sum)
			}
		})
	}
}

func TestExplainLosses(t *testing.T) {
	s := newSource()
	s.losses.Observe(at(10), map[string]uint64{"ring_full": 5})
	conn, _ := serve(t, s)
	tests := []struct {
		since   time.Time
		verdict string
		lost    uint32
	}{
		{at(5), "incomplete", 5},
		{at(20), "ok", 0}, // lost before the window
	}
	for _, tt := range tests {
		a, err := explain(t, conn, &tracev1.ExplainRequest{Since: timestamppb.New(tt.since)})
		if err != nil {
			t.Fatal(err)
		}
		if a.summary.GetVerdict() != tt.verdict || a.summary.GetLostEvents() != tt.lost || len(a.summary.GetLosses()) != int(min(tt.lost, 1)) {
			t.Errorf("since %v: %v", tt.since, a.summary)
		}
	}
	s.recorder.AddFinding(finding(1, at(11)))
	a, err := explain(t, conn, &tracev1.ExplainRequest{Since: timestamppb.New(at(5))})
	if err != nil || a.summary.GetVerdict() != "fault" || a.summary.GetLostEvents() != 5 {
		t.Errorf("a finding and a loss: %v, %v", a.summary, err)
	}
}

func TestExplainSettlesFirst(t *testing.T) {
	s := newSource()
	s.settle = func(context.Context) error {
		s.recorder.AddFinding(finding(1, at(1)))
		return nil
	}
	conn, _ := serve(t, s)
	if a, err := explain(t, conn, &tracev1.ExplainRequest{}); err != nil || a.summary.GetVerdict() != "fault" {
		t.Errorf("what settling found is not in the answer: %v, %v", a.summary, err)
	}
	s.settle = func(context.Context) error { return errors.New("pipeline is gone") }
	if _, err := explain(t, conn, &tracev1.ExplainRequest{}); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "pipeline is gone") {
		t.Errorf("settling failed: %v", err)
	}
	s.settle = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	stream, err := tracev1.NewTracerClient(conn).Explain(ctx, &tracev1.ExplainRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("the client's deadline: %v", err)
	}
}

func TestBadRequests(t *testing.T) {
	conn, _ := serve(t, newSource())
	_, err := explain(t, conn, &tracev1.ExplainRequest{Filter: "tcp host port"})
	if status.Code(err) != codes.InvalidArgument || status.Convert(err).Message() != `filter: column 10: expected an address after "host", got "port"` {
		t.Errorf("Explain with a bad filter: %v", err)
	}
	_, err = explain(t, conn, &tracev1.ExplainRequest{Since: &timestamppb.Timestamp{Nanos: -1}})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("Explain since an impossible time: %v", err)
	}
	_, err = explain(t, conn, &tracev1.ExplainRequest{Filter: strings.Repeat("x", maxRequest+1)})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("Explain with a huge request: %v", err)
	}
	stream, err := tracev1.NewTracerClient(conn).Watch(context.Background(), &tracev1.WatchRequest{Filter: "("})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("Watch with a bad filter: %v", err)
	}
}

// watching starts a watch and returns when it is subscribed.
func watching(t *testing.T, conn *grpc.ClientConn, request *tracev1.WatchRequest) tracev1.Tracer_WatchClient {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	stream, err := tracev1.NewTracerClient(conn).Watch(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	return stream
}

func receive(t *testing.T, stream tracev1.Tracer_WatchClient) *tracev1.WatchResponse {
	t.Helper()
	response, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return response
}

func TestWatch(t *testing.T) {
	s := newSource()
	conn, _ := serve(t, s)
	findings := watching(t, conn, &tracev1.WatchRequest{Filter: "host 198.51.100.2"})
	flows := watching(t, conn, &tracev1.WatchRequest{Flows: true})

	s.recorder.AddPath(path(1, at(1)))
	s.recorder.AddFinding(finding(1, at(1)))
	s.recorder.AddFinding(finding(2, at(2))) // merged: told half a second later
	s.recorder.AddFinding(finding(3, at(3)))

	if p := receive(t, flows).GetPath(); p.GetClient() != "198.51.100.1:40000" {
		t.Errorf("path %v", p)
	}
	if f := receive(t, flows).GetFinding(); f.GetCount() != 1 {
		t.Errorf("finding %v", f)
	}
	if f := receive(t, flows).GetFinding(); f.GetCount() != 3 {
		t.Errorf("finding %v", f)
	}
	f := receive(t, findings).GetFinding()
	if f.GetCount() != 1 || f.GetPath().GetClient() != "198.51.100.2:40000" || f.GetSummary() != "client 2" {
		t.Errorf("with a filter: %v", f)
	}
	time.Sleep(600 * time.Millisecond)
	s.recorder.AddFinding(finding(3, at(4))) // nothing new of client 2
	time.Sleep(600 * time.Millisecond)
	s.recorder.AddFinding(finding(2, at(5)))
	if f := receive(t, findings).GetFinding(); f.GetCount() != 2 {
		t.Errorf("the second message with a filter: %v", f)
	}
}

func TestWatchTellsOfLosses(t *testing.T) {
	s := newSource()
	conn, _ := serve(t, s)
	stream := watching(t, conn, &tracev1.WatchRequest{Flows: true})
	const total = 100_000 // more than the buffers of gRPC and the socket hold
	for n := range total {
		p := path(n%250, at(1))
		p.First = at(float64(n))
		s.recorder.AddPath(p)
	}
	marker := finding(1, at(1))
	got, lost := 0, 0
	for finished := false; !finished; {
		response := receive(t, stream)
		switch {
		case response.GetPath() != nil:
			got++
		case response.GetLostEvents() != nil:
			lost += int(response.GetLostEvents().GetCount())
			if cause := response.GetLostEvents().GetCause(); cause != "slow_reader" {
				t.Errorf("cause %q", cause)
			}
		case response.GetFinding() != nil:
			finished = true
		}
		if got+lost == total {
			s.recorder.AddFinding(marker)
		}
	}
	if lost == 0 || got == 0 || got+lost != total {
		t.Errorf("%d paths, %d lost, want %d together", got, lost, total)
	}
}

func TestWatchEndsWithTheAgent(t *testing.T) {
	s := newSource()
	conn, stop := serve(t, s)
	stream := watching(t, conn, &tracev1.WatchRequest{})
	began := time.Now()
	if err := stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 900*time.Millisecond {
		t.Errorf("stopping took %v: the watch held it up", took)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the watch ended with %v", err)
	}
}

func TestWatchEndsWithTheRecorder(t *testing.T) {
	s := newSource()
	conn, _ := serve(t, s)
	stream := watching(t, conn, &tracev1.WatchRequest{})
	s.recorder.Close()
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the watch ended with %v", err)
	}
}

func TestStatus(t *testing.T) {
	s := newSource()
	s.losses.Observe(at(1), map[string]uint64{"ring_full": 5})
	s.recorder.AddPath(path(1, at(1)))
	conn, _ := serve(t, s)
	response, err := tracev1.NewTracerClient(conn).Status(context.Background(), &tracev1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	n := response.GetNodes()[0]
	if n.GetName() != "node-1" || n.GetTier() != "base" || n.GetEvents() != 42 || n.GetLivePaths() != 3 || n.GetKeptPaths() != 1 ||
		len(n.GetHooks()) != 2 || n.GetHooks()[1].GetReason() == "" || n.GetLosses()[0].GetCount() != 5 || !n.GetStarted().AsTime().Equal(at(0)) {
		t.Errorf("status %v", n)
	}
}

func TestHealthAndReflection(t *testing.T) {
	conn, _ := serve(t, newSource())
	ctx := context.Background()
	for _, name := range []string{"", "replypath.trace.v1.Tracer"} {
		health, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{Service: name})
		if err != nil || health.GetStatus() != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("health of %q: %v, %v", name, health, err)
		}
	}
	stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	response, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(response.String(), "replypath.trace.v1.Tracer") {
		t.Errorf("reflection lists %v", response)
	}
	_ = stream.CloseSend()
}

// TestStopDeadline: an answer that does not end is cut off.
func TestStopDeadline(t *testing.T) {
	s := newSource()
	settling := make(chan struct{})
	s.settle = func(ctx context.Context) error {
		close(settling)
		<-ctx.Done()
		return ctx.Err()
	}
	conn, stop := serve(t, s)
	go func() { _, _ = explain(t, conn, &tracev1.ExplainRequest{}) }()
	<-settling
	began := time.Now()
	_ = stop()
	if took := time.Since(began); took < 900*time.Millisecond || took > 5*time.Second {
		t.Errorf("stopping took %v, want the deadline of 1 s", took)
	}
}

// TestGivenListener serves a caller in the same process.
func TestGivenListener(t *testing.T) {
	pipe := bufconn.Listen(64 << 10)
	server, err := NewServer(Options{Source: newSource(), Listeners: []net.Listener{pipe}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	conn, err := grpc.NewClient("passthrough:///here", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return pipe.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	if a, err := explain(t, conn, &tracev1.ExplainRequest{}); err != nil || a.summary.GetVerdict() != "ok" {
		t.Errorf("%v, %v", a.summary, err)
	}
	_ = conn.Close()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
