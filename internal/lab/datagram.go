package lab

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// maxDatagram is the largest payload of a UDP datagram, in bytes (RFC 768).
const maxDatagram = 65507

// udpServer sends every datagram back to where it came from.
type udpServer struct {
	conn  *net.UDPConn
	again time.Duration // it sends each answer once more after this time; 0: it does not
	group sync.WaitGroup
}

// listenUDP opens the service's socket in the calling thread's namespace.
func (s Service) listenUDP(ctx context.Context) (*net.UDPConn, error) {
	var config net.ListenConfig
	version := "udp4"
	if s.Address.Addr().Is6() {
		version = "udp6"
	}
	conn, err := config.ListenPacket(ctx, version, s.Address.String())
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

// serveUDP opens the service's socket and begins to answer.
func (s Service) serveUDP(ctx context.Context) (*udpServer, error) {
	conn, err := s.listenUDP(ctx)
	if err != nil {
		return nil, err
	}
	if s.Deaf {
		return &udpServer{conn: conn}, conn.SetReadBuffer(1)
	}
	return startUDP(conn, s.Again), nil
}

func startUDP(conn *net.UDPConn, again time.Duration) *udpServer {
	s := &udpServer{conn: conn, again: again}
	s.group.Go(s.echo)
	return s
}

// echo answers until the socket is closed. That one answer has no way is what labs are about.
func (s *udpServer) echo() {
	buffer := make([]byte, maxDatagram)
	for {
		n, from, err := s.conn.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			s.conn.WriteToUDPAddrPort(buffer[:n], from)
		}
		if err == nil && s.again > 0 {
			late := bytes.Clone(buffer[:n])
			time.AfterFunc(s.again, func() { s.conn.WriteToUDPAddrPort(late, from) }) // fails once it is closed
		}
	}
}

func (s *udpServer) file() (*os.File, error) { return s.conn.File() }

func (s *udpServer) stop() {
	s.conn.Close()
	s.group.Wait()
}

// resend is how long a client waits for an answer before it asks again.
const resend = time.Second

// openConn is a socket that is connected to nobody, and minds who answers by itself, as resolvers do.
type openConn struct {
	*net.UDPConn
	server netip.AddrPort
}

func (c Client) open(ctx context.Context) (net.Conn, error) {
	var config net.ListenConfig
	conn, err := config.ListenPacket(ctx, "udp", ":0")
	if err != nil {
		return nil, err
	}
	return openConn{conn.(*net.UDPConn), c.Server}, nil
}

func (c openConn) Write(b []byte) (int, error) { return c.WriteToUDPAddrPort(b, c.server) }

// Read takes what comes from the server, and nothing else.
func (c openConn) Read(b []byte) (int, error) {
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil || netip.AddrPortFrom(from.Addr().Unmap(), from.Port()) == c.server {
			return n, err
		}
	}
}

// ask sends one datagram in the calling thread's namespace, again each second, until its echo comes.
// Of two lines the second one comes by itself, after between was called.
func (c Client) ask(ctx context.Context, between func()) Outcome {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "udp", c.Server.String())
	if c.Open {
		conn, err = c.open(ctx)
	}
	if err != nil {
		return failure(err)
	}
	defer conn.Close()
	question := bytes.Repeat([]byte("where did my reply go? "), max(1, c.Payload/23))
	answer := make([]byte, len(question)+1)
	outcome := Timeout
	for until := time.Now().Add(c.Timeout); time.Now().Before(until) && ctx.Err() == nil; {
		sent := time.Now()
		for range max(1, c.Burst) {
			if _, err := conn.Write(question); err != nil {
				outcome = failure(err)
			}
		}
		conn.SetReadDeadline(sent.Add(resend))
		n, err := conn.Read(answer)
		switch {
		case err == nil && string(answer[:n]) == string(question) && c.Lines > 1:
			between()
			conn.SetReadDeadline(time.Now().Add(c.Timeout))
			if n, err := conn.Read(answer); err != nil || string(answer[:n]) != string(question) {
				return Broken
			}
			return Connected
		case err == nil && string(answer[:n]) == string(question):
			return Connected
		case err == nil:
			return Broken
		case !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, syscall.EAGAIN):
			outcome = failure(err)
			pause(ctx, time.Until(sent.Add(resend)))
		}
	}
	return outcome
}
