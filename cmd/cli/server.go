package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
	"github.com/replypath/replypath/internal/probe"
	"github.com/replypath/replypath/internal/stream"
)

const (
	defaultServer = "unix:///run/replypath/agent.sock"
	// dialTimeout bounds the look whether an agent listens.
	dialTimeout = 3 * time.Second
	// greetTimeout bounds the wait for an agent that listens, and still attaches its programs.
	greetTimeout = 15 * time.Second
	// answerTimeout bounds one question to an agent.
	answerTimeout = 30 * time.Second
	// maxMessage bounds one message from an agent, in bytes.
	maxMessage = 16 << 20
)

// server is the agent that the user wants to ask, or several.
type server struct {
	world            *world
	targets          []string // as the user said them; none: the default
	target           string   // the one to connect to
	cert, key, trust string   // PEM files
	named            bool     // the user said which, so nothing takes its place
	btf, tier        string   // of an agent in this process
	traceRules       bool     // by netfilter itself, in this process
	dnsPorts         []uint16 // of an agent in this process
}

func (s *server) flags(root *cobra.Command) {
	getenv := s.world.getenv
	f := root.PersistentFlags()
	f.StringSliceVar(&s.targets, "server", nil, "`agent` to ask: unix:///PATH or HOST:PORT; several, repeated or with commas between them, are asked together (env REPLYPATH_SERVER; default "+defaultServer+")")
	f.StringVar(&s.cert, "tls-cert", getenv("REPLYPATH_TLS_CERT"), "client certificate for HOST:PORT, PEM file (env REPLYPATH_TLS_CERT)")
	f.StringVar(&s.key, "tls-key", getenv("REPLYPATH_TLS_KEY"), "key of the client certificate, PEM file (env REPLYPATH_TLS_KEY)")
	f.StringVar(&s.trust, "tls-ca", getenv("REPLYPATH_TLS_CA"), "authority of the agent's certificate, PEM file (env REPLYPATH_TLS_CA)")
	f.StringVar(&s.btf, "btf", getenv("REPLYPATH_BTF"), "without an agent: file with the BTF of this kernel, for kernels that do not show their own (env REPLYPATH_BTF)")
	f.StringVar(&s.tier, "tier", cmp.Or(getenv("REPLYPATH_TIER"), string(probe.TierAuto)), "without an agent: hooks to use, base (tracepoints) or auto (kernel functions too, where they can be followed) (env REPLYPATH_TIER)")
	for _, name := range []string{"tls-cert", "tls-key", "tls-ca", "btf"} {
		f.Lookup(name).DefValue = "" // help is the same for everybody
	}
	f.Lookup("tier").DefValue = string(probe.TierAuto)
}

// connection is an agent that answers, running elsewhere or in this process.
type connection struct {
	tracev1.TracerClient
	server   string // as it is told to the user
	local    bool   // it is on this machine
	embedded bool
	conn     *grpc.ClientConn
	stop     func()
	died     <-chan struct{} // closed when the agent in this process has ended; nil for one elsewhere
	cause    func() error    // why it ended
}

// close ends the connection and, if it is in this process, the agent.
func (c *connection) close() {
	if c.conn != nil {
		c.conn.Close()
	}
	if c.stop != nil {
		c.stop()
	}
}

// failure puts into words why a call failed.
func (c *connection) failure(err error) error {
	select {
	case <-c.died:
		return c.ended()
	default:
		return callError(c.server, err)
	}
}

// ended says why the agent in this process ended.
func (c *connection) ended() error {
	if cause := c.cause(); cause != nil {
		return noAgentf("tracing ended: %w", cause)
	}
	return noAgentf("tracing ended")
}

// connect finds the agents, or becomes one.
func (s *server) connect(ctx context.Context) (*connection, error) {
	s.resolve()
	if s.traceRules {
		return s.embedTracingRules(ctx)
	}
	if len(s.targets) > 1 {
		return s.connectAll(ctx)
	}
	return s.connectOne(ctx)
}

