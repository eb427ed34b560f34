package redirect_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pod is a network namespace as a pod has it: lo, and one end of a cable.
type pod struct {
	t    *testing.T
	name string
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func newPod(t *testing.T, six, bare bool) *pod {
	t.Helper()
	needRoot(t)
	p := &pod{t, fmt.Sprintf("rdt%d-%d", os.Getpid(), time.Now().UnixNano()%1e9)}
	p.host("ip", "netns", "add", p.name)
	t.Cleanup(func() { exec.Command("ip", "netns", "del", p.name).Run() })
	setup := "link set lo up\n"
	if !bare {
		setup += "link add eth0 type veth peer name far\nlink set far up\nlink set eth0 up\n" +
			"addr add 10.244.0.5/24 dev eth0\nroute add default via 10.244.0.1\n"
	}
	if six && !bare {
		setup += "addr add fd00:244::5/64 dev eth0 nodad\naddr add ::6/128 dev lo nodad\n"
	}
	p.run(setup, "ip", "-batch", "-")
	return p
}

func (p *pod) host(args ...string) {
	p.t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		p.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// run runs a program in the pod.
func (p *pod) run(stdin string, args ...string) {
	p.t.Helper()
	c := exec.Command("ip", append([]string{"netns", "exec", p.name}, args...)...)
	c.Stdin = strings.NewReader(stdin)
	if out, err := c.CombinedOutput(); err != nil {
		p.t.Fatalf("%s: %v: %s\n%s", strings.Join(args, " "), err, out, stdin)
	}
}

// inside runs work on a thread in the pod, with the file system user that sockets are to have.
func (p *pod) inside(uid int, work func() error) {
	p.t.Helper()
	done := make(chan error)
	var visit func()
	visit = func() {
		runtime.LockOSThread() // and let it go with the goroutine
		if unix.Gettid() == os.Getpid() {
			go visit() // the process's first thread stays, and is what others see of it
			time.Sleep(time.Millisecond)
			runtime.UnlockOSThread()
			return
		}
		fd, err := unix.Open("/run/netns/"+p.name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			unix.Close(fd)
		}
		if err == nil {
			unix.SetfsgidRetGid(uid)
			unix.SetfsuidRetUid(uid)
			err = work()
		}
		done <- err
	}
	go visit()
	if err := <-done; err != nil {
		p.t.Fatal(err)
	}
}

// listen opens sockets as a user: "tcp 0.0.0.0:15001", "udp [::]:15053".
func (p *pod) listen(uid int, sockets ...string) {
	p.t.Helper()
	for _, s := range sockets {
		network, address, _ := strings.Cut(s, " ")
		a := netip.MustParseAddrPort(address)
		p.inside(uid, func() error {
			family, kind := unix.AF_INET6, unix.SOCK_STREAM
			var to unix.Sockaddr = &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
			if a.Addr().Is4() {
				family, to = unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
			}
			if network == "udp" {
				kind = unix.SOCK_DGRAM
			}
			fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			p.t.Cleanup(func() { unix.Close(fd) })
			if err := unix.Bind(fd, to); err != nil {
				return fmt.Errorf("bind %s: %w", s, err)
			}
			if network == "tcp" {
				return unix.Listen(fd, 16)
			}
			return nil
		})
	}
}

// handOver opens sockets as root, and leaves them to a process of another user: so listens who gives up its privileges.
func (p *pod) handOver(uid int, sockets ...string) {
	p.t.Helper()
	c := exec.Command("sleep", "60")
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	for _, s := range sockets {
		network, address, _ := strings.Cut(s, " ")
		p.inside(0, func() error {
			listener, err := net.Listen(network, address)
			if err != nil {
				return err
			}
			defer listener.Close()
			f, err := listener.(*net.TCPListener).File()
			c.ExtraFiles = append(c.ExtraFiles, f)
			return err
		})
	}
	if err := c.Start(); err != nil {
		p.t.Fatal(err)
	}
	for _, f := range c.ExtraFiles {
		f.Close()
	}
	p.t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
	})
}

// proxy opens the sockets of a proxy, for both IP versions.
func proxy(outbound, inbound, dns int, more ...string) []string {
	out := []string{fmt.Sprintf("tcp [::]:%d", outbound), "tcp [::]:8080"}
	if inbound != 0 {
		out = append(out, fmt.Sprintf("tcp [::]:%d", inbound))
	}
	if dns != 0 {
		out = append(out, fmt.Sprintf("udp [::]:%d", dns), fmt.Sprintf("tcp [::]:%d", dns))
	}
	return append(out, more...)
}

// change is an edit of rules: what is replaced, and by what.
type change struct{ old, new string }

