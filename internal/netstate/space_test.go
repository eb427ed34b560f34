package netstate

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// space is a network namespace of a test.
type space struct {
	*netlink.Handle
	t     testing.TB
	name  string
	fd    netns.NsHandle
	inode trace.Netns
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
}

// newSpace makes a namespace with a name of its own, and removes it after the test.
func newSpace(t testing.TB) *space {
	t.Helper()
	needRoot(t)
	var suffix [5]byte
	rand.Read(suffix[:])
	s := &space{t: t, name: "rpns-" + hex.EncodeToString(suffix[:])}
	s.create()
	t.Cleanup(func() {
		s.Close()
		s.fd.Close()
		netns.DeleteNamed(s.name)
	})
	handle, err := netlink.NewHandleAt(s.fd)
	must(t, err)
	s.Handle = handle
	s.up("lo")
	return s
}

func (s *space) create() {
	s.t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	must(s.t, err)
	defer home.Close()
	s.fd, err = netns.NewNamed(s.name)
	must(s.t, err)
	must(s.t, netns.Set(home))
	s.inode = inodeOf(s.t, s.fd)
}

func inodeOf(t testing.TB, fd netns.NsHandle) trace.Netns {
	t.Helper()
	inode, err := networkInode(int(fd))
	must(t, err)
	return inode
}

func (s *space) place() trace.Place { return trace.Place{Netns: s.inode, Name: s.name} }

// inside runs f on a thread in the namespace.
func (s *space) inside(f func() error) {
	s.t.Helper()
	own, _, err := openNamespace("/proc/thread-self/ns/net")
	must(s.t, err)
	defer own.Close()
	done := make(chan error, 1)
	var failed error
	enter(own, s.fd, func() { failed = f() }, func(err error) { done <- err })
	must(s.t, <-done)
	must(s.t, failed)
}

func (s *space) sysctl(name, value string) {
	s.t.Helper()
	s.inside(func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0) })
}

func (s *space) up(device string) {
	s.t.Helper()
	must(s.t, s.LinkSetUp(s.device(device)))
}

func (s *space) device(name string) netlink.Link {
	s.t.Helper()
	l, err := s.LinkByName(name)
	must(s.t, err)
	return l
}

func (s *space) index(name string) uint32 {
	s.t.Helper()
	return uint32(s.device(name).Attrs().Index)
}

// connect makes a pair of devices, one in each namespace, with addresses on them.
func (s *space) connect(device string, other *space, peer string) {
	s.t.Helper()
	must(s.t, s.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: device, MTU: 1500}, PeerName: peer, PeerNamespace: netlink.NsFd(other.fd),
	}))
	s.up(device)
	other.up(peer)
}

func (s *space) address(device, prefix string) {
	s.t.Helper()
	addr, err := netlink.ParseAddr(prefix)
	must(s.t, err)
	if addr.IP.To4() == nil {
		addr.Flags = unix.IFA_F_NODAD
	}
	must(s.t, s.AddrAdd(s.device(device), addr))
	waitFor(s.t, "local route of "+prefix, func() bool { // IPv6 adds it in a work queue
		routes, err := s.RouteGet(addr.IP)
		return err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL
	})
}

// route adds a route; via and device may be "", kind 0 is unicast, table 0 is main.
func (s *space) route(kind int, prefix, via, device string, change ...func(*netlink.Route)) {
	s.t.Helper()
	route := &netlink.Route{Type: kind, Dst: network(s.t, prefix)}
	if via != "" {
		route.Gw = net.ParseIP(via)
	}
	if device != "" {
		route.LinkIndex = int(s.index(device))
	}
	for _, f := range change {
		f(route)
	}
	if err := s.RouteAdd(route); err != nil {
		s.t.Fatalf("add route %s: %v", route, err)
	}
}

func (s *space) rule(is6 bool, change func(*netlink.Rule)) {
	s.t.Helper()
	rule := netlink.NewRule()
	rule.Family = unix.AF_INET
	if is6 {
		rule.Family = unix.AF_INET6
	}
	change(rule)
	if err := s.RuleAdd(rule); err != nil {
		s.t.Fatalf("add rule %s: %v", rule, err)
	}
}

func (s *space) neighbor(device, addr string, state int, mac string, flags int) {
	s.t.Helper()
	n := &netlink.Neigh{LinkIndex: int(s.index(device)), IP: net.ParseIP(addr), State: state, Flags: flags}
	if mac != "" {
		n.HardwareAddr, _ = net.ParseMAC(mac)
	}
	must(s.t, s.NeighSet(n))
}

// listen opens a TCP socket that listens in the namespace.
func (s *space) listen(network, addr string) {
	s.t.Helper()
	s.inside(func() error {
		l, err := net.Listen(network, addr)
		if err == nil {
			s.t.Cleanup(func() { l.Close() })
		}
		return err
	})
}

func network(t testing.TB, prefix string) *net.IPNet {
	t.Helper()
	_, n, err := net.ParseCIDR(prefix)
	must(t, err)
	return n
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func packet(src, dst string) trace.Tuple {
	return trace.Tuple{
		Protocol: trace.TCP,
		Src:      netip.AddrPortFrom(netip.MustParseAddr(src), 40000),
		Dst:      netip.AddrPortFrom(netip.MustParseAddr(dst), 80),
	}
}

// newTestReader makes a reader that is closed after the test.
func newTestReader(t testing.TB, filters FilterFunc) *Reader {
	t.Helper()
	dir, err := NewDirectory()
	must(t, err)
	r := NewReader(dir, filters)
	t.Cleanup(func() { r.Close() })
	return r
}

// describe writes a lookup as `ip route get` would, errors included.
func describe(l trace.Lookup) string {
	if !l.Done {
		return "not asked"
	}
	text := l.Type
	if l.Errno != 0 {
		text = unix.ErrnoName(l.Errno)
		if l.Type != "" {
			text += " " + l.Type
		}
	}
	if l.Prefix.IsValid() {
		text += " " + l.Prefix.String()
	}
	if l.Gateway.IsValid() {
		text += " via " + l.Gateway.String()
	}
	if l.Device.Name != "" {
		text += " dev " + l.Device.Name
	}
	if l.Table != 0 {
		text += " table " + tableName(l.Table)
	}
	if l.Rule != "" {
		text += fmt.Sprintf(" rule %q", l.Rule)
	}
	return text
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s did not happen within 10s", what)
}
