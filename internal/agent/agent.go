package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/internal/metrics"
	"github.com/replypath/replypath/internal/netfilter"
	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/internal/probe"
	"github.com/replypath/replypath/internal/recorder"
	"github.com/replypath/replypath/internal/stream"
	"github.com/replypath/replypath/internal/version"
)

// Defaults of Config, as the command line shows them.
const (
	DefaultListen        = "unix:///run/replypath/agent.sock"
	DefaultMetricsListen = "127.0.0.1:9464"
	DefaultMaxAge        = 10 * time.Minute
	DefaultMaxBytes      = 16 << 20
	DefaultRingBytes     = 8 << 20
)

// maxRingBytes is far more than a reader that keeps up ever needs.
const maxRingBytes = 1 << 30

// ErrUnsupported says that this kernel, or these privileges, do not allow to
// trace. The error that wraps it is one line that names what is missing.
var ErrUnsupported = probe.ErrUnsupported

// ErrUsage says that the configuration cannot be meant so.
var ErrUsage = errors.New("bad configuration")

// Config of an agent. Zero values take the defaults, but for the addresses.
type Config struct {
	Node          string          // its name in findings; default: the host's name
	Listen        []string        // gRPC: "unix:///path" or "tcp://host:port"
	Listeners     []net.Listener  // gRPC: open already, for callers in this process
	TLS           stream.TLSFiles // for tcp://
	MetricsListen string          // "host:port"; "": none
	MaxAge        time.Duration   // of what is kept
	MaxBytes      int             // of what is kept
	RingBytes     int             // ring buffer, a power of two
	BTF           string          // file with the kernel's types; "": the kernel's own
	Tier          string          // "auto" or "base"; "": auto
	Log           *slog.Logger
	// DNSPorts are those that DNS is spoken on, beside 53 and those that 53 is redirected to.
	DNSPorts []uint16
	// DNSNames is how many names of DNS queries metrics count apart; 0: none.
	DNSNames int
	// NamespaceEvents is how many events of DNS and drops a second each network namespace may give on each CPU; 0: 50,000.
	NamespaceEvents int
	// TraceRules is told what is added where to trace rules that drop packets; nil: rules are not traced.
	TraceRules func(string)
}

func (c *Config) setDefaults() error {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Node == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("find the node's name: %w", err)
		}
		c.Node = name
	}
	if c.RingBytes == 0 {
		c.RingBytes = DefaultRingBytes
	}
	if page := os.Getpagesize(); c.RingBytes < page || c.RingBytes > maxRingBytes || c.RingBytes&(c.RingBytes-1) != 0 {
		return fmt.Errorf("%w: ring buffer of %d bytes: want a power of two from %d to %d", ErrUsage, c.RingBytes, page, maxRingBytes)
	}
	if len(c.Listen)+len(c.Listeners) == 0 {
		return fmt.Errorf("%w: no address to listen on", ErrUsage)
	}
	if c.MetricsListen != "" {
		if _, _, err := net.SplitHostPort(c.MetricsListen); err != nil {
			return fmt.Errorf("%w: listen on %q for metrics: want host:port", ErrUsage, c.MetricsListen)
		}
	}
	for _, address := range c.Listen {
		e, err := stream.ParseEndpoint(address)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUsage, err)
		}
		if e.Network == "tcp" && c.TLS == (stream.TLSFiles{}) {
			return fmt.Errorf("%w: listen on %s: TCP needs mutual TLS: a certificate, its key and the clients' CA", ErrUsage, e)
		}
	}
	if c.Tier == "" {
		c.Tier = string(probe.TierAuto)
	}
	if _, err := probe.ParseTier(c.Tier); err != nil {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	if c.MaxAge < 0 || c.MaxBytes < 0 {
		return fmt.Errorf("%w: negative bound on what is kept", ErrUsage)
	}
	return nil
}

// task is a part of the agent that runs until the context is done.
type task interface {
	Run(ctx context.Context) error
	String() string
}