// trial is a pod, and what replypath has to say of it.
type trial struct {
	name    string
	rules   string // file in testdata, without .rules or .rules6; or with .nft
	tool    string // "nft" or "legacy", of iptables
	four    []change
	six     []change
	noSix   bool // no rules for IPv6
	only4   bool // no IPv6 address
	bare    bool // lo is all there is
	uid     int
	sockets []string
	then    func(*pod)
	args    []string
	want    string // id; "" for a sound one
	fix     string // what a fix has to hold
	says    string // what the summary has to hold
	mended  bool   // the first fix, run as it is, mends it
}

// byMark routes what has a mark to the pod itself.
func byMark(mark, table string) func(*pod) {
	return func(p *pod) {
		for _, family := range []string{"-4", "-6"} {
			p.run("", "ip", family, "rule", "add", "fwmark", mark, "lookup", table)
			p.run("", "ip", family, "route", "add", "local", "default", "dev", "lo", "table", table)
		}
	}
}

func cut(line string) change { return change{line + "\n", ""} }

var kuma = proxy(15001, 15006, 15053, "tcp [::]:15010")

// trials are healthy and broken pods. Those of Kuma 1.8.1 are loaded with the rules that it really wrote.
var trials = []trial{
	{name: "kuma", rules: "kuma-1.8.1", uid: 5678, sockets: kuma},
	{name: "kuma legacy", rules: "kuma-1.8.1", tool: "legacy", uid: 5678, sockets: kuma},
	{name: "kuma probed", rules: "kuma-1.8.1", uid: 5678, sockets: kuma, args: []string{"--probe"}},
	{name: "kuma ports", rules: "kuma-1.8.1-ports", uid: 4711, sockets: proxy(25001, 25006, 25053, "tcp [::]:25010"), args: []string{"--probe"}},
	{name: "kuma gateway", rules: "kuma-1.8.1-gateway", tool: "legacy", uid: 5678, sockets: kuma},
	{name: "kuma experimental", rules: "kuma-1.8.1-experimental", uid: 5678, sockets: kuma},
	{name: "kuma experimental gateway", rules: "kuma-1.8.1-experimental-gateway", uid: 5678, sockets: kuma},
	{name: "kuma in a bare namespace", rules: "kuma-1.8.1", noSix: true, bare: true, uid: 5678, sockets: kuma, args: []string{"--probe"}},
	{name: "kuma as root", rules: "kuma-1.8.1", uid: 0, sockets: kuma, args: []string{"--probe"}},
	{name: "kuma all dns", rules: "kuma-1.8.1-all-dns", uid: 5678, sockets: kuma, args: []string{"--dns-server", "192.0.2.53"}},
	{name: "kuma 2.9", rules: "kuma-2.9", uid: 5678, sockets: kuma, args: []string{"--probe"}},
	{name: "kuma of IPv4", rules: "kuma-1.8.1", noSix: true, only4: true, uid: 5678, sockets: proxy(15001, 15006, 15053)},
	{name: "init container", rules: "kuma-1.8.1", uid: 5678, args: []string{"--probe", "--before-proxy"}},
	{name: "istio", rules: "istio-1.20", uid: 1337, sockets: proxy(15001, 15006, 15053, "tcp [::]:15090"), args: []string{"--probe"}},
	{name: "istio legacy", rules: "istio-1.20", tool: "legacy", uid: 1337, sockets: proxy(15001, 15006, 15053)},
	{name: "istio tproxy", rules: "istio-1.20-tproxy", uid: 1337, sockets: proxy(15001, 15006, 0), args: []string{"--probe"}, then: byMark("0x539", "133")},
	{name: "nobody's, by mark", rules: "bymark.nft", uid: 4004, sockets: proxy(6001, 6002, 0), then: byMark("0x2a", "100")},
	{name: "nobody's nft", rules: "sidecar.nft", uid: 2001, sockets: proxy(9001, 9002, 9053)},
	{name: "nobody's tproxy", rules: "tproxy.nft", only4: true, uid: 3003, sockets: proxy(7001, 7002, 0)},
	{name: "nobody's nft, listened as root", rules: "sidecar.nft", sockets: []string{"udp [::]:9053"}, then: func(p *pod) { p.handOver(2001, "tcp [::]:9001", "tcp [::]:9002") }},
	{name: "one user's alone", rules: "user.nft", only4: true, uid: 2001, sockets: proxy(9001, 0, 0)},
	{name: "one service's alone", rules: "kuma-2.9", only4: true, noSix: true, uid: 5678, sockets: kuma, four: []change{
		{"-A KUMA_MESH_INBOUND -p tcp -j", "-A KUMA_MESH_INBOUND -p tcp -s 10.0.0.0/8 --dport 8443 -j"}, {"-A KUMA_MESH_OUTBOUND -j KUMA", "-A KUMA_MESH_OUTBOUND -d 240.0.0.0/4 -j KUMA"}}},
	{name: "a firewall that knows", rules: "kuma-1.8.1", uid: 5678, sockets: kuma, then: func(p *pod) {
		p.run("*filter\n:INPUT DROP\n:OUTPUT DROP\n-A INPUT -i lo -j ACCEPT\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -s 10.0.0.0/8 -p tcp --dport 15006 -j ACCEPT\n"+
			"-A OUTPUT -o lo -j ACCEPT\n-A OUTPUT -p tcp -j ACCEPT\n-A OUTPUT -p udp --dport 15053 -j ACCEPT\n-A OUTPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n", "iptables-restore", "-n")
	}},
	{name: "IPv6 is dropped", rules: "kuma-1.8.1", noSix: true, uid: 5678, sockets: kuma, then: func(p *pod) {
		p.run("*filter\n:INPUT DROP\n:OUTPUT DROP\n-A INPUT -i lo -j ACCEPT\n-A OUTPUT -o lo -j ACCEPT\nCOMMIT\n", "ip6tables-restore", "-n")
	}},
	{name: "linkerd", rules: "linkerd", uid: 2102, sockets: proxy(4140, 4143, 0)},
	{name: "istio ambient", rules: "istio-ambient", sockets: proxy(15001, 15006, 15053, "tcp [::]:15008"), args: []string{"--dns-server", "10.96.0.10"}, then: byMark("0x111/0xfff", "100")},
	{name: "a resolver of its own", rules: "kuma-1.8.1", uid: 5678, sockets: append([]string{"udp 127.0.0.53:53"}, kuma...), args: []string{"--dns-server", "127.0.0.53"}},

	{name: "Docker's DNS is no proxy", uid: 5678, then: func(p *pod) {
		p.run("*nat\n:OUTPUT ACCEPT\n:DOCKER_OUTPUT -\n-A OUTPUT -d 127.0.0.11 -j DOCKER_OUTPUT\n-A DOCKER_OUTPUT -d 127.0.0.11 -p tcp --dport 53 -j DNAT --to-destination 127.0.0.11:41231\n"+
			"-A DOCKER_OUTPUT -d 127.0.0.11 -p udp --dport 53 -j DNAT --to-destination 127.0.0.11:35763\nCOMMIT\n", "iptables-restore")
	}, args: []string{"--dns-server", "127.0.0.11"}, want: "redirect-missing"},
	{name: "not installed", uid: 5678, want: "redirect-missing", fix: "kumactl install"},
	{name: "not installed, with a proxy", uid: 5678, sockets: kuma, want: "redirect-missing", says: "15001", mended: true},
	{name: "no jump to inbound", rules: "kuma-1.8.1", four: []change{cut("-A PREROUTING -p tcp -j MESH_INBOUND")}, six: []change{cut("-A PREROUTING -p tcp -j MESH_INBOUND")},
		uid: 5678, sockets: kuma, want: "redirect-missing", says: "MESH_INBOUND", fix: "iptables -t nat -A PREROUTING -p tcp -j MESH_INBOUND"},
	{name: "no jump to inbound, IPv4 alone", rules: "kuma-1.8.1", only4: true, noSix: true, tool: "legacy", four: []change{cut("-A PREROUTING -p tcp -j MESH_INBOUND")},
		uid: 5678, sockets: kuma, want: "redirect-missing", says: "MESH_INBOUND", mended: true},
	{name: "no jump to the inbound redirect", rules: "kuma-2.9", only4: true, noSix: true, four: []change{cut("-A KUMA_MESH_INBOUND -p tcp -j KUMA_MESH_INBOUND_REDIRECT")},
		uid: 5678, sockets: kuma, want: "redirect-missing", says: "KUMA_MESH_INBOUND", mended: true},
	{name: "no outbound redirect", rules: "kuma-2.9", only4: true, noSix: true, four: []change{cut("-A KUMA_MESH_OUTBOUND_REDIRECT -p tcp -j REDIRECT --to-ports 15001")},
		uid: 5678, sockets: kuma, want: "redirect-missing", says: "outbound"},
	{name: "no jump to the outbound redirect", rules: "istio-1.20", only4: true, noSix: true, four: []change{cut("-A ISTIO_OUTPUT -j ISTIO_REDIRECT")},
		uid: 1337, sockets: proxy(15001, 15006, 15053), want: "redirect-missing", says: "outbound", mended: true},
	{name: "no self call", rules: "kuma-2.9", only4: true, noSix: true,
		four: []change{cut("-A KUMA_MESH_OUTBOUND ! -d 127.0.0.1/32 -o lo -p tcp -m tcp ! --dport 53 -m owner --uid-owner 5678 -j KUMA_MESH_INBOUND_REDIRECT")},
		uid:  5678, sockets: kuma, want: "redirect-missing", says: "127.0.0.6", mended: true},
	{name: "another user", rules: "kuma-1.8.1", uid: 1005, sockets: kuma, want: "redirect-loop", says: "uid 1005", mended: true},
	{name: "another user, nft", rules: "sidecar.nft", uid: 2002, sockets: proxy(9001, 9002, 9053), want: "redirect-loop", says: "uid 2002", fix: "nft insert rule inet sidecar outgoing"},
	{name: "another user, that listened as root", rules: "sidecar.nft", sockets: []string{"udp [::]:9053"}, then: func(p *pod) { p.handOver(2002, "tcp [::]:9001", "tcp [::]:9002") },
		want: "redirect-loop", says: "uid 2002", fix: "meta skuid 2002"},
	{name: "another user, named", rules: "istio-1.20", uid: 1337, sockets: proxy(15001, 15006, 15053), args: []string{"--proxy-uid", "1338"}, want: "redirect-loop"},
	{name: "passthrough not let go", rules: "kuma-2.9", only4: true, noSix: true, four: []change{cut("-A KUMA_MESH_OUTBOUND -s 127.0.0.6/32 -o lo -j RETURN")},
		uid: 5678, sockets: kuma, want: "redirect-loop", says: "127.0.0.6", mended: true},
	{name: "firewall drops 127.0.0.6", rules: "kuma-1.8.1", uid: 5678, sockets: kuma, then: func(p *pod) {
		p.run("", "iptables", "-A", "INPUT", "-s", "127.0.0.6", "-j", "DROP")
	}, want: "loopback-blocked", says: "rule 1 of chain ip filter INPUT", mended: true},
	{name: "nft drops on lo", rules: "kuma-1.8.1", tool: "legacy", uid: 5678, sockets: kuma, then: func(p *pod) {
		p.run("table inet wall { chain in { type filter hook input priority 0; policy drop; iifname eth0 accept; }; }\n", "nft", "-f", "-")
	}, want: "loopback-blocked", says: "policy", mended: true},
	{name: "firewall drops IPv6 on lo", rules: "kuma-1.8.1", uid: 5678, sockets: kuma, then: func(p *pod) {
		p.run("", "ip6tables", "-A", "OUTPUT", "-o", "lo", "-s", "::6", "-j", "REJECT")
	}, want: "loopback-blocked", mended: true},
	{name: "policy blocks inbound", rules: "kuma-1.8.1", uid: 5678, sockets: kuma, then: func(p *pod) {
		p.run("", "iptables", "-A", "INPUT", "-i", "eth0", "-p", "tcp", "--dport", "15006", "-j", "DROP")
	}, want: "netfilter-drop"},
	{name: "no proxy", rules: "kuma-1.8.1", uid: 5678, sockets: []string{"tcp [::]:8080"}, want: "redirect-target-not-listening"},
	{name: "no proxy, probed", rules: "kuma-1.8.1", uid: 5678, args: []string{"--probe", "--timeout", "600ms"}, want: "redirect-target-not-listening"},
	{name: "inbound on loopback alone", rules: "kuma-1.8.1", only4: true, noSix: true, uid: 5678, sockets: []string{"tcp 0.0.0.0:15001", "tcp 127.0.0.1:15006", "udp 0.0.0.0:15053", "tcp 0.0.0.0:15053"},
		want: "redirect-target-not-listening", says: "15006"},
	{name: "no DNS", rules: "kuma-1.8.1", uid: 5678, sockets: proxy(15001, 15006, 0, "tcp [::]:15010"), want: "redirect-target-not-listening", says: "15053"},
	{name: "lo down", rules: "kuma-1.8.1", uid: 5678, sockets: kuma, then: func(p *pod) { p.run("", "ip", "link", "set", "lo", "down") }, want: "loopback-down", mended: true},
	{name: "no IPv6", rules: "kuma-1.8.1", noSix: true, uid: 5678, sockets: kuma, want: "redirect-bypassed-ipv6", mended: false, fix: "ip6tables -t nat -A OUTPUT"},
	{name: "half of IPv6", rules: "istio-1.20", six: []change{cut("-A OUTPUT -p tcp -j ISTIO_OUTPUT")}, tool: "legacy", uid: 1337, sockets: proxy(15001, 15006, 15053), want: "redirect-bypassed-ipv6", says: "outbound"},
	{name: "nft of IPv4 alone", rules: "sidecar.nft", four: []change{{"meta l4proto tcp redirect", "meta nfproto ipv4 meta l4proto tcp redirect"}, {"udp dport 53", "meta nfproto ipv4 udp dport 53"}},
		uid: 2001, sockets: proxy(9001, 9002, 9053), want: "redirect-bypassed-ipv6"},
	{name: "martian", rules: "kuma-2.9", only4: true, noSix: true, uid: 5678, sockets: kuma, tool: "legacy",
		four: []change{{"-A KUMA_MESH_INBOUND -p tcp -j KUMA_MESH_INBOUND_REDIRECT", "-A KUMA_MESH_INBOUND -p tcp -j DNAT --to-destination 127.0.0.1:15006"}},
		want: "route-localnet-disabled", mended: true},
	{name: "DNS past the proxy", rules: "kuma-1.8.1", uid: 5678, sockets: kuma, args: []string{"--dns-server", "10.43.0.10"}, want: "redirect-missing", says: "10.43.0.10", mended: true},
	{name: "DNS not redirected", rules: "kuma-2.9", only4: true, noSix: true, uid: 5678, sockets: kuma, four: []change{cut("-A OUTPUT -d 10.96.0.10/32 -p udp -m udp --dport 53 -j REDIRECT --to-ports 15053")},
		want: "redirect-missing", says: "DNS"},
	{name: "DNS of IPv6 past the proxy", rules: "kuma-1.8.1", uid: 5678, sockets: kuma, args: []string{"--dns-server", "10.96.0.10,fd00:96::a"}, want: "redirect-bypassed-ipv6", says: "DNS"},
	{name: "as root and nobody let go", rules: "all.nft", only4: true, uid: 0, sockets: proxy(9001, 0, 0), want: "redirect-loop", mended: true},
	{name: "nobody let go, and nobody there", rules: "all.nft", only4: true, uid: 0, sockets: nil, args: []string{"--before-proxy"}, want: "redirect-loop"},
	{name: "raw drops 127.0.0.6", rules: "kuma-2.9", tool: "legacy", uid: 5678, sockets: kuma, then: func(p *pod) {
		p.run("", "iptables-legacy", "-t", "raw", "-A", "OUTPUT", "-d", "127.0.0.6", "-j", "DROP")
	}, want: "loopback-blocked", says: "raw", mended: true},
	{name: "not tracked", rules: "kuma-2.9", only4: true, noSix: true, uid: 5678, sockets: kuma, then: func(p *pod) {
		p.run("", "iptables", "-t", "raw", "-A", "PREROUTING", "-i", "eth0", "-p", "tcp", "-j", "NOTRACK")
	}, want: "redirect-missing", says: "connection tracking"},
	{name: "of another device", rules: "kuma-2.9", only4: true, noSix: true, uid: 5678, sockets: kuma, four: []change{{"-A PREROUTING -p tcp", "-A PREROUTING -i net1 -p tcp"}},
		want: "redirect-missing", says: "do not fit", mended: true},
	{name: "shadowed", rules: "kuma-1.8.1", tool: "legacy", only4: true, noSix: true, uid: 5678, sockets: kuma, then: func(p *pod) {
		p.run("", "iptables-legacy", "-t", "nat", "-I", "PREROUTING", "-j", "ACCEPT")
	}, want: "redirect-missing", says: "lets all inbound traffic go", mended: true},
	{name: "shadowed in the mesh's chain", rules: "istio-1.20", only4: true, noSix: true, uid: 1337, sockets: proxy(15001, 15006, 15053), then: func(p *pod) {
		p.run("", "iptables", "-t", "nat", "-I", "ISTIO_OUTPUT", "9", "-p", "tcp", "-j", "RETURN")
	}, want: "redirect-missing", says: "lets all outbound traffic go", mended: true},
	{name: "shadowed, nft", rules: "sidecar.nft", four: []change{{"oifname \"lo\" return", "accept"}}, uid: 2001, sockets: proxy(9001, 9002, 9053), want: "redirect-missing", says: "outbound", fix: "nft delete rule inet sidecar outgoing handle"},
	{name: "empty chains", uid: 5678, sockets: kuma, then: func(p *pod) {
		p.run("*nat\n:KUMA_MESH_INBOUND -\n:KUMA_MESH_OUTBOUND -\nCOMMIT\n", "iptables-restore")
	}, want: "redirect-missing"},
	{name: "no jump to outbound", rules: "kuma-1.8.1", tool: "legacy", only4: true, noSix: true, uid: 5678, sockets: kuma, four: []change{cut("-A OUTPUT -p tcp -j MESH_OUTPUT")},
		want: "redirect-missing", says: "MESH_OUTPUT", mended: true},
	{name: "inbound alone", rules: "kuma-2.9", only4: true, noSix: true, uid: 5678, sockets: kuma, then: func(p *pod) {
		for _, c := range []string{"KUMA_MESH_OUTBOUND", "KUMA_MESH_OUTBOUND_REDIRECT", "OUTPUT"} {
			p.run("", "iptables", "-t", "nat", "-F", c)
		}
		p.run("", "iptables", "-t", "nat", "-X", "KUMA_MESH_OUTBOUND")
		p.run("", "iptables", "-t", "nat", "-X", "KUMA_MESH_OUTBOUND_REDIRECT")
	}, want: "redirect-missing", says: "outbound"},
	{name: "linkerd for another user", rules: "linkerd", only4: true, noSix: true, tool: "legacy", uid: 2103, sockets: proxy(4140, 4143, 0), want: "redirect-loop", says: "uid 2103", mended: true},
	{name: "linkerd of IPv4", rules: "linkerd", noSix: true, uid: 2102, sockets: proxy(4140, 4143, 0), want: "redirect-bypassed-ipv6"},
	{name: "answers in another zone", rules: "kuma-1.8.1-all-dns", only4: true, noSix: true, uid: 5678, sockets: kuma, four: []change{cut("-A OUTPUT -p udp -m udp --sport 15053 -m owner --uid-owner 5678 -j CT --zone 2"), cut("-A OUTPUT -p udp -m udp --sport 15053 -m owner --gid-owner 5678 -j CT --zone 2")},
		args: []string{"--dns-server", "10.96.0.10"}, want: "reply-wrong-source", says: "zone", fix: "--zone 2", mended: true},
	{name: "nobody's, for a device that is not there", rules: "sidecar.nft", four: []change{{"meta l4proto tcp redirect to :9002", "iifname \"net1\" meta l4proto tcp redirect to :9002"}},
		uid: 2001, sockets: proxy(9001, 9002, 9053), want: "redirect-missing", says: "do not fit", mended: true},
	{name: "istio tproxy, no route by mark", rules: "istio-1.20-tproxy", tool: "legacy", uid: 1337, sockets: proxy(15001, 15006, 0), want: "redirect-missing", says: "mark 0x539", fix: "ip rule add fwmark 0x539 lookup 133", mended: true},
	{name: "istio tproxy, no route by mark for IPv6", rules: "istio-1.20-tproxy", uid: 1337, sockets: proxy(15001, 15006, 0), then: func(p *pod) {
		p.run("", "ip", "rule", "add", "fwmark", "0x539", "lookup", "133")
		p.run("", "ip", "route", "add", "local", "default", "dev", "lo", "table", "133")
		p.run("", "ip", "-6", "rule", "add", "fwmark", "0x539", "lookup", "133")
	}, want: "redirect-missing", fix: "ip -6 route add local default dev lo table 133", mended: true},
	{name: "by mark, and no route", rules: "bymark.nft", only4: true, uid: 4004, sockets: proxy(6001, 6002, 0), want: "redirect-missing", says: "mark 0x2a", mended: true},
	{name: "by mark, and no rule", rules: "bymark.nft", only4: true, uid: 4004, sockets: proxy(6001, 6002, 0), then: func(p *pod) {
		p.run("", "ip", "route", "add", "local", "default", "dev", "lo", "table", "42")
		p.run("", "ip", "rule", "add", "fwmark", "0x2b", "lookup", "42")
	}, want: "redirect-missing", fix: "lookup 42", mended: true},
	{name: "by mark, and no rule for IPv6", rules: "bymark.nft", uid: 4004, sockets: proxy(6001, 6002, 0), then: func(p *pod) {
		p.run("", "ip", "rule", "add", "fwmark", "0x2a", "lookup", "100")
		p.run("", "ip", "route", "add", "local", "default", "dev", "lo", "table", "100")
	}, want: "redirect-bypassed-ipv6", says: "mark 0x2a", mended: true},
	{name: "by mark, and another rule first", rules: "bymark.nft", only4: true, uid: 4004, sockets: proxy(6001, 6002, 0), then: func(p *pod) {
		byMark("0x2a", "100")(p)
		p.run("", "ip", "rule", "add", "pref", "5", "lookup", "main")
	}, want: "redirect-missing", says: "mark 0x2a", fix: "pref 1", mended: true},
	{name: "by mark, and nobody there", rules: "bymark.nft", only4: true, uid: 4004, sockets: proxy(6003, 6002, 0), then: byMark("0x2a", "100"), want: "redirect-target-not-listening", says: "6001"},
	{name: "by mark, and another user", rules: "bymark.nft", only4: true, uid: 4005, sockets: proxy(6001, 6002, 0), then: byMark("0x2a", "100"), want: "redirect-loop", says: "uid 4005", mended: true},
	{name: "DNS of the proxy itself", rules: "kuma-1.8.1", only4: true, noSix: true, uid: 5678, sockets: kuma,
		four: []change{cut("-A OUTPUT -p udp -m udp --dport 53 -m owner --uid-owner 5678 -j RETURN"), cut("-A OUTPUT -p udp -m udp --dport 53 -m owner --gid-owner 5678 -j RETURN")},
		want: "redirect-loop", mended: true},
}

