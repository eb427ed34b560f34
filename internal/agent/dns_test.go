package agent

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netns"
	"google.golang.org/protobuf/types/known/timestamppb"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

// dnsNetwork is a client, a node that gives the service's addresses to a resolver, and the resolver.
type dnsNetwork struct {
	t                      *testing.T
	client, node, resolver string
}

const (
	serviceAddr, serviceAddr6   = "10.96.0.10", "fd00:96::a"
	resolverAddr, resolverAddr6 = "10.244.1.53", "fd00:1::53"
	// Of the resolver's host.
	otherAddr, wrongAddr = "10.244.1.54", "10.244.1.55"
)

func newDNSNetwork(t *testing.T) *dnsNetwork {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	id := "dns-" + strings.ToLower(rand.Text()[:6])
	n := &dnsNetwork{t: t, client: id + "-c", node: id + "-n", resolver: id + "-r"}
	for _, name := range []string{n.client, n.node, n.resolver} {
		n.run("ip", "netns", "add", name)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", name).Run() })
		n.run("ip", "-n", name, "link", "set", "lo", "up")
	}
	n.link(n.client, "eth0", "10.244.0.7/24", "fd00:0::7/64", "vc", "10.244.0.1/24", "fd00:0::1/64")
	n.link(n.resolver, "eth0", resolverAddr+"/24", resolverAddr6+"/64", "vr", "10.244.1.1/24", "fd00:1::1/64")
	for _, addr := range []string{otherAddr, wrongAddr} {
		n.run("ip", "-n", n.resolver, "addr", "add", addr+"/24", "dev", "eth0")
	}
	for _, name := range []string{n.client, n.resolver} {
		subnet := map[string]string{n.client: "0", n.resolver: "1"}[name]
		n.run("ip", "-n", name, "route", "add", "default", "via", "10.244."+subnet+".1")
		n.run("ip", "-n", name, "-6", "route", "add", "default", "via", "fd00:"+subnet+"::1")
	}
	n.run("ip", "netns", "exec", n.node, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	n.in(n.node, `nft -f - <<-'EOF'
		table ip nat { chain pre { type nat hook prerouting priority -100
			ip daddr 10.96.0.10 meta l4proto { tcp, udp } th dport 53 dnat to 10.244.1.53
		}; }
		table ip6 nat { chain pre { type nat hook prerouting priority -100
			ip6 daddr fd00:96::a meta l4proto { tcp, udp } th dport 53 dnat to fd00:1::53
		}; }
	EOF`)
	return n
}

func (n *dnsNetwork) link(host, device, addr, addr6, peer, peerAddr, peerAddr6 string) {
	n.run("ip", "-n", host, "link", "add", device, "type", "veth", "peer", "name", peer, "netns", n.node)
	for _, end := range [][]string{{host, device, addr, addr6}, {n.node, peer, peerAddr, peerAddr6}} {
		n.run("ip", "-n", end[0], "addr", "add", end[2], "dev", end[1])
		n.run("ip", "-n", end[0], "addr", "add", end[3], "dev", end[1], "nodad")
		n.run("ip", "-n", end[0], "link", "set", end[1], "up")
	}
}

func (n *dnsNetwork) run(command ...string) {
	n.t.Helper()
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		n.t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
}

// in runs a shell command in a namespace, and returns what it says. Its failure is nobody's business here.
func (n *dnsNetwork) in(name, script string) string {
	out, _ := exec.Command("ip", "netns", "exec", name, "sh", "-c", script).CombinedOutput()
	return string(out)
}

// inside calls do on a thread in a namespace.
func inside(name string, do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocks: the thread ends with the goroutine
		ns, err := netns.GetFromName(name)
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		if err == nil {
			err = do()
		}
		done <- err
	}()
	return <-done
}

