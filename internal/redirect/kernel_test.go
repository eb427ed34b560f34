package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/internal/netfilter"
	"github.com/replypath/replypath/pkg/trace"
)

// inNamespace runs work in a network namespace that ends with it.
func inNamespace(t *testing.T, work func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	done := make(chan error)
	var visit func()
	visit = func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() == os.Getpid() {
			go visit()
			time.Sleep(time.Millisecond)
			runtime.UnlockOSThread()
			return
		}
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			work()
		}
		done <- err
	}
	go visit()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// run runs a program in the thread's namespace.
func run(t *testing.T, stdin string, args ...string) {
	t.Helper()
	c := exec.Command(args[0], args[1:]...)
	c.Stdin = strings.NewReader(stdin)
	if out, err := c.CombinedOutput(); err != nil {
		t.Errorf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// TestSamplesAgainstKernel makes real connections, and compares what became of
// them with what netfilter's rules are understood to make of the same samples:
// those that are redirected find a listener, all others find nobody.
func TestSamplesAgainstKernel(t *testing.T) {
	for _, tt := range []struct {
		rules, tool string
		ports       []uint16
		uid         uint32
	}{
		{"kuma-1.8.1", "iptables-nft-restore", []uint16{15001, 15006, 15053}, 5678},
		{"kuma-1.8.1", "iptables-legacy-restore", []uint16{15001, 15006, 15053}, 5678},
		{"kuma-1.8.1-ports", "iptables-nft-restore", []uint16{25001, 25006, 25053}, 4711},
		{"kuma-2.9", "iptables-legacy-restore", []uint16{15001, 15006, 15053}, 5678},
		{"kuma-1.8.1-experimental", "iptables-nft-restore", []uint16{15001, 15006}, 5678},
		{"istio-1.20", "iptables-nft-restore", []uint16{15001, 15006, 15053}, 1337},
		{"istio-1.20-tproxy", "iptables-legacy-restore", []uint16{15001, 15006}, 1337},
		{"sidecar.nft", "nft", []uint16{9001, 9002}, 2001},
		{"user.nft", "nft", []uint16{9001}, 3001},
	} {
		t.Run(tt.rules+" "+tt.tool, func(t *testing.T) {
			inNamespace(t, func() {
				for _, six := range []bool{false, true} {
					compare(t, tt.rules, tt.tool, tt.ports, tt.uid, six)
				}
			})
		})
	}
}

// compare tries many connections of one IP version.
func compare(t *testing.T, rules, tool string, ports []uint16, uid uint32, six bool) {
	t.Helper()
	file, args := rules+".rules", []string{tool}
	if six {
		file, args[0] = file+"6", strings.Replace(tool, "ip", "ip6", 1)
	}
	if tool == "nft" {
		file, args = rules, []string{"nft", "-f", "-"}
		run(t, "", "nft", "flush", "ruleset")
	}
	text, err := os.ReadFile(filepath.Join("testdata", file))
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	run(t, string(text), args...)
	device := map[bool]string{false: "eth0", true: "eth6"}[six]
	run(t, "", "ip", "link", "set", "lo", "up")
	run(t, "", "ip", "link", "add", device, "type", "veth", "peer", "name", "far-"+device)
	run(t, "", "ip", "link", "set", "far-"+device, "up")
	run(t, "", "ip", "link", "set", device, "up")
	own := choose(six, netip.MustParseAddr("10.244.0.5"), netip.MustParseAddr("fd00:244::5"))
	if six {
		run(t, "", "ip", "addr", "add", own.String()+"/64", "dev", device, "nodad")
		run(t, "", "ip", "addr", "add", "::6/128", "dev", "lo", "nodad")
		run(t, "", "ip", "-6", "route", "add", "default", "dev", device)
	} else {
		run(t, "", "ip", "addr", "add", own.String()+"/24", "dev", device)
		run(t, "", "ip", "route", "add", "default", "dev", device)
	}
	var listeners []*listener
	for _, p := range append(ports, 15010, 25010) {
		l, err := listen(six, p)
		if errors.Is(err, unix.EADDRINUSE) {
			continue
		}
		if err != nil {
			t.Error(err)
			return
		}
		defer l.close()
		listeners = append(listeners, l)
	}
	loaded, err := netfilter.Load(six)
	if err != nil {
		t.Error(err)
		return
	}
	defer loaded.Close()
	dns := choose(six, netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::a"))
	taken := 0
	for _, to := range []netip.Addr{choose(six, remote4, remote6), own, passthrough(six), loopback(six), dns, choose(six, netip.MustParseAddr("10.9.1.1"), remote6)} {
		for _, port := range []uint16{80, 22, 53, 5432, 9000, 15008, 24242} {
			if testing.Short() && port > 9000 {
				continue
			}
			for _, user := range []uint32{uid, 1, 47110} {
				n := 0
				if attempt(t, loaded, six, device, own, netip.AddrPortFrom(to, port), user) {
					n = 1
				}
				taken += n
				for _, l := range listeners { // or their queues fill
					if fd, _, err := unix.Accept4(l.fd, unix.SOCK_CLOEXEC); err == nil {
						unix.Close(fd)
					}
				}
			}
		}
	}
	if taken == 0 && !(six && rules == "user.nft") {
		t.Errorf("%s: nothing is redirected", file)
	}
}

// attempt makes one connection and reports whether it is redirected; the rules must say the same.
func attempt(t *testing.T, rules *netfilter.Rules, six bool, device string, own netip.Addr, to netip.AddrPort, uid uint32) bool {
	t.Helper()
	owner := netfilter.Owner{Known: true, UID: uid, GID: uid, GIDKnown: true}
	s := netfilter.Sample{Hook: trace.Output, Owner: owner, Out: trace.Interface{Device: trace.Device{Name: device}},
		Tuple: trace.Tuple{Protocol: trace.TCP, Src: netip.AddrPortFrom(own, clientPort), Dst: to}}
	if to.Addr().IsLoopback() || to.Addr() == own || to.Addr() == passthrough(six) {
		s.Out.Name = "lo"
		s.Tuple.Src = netip.AddrPortFrom(to.Addr(), clientPort)
		if to.Addr() == pass4 || to.Addr() == pass6 {
			s.Tuple.Src = netip.AddrPortFrom(loopback(six), clientPort)
		}
	}
	m, err := rules.Meet(s)
	if err != nil || len(m.Doubts) > 0 {
		t.Errorf("uid %d, %s: %v, doubts %q", uid, s.Tuple, err, m.Doubts)
	}
	patience := 30 * time.Millisecond
	if m.Taken {
		patience = 5 * time.Second
	}
	err = connectAs(owner, to, patience)
	if got := err == nil; got != m.Taken {
		t.Errorf("uid %d, %s: redirected %t (%v), but the rules are understood to say %t (%s)", uid, fmt.Sprint(s.Tuple), got, err, m.Taken, m.Rule)
	}
	return m.Taken
}