// finding is what of a finding is looked at.
type finding struct {
	ID, Severity, Confidence, Direction, Summary, Cause string
	Fix, Verify                                         []string
	Where                                               struct{ Netns string }
	Path                                                struct{ Protocol, Client, Server string }
	Evidence                                            []struct{ Text string }
}

type answer struct {
	exit     int
	findings []finding
	verdict  string
	stderr   string
}

// validate asks the real program.
func validate(t *testing.T, cli string, args ...string) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, cli, append([]string{"validate"}, args...)...)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := c.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	a := answer{exit: c.ProcessState.ExitCode(), stderr: stderr.String()}
	for line := range strings.Lines(stdout.String()) {
		var l struct {
			Finding *finding
			Summary *struct{ Verdict string }
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if l.Finding != nil {
			a.findings = append(a.findings, *l.Finding)
		}
		if l.Summary != nil {
			a.verdict = l.Summary.Verdict
		}
	}
	return a
}

func buildCLI(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("REPLYPATH_BIN"); dir != "" {
		return filepath.Join(dir, "replypath")
	}
	cli := filepath.Join(t.TempDir(), "replypath")
	if out, err := exec.Command("go", "build", "-o", cli, "github.com/replypath/replypath/cmd/cli").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return cli
}

func read(t *testing.T, file string, changes []change) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for _, c := range changes {
		if !strings.Contains(text, c.old) {
			t.Fatalf("%s holds no %q", file, c.old)
		}
		text = strings.ReplaceAll(text, c.old, c.new)
	}
	return text
}

