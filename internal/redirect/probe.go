package redirect

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/internal/netfilter"
	"github.com/replypath/replypath/pkg/trace"
)

// Times of one probe.
const (
	handshakeTime = 200 * time.Millisecond // on the loopback device: thousands of times what it takes
	retryPause    = 50 * time.Millisecond
)

// probe makes the handshake that Kuma's validator makes: as the proxy, to
// 127.0.0.6 (or ::6) and a random high port. Rules that are sound bring it back
// to the proxy's inbound port; where nobody listens there, a listener of our own
// does for a moment.
func (n *inspection) probe() {
	runtime.LockOSThread() // the namespace's own goroutine may not be locked
	defer runtime.UnlockOSThread()
	for _, h := range n.halves {
		leg := h.family.Leg(trace.RoleSelf)
		owner, ok := h.proxyOwner()
		if leg == nil || !ok {
			continue
		}
		if h.six && !n.addresses[pass6] && !h.family.Used {
			continue // ::6 is no address here, and there is no other
		}
		h.handshake(leg, owner)
	}
}

// handshake tries until it succeeds or the patience is over.
func (h *half) handshake(leg *trace.RedirectLeg, owner netfilter.Owner) {
	p := &leg.Probe
	p.Done = true
	port := uint16(15006)
	if leg.Taken {
		port = leg.Target.Port()
	}
	var own *listener
	if len(leg.Sockets) == 0 {
		l, err := listen(h.six, port)
		switch {
		case err == nil:
			own = l
			defer own.close()
		case !errors.Is(err, unix.EADDRINUSE):
			p.Failure = err.Error()
			return
		}
	}
	to := passthrough(h.six)
	if h.six && !h.addresses[to] {
		to = h.own()
	}
	for until := time.Now().Add(h.o.Patience); ; {
		p.Tries++
		err := connectAs(owner, netip.AddrPortFrom(to, h.highPort()), min(handshakeTime, max(time.Until(until), time.Millisecond)))
		if err == nil {
			p.Arrived, p.Own, p.Failure = own == nil || own.accepts(), own != nil, ""
			if !p.Arrived {
				p.Failure = "somebody else took it"
			}
			return
		}
		p.Failure, p.TimedOut = err.Error(), errors.Is(err, unix.ETIMEDOUT)
		if h.ctx.Err() != nil || time.Now().Add(retryPause).After(until) {
			return
		}
		time.Sleep(retryPause)
	}
}

// highPort is a random one that nobody listens on, in the range that Kuma takes.
func (h *half) highPort() uint16 {
	for {
		p := uint16(20000 + rand.IntN(10000))
		if !slices.ContainsFunc(h.sockets, func(s trace.Socket) bool { return s.Local.Port() == p }) {
			return p
		}
	}
}

// listener is a socket of our own.
type listener struct{ fd int }

func listen(six bool, port uint16) (*listener, error) {
	fd, err := tcpSocket(six)
	if err != nil {
		return nil, err
	}
	l := &listener{fd}
	if err := l.open(six, port); err != nil {
		l.close()
		return nil, fmt.Errorf("listen on port %d: %w", port, err)
	}
	return l, nil
}

func (l *listener) open(six bool, port uint16) error {
	if err := unix.SetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	if six {
		if err := unix.SetsockoptInt(l.fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return err
		}
	}
	anywhere := choose(six, netip.IPv4Unspecified(), netip.IPv6Unspecified())
	if err := unix.Bind(l.fd, sockaddr(netip.AddrPortFrom(anywhere, port))); err != nil {
		return err
	}
	return unix.Listen(l.fd, 16)
}

func (l *listener) close() { unix.Close(l.fd) }

// accepts reports whether a connection has come.
func (l *listener) accepts() bool {
	ready := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(ready, int(handshakeTime/time.Millisecond)); n < 1 || err != nil {
		return false
	}
	fd, _, err := unix.Accept4(l.fd, unix.SOCK_CLOEXEC)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

func tcpSocket(six bool) (int, error) {
	family := unix.AF_INET
	if six {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open socket: %w", err)
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// connectAs makes a connection that netfilter takes for that of another user:
// the owner of a packet is the file system user with whom its socket was opened,
// which each thread has for itself (setfsuid(2)).
func connectAs(owner netfilter.Owner, to netip.AddrPort, patience time.Duration) error {
	fd, err := ownedSocket(owner, to.Addr().Is6())
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if to.Addr() == pass6 { // or its source would be ::6 too, by which rules tell the proxy's calls of the application
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(loop6, 0))); err != nil {
			return fmt.Errorf("bind socket: %w", err)
		}
	}
	err = unix.Connect(fd, sockaddr(to))
	if err == nil || !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	until := time.Now().Add(patience)
	for {
		n, err := unix.Poll(ready, int(max(time.Until(until), 0)/time.Millisecond)+1)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return unix.ETIMEDOUT
		}
		break
	}
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if code != 0 {
		return syscall.Errno(code)
	}
	return nil
}

// errUser says that a socket cannot be opened as somebody else.
var errUser = errors.New("open socket as the proxy's user: CAP_SETUID and CAP_SETGID are missing")

func ownedSocket(owner netfilter.Owner, six bool) (int, error) {
	gid := owner.GID
	if !owner.GIDKnown {
		gid = owner.UID
	}
	oldGID, _ := unix.SetfsgidRetGid(int(gid))
	defer unix.SetfsgidRetGid(oldGID)
	oldUID, _ := unix.SetfsuidRetUid(int(owner.UID))
	defer unix.SetfsuidRetUid(oldUID)
	if now, _ := unix.SetfsuidRetUid(-1); uint32(now) != owner.UID {
		return -1, errUser
	}
	return tcpSocket(six)
}
