package lab

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addAddress adds an address.
func addAddress(name string, a Address) Change {
	return on(name, fmt.Sprintf("ip addr add %s dev %s", a.Prefix, a.Device), func(h *host) error { return h.addAddress(a) })
}

// believe gives a host the MAC of another's eth0 for the VIP, as an announcement of that one does.
func believe(f Family, name, other string) Change {
	return Change{Host: name, Text: "take eth0 of " + other + " for the owner of " + vip(f).String(), apply: func(n *Network) error {
		h, o := n.hosts[name], n.hosts[other]
		if h == nil || o == nil {
			return fmt.Errorf("no host %s or %s", name, other)
		}
		near, err := h.link("eth0")
		if err != nil {
			return err
		}
		far, err := o.link("eth0")
		if err != nil {
			return err
		}
		return wrap("set neighbour", h.nl.NeighSet(&netlink.Neigh{
			LinkIndex: near.Attrs().Index, Family: netlinkFamily(vip(f)), State: netlink.NUD_REACHABLE,
			IP: vip(f).AsSlice(), HardwareAddr: far.Attrs().HardwareAddr,
		}))
	}}
}

// isolate keeps a port of a bridge from others that are isolated.
func isolate(name, port string) Change {
	return on(name, "bridge link set dev "+port+" isolated on", func(h *host) error {
		l, err := h.link(port)
		if err != nil {
			return err
		}
		return wrap("isolate port", h.nl.LinkSetIsolated(l, true))
	})
}

// stuckService puts a server in the place of a host's that does not accept, with its queue full.
func stuckService(f Family, name string, port uint16) Change {
	text := fmt.Sprintf("let the server on port %d stop to accept", port)
	return Change{Host: name, Text: text, apply: func(n *Network) error {
		if err := n.stopService(name); err != nil {
			return err
		}
		h := n.hosts[name]
		var s *tcpServer
		err := enter(h.ns, func() (err error) {
			s, err = stuck(f, port)
			return err
		})
		if err != nil {
			return fmt.Errorf("serve on %s: %w", name, err)
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		n.servers[name] = append(n.servers[name], s)
		return nil
	}}
}

// stuck listens in the calling thread's namespace, with a queue of one connection, which is there.
func stuck(f Family, port uint16) (*tcpServer, error) {
	domain, address := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(port)})
	if f == IPv6 {
		domain, address = unix.AF_INET6, &unix.SockaddrInet6{Port: int(port)}
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "listener")
	defer file.Close()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, address); err != nil {
		return nil, err
	}
	if err := unix.Listen(fd, 0); err != nil {
		return nil, err
	}
	listener, err := net.FileListener(file)
	if err != nil {
		return nil, err
	}
	s := &tcpServer{listener: listener.(*net.TCPListener), open: map[net.Conn]struct{}{}}
	dialer := net.Dialer{Timeout: connectTimeout}
	waiting, err := dialer.DialContext(context.Background(), "tcp", addrPort(loopback(f), port).String())
	if err != nil {
		listener.Close()
		return nil, err
	}
	s.open[waiting] = struct{}{}
	return s, nil
}

// flushConntrack empties a host's connection tracking table.
func flushConntrack(name string) Change {
	return on(name, "conntrack -F", func(h *host) error {
		return enter(h.ns, func() error { return wrap("flush conntrack", netlink.ConntrackTableFlush(netlink.ConntrackTable)) })
	})
}

// note says what happens to a host later.
func note(name, text string) Change {
	return on(name, text, func(*host) error { return nil })
}