// Run traces and serves until ctx is done. It calls ready once, when all hooks
// are attached and all addresses are served. The error is nil when ctx ended it.
func Run(ctx context.Context, cfg Config, ready func()) error {
	if err := cfg.setDefaults(); err != nil {
		return err
	}
	a, err := newAgent(cfg)
	if err != nil {
		return err
	}
	defer a.close()
	g, ctx := errgroup.WithContext(ctx)
	for _, t := range a.tasks {
		g.Go(func() error {
			if err := t.Run(ctx); err != nil {
				return fmt.Errorf("%s: %w", t, err)
			}
			return nil
		})
	}
	a.ready.Store(true)
	ready()
	return g.Wait()
}

// newAgent opens everything, or nothing.
func newAgent(cfg Config) (_ *agent, err error) {
	a := &agent{node: cfg.Node, started: time.Now(), log: cfg.Log}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	// Addresses first: a second agent must fail before it attaches anything.
	serving := stream.Options{Source: a, Listen: cfg.Listen, Listeners: cfg.Listeners, TLS: cfg.TLS}
	server, err := stream.NewServer(serving)
	if err != nil {
		return nil, err
	}
	a.closers = append(a.closers, server.Close)
	if a.places, err = netstate.NewDirectory(); err != nil {
		return nil, fmt.Errorf("read the names of network namespaces: %w", err)
	}
	a.reader = netstate.NewReader(a.places, netfilter.Verdicts)
	a.closers = append(a.closers, a.reader.Close)
	a.recorder = recorder.New(recorder.Config{MaxAge: cfg.MaxAge, MaxBytes: cfg.MaxBytes})
	if a.probe, err = probe.Open(probe.Config{RingBytes: cfg.RingBytes, BTF: cfg.BTF, Tier: probe.Tier(cfg.Tier), DNSPorts: cfg.DNSPorts, NamespaceEvents: cfg.NamespaceEvents}); err != nil {
		return nil, err
	}
	a.closers = append(a.closers, a.probe.Close)
	a.investigator = newInvestigator(cfg.Node, a.reader, a.places, a.recorder, cfg.Log)
	if cfg.TraceRules != nil {
		a.investigator.tracer = newRuleTracer(a.places, cfg.TraceRules)
	}
	a.pipeline = newPipeline(a.probe, a.places, a.recorder, a.investigator, cfg.DNSNames, cfg.Log)
	a.tasks = []task{a.pipeline, a.investigator, server, &lossWatch{a}, hookWatch{a.probe}}
	if cfg.MetricsListen != "" {
		m, err := metrics.NewServer(cfg.MetricsListen, metrics.Handler(metrics.NewRegistry(a), a.isReady))
		if err != nil {
			return nil, err
		}
		a.closers = append(a.closers, m.Close)
		a.tasks = append(a.tasks, m)
	}
	a.logHooks()
	// Reading the kernel's BTF took some 30 MB that are not needed again.
	debug.FreeOSMemory()
	return a, nil
}

// logHooks warns of hooks that are missed. What the kernel does not have is
// nobody's fault, and what only the plus tier has is not needed.
func (a *agent) logHooks() {
	attached := 0
	for _, h := range a.probe.Status() {
		level := slog.LevelDebug
		switch {
		case h.State == probe.Attached:
			attached++
			if h.Reason != "" {
				a.log.Warn("hook of little use", "hook", h.Name, "reason", h.Reason)
			}
			continue
		case h.State == probe.Refused && !h.Optional:
			level = slog.LevelWarn
		}
		a.log.Log(context.Background(), level, "hook not attached", "hook", h.Name, "state", h.State, "reason", h.Reason)
	}
	if !probe.HasCapability(unix.CAP_SYS_ADMIN) {
		a.log.Warn("without CAP_SYS_ADMIN other network namespaces cannot be asked: findings there will be fewer, and less certain")
	}
	a.log.Info("tracing", "node", a.node, "version", version.String(), "kernel", kernelRelease(), "tier", a.probe.Tier(), "hooks", attached)
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}