// set makes the pod of a trial.
func (tt *trial) set(t *testing.T) *pod {
	t.Helper()
	p := newPod(t, !tt.only4, tt.bare)
	tool := map[string]string{"": "", "nft": "-nft", "legacy": "-legacy"}[tt.tool]
	switch {
	case strings.HasSuffix(tt.rules, ".nft"):
		p.run(read(t, tt.rules, tt.four), "nft", "-f", "-")
	case tt.rules != "":
		p.run(read(t, tt.rules+".rules", tt.four), "iptables"+tool+"-restore")
		if !tt.noSix {
			p.run(read(t, tt.rules+".rules6", tt.six), "ip6tables"+tool+"-restore")
		}
	}
	if tt.then != nil {
		tt.then(p)
	}
	p.listen(tt.uid, tt.sockets...)
	return p
}

// TestValidateRedirect asks the real program about real namespaces with real
// rules and real listeners.
func TestValidateRedirect(t *testing.T) {
	needRoot(t)
	cli := buildCLI(t)
	for i := range trials {
		tt := &trials[i]
		if testing.Short() && i%3 != 0 {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			p := tt.set(t)
			args := append([]string{"redirect", "-o", "json", "--netns", p.name, "--cni-dir", t.TempDir()}, tt.args...)
			a := validate(t, cli, args...)
			tt.judge(t, a)
			if tt.want == "" || t.Failed() {
				return
			}
			for _, f := range a.findings {
				if f.Where.Netns != p.name || (f.Direction != "REQUEST") != (f.ID == "reply-wrong-source") || f.Cause == "" || len(f.Fix) == 0 || len(f.Verify) == 0 || len(f.Evidence) == 0 || f.Path.Client == "" {
					t.Errorf("incomplete: %+v", f)
				}
			}
			if tt.mended {
				for _, fix := range a.findings[0].Fix {
					if strings.HasPrefix(fix, "#") {
						continue
					}
					if out, err := exec.Command("sh", "-c", fix).CombinedOutput(); err != nil {
						t.Fatalf("%s: %v: %s", fix, err, out)
					}
				}
				if a := validate(t, cli, args...); a.exit != 0 || a.verdict != "ok" {
					t.Errorf("after %q: exit %d, %s: %+v", a.findings, a.exit, a.verdict, a.findings)
				}
			}
		})
	}
}

