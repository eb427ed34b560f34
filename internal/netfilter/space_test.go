package netfilter

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// space is a network namespace of a test. It has no name: it is gone when its
// thread is.
type space struct {
	t    testing.TB
	work chan func()
	fd   int
	// legacy: the rules that load put there last are iptables-legacy's.
	legacy bool
}

// needRoot skips without root; with root a test that cannot work must fail.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

// newSpace makes a namespace with lo up.
func newSpace(t testing.TB) *space {
	t.Helper()
	needRoot(t)
	s := &space{t: t, work: make(chan func()), fd: -1}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			s.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		ready <- err
		for f := range s.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() {
		close(s.work)
		unix.Close(s.fd)
	})
	s.do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	// A link-local address is of use at once.
	s.set("net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0")
	return s
}

// set sets sysctls. No program is started for it: there are many spaces, and starting one is slow where the machine is emulated.
func (s *space) set(settings ...string) {
	s.t.Helper()
	s.do(func() error {
		for _, setting := range settings {
			name, value, _ := strings.Cut(setting, "=")
			if err := os.WriteFile("/proc/sys/"+strings.ReplaceAll(name, ".", "/"), []byte(value), 0); err != nil {
				return err
			}
		}
		return nil
	})
}

// forget empties the table of connections.
func (s *space) forget() {
	s.t.Helper()
	s.do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
}

// in runs f on the namespace's thread.
func (s *space) in(f func()) {
	done := make(chan struct{})
	s.work <- func() { defer close(done); f() }
	<-done
}

// do runs f on the namespace's thread and fails the test on an error.
func (s *space) do(f func() error) {
	s.t.Helper()
	var err error
	s.in(func() { err = f() })
	if err != nil {
		s.t.Fatal(err)
	}
}

// run runs a command in the namespace with the given input.
func (s *space) run(input string, command ...string) string {
	s.t.Helper()
	out, err := s.try(input, command...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// try is run that may fail.
func (s *space) try(input string, command ...string) (out string, err error) {
	lock := s.t.TempDir() + "/lock"
	s.in(func() {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Stdin = strings.NewReader(input)
		cmd.Env = append(os.Environ(), "XTABLES_LOCKFILE="+lock)
		var b []byte
		if b, err = cmd.CombinedOutput(); err != nil {
			err = fmt.Errorf("%s: %w\n%s\n%s", strings.Join(command, " "), err, b, input)
		}
		out = string(b)
	})
	return out, err
}

// join puts a veth pair between two namespaces.
func join(a *space, nameA string, b *space, nameB string) {
	a.t.Helper()
	a.do(func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: nameA}, PeerName: nameB, PeerNamespace: netlink.NsFd(b.fd),
		})
	})
	for s, name := range map[*space]string{a: nameA, b: nameB} {
		s.do(func() error {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			return netlink.LinkSetUp(l)
		})
	}
}

// address gives a device addresses, ready for use at once.
func (s *space) address(device string, addresses ...string) {
	s.t.Helper()
	s.do(func() error {
		l, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		for _, a := range addresses {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			addr.Flags |= unix.IFA_F_NODAD
			if err := netlink.AddrAdd(l, addr); err != nil {
				return fmt.Errorf("add %s: %w", a, err)
			}
		}
		return nil
	})
}

// index returns a device's index.
func (s *space) index(device string) uint32 {
	s.t.Helper()
	var index int
	s.do(func() error {
		l, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		index = l.Attrs().Index
		return nil
	})
	return uint32(index)
}
