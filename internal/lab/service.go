package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// serve starts the lab's services.
func (n *Network) serve(ctx context.Context) error {
	for _, s := range n.lab.Topology.Services {
		if err := n.startService(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// startService starts one service. Its socket belongs to the host's namespace;
// the goroutines may run anywhere.
func (n *Network) startService(ctx context.Context, s Service) error {
	h, ok := n.hosts[s.Host]
	if !ok {
		return fmt.Errorf("serve on %s: no such host", s.Host)
	}
	var running server
	open := func() (err error) {
		switch {
		case s.DNS != nil:
			running, err = s.resolver(ctx, h.netns)
			return err
		case s.UDP:
			running, err = s.serveUDP(ctx)
			return err
		}
		listener, err := s.listen(ctx)
		if err == nil {
			running = start(listener, s.Host)
		}
		return err
	}
	err := enter(h.ns, open)
	// The service that had the port before is closed; a process that is just being started holds its socket until exec.
	for wait := time.Millisecond; errors.Is(err, syscall.EADDRINUSE) && wait < time.Second; wait *= 2 {
		time.Sleep(wait)
		err = enter(h.ns, open)
	}
	if err != nil {
		return fmt.Errorf("serve on %s: %w", s.Host, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.servers[s.Host] = append(n.servers[s.Host], running)
	return nil
}

// server answers on one socket.
type server interface {
	file() (*os.File, error) // a duplicate of the socket
	stop()                   // closes it, and waits for who answers
}

// listen opens the service's socket in the calling thread's namespace.
func (s Service) listen(ctx context.Context) (*net.TCPListener, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	version := "tcp4"
	switch {
	case s.Dual:
		version = "tcp"
	case s.Address.Addr().Is6():
		version = "tcp6"
	}
	listener, err := config.Listen(ctx, version, s.Address.String())
	if err != nil {
		return nil, err
	}
	return listener.(*net.TCPListener), nil
}

// stopService ends the services of a host.
func (n *Network) stopService(name string) error {
	n.mu.Lock()
	servers := n.servers[name]
	delete(n.servers, name)
	n.mu.Unlock()
	if len(servers) == 0 {
		return errors.New("no service to stop")
	}
	for _, s := range servers {
		s.stop()
	}
	return nil
}

// Limits of a service and of one connection to it.
const (
	serverPatience = 10 * time.Second
	serverAppetite = 64 << 10 // bytes
	serverWidth    = 256      // connections at once
)

// tcpServer answers on one listener.
type tcpServer struct {
	name     string // that it greets with
	listener *net.TCPListener

	mu      sync.Mutex
	open    map[net.Conn]struct{}
	stopped bool
	group   sync.WaitGroup
}

// start begins to answer.
func start(listener *net.TCPListener, name string) *tcpServer {
	s := &tcpServer{name: name, listener: listener, open: map[net.Conn]struct{}{}}
	s.group.Go(s.accept)
	return s
}

// accept answers connections until the listener is closed.
func (s *tcpServer) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		if !s.keep(conn) {
			conn.Close()
			continue
		}
		s.group.Go(func() {
			answer(conn, s.name)
			s.drop(conn)
		})
	}
}

// keep remembers an open connection, unless there are too many.
func (s *tcpServer) keep(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped || len(s.open) >= serverWidth {
		return false
	}
	s.open[conn] = struct{}{}
	return true
}

// drop closes a connection.
func (s *tcpServer) drop(conn net.Conn) {
	conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, conn)
}

func (s *tcpServer) file() (*os.File, error) { return s.listener.File() }

// stop closes the listener and every connection, and waits for those who answer.
func (s *tcpServer) stop() {
	s.listener.Close()
	s.mu.Lock()
	s.stopped = true
	for conn := range s.open {
		conn.Close()
	}
	s.mu.Unlock()
	s.group.Wait()
}

// answer echoes lines, or greets whoever speaks HTTP.
func answer(conn net.Conn, name string) {
	conn.SetDeadline(time.Now().Add(serverPatience))
	in := bufio.NewReader(io.LimitReader(conn, serverAppetite))
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		if strings.HasPrefix(line, "GET ") || strings.HasPrefix(line, "HEAD ") {
			greet(conn, in, line, name)
			return
		}
		if _, err := io.WriteString(conn, line); err != nil {
			return
		}
	}
}

// greet reads the rest of an HTTP request's head and answers it.
func greet(conn net.Conn, in *bufio.Reader, request, name string) {
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		if strings.TrimSpace(line) == "" {
			break
		}
	}
	body := "hello from " + name + "\n"
	fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", len(body))
	if strings.HasPrefix(request, "GET ") {
		io.WriteString(conn, body)
	}
}
