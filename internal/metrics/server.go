package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	maxScrapes    = 4 // at once
	scrapeTimeout = 10 * time.Second
	stopTimeout   = 3 * time.Second
)

// Handler serves /metrics, /healthz (the process answers) and /readyz (it does
// its work: ready gives nil, else the error says in a line why not).
func Handler(gatherer prometheus.Gatherer, ready func() error) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{
		MaxRequestsInFlight: maxScrapes,
		Timeout:             scrapeTimeout,
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, nil) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { answer(w, ready()) })
	return mux
}

// answer says "ok", or why not.
func answer(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, err.Error()+"\n")
		return
	}
	_, _ = io.WriteString(w, "ok\n")
}

// Server serves a handler on one address.
type Server struct {
	listener net.Listener
	http     *http.Server
}

// NewServer listens on "host:port".
func NewServer(address string, handler http.Handler) (*Server, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		var operation *net.OpError
		if errors.As(err, &operation) {
			err = operation.Err // the message names the address itself
		}
		return nil, fmt.Errorf("listen on %s for metrics: %w", address, err)
	}
	return &Server{listener: listener, http: &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute, // longer than the usual interval of scrapes
		MaxHeaderBytes:    16 << 10,
	}}, nil
}

// Address returns where it listens, with the port that it got.
func (s *Server) Address() net.Addr { return s.listener.Addr() }

// Run serves until ctx ends, and gives answers under way some time then.
func (s *Server) Run(ctx context.Context) error {
	stopped := make(chan error, 1)
	defer context.AfterFunc(ctx, func() {
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		err := s.http.Shutdown(bounded)
		if errors.Is(err, context.DeadlineExceeded) {
			err = s.http.Close()
		}
		stopped <- err
	})()
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return <-stopped
}

// Close frees the address of a server that was never run. Run does it itself.
func (s *Server) Close() error {
	if err := s.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// String names the task.
func (s *Server) String() string { return "metrics server" }
