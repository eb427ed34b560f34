package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"google.golang.org/protobuf/types/known/timestamppb"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

// findings are those that the agent tells of what a filter selects.
func findings(t *testing.T, c tracev1.TracerClient, since time.Time, filter string) (found []*tracev1.Finding) {
	t.Helper()
	stream, err := c.Explain(t.Context(), &tracev1.ExplainRequest{Since: timestamppb.New(since), Filter: filter})
	for err == nil {
		var m *tracev1.ExplainResponse
		if m, err = stream.Recv(); m.GetFinding() != nil {
			found = append(found, m.GetFinding())
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return found
}

// forwarder is a dnsmasq in the resolver's namespace that asks another server.
func (n *dnsNetwork) forwarder(server string) *exec.Cmd {
	n.t.Helper()
	cmd := exec.Command("ip", "netns", "exec", n.resolver, "dnsmasq", "-C", "/dev/null", "-d", "--no-resolv", "--no-hosts", "--port=53",
		"--bind-interfaces", "--listen-address="+resolverAddr, "--server="+server)
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { cmd.Process.Signal(syscall.SIGCONT); cmd.Process.Kill(); cmd.Wait() })
	time.Sleep(300 * time.Millisecond)
	return cmd
}

// What real programs do to each other: dig asks, dnsmasq answers or does not. One
// fault is one finding, which its client's connection has met.
func TestDNSFindings(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	client, _ := start(t, Config{Listen: []string{socket(t)}, Tier: "base"})
	for name, tt := range map[string]struct {
		fault func(*dnsNetwork)
		dig   string
		want  string
		text  string
	}{
		"stopped": {
			func(n *dnsNetwork) { n.forwarder("192.0.2.53").Process.Signal(syscall.SIGSTOP) },
			"+time=1 +tries=2 www.example.test", "dns-unanswered REPLY at r", "A www.example.test",
		},
		"slow, and glibc asks again": {
			func(n *dnsNetwork) {
				n.t.Helper()
				n.slow(5500 * time.Millisecond)
			},
			"", "dns-late-reply REPLY at r", "to answer",
		},
		"no upstream": {
			func(n *dnsNetwork) { n.forwarder("/example.test/") },
			"+time=1 +tries=1 www.other.test", "dns-error-response REPLY at r", "REFUSED",
		},
		"upstream filtered": {
			func(n *dnsNetwork) {
				n.forwarder("10.244.0.99")
				n.in(n.node, "nft 'add table ip f; add chain ip f c { type filter hook forward priority 0; }; add rule ip f c ip daddr 10.244.0.99 udp dport 53 drop'")
			},
			"+time=2 +tries=1 www.example.test", "netfilter-drop REQUEST at n", "A www.example.test of 10.244.0.7",
		},
		"dead upstream": {
			func(n *dnsNetwork) { n.forwarder("10.244.1.99") },
			"+time=2 +tries=2 www.example.test", "neighbor-unresolved REQUEST at r", "A www.example.test of 10.244.0.7",
		},
		"TCP filtered": {
			func(n *dnsNetwork) {
				n.dnsmasq()
				n.in(n.node, "nft 'add table ip f; add chain ip f c { type filter hook forward priority 0; }; add rule ip f c tcp dport 53 drop'")
			},
			"+time=2 +tries=1 big.test TXT", "dns-tcp-fallback-blocked REQUEST at n", "TXT big.test with a truncated message",
		},
		"healthy, and no such name": {func(n *dnsNetwork) { n.dnsmasq() }, "+time=2 none.test", "", ""},
		"healthy by TCP":            {func(n *dnsNetwork) { n.dnsmasq() }, "+time=2 big.test TXT", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newDNSNetwork(t)
			tt.fault(n)
			since := time.Now()
			if tt.dig != "" {
				n.in(n.client, "dig @"+serviceAddr+" "+tt.dig)
			} else {
				n.glibc("www.test")
			}
			prefix := strings.TrimSuffix(n.client, "c")
			var got []string
			var cause string
			for again, deadline := 0, time.Now().Add(9*time.Second); again < 4 && time.Now().Before(deadline); time.Sleep(250 * time.Millisecond) {
				got = nil
				for _, f := range findings(t, client, since, "host "+serviceAddr) {
					if host, mine := strings.CutPrefix(f.GetWhere().GetNetns(), prefix); mine {
						got, cause = append(got, fmt.Sprintf("%s %s at %s", f.GetId(), f.GetDirection(), host)), f.GetCause()
					}
				}
				if len(got) > 0 {
					again++ // for one that is too many
				}
			}
			if strings.Join(got, ", ") != tt.want || !strings.Contains(cause, tt.text) {
				t.Errorf("found %q, want %q: %s", got, tt.want, cause)
			}
		})
	}
}

