package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

const (
	maxRequest  = 64 << 10 // bytes of a request; a filter has at most 4 KiB
	maxAnswer   = 4 << 20  // bytes of one message of an answer: what clients accept by default
	maxStreams  = 64       // of one connection
	stopTimeout = 3 * time.Second
)

// Options say what a Server serves, and where.
type Options struct {
	Source Source
	Listen []string // ParseEndpoint's form
	TLS    TLSFiles // for TCP
	// Listeners are open already, and need no protection: they do not leave this process.
	Listeners []net.Listener
	// StopTimeout is how long answers under way may take at the end; default 3 s.
	StopTimeout time.Duration
}

// Server serves the Tracer, health and reflection services.
type Server struct {
	listeners   []net.Listener
	servers     []*grpc.Server // one for each listener: credentials are a server's
	health      *health.Server
	stopping    chan struct{}
	stopTimeout time.Duration
}

// NewServer listens. The error says in one line why it cannot.
func NewServer(o Options) (*Server, error) {
	if len(o.Listen)+len(o.Listeners) == 0 {
		return nil, errors.New("no address to listen on")
	}
	s := &Server{health: health.NewServer(), stopping: make(chan struct{}), stopTimeout: o.StopTimeout}
	if s.stopTimeout <= 0 {
		s.stopTimeout = stopTimeout
	}
	node := sync.OnceValue(func() string { return text(o.Source.Status().Node) })
	tracer := &service{source: o.Source, node: node, stopping: s.stopping}
	for _, listener := range o.Listeners {
		s.listeners = append(s.listeners, listener)
		s.servers = append(s.servers, s.grpcServer(tracer, insecure.NewCredentials()))
	}
	for _, address := range o.Listen {
		listener, protection, err := listen(address, o.TLS)
		if err != nil {
			_ = s.Close()
			return nil, err
		}
		s.listeners = append(s.listeners, listener)
		s.servers = append(s.servers, s.grpcServer(tracer, protection))
	}
	s.health.SetServingStatus(tracev1.Tracer_ServiceDesc.ServiceName, healthv1.HealthCheckResponse_SERVING)
	return s, nil
}

// listen opens one address with the protection that it needs.
func listen(address string, files TLSFiles) (net.Listener, credentials.TransportCredentials, error) {
	e, err := ParseEndpoint(address)
	if err != nil {
		return nil, nil, err
	}
	if e.Network == "unix" {
		listener, err := listenUnix(e)
		return listener, insecure.NewCredentials(), err
	}
	config, err := files.config()
	if err != nil {
		return nil, nil, fmt.Errorf("listen on %s: %w", e, err)
	}
	listener, err := net.Listen("tcp", e.Address)
	if err != nil {
		return nil, nil, fmt.Errorf("listen on %s: %w", e, cause(err))
	}
	return listener, credentials.NewTLS(config), nil
}

func (s *Server) grpcServer(tracer tracev1.TracerServer, protection credentials.TransportCredentials) *grpc.Server {
	server := grpc.NewServer(
		grpc.Creds(protection),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxSendMsgSize(maxAnswer),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	)
	tracev1.RegisterTracerServer(server, tracer)
	healthv1.RegisterHealthServer(server, s.health)
	reflection.Register(server)
	return server
}

// Addresses returns where the server listens; for TCP with the port that it got.
func (s *Server) Addresses() []net.Addr {
	addresses := make([]net.Addr, len(s.listeners))
	for i, l := range s.listeners {
		addresses[i] = l.Addr()
	}
	return addresses
}

// Run serves until ctx ends. It then takes no more calls, ends the watches,
// and gives answers under way some time. Its sockets are gone when it returns.
func (s *Server) Run(ctx context.Context) error {
	defer func() { _ = s.Close() }()
	group, ctx := errgroup.WithContext(ctx)
	for i, server := range s.servers {
		group.Go(func() error {
			if err := server.Serve(s.listeners[i]); err != nil {
				return fmt.Errorf("serve on %s: %w", s.listeners[i].Addr(), err)
			}
			return nil
		})
	}
	group.Go(func() error {
		<-ctx.Done()
		s.stop()
		return nil
	})
	return group.Wait()
}

// String names the task.
func (s *Server) String() string { return "gRPC server" }

// stop ends the servers, first in peace.
func (s *Server) stop() {
	s.health.Shutdown()
	close(s.stopping)
	var stopped sync.WaitGroup
	for _, server := range s.servers {
		stopped.Go(func() {
			hard := time.AfterFunc(s.stopTimeout, server.Stop)
			defer hard.Stop()
			server.GracefulStop()
		})
	}
	stopped.Wait()
}

// Close frees the addresses of a server that was never run. Run does it itself.
func (s *Server) Close() error {
	var errs []error
	for _, l := range s.listeners {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
