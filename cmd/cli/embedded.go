package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
	"github.com/replypath/replypath/internal/agent"
	"github.com/replypath/replypath/internal/probe"
)

// embedding is how an agent runs in this process: it serves on a listener in
// memory, and says when it traces.
type embedding struct {
	listener  net.Listener
	btf, tier string // see agent.Config
	log       *slog.Logger
	ready     func()
	rules     func(string) // see agent.Config.TraceRules
	dnsPorts  []uint16     // see agent.Config
}

// runAgent runs an agent until the context ends. It serves nothing but the given listener.
func runAgent(ctx context.Context, e embedding) error {
	return agent.Run(ctx, agent.Config{Listeners: []net.Listener{e.listener}, BTF: e.btf, Tier: e.tier, Log: e.log, TraceRules: e.rules, DNSPorts: e.dnsPorts}, e.ready)
}

const (
	// pipeSize is the buffer of the in-memory connection, in bytes.
	pipeSize = 1 << 20
	// stopTimeout is how long an agent in this process may take to detach.
	stopTimeout = 10 * time.Second
)

// embed runs an agent in this process and connects to it. The context only
// bounds the start: the agent runs until close, so that an interrupted trace
// can still be explained.
func (s *server) embed(ctx context.Context) (*connection, error) {
	if _, err := probe.ParseTier(s.tier); err != nil {
		return nil, usagef("--tier: %v", err)
	}
	var rules func(string)
	if s.traceRules {
		rules = func(text string) { s.world.note("%s", text) }
	} else {
		s.world.note("no agent at %s: tracing in this process instead", s.target)
	}
	listener := bufconn.Listen(pipeSize)
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ready, died := make(chan struct{}), make(chan struct{})
	var cause error // read after died is closed
	go func() {
		defer close(died)
		log := slog.New(slog.NewTextHandler(s.world.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
		cause = s.world.trace(running, embedding{listener, s.btf, s.tier, log, sync.OnceFunc(func() { close(ready) }), rules, s.dnsPorts})
	}()
	stop := func() {
		cancel()
		select {
		case <-died:
		case <-time.After(stopTimeout):
			s.world.note("tracing did not stop within %v", stopTimeout)
		}
		listener.Close()
	}
	select {
	case <-ready:
	case <-died:
		stop()
		return nil, startError(cause)
	case <-ctx.Done():
		stop()
		return nil, noAgentf("interrupted")
	}
	dial := func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }
	conn, err := newConn("passthrough:///embedded", insecure.NewCredentials(), grpc.WithContextDialer(dial))
	if err != nil {
		stop()
		return nil, noAgentf("connect to this process: %w", err)
	}
	return &connection{
		TracerClient: tracev1.NewTracerClient(conn), server: "this process", embedded: true,
		conn: conn, stop: stop, died: died, cause: func() error { return cause },
	}, nil
}

func startError(err error) error {
	switch {
	case err == nil:
		return noAgentf("tracing ended before it began")
	case errors.Is(err, agent.ErrUnsupported):
		return noAgentf("%w", err)
	}
	return noAgentf("start tracing: %w", err)
}
