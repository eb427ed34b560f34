package check

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// pingPatience is how long one echo may take.
const pingPatience = time.Second

// Types of ICMP and ICMPv6 echoes (RFC 792, RFC 4443).
const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
	icmpHeader               = 8
)

// pinger sends echo requests that may not be fragmented.
type pinger struct {
	fd    int
	six   bool
	id    uint16
	count uint16
}

// newPinger opens a socket in the calling thread's namespace.
func newPinger(q *Question) (p *pinger, err error) {
	p = &pinger{six: q.Client.Addr().Is6(), id: uint16(os.Getpid())}
	family, protocol := unix.AF_INET, unix.IPPROTO_ICMP
	if p.six {
		family, protocol = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	if p.fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol); err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(p.fd)
		}
	}()
	patience := unix.NsecToTimeval(pingPatience.Nanoseconds())
	level, discover, errs := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_RECVERR
	if p.six {
		level, discover, errs = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_RECVERR
	}
	err = errors.Join(
		unix.SetsockoptTimeval(p.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience),
		unix.SetsockoptInt(p.fd, level, discover, unix.IP_PMTUDISC_PROBE),
		unix.SetsockoptInt(p.fd, level, errs, 1))
	if q.Mark != 0 {
		err = errors.Join(err, unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_MARK, int(q.Mark)))
	}
	if err == nil && q.Server.Addr().IsValid() {
		err = unix.Bind(p.fd, socketAddress(q.Server.Addr()))
	}
	if err == nil {
		err = unix.Connect(p.fd, socketAddress(q.Client.Addr()))
	}
	return p, err
}

func socketAddress(a netip.Addr) unix.Sockaddr {
	if a.Is6() {
		return &unix.SockaddrInet6{Addr: a.As16()}
	}
	return &unix.SockaddrInet4{Addr: a.As4()}
}

// ping sends one echo request of a length, IP header included, and waits for its
// answer. EMSGSIZE says that a hop called it too big, EAGAIN that nothing came back.
func (p *pinger) ping(length int) error {
	ip := 20
	kind, answer := byte(echoRequest4), byte(echoReply4)
	if p.six {
		ip, kind, answer = 40, echoRequest6, echoReply6
	}
	p.count++
	b := make([]byte, max(length-ip, icmpHeader))
	b[0] = kind
	binary.BigEndian.PutUint16(b[4:], p.id)
	binary.BigEndian.PutUint16(b[6:], p.count)
	if !p.six {
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	if _, err := unix.Write(p.fd, b); err != nil {
		return err
	}
	in := make([]byte, 65536)
	for deadline := time.Now().Add(pingPatience); time.Now().Before(deadline); {
		n, err := unix.Read(p.fd, in)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		got := in[:max(n, 0)]
		if !p.six && len(got) > 0 {
			got = got[min(int(got[0]&0xf)*4, len(got)):]
		}
		if len(got) >= icmpHeader && got[0] == answer && binary.BigEndian.Uint16(got[4:]) == p.id && binary.BigEndian.Uint16(got[6:]) == p.count {
			return nil
		}
	}
	return unix.EAGAIN
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 != 0 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// smallPing is the length of one that passes every link.
const smallPing = 84

// pings sends a small echo request and, if that is answered, one as big as the
// device by which it leaves takes, neither to be fragmented. lost says that the
// big one came to nothing, and nobody said why.
func (c *Checker) pings(ctx context.Context, q *Question) (told []string, lost string) {
	var p *pinger
	var failed error
	err := c.reader.Inside(ctx, q.From, func() error {
		p, failed = newPinger(q)
		return nil
	})
	if err = errors.Join(err, failed); err != nil {
		return []string{fmt.Sprintf("probe: no echo request could be sent to %s: %v", q.Client.Addr(), innermost(err))}, ""
	}
	defer unix.Close(p.fd)
	what := fmt.Sprintf("probe: one echo request of %d bytes to %s", smallPing, q.Client.Addr())
	if err := p.ping(smallPing); err != nil {
		return []string{fmt.Sprintf("%s: %s", what, pingText(err))}, ""
	}
	told = append(told, what+" was answered")
	size := c.sizeTowards(ctx, q)
	if size <= smallPing || ctx.Err() != nil {
		return told, ""
	}
	what = fmt.Sprintf("probe: one echo request of %d bytes to %s, not to be fragmented", size, q.Client.Addr())
	switch err := p.ping(size); {
	case err == nil:
		told = append(told, what+", was answered")
	case errors.Is(err, unix.EAGAIN):
		told = append(told, what+", was sent; nothing came back")
		lost = fmt.Sprintf("packets of %d bytes to %s come to nothing, small ones are answered, and nobody says that they are too big", size, q.Client.Addr())
	default:
		told = append(told, fmt.Sprintf("%s: %s", what, pingText(err)))
	}
	return told, lost
}

func pingText(err error) string {
	switch {
	case errors.Is(err, unix.EAGAIN):
		return "was sent; nothing came back, which need not mean that it was lost"
	case errors.Is(err, unix.EMSGSIZE):
		return "a hop on the way says that it is too big, and is heard"
	}
	return fmt.Sprintf("was lost: %v", innermost(err))
}

// sizeTowards is the MTU of the device by which packets to the client leave.
func (c *Checker) sizeTowards(ctx context.Context, q *Question) int {
	source := q.Server.Addr()
	if !source.IsValid() {
		source = unspecified(q.Client.Addr())
	}
	state, err := c.reader.Read(ctx, trace.Question{Place: q.From, Mark: q.Mark, Packet: trace.Tuple{
		Protocol: pingProtocol(q.Client.Addr()), Src: netip.AddrPortFrom(source, 0), Dst: netip.AddrPortFrom(q.Client.Addr(), 0),
	}})
	if err != nil || !state.Onward.Found() {
		return 0
	}
	topology, err := c.reader.Topology(q.From.Netns)
	if err != nil {
		return 0
	}
	for _, l := range topology.Of(q.From.Netns) {
		if l.Index == state.Onward.Device.Index {
			return l.MTU
		}
	}
	return 0
}

func pingProtocol(a netip.Addr) trace.Protocol {
	if a.Is6() {
		return trace.ICMPv6
	}
	return trace.ICMP
}
