package check

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// probePatience outlives the kernel's three requests for a neighbour, one second apart.
	probePatience = 3500 * time.Millisecond
	discardPort   = 9 // RFC 863
)

// Probe really sends packets out of the namespace that answers, as the VIP, and
// tells what became of them: an empty UDP datagram to the client, for which the
// next hop has to answer ARP or ND, then an echo request, and one as big as the
// way begins. It is the only thing here that sends packets. lost is what it found
// that can be found in no other way; "" for nothing.
func (c *Checker) Probe(ctx context.Context, q Question) (told []string, lost string, err error) {
	first, err := c.datagram(ctx, &q)
	if err != nil {
		return nil, "", err
	}
	told = append(told, first)
	pings, lost := c.pings(ctx, &q)
	return append(told, pings...), lost, nil
}

// datagram sends one empty UDP datagram.
func (c *Checker) datagram(ctx context.Context, q *Question) (told string, err error) {
	to := q.Client
	if to.Port() == 0 {
		to = netip.AddrPortFrom(to.Addr(), discardPort)
	}
	var conn net.Conn
	var failed error
	err = c.reader.Inside(ctx, q.From, func() error {
		dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error { return setMark(raw, q.Mark) }}
		if q.Server.Addr().IsValid() {
			dialer.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(q.Server.Addr(), 0))
		}
		conn, failed = dialer.DialContext(ctx, "udp", to.String())
		return nil
	})
	if err != nil {
		return "", err
	}
	if failed != nil {
		return fmt.Sprintf("probe: no UDP datagram could be sent to %s: %v", to, innermost(failed)), nil
	}
	defer conn.Close()
	what := fmt.Sprintf("probe: one UDP datagram from %s to %s", conn.LocalAddr(), to)
	if _, err := conn.Write(nil); err != nil {
		return fmt.Sprintf("%s could not be sent: %v", what, innermost(err)), nil
	}
	patience, cancel := context.WithTimeout(ctx, probePatience)
	defer cancel()
	stop := context.AfterFunc(patience, func() { conn.SetReadDeadline(time.Now()) })
	defer stop()
	switch _, err := conn.Read(make([]byte, 1)); {
	case err == nil:
		return what + " was answered", nil
	case errors.Is(err, unix.ECONNREFUSED):
		return what + " reached the client, which has no socket there and says so", nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return what + " was sent; nothing came back, which need not mean that it was lost", nil
	default:
		return fmt.Sprintf("%s was lost: %v", what, innermost(err)), nil
	}
}

// setMark gives a socket the firewall mark.
func setMark(raw syscall.RawConn, mark uint32) (err error) {
	if mark == 0 {
		return nil
	}
	failed := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark)) })
	return errors.Join(err, failed)
}

// innermost is the cause of an error without the names around it.
func innermost(err error) error {
	for next := err; next != nil; next = errors.Unwrap(next) {
		err = next
	}
	return err
}
