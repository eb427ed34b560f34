package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// envProxy tells a process that is to be a proxy which one: JSON of a Proxy.
const envProxy = "REPLYPATH_LAB_PROXY"

// Proxy is a transparent proxy, as a sidecar is one: a process with a user of
// its own, to which rules send connections, and which goes on to where they were meant for.
type Proxy struct {
	UID               int
	Inbound, Outbound uint16 // ports that it listens on; 0: none
	DNS               uint16 // UDP; it answers itself, as what a mesh knows
	// Source is the address from which it calls the application; invalid: its own choice.
	Source netip.Addr
	// Transparent: what comes in is handed to it by TPROXY instead of REDIRECT.
	Transparent bool
	// Ahead: it goes on to this address, whatever the connection was meant for.
	Ahead netip.AddrPort
	Mark  int // of its own packets
	// Posing: it calls the application from the address of its client.
	Posing bool
}

// runProxy starts a proxy on a host, in a process of its own: what a proxy is,
// rules and tracers tell by its process and its user.
func runProxy(name string, p Proxy) Change {
	text := fmt.Sprintf("start a proxy as uid %d: inbound %d, outbound %d, DNS %d", p.UID, p.Inbound, p.Outbound, p.DNS)
	return Change{Host: name, Text: text, apply: func(n *Network) error { return n.startProxy(name, p) }}
}

func (n *Network) startProxy(name string, p Proxy) error {
	h, ok := n.hosts[name]
	if !ok {
		return fmt.Errorf("no host %s", name)
	}
	executable, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own executable: %w", err)
	}
	what, err := json.Marshal(p)
	if err != nil {
		return err
	}
	ready, told, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	command := exec.Command(executable, "lab", "serve")
	command.Dir = "/"
	command.Env = append(os.Environ(), envNetwork+"="+n.id, envProxy+"="+string(what))
	command.ExtraFiles = []*os.File{told}
	command.Stderr = os.Stderr
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = enter(h.ns, command.Start)
	told.Close()
	if err != nil {
		return fmt.Errorf("start proxy: %w", err)
	}
	go command.Wait() // it ends with the network, by its mark
	ready.SetReadDeadline(time.Now().Add(10 * time.Second))
	if b, err := io.ReadAll(ready); err != nil || len(b) == 0 {
		return errors.Join(errors.New("start proxy: it did not get ready"), err)
	}
	return nil
}

// mostProxied bounds the connections of a proxy: one that is redirected to itself
// would make them without end.
const mostProxied = 300

// carrier is a proxy at work.
type carrier struct {
	Proxy
	slots chan struct{}
}

// serveProxy is the whole of a proxy's process.
func serveProxy(ctx context.Context, id, what string) error {
	p := carrier{slots: make(chan struct{}, mostProxied)}
	if err := json.Unmarshal([]byte(what), &p.Proxy); err != nil {
		return fmt.Errorf("serve proxy: %w", err)
	}
	// What replypath asks for itself is not looked at; a program of another user may not name itself any more.
	_ = os.WriteFile("/proc/self/comm", []byte("lab-proxy"), 0)
	if !p.Transparent { // its listeners take privileges
		if err := p.become(); err != nil {
			return err
		}
	}
	var open []io.Closer
	for _, port := range []uint16{p.Inbound, p.Outbound} {
		if port == 0 {
			continue
		}
		for _, network := range []string{"tcp4", "tcp6"} {
			config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { return p.prepare(c, network) }}
			config.SetMultipathTCP(false)
			l, err := config.Listen(ctx, network, ":"+strconv.Itoa(int(port)))
			if errors.Is(err, unix.EAFNOSUPPORT) {
				continue
			}
			if err != nil {
				return fmt.Errorf("serve proxy: %w", err)
			}
			open = append(open, l)
			go p.accept(ctx, l, port == p.Inbound)
		}
	}
	if p.DNS != 0 {
		// Bound to an address, it answers from there (see UDP's IP_PKTINFO).
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(p.DNS)})
		if err != nil {
			return fmt.Errorf("serve proxy: %w", err)
		}
		open = append(open, startUDP(conn, 0).conn)
	}
	if p.Transparent {
		if err := p.become(); err != nil {
			return err
		}
	}
	told := os.NewFile(3, "ready")
	fmt.Fprintln(told, "ready")
	told.Close()
	for pause(ctx, 2*time.Second) && stands(id) {
	}
	for _, c := range open {
		c.Close()
	}
	return nil
}

