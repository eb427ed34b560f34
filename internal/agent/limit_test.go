package agent

import (
	"context"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

// looping is a namespace whose DNS proxy's own queries are redirected to itself: each makes another, without end.
func (n *dnsNetwork) looping(ctx context.Context) string {
	n.t.Helper()
	name := strings.TrimSuffix(n.client, "-c") + "-l"
	n.run("ip", "netns", "add", name)
	n.t.Cleanup(func() { exec.Command("ip", "netns", "del", name).Run() })
	n.run("ip", "-n", name, "link", "set", "lo", "up")
	n.run("ip", "-n", name, "addr", "add", "10.1.1.1/32", "dev", "lo")
	n.run("ip", "-n", name, "route", "add", "default", "dev", "lo")
	n.in(name, `nft -f - <<-'EOF'
		table ip nat { chain out { type nat hook output priority -100
			udp dport 53 redirect to 15053
		}; }
	EOF`)
	var proxy net.PacketConn
	var up net.Conn
	err := inside(name, func() (err error) {
		if proxy, err = net.ListenPacket("udp4", "0.0.0.0:15053"); err == nil {
			up, err = net.Dial("udp4", "10.1.1.1:53")
		}
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	stop := context.AfterFunc(ctx, func() { proxy.Close(); up.Close() })
	n.t.Cleanup(func() { stop(); proxy.Close(); up.Close() })
	go func() {
		b := make([]byte, 512)
		for {
			k, _, err := proxy.ReadFrom(b)
			if err != nil {
				return
			}
			b[0]++ // another id: a query of its own
			up.Write(b[:k])
		}
	}()
	for i := range 8 { // that go round at the same time
		q := new(dns.Msg).SetQuestion("loop.test.", dns.TypeA)
		q.Id = uint16(i)
		b, _ := q.Pack()
		up.Write(b)
	}
	return name
}

// A namespace that tells far too much is told, with how much of it was left out; what others tell is whole.
func TestNamespaceLimit(t *testing.T) {
	n := newDNSNetwork(t)
	n.odd()
	client, _ := start(t, Config{Listen: []string{socket(t)}, Tier: "base", NamespaceEvents: 500})
	since := time.Now()
	ctx, stop := context.WithCancel(t.Context())
	loop := n.looping(ctx)
	n.in(n.client, "dig +time=5 +tries=1 @10.244.1.54 silent.test; dig @10.244.1.54 broken.test")
	want := map[string]bool{"dns-unanswered": true, "dns-error-response": true}
	for end := time.Now().Add(10 * time.Second); len(want) > 0 && time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		for _, f := range findings(t, client, since, "host 10.244.1.54") {
			delete(want, f.GetId())
		}
	}
	stop()
	all := findings(t, client, since, "")
	for _, f := range all {
		if f.GetId() != "dns-unanswered" && f.GetId() != "dns-error-response" && f.GetWhere().GetNetns() != loop && strings.HasPrefix(f.GetWhere().GetNetns(), strings.TrimSuffix(n.client, "c")) {
			t.Errorf("found %s in %s: %s", f.GetId(), f.GetWhere().GetNetns(), f.GetSummary())
		}
	}
	if len(want) > 0 {
		t.Errorf("not found: %v of %v", want, all)
	}
	status, err := client.Status(t.Context(), &tracev1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	limited := make(map[string]uint32)
	for _, l := range status.GetNodes()[0].GetLosses() {
		if strings.HasPrefix(l.GetCause(), "namespace_limit") {
			limited[l.GetCause()] = l.GetCount()
		}
	}
	if limited["namespace_limit of "+loop] == 0 {
		t.Errorf("%v: the loop in %s is not told", limited, loop)
	}
	for _, quiet := range []string{n.client, n.node, n.resolver} {
		if limited["namespace_limit of "+quiet] != 0 {
			t.Errorf("%v: %s told little", limited, quiet)
		}
	}
}
