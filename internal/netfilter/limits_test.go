package netfilter

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// TestNothingIsChanged reads in a namespace without any rules: no table may come
// into being by it.
func TestNothingIsChanged(t *testing.T) {
	s := newSpace(t)
	q := syn()
	q.Filters = []trace.NetfilterHook{trace.Prerouting, trace.Input, trace.Forward, trace.Output, trace.Postrouting, trace.Ingress, trace.Egress}
	for _, q.Packet = range []trace.Tuple{synTuple, {Protocol: trace.UDP, Src: netip.MustParseAddrPort("[fd00::1]:1"), Dst: netip.MustParseAddrPort("[fd00::2]:2")}} {
		s.do(func() error {
			found, err := Verdicts(q, trace.Interface{}, trace.Interface{})
			if len(found) > 0 {
				t.Errorf("verdicts without rules: %+v", found)
			}
			return err
		})
	}
	if out := s.run("", "nft", "list", "ruleset"); out != "" {
		t.Errorf("rules have come into being:\n%s", out)
	}
	s.do(func() error {
		for _, name := range []string{"ip_tables_names", "ip6_tables_names"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + name)
			if err != nil {
				return err
			}
			if len(b) > 0 {
				t.Errorf("%s: %s", name, b)
			}
		}
		return nil
	})
}

// bigSet is a set of n addresses of which none is the packet's, and a rule that
// drops what is in it.
func bigSet(n int) string {
	var b strings.Builder
	b.WriteString("table ip t {\n set big { type ipv4_addr; elements = { 172.16.0.0")
	for i := 1; i < n; i++ {
		fmt.Fprintf(&b, ", 172.%d.%d.%d", 16+i>>16, i>>8&255, i&255)
	}
	b.WriteString(" } }\n chain in { type filter hook input priority 0; policy drop; ip saddr @big accept; }; }\n")
	return b.String()
}

func TestBigSets(t *testing.T) {
	for _, n := range []int{50_000, mostElements + 1} {
		s := newSpace(t)
		s.run(bigSet(n), "nft", "-f", "-")
		q := syn()
		q.Filters = []trace.NetfilterHook{trace.Input}
		var found []trace.FilterVerdict
		var err error
		start := time.Now()
		s.in(func() { found, err = Verdicts(q, trace.Interface{}, trace.Interface{}) })
		t.Logf("%d elements: %v", n, time.Since(start))
		tooMany := n > mostElements
		if (errors.Is(err, errMany) || errors.Is(err, errTime)) != tooMany {
			t.Errorf("%d elements: error %v", n, err)
		}
		if len(found) != 1 || !found[0].Policy || found[0].Certain == tooMany {
			t.Errorf("%d elements: %+v", n, found)
		}
	}
}

func TestTimeLimit(t *testing.T) {
	s := newSpace(t)
	s.run(nftInput("drop"), "nft", "-f", "-")
	s.do(func() error {
		socket, err := openSocket(time.Now())
		if err != nil {
			return err
		}
		defer socket.close()
		if _, err := (&nftReader{socket: socket}).read(); !errors.Is(err, errTime) {
			t.Errorf("error %v, want %v", err, errTime)
		}
		return nil
	})
}
