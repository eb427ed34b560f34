package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/internal/lab"
)

const (
	crowd   = 1000 // connections that are made at the same time
	unlucky = 100  // one in so many comes from the address that has no way back
)

// TestCrowd makes a thousand connections at once over direct server return; the
// backend refuses the way to one in a hundred. All of those must be told, as one
// fault, and none of the others.
func TestCrowd(t *testing.T) {
	needRoot(t)
	cli := program(t, "replypath", "cli")
	for _, c := range []struct{ lab, client, refused, bits string }{
		{"dsr-healthy", "198.51.100.7", "198.51.100.77", "32"},
		{"dsr-tunnel-healthy", "198.51.100.7", "198.51.100.77", "32"},
		{"dsr6-healthy", "2001:db8:1::7", "2001:db8:1::77", "128"},
	} {
		t.Run(c.lab, func(t *testing.T) {
			l, ok := lab.Find(c.lab)
			if !ok {
				t.Fatalf("no lab %s", c.lab)
			}
			n, err := lab.Up(t.Context(), l, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := n.Down(); err != nil {
					t.Error(err)
				}
			})
			spaces := n.Namespaces()
			ip(t, "-n", spaces["client"], "address", "add", c.refused+"/"+c.bits, "dev", "eth0", "nodad")
			if strings.Contains(c.refused, ".") {
				ip(t, "-n", spaces["client"], "address", "replace", c.refused+"/24", "dev", "eth0")
			}
			ip(t, "-n", spaces["backend"], "route", "add", "prohibit", c.refused+"/"+c.bits)
			server := startAgent(t)
			if out, err := exec.CommandContext(t.Context(), cli, "status", "--server", server).CombinedOutput(); err != nil { // answers once all is attached
				t.Fatalf("status: %v\n%s", err, out)
			}
			refused, err := crowdIn(spaces["client"], netip.MustParseAddr(c.client), netip.MustParseAddr(c.refused), l.Topology.Client.Server)
			if err != nil {
				t.Fatal(err)
			}
			r := explainAll(t.Context(), cli, server, c.refused, c.client)
			if r.err != nil {
				t.Fatal(r.err)
			}
			if r.summary == nil || r.summary.Verdict != "fault" || len(r.findings) != 1 {
				t.Fatalf("summary %+v, findings %s; want one fault\n%s", r.summary, list(r.findings), r.stderr)
			}
			f := r.findings[0]
			if f.ID != "reply-route-rejected" || f.Direction != "REPLY" || f.Where.Netns != spaces["backend"] {
				t.Errorf("found %s", list(r.findings))
			}
			told := make([]string, 0, len(f.Connections))
			for _, c := range f.Connections {
				told = append(told, c.Client)
			}
			slices.Sort(told)
			slices.Sort(refused)
			if !slices.Equal(told, refused) || f.Omitted != 0 {
				t.Errorf("told %d connections and %d more, want these %d:\n%s\n%s", len(told), f.Omitted, len(refused), told, refused)
			}
		})
	}
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// explainAll asks an agent about two addresses, whatever else goes on on this machine.
func explainAll(ctx context.Context, cli, server, one, other string) told {
	return ask(ctx, cli, "explain", "-o", "json", "--server", server, "--since", "1m", fmt.Sprintf("host %s or host %s", one, other))
}

// crowdIn connects to server from the namespace, all at once, and returns the
// addresses of the connections that the refused address made. The others must succeed.
func crowdIn(netns string, client, refused netip.Addr, server netip.AddrPort) (failed []string, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		failed, err = crowdHere(netns, client, refused, server)
	}()
	<-done
	return failed, err
}

func crowdHere(netns string, client, refused netip.Addr, server netip.AddrPort) (failed []string, err error) {
	space, err := unix.Open(filepath.Join("/run/netns", netns), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(space)
	if err := unix.Setns(space, unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	var lucky []unix.PollFd
	for i := range crowd {
		from := client
		if i%unlucky == unlucky/2 {
			from = refused
		}
		fd, port, err := begin(netip.AddrPortFrom(from, 0), server)
		if err != nil {
			return nil, err
		}
		defer unix.Close(fd)
		if from == refused {
			failed = append(failed, netip.AddrPortFrom(refused, port).String())
		} else {
			lucky = append(lucky, unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT})
		}
	}
	return failed, connected(lucky)
}

// begin starts a connection and returns its port.
func begin(from, to netip.AddrPort) (fd int, port uint16, err error) {
	family := unix.AF_INET
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	if fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return 0, 0, err
	}
	if err := unix.Bind(fd, sockaddr(from)); err != nil {
		return 0, 0, fmt.Errorf("bind to %s: %w", from, err)
	}
	if err := unix.Connect(fd, sockaddr(to)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return 0, 0, fmt.Errorf("connect to %s: %w", to, err)
	}
	own, err := unix.Getsockname(fd)
	if err != nil {
		return 0, 0, err
	}
	switch a := own.(type) {
	case *unix.SockaddrInet4:
		port = uint16(a.Port)
	case *unix.SockaddrInet6:
		port = uint16(a.Port)
	}
	return fd, port, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// connected waits until all connections are there, then as long again as a refused one needs to be noticed.
func connected(all []unix.PollFd) error {
	const patience = 15 * time.Second
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if _, err := unix.Poll(all, 100); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		open := 0
		for _, p := range all {
			if p.Revents&unix.POLLOUT != 0 && p.Revents&(unix.POLLERR|unix.POLLHUP) == 0 {
				open++
			}
		}
		if open == len(all) {
			time.Sleep(time.Second)
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d of %d connections are open after %s", open, len(all), patience)
		}
	}
}
