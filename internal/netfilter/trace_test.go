package netfilter

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// TestTrace asks nftables itself which rule drops, where nobody can tell from outside.
func TestTrace(t *testing.T) {
	needTracing(t)
	w := newWire(t)
	for _, c := range []struct{ name, chain, want, packet string }{
		{"rule", "chain c { type filter hook forward priority 0; meta random >= 0 counter accept comment \"no\"; }; chain d { type filter hook forward priority 5; tcp dport 80 limit rate over 1/hour burst 1 packets drop; tcp dport 80 meta random >= 0 drop; }", "d", "FORWARD tcp 10.1.0.2:1000 10.2.0.2:80 SYN"},
		{"policy", "chain c { type filter hook forward priority 0; policy drop; tcp dport 81 accept; }", "c", "FORWARD tcp fd01::2:1000 fd02::2:80 SYN"},
		{"made here", "chain c { type filter hook output priority 0; udp dport 80 drop; }", "c", "OUTPUT udp 10.1.0.1:1000 10.1.0.2:80"},
		{"reject", "chain c { type filter hook input priority 0; tcp dport 80 reject; }", "c", "INPUT tcp 10.1.0.2:1000 10.1.0.1:80 SYN"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.firewall.run("flush ruleset\ntable inet t { "+c.chain+"; }\n", "nft", "-f", "-")
			n := w.trial(t, packetSpec(strings.ReplaceAll(c.packet, "fd01::2:1000 fd02::2:80", "[fd01::2]:1000 [fd02::2]:80")))
			var tracer *Tracer
			w.firewall.do(func() (err error) {
				tracer, err = Trace([]trace.Tuple{n.tuple}, []string{"f0"})
				return err
			})
			defer tracer.Close()
			if list := w.firewall.run("", "nft", "list", "tables"); strings.Count(list, TraceTable) < 2 {
				t.Errorf("tables: %s", list)
			}
			w.shoot(t, []*trial{n})
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			d, err := tracer.Drop(ctx)
			if err != nil {
				t.Fatal(err)
			}
			listing := w.firewall.run("", "nft", "-a", "list", "chain", "inet", "t", c.want)
			if d.Family != "inet" || d.Table != "t" || d.Chain != c.want || d.Tuple != n.tuple || (d.Handle == 0) != (c.name == "policy") {
				t.Errorf("got %+v of\n%s", d, listing)
			}
			tracer.Close()
			if list := w.firewall.run("", "nft", "list", "ruleset"); strings.Contains(list, TraceTable) {
				t.Errorf("left behind:\n%s", list)
			}
		})
	}
}

// needTracing skips on kernels before 5.12.
func needTracing(t *testing.T) {
	t.Helper()
	needRoot(t)
	if err := CanTrace(); errors.Is(err, ErrNoOwner) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
}

// TestTraceLeavesNothing kills a process that traces.
func TestTraceLeavesNothing(t *testing.T) {
	if os.Getenv("REPLYPATH_TRACE_AND_WAIT") != "" {
		if _, err := Trace([]trace.Tuple{{Src: netip.MustParseAddrPort("10.0.0.1:1"), Dst: netip.MustParseAddrPort("10.0.0.2:2"), Protocol: trace.TCP}}, nil); err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("tracing\n")
		time.Sleep(time.Minute)
		return
	}
	needTracing(t)
	s := newSpace(t)
	s.do(func() error {
		child := exec.Command("/proc/self/exe", "-test.run=^TestTraceLeavesNothing$")
		child.Env = append(os.Environ(), "REPLYPATH_TRACE_AND_WAIT=1")
		out, err := child.StdoutPipe()
		if err != nil {
			return err
		}
		if err := child.Start(); err != nil {
			return err
		}
		line := make([]byte, 64)
		n, _ := out.Read(line)
		list, _ := exec.Command("nft", "list", "tables").Output()
		if !strings.HasPrefix(string(line[:n]), "tracing") || !strings.Contains(string(list), TraceTable) {
			t.Errorf("the child says %q; tables: %s", line[:n], list)
		}
		_ = child.Process.Kill()
		_ = child.Wait()
		list, _ = exec.Command("nft", "list", "tables").Output()
		if strings.Contains(string(list), TraceTable) {
			t.Errorf("left behind: %s", list)
		}
		return nil
	})
}