// dnsmasq answers in the resolver's namespace, for UDP and TCP.
func (n *dnsNetwork) dnsmasq() {
	n.t.Helper()
	cmd := exec.Command("ip", "netns", "exec", n.resolver, "dnsmasq", "-C", "/dev/null", "-d", "--no-resolv", "--no-hosts", "--port=53",
		"--bind-interfaces", "--listen-address="+resolverAddr, "--listen-address="+resolverAddr6,
		"--local=/test/", "--host-record=www.test,192.0.2.1,2001:db8::1", "--local-ttl=30",
		"--txt-record=big.test,"+strings.Repeat(strings.Repeat("a", 250)+",", 5)+"end")
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for range 100 {
		if out := n.in(n.client, "dig +short +time=1 +tries=1 @"+resolverAddr+" ready.www.test; dig +short +time=1 +tries=1 @"+resolverAddr+" www.test"); strings.Contains(out, "192.0.2.1") {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	n.t.Fatal("dnsmasq does not answer")
}

// odd serves what no resolver should do, on port 53 of the resolver's other address.
func (n *dnsNetwork) odd() {
	n.t.Helper()
	var own, wrong net.PacketConn
	err := inside(n.resolver, func() (err error) {
		if own, err = net.ListenPacket("udp4", otherAddr+":53"); err != nil {
			return err
		}
		wrong, err = net.ListenPacket("udp4", wrongAddr+":53")
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { own.Close(); wrong.Close() })
	mux := dns.NewServeMux()
	answer := func(q *dns.Msg, rcode int) *dns.Msg { return new(dns.Msg).SetRcode(q, rcode) }
	mux.HandleFunc("silent.test.", func(dns.ResponseWriter, *dns.Msg) {})
	mux.HandleFunc("broken.test.", func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(answer(q, dns.RcodeServerFailure)) })
	mux.HandleFunc("late.test.", func(w dns.ResponseWriter, q *dns.Msg) {
		time.AfterFunc(1500*time.Millisecond, func() { w.WriteMsg(answer(q, dns.RcodeSuccess)) })
	})
	mux.HandleFunc("wrong.test.", func(w dns.ResponseWriter, q *dns.Msg) {
		b, _ := answer(q, dns.RcodeSuccess).Pack()
		wrong.WriteTo(b, w.RemoteAddr())
	})
	server := &dns.Server{PacketConn: own, Handler: mux}
	go server.ActivateAndServe()
	n.t.Cleanup(func() { server.Shutdown() })
}

// queries returns the DNS queries of a name that ended since.
func queries(t *testing.T, c tracev1.TracerClient, since time.Time, name string) []*tracev1.DnsQuery {
	t.Helper()
	stream, err := c.Queries(t.Context(), &tracev1.DnsRequest{Since: timestamppb.New(since)})
	if err != nil {
		t.Fatal(err)
	}
	var all []*tracev1.DnsQuery
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range m.GetQueries().GetQueries() {
			if name == "" || q.GetName() == name {
				all = append(all, q)
			}
		}
	}
}

func told(q *tracev1.DnsQuery) string {
	return fmt.Sprintf("%s %s %s from %s, %s by %s: %s %s at %s via %s", q.GetProtocol(), q.GetType(), q.GetName(),
		q.GetProcess().GetComm(), q.GetServer(), q.GetResponder(), q.GetOutcome(), q.GetRcode(), q.GetStage(), q.GetVia())
}

// Real resolvers and real clients.
func TestDNSPeers(t *testing.T) {
	n := newDNSNetwork(t)
	n.dnsmasq()
	n.odd()
	client, _ := start(t, Config{Listen: []string{socket(t)}, Tier: "base"})
	pages := false
	status, err := client.Status(t.Context(), &tracev1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range status.GetNodes()[0].GetHooks() {
		pages = pages || h.GetName() == "dns:tcp_payload" && h.GetState() == "attached"
	}
	resolvConf := t.TempDir() + "/resolv.conf"
	if err := os.WriteFile(resolvConf, []byte("nameserver "+serviceAddr+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	nat, nat6 := serviceAddr+":53 by "+resolverAddr+":53: ", "["+serviceAddr6+"]:53 by ["+resolverAddr6+"]:53: "
	for name, test := range map[string]struct {
		command string
		name    string
		want    []string
		tcp     bool
	}{
		"dig":         {"dig @10.96.0.10 www.test", "www.test.", []string{"udp A www.test. from dig, " + nat + "answered NOERROR at client_received via nat"}, false},
		"dig, IPv6":   {"dig @fd00:96::a www.test AAAA", "www.test.", []string{"udp AAAA www.test. from dig, " + nat6 + "answered NOERROR at client_received via nat"}, false},
		"dig, TCP":    {"dig +tcp @10.96.0.10 www.test", "www.test.", []string{"tcp A www.test. from dig, " + nat + "answered NOERROR at client_received via nat"}, true},
		"no name":     {"dig @10.244.1.53 none.test", "none.test.", []string{"udp A none.test. from dig, 10.244.1.53:53 by 10.244.1.53:53: answered NXDOMAIN at client_received via direct"}, false},
		"odd label":   {`dig @10.244.1.53 'aa\.a.dp-1.test'`, `aa\.a.dp-1.test.`, []string{`udp A aa\.a.dp-1.test. from dig, 10.244.1.53:53 by 10.244.1.53:53: answered NXDOMAIN at client_received via direct`}, false},
		"truncated":   {"dig +bufsize=512 @10.96.0.10 big.test TXT", "big.test.", []string{"udp TXT big.test. from dig, " + nat + "answered NOERROR at client_received via nat", "tcp TXT big.test. from dig, " + nat + "answered NOERROR at client_received via nat"}, true},
		"glibc":       {"unshare -m sh -c 'mount --bind " + resolvConf + " /etc/resolv.conf && getent ahosts www.test'", "www.test.", []string{"udp A www.test. from getent, " + nat + "answered NOERROR at client_received via nat", "udp AAAA www.test. from getent, " + nat + "answered NOERROR at client_received via nat"}, false},
		"error":       {"dig @10.244.1.54 broken.test", "broken.test.", []string{"udp A broken.test. from dig, 10.244.1.54:53 by 10.244.1.54:53: error SERVFAIL at client_received via direct"}, false},
		"silent":      {"dig +time=1 +tries=1 @10.244.1.54 silent.test", "silent.test.", []string{"udp A silent.test. from dig, 10.244.1.54:53 by : unanswered  at resolver_received via direct"}, false},
		"no listener": {"dig -p 53 +time=1 +tries=1 @10.244.0.1 nobody.test", "nobody.test.", []string{"udp A nobody.test. from dig, 10.244.0.1:53 by : unanswered  at hop via direct"}, false},
		"late":        {"dig +time=1 +tries=1 @10.244.1.54 late.test; sleep 1", "late.test.", []string{"udp A late.test. from dig, 10.244.1.54:53 by 10.244.1.54:53: late NOERROR at client_received via direct"}, false},
		"filtered":    {"nft 'add table ip f; add chain ip f o { type filter hook output priority 0; }; add rule ip f o ip daddr 10.244.1.77 drop'; dig +time=1 +tries=1 @10.244.1.77 filtered.test", "filtered.test.", []string{"udp A filtered.test. from dig, 10.244.1.77:53 by : unanswered  at client via direct"}, false},
		"wrong":       {"dig +time=1 +tries=1 @10.244.1.54 wrong.test", "wrong.test.", []string{"udp A wrong.test. from dig, 10.244.1.54:53 by 10.244.1.55:53: wrong_source NOERROR at client_received via direct"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			since := time.Now()
			said := n.in(n.client, test.command)
			want := test.want
			if test.tcp && !pages {
				t.Log("this kernel does not show what TCP carries")
				want = want[:len(want)-1]
			}
			if got, ok := await(t, client, since, test.name, pages, want); !ok {
				t.Errorf("told\n%s\nwant\n%s\n%s", got, strings.Join(want, "\n"), said)
			}
		})
	}
}

// await waits for the queries of a name to end as they should: a moment, as it has to be
// noticed that a client has exited.
func await(t *testing.T, c tracev1.TracerClient, since time.Time, name string, pages bool, want []string) (string, bool) {
	t.Helper()
	for start := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		var got []string
		for _, q := range queries(t, c, since, name) {
			if q.GetProtocol() == "udp" || pages {
				got = append(got, told(q))
			}
		}
		text := strings.Join(got, "\n")
		if text == strings.Join(want, "\n") {
			return text, true
		}
		if time.Since(start) > 3*time.Second {
			return text, false
		}
	}
}

// Go's own resolver asks for both families at once, from two sockets of one process.
func TestDNSOfGo(t *testing.T) {
	n := newDNSNetwork(t)
	n.dnsmasq()
	client, _ := start(t, Config{Listen: []string{socket(t)}, Tier: "base"})
	since := time.Now()
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (c net.Conn, err error) {
		err = inside(n.client, func() (err error) {
			c, err = new(net.Dialer).DialContext(ctx, network, serviceAddr+":53")
			return err
		})
		return c, err
	}}
	addrs, err := resolver.LookupHost(t.Context(), "www.test.")
	if err != nil || len(addrs) != 2 {
		t.Fatalf("resolved %v, %v", addrs, err)
	}
	time.Sleep(100 * time.Millisecond)
	all := queries(t, client, since, "www.test.")
	if len(all) != 2 {
		t.Fatalf("%v", all)
	}
	// What is asked after the first one has been answered and told is no twin: an emulated machine is that slow.
	apart := all[1].GetTime().AsTime().Sub(all[0].GetTime().AsTime()).Abs()
	if apart < 20*time.Millisecond && (all[0].GetTwin() != all[1].GetNumber() || all[1].GetTwin() != all[0].GetNumber()) {
		t.Errorf("no twins, %v apart: %v", apart, all)
	}
	for _, q := range all {
		// The query is made here, but not in a process of the client's namespace.
		if q.GetOutcome() != "answered" || q.GetVia() != "nat" || len(q.GetAnswers()) != 1 || q.GetAnswers()[0].GetTtl() != 30 {
			t.Errorf("%v", q)
		}
	}
}

// A mesh's proxy takes the pod's queries to a port of its own, of which nobody has told the agent.
func TestDNSRedirected(t *testing.T) {
	n := newDNSNetwork(t)
	n.in(n.client, `nft -f - <<-'EOF'
		table ip nat { chain out { type nat hook output priority -100
			udp dport 53 redirect to 15053
		}; }
	EOF`)
	var proxy net.PacketConn
	if err := inside(n.client, func() (err error) { proxy, err = net.ListenPacket("udp4", "127.0.0.1:15053"); return err }); err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{PacketConn: proxy, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(new(dns.Msg).SetReply(q)) })}
	go server.ActivateAndServe()
	defer server.Shutdown()
	client, _ := start(t, Config{Listen: []string{socket(t)}, Tier: "base"})
	since := time.Now()
	n.in(n.client, "dig +time=1 +tries=1 @"+serviceAddr+" virtual.mesh")
	server.Shutdown()
	n.in(n.client, "dig +time=1 +tries=1 @"+serviceAddr+" nobody.mesh")
	for name, want := range map[string]string{
		"virtual.mesh.": "udp A virtual.mesh. from dig, 10.96.0.10:53 by 127.0.0.1:15053: answered NOERROR at client_received via redirected",
		"nobody.mesh.":  "udp A nobody.mesh. from dig, 10.96.0.10:53 by : unanswered  at redirect via redirected",
	} {
		if got, ok := await(t, client, since, name, false, []string{want}); !ok {
			t.Errorf("told %s, want %s", got, want)
		}
	}
}

