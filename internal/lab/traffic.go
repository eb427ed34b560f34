package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"
)

// stagger is the time between the starts of two connections.
const stagger = 50 * time.Millisecond

// Traffic makes the lab's connections from its client. It returns nil when they
// were tried, whatever became of them: that is what Outcome says.
func (n *Network) Traffic(ctx context.Context) error {
	c := n.lab.Topology.Client
	h, ok := n.hosts[c.Host]
	if !ok {
		return fmt.Errorf("run traffic: no host %s", c.Host)
	}
	outcomes := make([]Outcome, c.Connects)
	failures := make([]error, c.Connects)
	var group sync.WaitGroup
	half := newHalfTime(c.Connects)
	group.Go(func() {
		half.players.Wait()
		pause(ctx, quietTime) // acknowledgements are still on their way
		n.change(n.lab.Midway)
		close(half.over)
	})
	for i := range c.Connects {
		group.Go(func() {
			arrived := sync.OnceFunc(half.players.Done)
			defer arrived()
			if !pause(ctx, time.Duration(i)*stagger) {
				return
			}
			failures[i] = enter(h.ns, func() error {
				switch {
				case c.Lookup != nil:
					outcomes[i] = c.resolve()
				case c.UDP:
					outcomes[i] = c.ask(ctx, func() { arrived(); <-half.over })
				default:
					outcomes[i] = c.connect(ctx, func() { arrived(); <-half.over })
				}
				return nil
			})
		})
	}
	group.Wait()
	if err := errors.Join(append(failures, ended(ctx))...); err != nil {
		return fmt.Errorf("run traffic: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.outcome = worst(outcomes)
	return nil
}

// Outcome says what became of the last Traffic: the first connection that failed, else Connected.
func (n *Network) Outcome() Outcome {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.outcome
}

// worst returns the first outcome that is not Connected.
func worst(outcomes []Outcome) Outcome {
	for _, o := range outcomes {
		if o != Connected {
			return o
		}
	}
	return Connected
}

// ended returns the context's error. A connect stops at the context's deadline
// by a timer of its own, which may be a moment ahead of the context's.
func ended(ctx context.Context) error {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= 0 {
		<-ctx.Done()
	}
	return ctx.Err()
}

// pause waits, and reports whether the context is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return ctx.Err() == nil
	}
}

// connect makes one connection in the calling thread's namespace: a line to the server and its echo.
// Between two lines it calls between.
func (c Client) connect(ctx context.Context, between func()) Outcome {
	dialer := net.Dialer{Timeout: c.Timeout}
	dialer.SetMultipathTCP(false)
	if c.First.IsValid() {
		if conn, err := dialer.DialContext(ctx, "tcp", c.First.String()); err == nil {
			conn.Close()
		}
	}
	conn, err := dialer.DialContext(ctx, "tcp", c.Server.String())
	if err != nil {
		return failure(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(c.Timeout))
	in := bufio.NewReader(conn)
	for i := range max(c.Lines, 1) {
		if i > 0 {
			between()
			conn.SetDeadline(time.Now().Add(c.Timeout))
		}
		if !c.exchange(conn, in) {
			return Broken
		}
	}
	if c.Abort {
		conn.(*net.TCPConn).SetLinger(0)
	}
	return Connected
}

// exchange sends a line and wants it back.
func (c Client) exchange(conn net.Conn, in *bufio.Reader) bool {
	line := "where did my reply go?\n"
	if c.Payload > len(line) {
		line = strings.Repeat("?", c.Payload-len(line)) + line
	}
	if _, err := io.WriteString(conn, line); err != nil {
		return false
	}
	echo, err := in.ReadString('\n')
	return err == nil && echo == line
}

// halfTime is when something may happen to the network: between two lines of its
// connections, once each has its first one back, or has failed.
type halfTime struct {
	players sync.WaitGroup // connections that are not there yet
	over    chan struct{}  // closed when it has happened
}

func newHalfTime(connections int) *halfTime {
	h := &halfTime{over: make(chan struct{})}
	h.players.Add(connections)
	return h
}

// quietTime is longer than a delayed acknowledgement (TCP_DELACK_MAX, include/net/tcp.h).
const quietTime = 500 * time.Millisecond

// change applies changes while traffic runs. One that fails shows in the outcome.
func (n *Network) change(changes []Change) {
	for _, c := range changes {
		_ = c.apply(n)
	}
}

// failure tells the outcome of a connect that failed.
func failure(err error) Outcome {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refused
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EACCES):
		return Unreachable
	}
	return Timeout
}
