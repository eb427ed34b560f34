package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

// fakeTracer is an agent that knows its answers by heart: one JSON object a
// line, as `-o json` writes them. It is served by a real gRPC server.
type fakeTracer struct {
	tracev1.UnimplementedTracerServer
	answers []*tracev1.ExplainResponse
	nodes   []*tracev1.Node
	queries []*tracev1.DnsQuery
	watch   func(context.Context) error                                       // how a live stream ends
	explain func(*tracev1.ExplainRequest) ([]*tracev1.ExplainResponse, error) // nil: answers

	mu    sync.Mutex
	asked []proto.Message
}

// parseAnswers reads {"finding":…}, {"path":…}, {"summary":…}, {"query":…} and {"node":…} lines.
func parseAnswers(text string) (*fakeTracer, error) {
	f := &fakeTracer{watch: untilGone}
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		if node, ok := strings.CutPrefix(line, `{"node":`); ok {
			n := new(tracev1.Node)
			if err := protojson.Unmarshal([]byte(strings.TrimSuffix(strings.TrimSpace(node), "}")), n); err != nil {
				return nil, err
			}
			f.nodes = append(f.nodes, n)
			continue
		}
		if query, ok := strings.CutPrefix(line, `{"query":`); ok {
			q := new(tracev1.DnsQuery)
			if err := protojson.Unmarshal([]byte(strings.TrimSuffix(strings.TrimSpace(query), "}")), q); err != nil {
				return nil, err
			}
			f.queries = append(f.queries, q)
			continue
		}
		m := new(tracev1.ExplainResponse)
		if err := protojson.Unmarshal([]byte(line), m); err != nil {
			return nil, fmt.Errorf("line %s: %w", line, err)
		}
		f.answers = append(f.answers, m)
	}
	return f, nil
}

// untilGone keeps a live stream open until the client leaves.
func untilGone(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func (f *fakeTracer) note(m proto.Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, proto.Clone(m))
}

// requests returns the Explain requests so far.
func (f *fakeTracer) requests() []*tracev1.ExplainRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []*tracev1.ExplainRequest
	for _, m := range f.asked {
		if q, ok := m.(*tracev1.ExplainRequest); ok {
			list = append(list, q)
		}
	}
	return list
}

func (f *fakeTracer) Explain(q *tracev1.ExplainRequest, out grpc.ServerStreamingServer[tracev1.ExplainResponse]) error {
	f.note(q)
	answers := f.answers
	if f.explain != nil {
		var err error
		if answers, err = f.explain(q); err != nil {
			return err
		}
	}
	for _, m := range answers {
		if m.GetPath() != nil && !q.GetAll() {
			continue
		}
		if err := out.Send(m); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeTracer) Watch(q *tracev1.WatchRequest, out grpc.ServerStreamingServer[tracev1.WatchResponse]) error {
	f.note(q)
	if err := out.SendHeader(nil); err != nil {
		return err
	}
	for _, m := range f.answers {
		live := new(tracev1.WatchResponse)
		switch r := m.GetResult().(type) {
		case *tracev1.ExplainResponse_Finding:
			live.Result = &tracev1.WatchResponse_Finding{Finding: r.Finding}
		case *tracev1.ExplainResponse_Path:
			if !q.GetFlows() {
				continue
			}
			live.Result = &tracev1.WatchResponse_Path{Path: r.Path}
		default:
			continue
		}
		if err := out.Send(live); err != nil {
			return err
		}
	}
	return f.watch(out.Context())
}

func (f *fakeTracer) Status(context.Context, *tracev1.StatusRequest) (*tracev1.StatusResponse, error) {
	return &tracev1.StatusResponse{Nodes: f.nodes}, nil
}

// serve serves the fake on a listener until the returned function is called.
func (f *fakeTracer) serve(l net.Listener, opts ...grpc.ServerOption) (stop func()) {
	server := grpc.NewServer(opts...)
	tracev1.RegisterTracerServer(server, f)
	go server.Serve(l)
	return server.Stop
}

// socket serves the fake on a unix socket and returns the --server value.
func (f *fakeTracer) socket(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cli") // t.TempDir may be longer than a socket's path can be
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "agent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.serve(l))
	return "unix://" + path
}

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (f *fakeTracer) Queries(q *tracev1.DnsRequest, out grpc.ServerStreamingServer[tracev1.DnsResponse]) error {
	f.note(q)
	if err := out.SendHeader(nil); err != nil {
		return err
	}
	if len(f.queries) > 0 && !q.GetLossesOnly() {
		queries := &tracev1.DnsQueries{Queries: f.queries}
		if err := out.Send(&tracev1.DnsResponse{Result: &tracev1.DnsResponse_Queries{Queries: queries}}); err != nil {
			return err
		}
	}
	if q.GetFollow() {
		return f.watch(out.Context())
	}
	return out.Send(&tracev1.DnsResponse{Result: &tracev1.DnsResponse_End{End: &tracev1.DnsEnd{}}})
}