// become makes all threads those of the proxy's user, and so what they open from now on.
func (p *carrier) become() error {
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(p.UID), syscall.Setuid(p.UID)); err != nil {
		return fmt.Errorf("serve proxy: %w", err)
	}
	return nil
}

// prepare lets a listener take what is not addressed to this host.
func (p *carrier) prepare(c syscall.RawConn, network string) error {
	if !p.Transparent {
		return nil
	}
	var failed error
	err := c.Control(func(fd uintptr) { failed = setTransparent(int(fd), network) })
	return errors.Join(err, failed)
}

// setTransparent lets a socket have an address that is not this host's.
func setTransparent(fd int, network string) error {
	if network == "tcp6" {
		return unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
	}
	return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1)
}

func (p *carrier) accept(ctx context.Context, l net.Listener, inbound bool) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		select {
		case p.slots <- struct{}{}:
			go func() {
				defer func() { <-p.slots }()
				p.carry(ctx, conn.(*net.TCPConn), inbound)
			}()
		default:
			conn.Close()
		}
	}
}

// carry goes on to where a connection was meant for, and carries bytes both ways.
func (p *carrier) carry(ctx context.Context, conn *net.TCPConn, inbound bool) {
	defer conn.Close()
	to := p.Ahead
	if !to.IsValid() {
		to = conn.LocalAddr().(*net.TCPAddr).AddrPort()
		if meant, err := originalDestination(conn); err == nil && !(inbound && p.Transparent) {
			to = meant
		}
	}
	posing := inbound && p.Posing
	dialer := net.Dialer{Timeout: serverPatience, Control: func(network, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			if p.Mark != 0 {
				failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, p.Mark)
			}
			if posing {
				failed = errors.Join(failed, setTransparent(int(fd), network))
			}
		})
		return errors.Join(err, failed)
	}}
	dialer.SetMultipathTCP(false)
	switch {
	case posing:
		client := conn.RemoteAddr().(*net.TCPAddr)
		dialer.LocalAddr = &net.TCPAddr{IP: client.IP, Zone: client.Zone}
	case inbound && p.Source.IsValid():
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.Source, 0))
	}
	onward, err := dialer.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return
	}
	defer onward.Close()
	until := time.Now().Add(serverPatience)
	conn.SetDeadline(until)
	onward.SetDeadline(until)
	var both sync.WaitGroup
	both.Go(func() { io.Copy(onward, conn); onward.(*net.TCPConn).CloseWrite() })
	both.Go(func() { io.Copy(conn, onward); conn.CloseWrite() })
	both.Wait()
}

// originalDestination asks netfilter where a redirected connection was meant for
// (include/uapi/linux/netfilter_ipv4.h, netfilter_ipv6/ip6_tables.h).
func originalDestination(conn *net.TCPConn) (to netip.AddrPort, err error) {
	const original = 80 // SO_ORIGINAL_DST, IP6T_SO_ORIGINAL_DST
	raw, err := conn.SyscallConn()
	if err != nil {
		return to, err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		if conn.LocalAddr().(*net.TCPAddr).IP.To4() == nil {
			// The kernel writes a struct sockaddr_in6, with which ip6_mtuinfo begins.
			info, err := unix.GetsockoptIPv6MTUInfo(int(fd), unix.SOL_IPV6, original)
			if failed = err; err == nil {
				port := info.Addr.Port
				to = netip.AddrPortFrom(netip.AddrFrom16(info.Addr.Addr), port<<8|port>>8)
			}
			return
		}
		// And here a struct sockaddr_in, of the size of ipv6_mreq's address.
		m, err := unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, original)
		if failed = err; err == nil {
			b := m.Multiaddr
			to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[2])<<8|uint16(b[3]))
		}
	})
	return to, errors.Join(err, failed)
}
