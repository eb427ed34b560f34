package agent

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

// start runs a real agent until the test ends, and connects to it.
func start(t *testing.T, cfg Config) (client tracev1.TracerClient, stop func() error) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- Run(ctx, cfg, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		t.Fatalf("start agent: %v", err)
	}
	conn, err := grpc.NewClient(cfg.Listen[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		conn.Close()
	})
	return tracev1.NewTracerClient(conn), func() error { cancel(); return <-done }
}

func socket(t *testing.T) string { return "unix://" + filepath.Join(t.TempDir(), "run", "agent.sock") }

func TestRun(t *testing.T) {
	listen := socket(t)
	client, stop := start(t, Config{Node: "node-1", Listen: []string{listen}, Tier: "base"})
	status, err := client.Status(t.Context(), &tracev1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(status.Nodes) != 1 || status.Nodes[0].Name != "node-1" || status.Nodes[0].Tier != "base" || len(status.Nodes[0].Hooks) < 10 {
		t.Errorf("status = %v", status)
	}
	if err := stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if _, err := os.Stat(strings.TrimPrefix(listen, "unix://")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// A connection that is made and answered in this process's own namespace is a
// path without a finding, and it is there as soon as it is asked for.
func TestHealthyPath(t *testing.T) {
	client, _ := start(t, Config{Listen: []string{socket(t)}})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	answer, err := client.Explain(t.Context(), &tracev1.ExplainRequest{Filter: "port " + port, All: true})
	if err != nil {
		t.Fatal(err)
	}
	var paths []*tracev1.Path
	for {
		r, err := answer.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if f := r.GetFinding(); f != nil {
			t.Errorf("finding %v", f)
		}
		if p := r.GetPath(); p != nil {
			paths = append(paths, p)
		}
		if s := r.GetSummary(); s != nil {
			break
		}
	}
	if len(paths) != 1 || !paths[0].Answered || paths[0].Client != conn.LocalAddr().String() || paths[0].GetProcess().GetPid() != uint32(os.Getpid()) {
		t.Errorf("paths = %v", paths)
	}
}

// Namespaces may be busy with nobody listening to the agent; it must not take
// long to stop.
func TestStopIsPrompt(t *testing.T) {
	client, stop := start(t, Config{Listen: []string{socket(t)}})
	watch, err := client.Watch(t.Context(), &tracev1.WatchRequest{Flows: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Header(); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(started); took > 5*time.Second {
		t.Errorf("stopped after %v", took)
	}
}

func TestSecondAgent(t *testing.T) {
	listen := socket(t)
	start(t, Config{Listen: []string{listen}})
	err := Run(t.Context(), Config{Listen: []string{listen}}, func() { t.Error("ready") })
	if err == nil || !strings.Contains(err.Error(), "another agent listens") {
		t.Errorf("error = %v", err)
	}
}

func TestBadConfig(t *testing.T) {
	for name, cfg := range map[string]Config{
		"ring size": {RingBytes: 5000},
		"small":     {RingBytes: 16},
		"age":       {MaxAge: -1},
		"bytes":     {MaxBytes: -1},
		"large":     {RingBytes: 1 << 32},
		"nowhere":   {},
		"listen":    {Listen: []string{"nowhere"}},
		"metrics":   {Listen: []string{"unix:///x"}, MetricsListen: "9464"},
	} {
		if err := Run(t.Context(), cfg, func() { t.Error("ready") }); !errors.Is(err, ErrUsage) {
			t.Errorf("%s: error = %v", name, err)
		}
	}
}
