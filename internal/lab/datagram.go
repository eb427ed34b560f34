package lab

import (
	"bytes"
	"context"
	"errors"
	"net"
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
	group sync.WaitGroup
}

// serveUDP opens the service's socket in the calling thread's namespace and begins to answer.
func (s Service) serveUDP(ctx context.Context) (*udpServer, error) {
	var config net.ListenConfig
	version := "udp4"
	if s.Address.Addr().Is6() {
		version = "udp6"
	}
	conn, err := config.ListenPacket(ctx, version, s.Address.String())
	if err != nil {
		return nil, err
	}
	if s.Deaf {
		return &udpServer{conn: conn.(*net.UDPConn)}, conn.(*net.UDPConn).SetReadBuffer(1)
	}
	return startUDP(conn.(*net.UDPConn)), nil
}

func startUDP(conn *net.UDPConn) *udpServer {
	s := &udpServer{conn: conn}
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
	}
}

func (s *udpServer) file() (*os.File, error) { return s.conn.File() }

func (s *udpServer) stop() {
	s.conn.Close()
	s.group.Wait()
}

// resend is how long a client waits for an answer before it asks again.
const resend = time.Second

// ask sends one datagram in the calling thread's namespace, again each second, until its echo comes.
func (c Client) ask(ctx context.Context) Outcome {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "udp", c.Server.String())
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