// slow answers on the resolver's address after a time.
func (n *dnsNetwork) slow(delay time.Duration) {
	n.t.Helper()
	var conn net.PacketConn
	err := inside(n.resolver, func() (err error) {
		conn, err = net.ListenPacket("udp4", resolverAddr+":53")
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		time.AfterFunc(delay, func() { w.WriteMsg(new(dns.Msg).SetReply(q)) })
	})}
	go server.ActivateAndServe()
	n.t.Cleanup(func() { server.Shutdown() })
}

// glibc asks for a name's IPv4 address as programs do that are linked with it.
func (n *dnsNetwork) glibc(name string) {
	n.t.Helper()
	resolvConf := n.t.TempDir() + "/resolv.conf"
	if err := os.WriteFile(resolvConf, []byte("nameserver "+serviceAddr+"\n"), 0o644); err != nil {
		n.t.Fatal(err)
	}
	n.in(n.client, "unshare -m sh -c 'mount --bind "+resolvConf+" /etc/resolv.conf && getent ahostsv4 "+name+"'")
}

// A resolver that stopped reading is silent at first, and its buffer is full later: one fault, one finding.
func TestSilentThenFull(t *testing.T) {
	if testing.Short() {
		t.Skip("takes ten seconds")
	}
	t.Parallel()
	client, _ := start(t, Config{Listen: []string{socket(t)}, Tier: "base"})
	n := newDNSNetwork(t)
	var deaf *net.UDPConn // nobody reads it
	err := inside(n.resolver, func() (err error) {
		deaf, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(resolverAddr+":53")))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	if err := deaf.SetReadBuffer(16 << 10); err != nil {
		t.Fatal(err)
	}
	since := time.Now()
	of := func() (got []*tracev1.Finding) {
		for _, f := range findings(t, client, since, "host "+serviceAddr) {
			if strings.HasPrefix(f.GetWhere().GetNetns(), strings.TrimSuffix(n.client, "c")) {
				got = append(got, f)
			}
		}
		return got
	}
	n.in(n.client, "dig +time=6 +tries=1 @"+serviceAddr+" first.test")
	for end := time.Now().Add(5 * time.Second); len(of()) == 0 && time.Now().Before(end); {
		time.Sleep(100 * time.Millisecond)
	}
	if got := of(); len(got) != 1 || got[0].GetId() != "dns-unanswered" {
		t.Fatalf("found %v, want that it is silent", got)
	}
	err = inside(n.client, func() error {
		c, err := net.Dial("udp4", serviceAddr+":53")
		if err != nil {
			return err
		}
		defer c.Close()
		query, err := new(dns.Msg).SetQuestion("next.test.", dns.TypeA).Pack()
		for i := range 200 { // more than a socket has room for
			query[0], query[1] = byte(i>>8), byte(i)
			c.Write(query)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if got := of(); len(got) == 1 && got[0].GetCount() > 1 && strings.Contains(fmt.Sprint(got[0].GetEvidence()), "receive buffer of udp") {
			return
		}
	}
	t.Errorf("found %v, want one silent resolver whose buffer is full", of())
}
