package agent

import (
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

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
			n.in(n.client, "dig @"+serviceAddr+" "+tt.dig)
			prefix := strings.TrimSuffix(n.client, "c")
			var got []string
			var cause string
			for again, deadline := 0, since.Add(9*time.Second); again < 4 && time.Now().Before(deadline); time.Sleep(250 * time.Millisecond) {
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
