package netfilter

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// kubeProxy writes what kube-proxy makes of n services with two endpoints each.
func kubeProxy(n int) string {
	var chains, rules strings.Builder
	for i := range n {
		fmt.Fprintf(&chains, ":KUBE-SVC-%05d - [0:0]\n:KUBE-SEP-%05da - [0:0]\n:KUBE-SEP-%05db - [0:0]\n", i, i, i)
		ip := fmt.Sprintf("10.96.%d.%d", i/250, i%250+1)
		fmt.Fprintf(&rules, "-A KUBE-SERVICES -d %s/32 -p tcp -m comment --comment \"ns/svc%d cluster IP\" -m tcp --dport 80 -j KUBE-SVC-%05d\n", ip, i, i)
		fmt.Fprintf(&rules, "-A KUBE-SVC-%05d ! -s 10.244.0.0/16 -d %s/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ\n", i, ip)
		fmt.Fprintf(&rules, "-A KUBE-SVC-%05d -m statistic --mode random --probability 0.5 -j KUBE-SEP-%05da\n-A KUBE-SVC-%05d -j KUBE-SEP-%05db\n", i, i, i, i)
		for _, e := range "ab" {
			fmt.Fprintf(&rules, "-A KUBE-SEP-%05d%c -s 10.244.1.1/32 -j KUBE-MARK-MASQ\n-A KUBE-SEP-%05d%c -p tcp -m tcp -j DNAT --to-destination 10.244.1.1:80\n", i, e, i, e)
		}
	}
	return "*nat\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n" + chains.String() +
		"-A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n" + rules.String() + "COMMIT\n" +
		"*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\n:KUBE-FIREWALL - [0:0]\n-A INPUT -j KUBE-FIREWALL\n-A OUTPUT -j KUBE-FIREWALL\n" +
		"-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n"
}

func TestKubeProxySize(t *testing.T) {
	const services = 3000 // 27,000 rules
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			s := newSpace(t)
			s.run(kubeProxy(services), "iptables-"+backend+"-restore")
			tuple := trace.Tuple{Protocol: trace.TCP, Src: netip.MustParseAddrPort("10.244.1.9:40000"), Dst: netip.MustParseAddrPort("10.96.11.240:80")}
			q := trace.Question{Packet: tuple, Flags: trace.SYN, In: 1, Out: 1,
				Conntrack: trace.Conntrack{Original: tuple, Reply: tuple.Reverse(), Info: infoNew}}
			lo := trace.Interface{Device: trace.Device{Index: 1, Name: "lo"}}
			for _, hook := range []trace.NetfilterHook{trace.Forward, trace.Output, trace.Prerouting} {
				q.Filters = []trace.NetfilterHook{hook}
				var found []trace.FilterVerdict
				var err error
				best := time.Hour
				for range 3 {
					start := time.Now()
					s.in(func() { found, err = Verdicts(q, lo, lo) })
					best = min(best, time.Since(start))
				}
				t.Logf("%s: %v", hook, best)
				if err != nil {
					t.Fatal(err)
				}
				if want := map[trace.NetfilterHook]int{trace.Forward: 1}[hook]; len(found) != want {
					t.Errorf("%s: %d verdicts, want %d: %+v", hook, len(found), want, found)
				}
				if limit := 150 * time.Millisecond; best > limit && !raceEnabled {
					t.Errorf("%s: took %v, more than %v", hook, best, limit)
				}
			}
		})
	}
}