func (tt *trial) judge(t *testing.T, a answer) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("stderr:\n%s", a.stderr)
			for _, f := range a.findings {
				t.Logf("%s: %s\n%s\nfix %q\nevidence %v", f.ID, f.Summary, f.Cause, f.Fix, f.Evidence)
			}
		}
	}()
	if tt.want == "" {
		if a.exit != 0 || a.verdict != "ok" || len(a.findings) > 0 {
			t.Errorf("exit %d, verdict %s, %d findings, want none", a.exit, a.verdict, len(a.findings))
		}
		return
	}
	if a.exit != 1 || a.verdict != "fault" || len(a.findings) != 1 || a.findings[0].ID != tt.want {
		t.Errorf("exit %d, verdict %s, %d findings, want one %s", a.exit, a.verdict, len(a.findings), tt.want)
		return
	}
	f := a.findings[0]
	if !strings.Contains(f.Summary, tt.says) {
		t.Errorf("summary %q holds no %q", f.Summary, tt.says)
	}
	if !slices.ContainsFunc(f.Fix, func(s string) bool { return strings.Contains(s, tt.fix) }) {
		t.Errorf("fix %q holds no %q", f.Fix, tt.fix)
	}
}

// TestUncheckedIsNotSound asks as somebody who may read no rules: that must not read as success.
func TestUncheckedIsNotSound(t *testing.T) {
	needRoot(t)
	program, err := os.ReadFile(buildCLI(t))
	if err != nil {
		t.Fatal(err)
	}
	cli := filepath.Join(t.TempDir(), "replypath") // what was built may be where others cannot go
	if err := os.WriteFile(cli, program, 0o755); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(cli); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, probe := range []bool{false, true} {
		args := []string{"validate", "redirect", "-o", "json"}
		if probe {
			args = append(args, "--probe", "--timeout", "100ms")
		}
		c := exec.Command(cli, args...)
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, _ := c.Output()
		if code := c.ProcessState.ExitCode(); code != 3 || !strings.Contains(string(out), `"verdict":"incomplete"`) {
			t.Errorf("probe %t: exit %d: %s", probe, code, out)
		}
	}
}