// Under load each query is told with its end, or counted as lost: how many are told depends on
// how busy the machine is, that none is missing does not.
func TestDNSLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("takes all processors for some seconds")
	}
	n := newDNSNetwork(t)
	n.dnsmasq()
	names := t.TempDir() + "/names"
	if err := os.WriteFile(names, []byte("www.test A\nwww.test AAAA\nnone.test A\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	client, _ := start(t, Config{Listen: []string{socket(t)}, Tier: "base", MaxBytes: 256 << 20})
	since := time.Now()
	out := n.in(n.client, "dnsperf -s "+resolverAddr+" -d "+names+" -c 20 -q 200 -l 3")
	sent, completed := 0, 0
	for line := range strings.Lines(out) {
		fmt.Sscanf(strings.TrimSpace(line), "Queries sent: %d", &sent)
		fmt.Sscanf(strings.TrimSpace(line), "Queries completed: %d", &completed)
	}
	if completed < 1000 {
		t.Fatalf("no load:\n%s", out)
	}
	var account dnsAccount
	for end := time.Now().Add(3 * dnsDeadline); ; time.Sleep(250 * time.Millisecond) {
		account = n.account(client, since)
		if account.told >= sent || account.told+account.lost >= sent && time.Since(since) > 2*dnsDeadline || time.Now().After(end) {
			break
		}
	}
	t.Logf("%d sent, %d completed, %d told: %v, %d lost: %v", sent, completed, account.told, account.ends, account.lost, account.losses)
	switch {
	case account.told > sent:
		t.Errorf("%d of %d queries are told", account.told, sent)
	case account.told+account.lost < sent:
		t.Errorf("%d of %d queries are told, and %d events lost", account.told, sent, account.lost)
	case account.lost == 0 && (account.ends["answered"] < completed || account.ends["answered"]+account.ends["unanswered"]+account.ends["late"] < sent):
		t.Errorf("nothing was lost, %d of %d were answered, and %v are told", completed, sent, account.ends)
	}
}

// dnsAccount is what became of a network's queries.
type dnsAccount struct {
	told, lost int
	ends       map[string]int
	losses     []*tracev1.Loss
}

func (n *dnsNetwork) account(client tracev1.TracerClient, since time.Time) dnsAccount {
	n.t.Helper()
	status, err := client.Status(n.t.Context(), &tracev1.StatusRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	a := dnsAccount{ends: make(map[string]int), losses: status.GetNodes()[0].GetLosses()}
	for _, l := range a.losses {
		a.lost += int(l.GetCount())
	}
	for _, q := range queries(n.t, client, since, "") {
		// Others ask on this machine, too. Where it was not seen at its client, it is of the hosts behind.
		if strings.HasPrefix(q.GetNetns(), strings.TrimSuffix(n.client, "c")) {
			a.told++
			a.ends[q.GetOutcome()]++
		}
	}
	return a
}

// A process that its parent has not waited for is no client any more.
func TestHasExited(t *testing.T) {
	command := exec.Command("sleep", "60")
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	defer command.Wait()
	pid := uint32(command.Process.Pid)
	if hasExited(pid) {
		t.Error("a process that runs has exited")
	}
	if err := command.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); !hasExited(pid); {
		if time.Now().After(end) {
			t.Fatal("one that was killed has not exited")
		}
		time.Sleep(time.Millisecond)
	}
	command.Wait()
	if !hasExited(pid) {
		t.Error("one that is gone has not exited")
	}
}