// connectOne finds the agent at the target, or becomes it.
func (s *server) connectOne(ctx context.Context) (*connection, error) {
	at, err := s.endpoint()
	if err != nil {
		return nil, err
	}
	if at.Network == "tcp" {
		return s.connectTLS(at.Address)
	}
	path := at.Address
	err = s.knock(ctx, path)
	switch {
	case err == nil:
		return s.connectSocket(path)
	case ctx.Err() != nil:
		return nil, noAgentf("interrupted")
	case errors.Is(err, os.ErrPermission):
		return nil, noAgentf("not allowed to ask the agent at %s: run this as root (sudo replypath …)", s.target)
	case s.named:
		return nil, noAgentf("no agent answers at %s: %v", s.target, innermost(err))
	case s.world.euid() != 0:
		return nil, noAgentf("no agent runs here (%s: %v): start replypath-agent, or run this as root (sudo replypath …) to trace without one",
			path, innermost(err))
	}
	return s.embed(ctx)
}

// resolve settles which server is meant: flag, then environment, then the default.
func (s *server) resolve() {
	if env := s.world.getenv("REPLYPATH_SERVER"); env != "" && len(s.targets) == 0 {
		s.targets = strings.Split(env, ",")
	}
	s.named = len(s.targets) > 0
	s.target = defaultServer
	if s.named {
		s.target = s.targets[0]
	}
}

// endpoint reads where the agent is to be found. Besides what an agent takes as
// the place to listen, a client may say unix:/path and host:port.
func (s *server) endpoint() (stream.Endpoint, error) {
	text := s.target
	if path, ok := strings.CutPrefix(text, "unix:"); ok {
		at, err := stream.ParseEndpoint("unix://" + strings.TrimPrefix(path, "//"))
		if err != nil {
			return at, usagef("server: %w", err)
		}
		return at, nil
	}
	if !strings.Contains(text, "://") {
		text = "tcp://" + text
	}
	at, err := stream.ParseEndpoint(text)
	if err == nil {
		host, port, _ := net.SplitHostPort(at.Address)
		if number, _ := strconv.Atoi(port); number > 0 && host != "" && !strings.ContainsFunc(host, notInHost) {
			return at, nil
		}
	}
	return at, usagef("server %q is neither unix:///PATH nor HOST:PORT", s.target)
}

// notInHost reports what no name or address of a host holds (RFC 3986, sections 2.2 and 3.2.2).
func notInHost(r rune) bool {
	return !unicode.IsGraphic(r) || unicode.IsSpace(r) || strings.ContainsRune(`/?#@[]\"<>`, r)
}

// knock reports whether somebody listens on the socket.
func (s *server) knock(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := s.world.dial(ctx, "unix", path)
	if err != nil {
		return err
	}
	return conn.Close()
}

func (s *server) connectSocket(path string) (*connection, error) {
	dial := func(ctx context.Context, _ string) (net.Conn, error) { return s.world.dial(ctx, "unix", path) }
	conn, err := newConn("passthrough:///agent", insecure.NewCredentials(), grpc.WithContextDialer(dial), grpc.WithAuthority("localhost"))
	if err != nil {
		return nil, noAgentf("connect to %s: %w", s.target, err)
	}
	return &connection{TracerClient: tracev1.NewTracerClient(conn), server: s.target, local: true, conn: conn}, nil
}

func (s *server) connectTLS(address string) (*connection, error) {
	if s.cert == "" || s.key == "" || s.trust == "" {
		return nil, usagef("server %s is reached by TLS: --tls-cert, --tls-key and --tls-ca are needed", s.target)
	}
	creds, err := s.credentials()
	if err != nil {
		return nil, err
	}
	conn, err := newConn("dns:///"+address, creds)
	if err != nil {
		return nil, noAgentf("connect to %s: %w", s.target, err)
	}
	return &connection{TracerClient: tracev1.NewTracerClient(conn), server: s.target, conn: conn}, nil
}

func (s *server) credentials() (credentials.TransportCredentials, error) {
	cert, err := tls.LoadX509KeyPair(s.cert, s.key)
	if err != nil {
		return nil, usagef("read client certificate: %w", err)
	}
	pem, err := os.ReadFile(s.trust)
	if err != nil {
		return nil, usagef("read certificate authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, usagef("read certificate authority: %s holds no PEM certificate", s.trust)
	}
	return credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, MinVersion: tls.VersionTLS13}), nil
}

func newConn(target string, creds credentials.TransportCredentials, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	opts = append(opts, grpc.WithTransportCredentials(creds), grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: greetTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	return grpc.NewClient(target, opts...)
}