// TestNamesOfProcesses finds the names that a process was given which says that it is kuma-dp.
func TestNamesOfProcesses(t *testing.T) {
	cli := buildCLI(t)
	resource := filepath.Join(t.TempDir(), "dp.yaml")
	if err := os.WriteFile(resource, []byte("type: Dataplane\nmesh: {{mesh}}\nname: {{ name }}\nnetworking: {inbound: [{tags: {kuma.io/service: web}}]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		args  []string
		env   []string
		exit  int
		cause string
	}{
		{"flags", []string{"run", "--mesh=aa.a", "--name", "dp-1"}, nil, 1, "mesh aa, proxy a.dp-1"},
		{"environment", []string{"run"}, []string{"KUMA_DATAPLANE_MESH=aa.a", "KUMA_DATAPLANE_NAME=web.shop", "POD_NAMESPACE=shop"}, 1, "mesh aa, proxy a.web in namespace shop"},
		{"Kubernetes", []string{"run"}, []string{"KUMA_DATAPLANE_MESH=default", "KUMA_DATAPLANE_NAME=web-5d4f.shop", "POD_NAMESPACE=shop"}, 0, ""},
		{"elsewhere", []string{"run", "--mesh", "default", "--dataplane-var", "name=web-1"}, nil, 0, ""},
		{"a dotted proxy", []string{"run", "--mesh", "default", "--name=web.1"}, nil, 1, "mesh default.web, proxy 1"},
		{"a resource", []string{"run", "-d", resource, "--dataplane-var", "name=dp-1,mesh=aa.a"}, nil, 1, "mesh aa, proxy a.dp-1"},
		{"a sound resource", []string{"run", "--dataplane-var=name=dp-1", "-v", "mesh=m"}, []string{"KUMA_DATAPLANE_RUNTIME_RESOURCE_PATH=" + resource}, 0, ""},
		{"no name", []string{"version"}, nil, 3, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPod(t, false, true)
			c := exec.Command("ip", append([]string{"netns", "exec", p.name, "perl", "-e", `exec {"/usr/bin/perl"} "kuma-dp", "-e", "sleep 60", @ARGV`}, tt.args...)...)
			c.Env = append([]string{"PATH=" + os.Getenv("PATH")}, tt.env...)
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				c.Process.Kill()
				c.Wait()
			}()
			deadline := time.Now().Add(10 * time.Second)
			for b := []byte(nil); !bytes.HasPrefix(b, []byte("kuma-dp\x00")) && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
				b, _ = os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", c.Process.Pid))
			}
			for _, args := range [][]string{{"--netns", p.name}, {"--pid", fmt.Sprint(c.Process.Pid)}} {
				a := validate(t, cli, append([]string{"names", "-o", "json"}, args...)...)
				if a.exit != tt.exit || (a.verdict == "ok") != (tt.exit == 0) || len(a.findings) != tt.exit%3 {
					t.Errorf("%v: exit %d, %s: %+v\n%s", args, a.exit, a.verdict, a.findings, a.stderr)
				}
				if tt.cause != "" && (len(a.findings) == 0 || a.findings[0].ID != "mesh-name-ambiguous" || !strings.Contains(a.findings[0].Cause, tt.cause)) {
					t.Errorf("%v: %+v, want %q", args, a.findings, tt.cause)
				}
			}
		})
	}
}
