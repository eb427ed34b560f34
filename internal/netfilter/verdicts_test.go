package netfilter

import (
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/replypath/replypath/pkg/trace"
	"net/netip"
)

// scenario is a rule set, a packet that it drops and a healthy twin that it lets by.
type scenario struct {
	name    string
	tool    string // program that loads the rules
	rules   string
	dropped packetSpec
	healthy packetSpec
	want    trace.FilterVerdict // without counters and handle
}

// packetSpec is a packet in few words: "INPUT tcp 10.1.0.2:1000 192.0.2.1:80 SYN".
type packetSpec string

// trial builds the packet.
func (w *wire) trial(t *testing.T, s packetSpec) *trial {
	t.Helper()
	f := strings.Fields(string(s))
	w.number++
	n := &trial{hook: trace.NetfilterHook(f[0])}
	n.number = w.number
	n.tuple = trace.Tuple{Protocol: trace.UDP, Src: netip.MustParseAddrPort(f[2]), Dst: netip.MustParseAddrPort(f[3])}
	if f[1] == "tcp" {
		n.tuple.Protocol, n.flags = trace.TCP, trace.SYN
	}
	switch n.hook {
	case trace.Output:
		n.out = "f0"
	case trace.Forward, trace.Postrouting:
		n.in, n.out = "f0", "f1"
	default:
		n.in = "f0"
	}
	for _, word := range f[4:] {
		switch word {
		case "SYN-ACK":
			n.flags = trace.SYN | trace.ACK
		case "mark5":
			n.mark = 5
		}
	}
	n.ask(w)
	if n.hook == trace.Ingress {
		n.question.Conntrack = trace.Conntrack{}
	}
	return n
}

const (
	web  packetSpec = "INPUT tcp 10.1.0.2:1000 192.0.2.1:80"
	ssh  packetSpec = "INPUT tcp 10.1.0.2:1000 192.0.2.1:22"
	web6 packetSpec = "INPUT tcp [fd01::2]:1000 [2001:db8::1]:80"
	ssh6 packetSpec = "INPUT tcp [fd01::2]:1000 [2001:db8::1]:22"
)

// nftInput wraps rules into a base chain at INPUT.
func nftInput(rules string) string {
	return "table inet t {\n set allowed { type inet_service; flags interval; elements = { 1-79, 81-1000 } }\n" +
		" set peers { type ipv4_addr . inet_service; elements = { 10.1.0.2 . 80 } }\n" +
		" chain user {\n  tcp dport 22 return\n  drop\n }\n" +
		" chain in {\n type filter hook input priority 0; policy accept;\n" + rules + "\n }\n}\n"
}

func nftVerdict(rule string) trace.FilterVerdict {
	return trace.FilterVerdict{Hook: trace.Input, Backend: "nft", Family: "inet", Table: "t", Chain: "in", Rule: rule, Certain: true}
}

func with(v trace.FilterVerdict, change func(*trace.FilterVerdict)) trace.FilterVerdict {
	change(&v)
	return v
}

var nftScenarios = []scenario{
	{"policy", "nft", "table inet t { chain in { type filter hook input priority 0; policy drop; tcp dport 22 accept; }; }\n", web, ssh,
		with(nftVerdict("policy drop"), func(v *trace.FilterVerdict) { v.Policy = true })},
	{"port", "nft", nftInput("tcp dport 80 counter drop comment \"no web\""), web, ssh,
		with(nftVerdict(`tcp dport 80 counter drop comment "no web"`), func(v *trace.FilterVerdict) { v.Comment = "no web" })},
	{"set", "nft", nftInput("tcp dport { 80, 443 } drop"), web, ssh, nftVerdict("tcp dport { 80, 443 } drop")},
	{"interval set", "nft", nftInput("tcp dport != @allowed drop"), web, ssh, nftVerdict("tcp dport != @allowed drop")},
	{"concatenation", "nft", nftInput("ip saddr . tcp dport @peers drop"), web, ssh, nftVerdict("ip saddr . tcp dport @peers drop")},
	{"verdict map", "nft", nftInput("tcp dport vmap { 22 : accept, 80 : drop }"), web, ssh, nftVerdict("tcp dport vmap { 22 : accept, 80 : drop }")},
	{"jump and return", "nft", nftInput("ip saddr 10.1.0.0/24 jump user"), web, ssh, with(nftVerdict("drop"), func(v *trace.FilterVerdict) { v.Chain = "user" })},
	{"invalid", "nft", nftInput("ct state invalid counter drop"), web + " SYN-ACK", web, nftVerdict("ct state invalid counter drop")},
	{"interface wildcard", "nft", nftInput(`iifname "f*" tcp dport 80 drop`), web, ssh, nftVerdict(`iifname "f*" tcp dport 80 drop`)},
	{"negation", "nft", nftInput("ip daddr 192.0.2.1 tcp dport != 22 drop"), web, ssh, nftVerdict("ip daddr 192.0.2.1 tcp dport != 22 drop")},
	{"reject", "nft", nftInput("tcp dport 80 reject with icmpx admin-prohibited"), web, ssh,
		with(nftVerdict("tcp dport 80 reject with icmpx admin-prohibited"), func(v *trace.FilterVerdict) { v.Reject = true })},
	{"reset", "nft", nftInput("tcp dport 80 reject with tcp reset"), web6, ssh6,
		with(nftVerdict("tcp dport 80 reject with tcp reset"), func(v *trace.FilterVerdict) { v.Reject = true })},
	{"later chain", "nft", nftInput("accept") + "table inet u { chain late { type filter hook input priority 10; tcp dport 80 drop; }; }\n", web, ssh,
		with(nftVerdict("tcp dport 80 drop"), func(v *trace.FilterVerdict) { v.Table, v.Chain = "u", "late" })},
	{"mark", "nft", "table inet t { chain in { type filter hook output priority 0; meta mark & 0xff == 5 drop; }; }\n",
		"OUTPUT tcp 192.0.2.1:80 10.1.0.2:1000 mark5", "OUTPUT tcp 192.0.2.1:80 10.1.0.2:1000",
		with(nftVerdict("meta mark & 0x000000ff == 0x00000005 drop"), func(v *trace.FilterVerdict) { v.Hook = trace.Output })},
	{"netdev ingress", "nft", "table netdev n { chain i { type filter hook ingress device \"f0\" priority 0; ip saddr 10.1.0.2 tcp dport 80 drop; }; }\n",
		"INGRESS tcp 10.1.0.2:1000 192.0.2.1:80", "INGRESS tcp 10.1.0.2:1000 192.0.2.1:22",
		trace.FilterVerdict{Hook: trace.Ingress, Backend: "nft", Family: "netdev", Table: "n", Chain: "i", Rule: "ip saddr 10.1.0.2 tcp dport 80 drop", Certain: true}},
	{"inet ingress", "nft", "table inet n { chain i { type filter hook ingress devices = { f1, f0 } priority 0; ip6 saddr fd01::2 drop; }; }\n",
		"INGRESS tcp [fd01::2]:1000 [2001:db8::1]:80", "INGRESS tcp [fd01::3]:1000 [2001:db8::1]:80",
		trace.FilterVerdict{Hook: trace.Ingress, Backend: "nft", Family: "inet", Table: "n", Chain: "i", Rule: "ip6 saddr fd01::2 drop", Certain: true}},
	{"egress", "nft", "table netdev n { chain e { type filter hook egress device \"f0\" priority 0; tcp sport 80 drop; }; }\n",
		"OUTPUT tcp 192.0.2.1:80 10.1.0.2:1000 EGRESS", "OUTPUT tcp 192.0.2.1:81 10.1.0.2:1000 EGRESS",
		trace.FilterVerdict{Hook: trace.Egress, Backend: "nft", Family: "netdev", Table: "n", Chain: "e", Rule: "tcp sport 80 drop", Certain: true}},
	{"reverse path", "nft", "table inet t { chain in { type filter hook prerouting priority -10; fib saddr . iif oif missing drop; }; }\n",
		"PREROUTING udp 10.1.0.77:1000 192.0.2.1:80", "PREROUTING udp 10.1.0.2:1000 192.0.2.1:80",
		with(nftVerdict("fib saddr . iif oif missing drop"), func(v *trace.FilterVerdict) { v.Hook = trace.Prerouting })},
	{"reverse path IPv6", "nft", "table inet t { chain in { type filter hook prerouting priority -10; meta nfproto ipv6 fib saddr . mark . iif oif missing drop; }; }\n",
		"PREROUTING udp [fd01::1:77]:1000 [2001:db8::1]:80", "PREROUTING udp [fd01::2]:1000 [2001:db8::1]:80",
		with(nftVerdict("meta nfproto ipv6 fib saddr . mark . iif oif missing drop"), func(v *trace.FilterVerdict) { v.Hook = trace.Prerouting })},
}

// iptablesScenarios are run with iptables-nft and iptables-legacy, for IPv4 and IPv6.
var iptablesScenarios = []scenario{
	{"policy", "", ":INPUT DROP [0:0]\n-A INPUT -p tcp --dport 22 -j ACCEPT\n", web, ssh,
		trace.FilterVerdict{Chain: "INPUT", Rule: "-P INPUT DROP", Policy: true}},
	{"port", "", ":INPUT ACCEPT [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 80 -m comment --comment \"no web\" -j DROP\n", web, ssh,
		trace.FilterVerdict{Chain: "INPUT", Rule: `-A INPUT -p tcp -m tcp --dport 80 -m comment --comment "no web" -j DROP`, Line: 2, Comment: "no web"}},
	{"multiport", "", ":INPUT ACCEPT [0:0]\n-A INPUT -p tcp -m multiport --dports 80,100:200 -j DROP\n", web, ssh,
		trace.FilterVerdict{Chain: "INPUT", Rule: "-A INPUT -p tcp -m multiport --dports 80,100:200 -j DROP", Line: 1}},
	{"established accepted, rest dropped", "", ":INPUT ACCEPT [0:0]\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -p tcp --dport 22 -j ACCEPT\n-A INPUT -p tcp -j DROP\n", web, ssh,
		trace.FilterVerdict{Chain: "INPUT", Rule: "-A INPUT -p tcp -j DROP", Line: 3}},
	{"invalid", "", ":INPUT ACCEPT [0:0]\n-A INPUT -m conntrack --ctstate INVALID -j DROP\n", web + " SYN-ACK", web,
		trace.FilterVerdict{Chain: "INPUT", Rule: "-A INPUT -m conntrack --ctstate INVALID -j DROP", Line: 1}},
	{"user chain", "", ":INPUT ACCEPT [0:0]\n:user - [0:0]\n-A INPUT -i f+ -j user\n-A user -p tcp --dport 22 -j RETURN\n-A user ! -i lo -p tcp -j DROP\n", web, ssh,
		trace.FilterVerdict{Chain: "user", Rule: "-A user ! -i lo -p tcp -j DROP", Line: 2}},
	{"reject", "", ":INPUT ACCEPT [0:0]\n-A INPUT -p tcp --dport 80 -j REJECT --reject-with tcp-reset\n", web, ssh,
		trace.FilterVerdict{Chain: "INPUT", Rule: "-A INPUT -p tcp -m tcp --dport 80 -j REJECT --reject-with tcp-reset", Line: 1, Reject: true}},
}

// TestVerdictsReversePath has the rule that strict hosts put into table raw.
func TestVerdictsReversePath(t *testing.T) {
	w := newWire(t)
	w.firewall.run("", "ip", "route", "add", "10.1.0.77/32", "via", "10.2.0.2")
	for _, backend := range []string{"nft", "legacy"} {
		w.firewall.run("", "nft", "flush", "ruleset")
		w.firewall.run("*raw\n:PREROUTING ACCEPT\n-A PREROUTING -m rpfilter --invert -j DROP\nCOMMIT\n", "iptables-"+backend+"-restore")
		w.try(t, scenario{dropped: "PREROUTING udp 10.1.0.77:1000 192.0.2.1:80", healthy: "PREROUTING udp 10.1.0.2:1000 192.0.2.1:80",
			want: trace.FilterVerdict{Hook: trace.Prerouting, Backend: "iptables-" + backend, Family: "ip", Table: "raw", Chain: "PREROUTING",
				Rule: "-A PREROUTING -m rpfilter --invert -j DROP", Line: 1, Certain: true}})
	}
}

// to6 turns a packet into its twin of IPv6.
func (s packetSpec) to6() packetSpec {
	return packetSpec(strings.NewReplacer("10.1.0.2:", "[fd01::2]:", "192.0.2.1:", "[2001:db8::1]:").Replace(string(s)))
}

var ignoreCounters = cmpopts.IgnoreFields(trace.FilterVerdict{}, "Packets", "Counted", "Handle")

// try sends both packets, compares their fate with the scenario and asks.
func (w *wire) try(t *testing.T, s scenario) trace.FilterVerdict {
	t.Helper()
	dropped, healthy := w.trial(t, s.dropped), w.trial(t, s.healthy)
	w.firewall.forget()
	delivered := w.shoot(t, []*trial{dropped, healthy})
	if delivered[dropped.number] || !delivered[healthy.number] {
		t.Fatalf("delivered: %v %v, want only the second", delivered[dropped.number], delivered[healthy.number])
	}
	for _, n := range []*trial{dropped, healthy} {
		if strings.HasSuffix(string(s.dropped), "EGRESS") {
			n.question.Filters = []trace.NetfilterHook{trace.Egress}
		}
		w.verdict(t, n)
	}
	if len(healthy.verdicts) > 0 {
		t.Errorf("healthy packet: %+v", healthy.verdicts)
	}
	if diff := cmp.Diff([]trace.FilterVerdict{s.want}, dropped.verdicts, ignoreCounters); diff != "" {
		t.Fatalf("verdict differs (-want +got):\n%s", diff)
	}
	return dropped.verdicts[0]
}

func TestVerdictsNFT(t *testing.T) {
	w := newWire(t)
	// A route away from the device, for the reverse path rules.
	w.firewall.run("", "ip", "route", "add", "10.1.0.77/32", "via", "10.2.0.2")
	w.firewall.run("", "ip", "route", "add", "fd01::1:77/128", "via", "fd02::2")
	for _, s := range nftScenarios {
		t.Run(s.name, func(t *testing.T) {
			_, err := w.firewall.try("flush ruleset\n"+s.rules, "nft", "-f", "-")
			if err != nil && s.name == "egress" && strings.Contains(err.Error(), "Operation not supported") {
				t.Skip("this kernel has no netdev egress hook, which came with 5.16")
			}
			if err != nil {
				t.Fatal(err)
			}
			v := w.try(t, s)
			if v.Policy {
				return
			}
			listing := w.firewall.run("", "nft", "-a", "-nn", "list", "chain", v.Family, v.Table, v.Chain)
			if want := regexp.MustCompile(`# handle (\d+)\n`).FindAllStringSubmatch(listing, -1); !containsHandle(want, v.Handle) {
				t.Errorf("handle %d is not in\n%s", v.Handle, listing)
			}
			if v.Counted != strings.Contains(v.Rule, "counter") || v.Counted && v.Packets == 0 {
				t.Errorf("counter: %v %d", v.Counted, v.Packets)
			}
		})
	}
}

func TestVerdictsIPTables(t *testing.T) {
	w := newWire(t)
	for _, backend := range []string{"nft", "legacy"} {
		for _, version := range []string{"", "6"} {
			for _, s := range iptablesScenarios {
				t.Run("ip"+version+"tables-"+backend+"/"+s.name, func(t *testing.T) {
					tool := "ip" + version + "tables-" + backend
					w.firewall.run("*filter\n"+s.rules+"COMMIT\n", tool+"-restore")
					s.want.Hook, s.want.Backend, s.want.Family, s.want.Table, s.want.Certain = trace.Input, "iptables-"+backend, "ip"+version, "filter", true
					if version == "6" {
						s.dropped, s.healthy = s.dropped.to6(), s.healthy.to6()
					}
					v := w.try(t, s)
					if !v.Counted || v.Packets == 0 {
						t.Errorf("counter: %v %d", v.Counted, v.Packets)
					}
					if backend == "nft" && !v.Policy && v.Handle == 0 {
						t.Error("no handle")
					}
					if saved := w.firewall.run("", tool+"-save"); !v.Policy && !strings.Contains(saved, v.Rule+"\n") {
						t.Errorf("%q is not in\n%s", v.Rule, saved)
					}
				})
			}
			w.firewall.run("*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n", "ip"+version+"tables-"+backend+"-restore")
			w.firewall.run("", "nft", "flush", "ruleset")
		}
	}
}

func containsHandle(found [][]string, handle uint64) bool {
	for _, f := range found {
		if f[1] == strings.TrimSpace(formatValue(kindIndex, []byte{byte(handle)})) {
			return true
		}
	}
	return false
}

// TestVerdictsDNAT drops by what the client meant, after destination NAT.
func TestVerdictsDNAT(t *testing.T) {
	w := newWire(t)
	const nftRules = `table ip t {
 chain pre { type nat hook prerouting priority -100; ip daddr 192.0.2.1 tcp dport 8080 dnat to 10.2.0.2:80; }
 chain f { type filter hook forward priority 0; ct state new ct status dnat ct original ip daddr 192.0.2.1 tcp dport 80 ct original proto-dst 8080 counter drop; }
}
`
	const iptablesRules = `*nat
:PREROUTING ACCEPT
-A PREROUTING -d 192.0.2.1/32 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.2.0.2:80
COMMIT
*filter
:FORWARD ACCEPT
-A FORWARD -m conntrack --ctstate NEW,DNAT --ctorigdst 192.0.2.1/32 --ctorigdstport 8080 --ctreplsrc 10.2.0.2 -j DROP
COMMIT
`
	client, vip, backend := netip.MustParseAddrPort("10.1.0.2:1000"), netip.MustParseAddrPort("192.0.2.1:8080"), netip.MustParseAddrPort("10.2.0.2:80")
	for _, load := range [][]string{{"nft", "-f", "-"}, {"iptables-nft-restore"}, {"iptables-legacy-restore"}} {
		w.firewall.run("", "nft", "flush", "ruleset")
		rules := iptablesRules
		if load[0] == "nft" {
			rules = nftRules
		}
		w.firewall.run(rules, load...)
		w.firewall.forget()
		mapped, direct := w.trial(t, "FORWARD tcp 10.1.0.2:1000 10.2.0.2:80"), w.trial(t, "FORWARD tcp 10.1.0.2:1001 10.2.0.2:80")
		mapped.tuple.Dst = vip // what is sent; the question is about what FORWARD sees
		mapped.question.Conntrack = trace.Conntrack{Info: infoNew,
			Original: trace.Tuple{Protocol: trace.TCP, Src: client, Dst: vip}, Reply: trace.Tuple{Protocol: trace.TCP, Src: backend, Dst: client}}
		heard := w.shoot(t, []*trial{mapped, direct})
		if heard[mapped.number] || !heard[direct.number] {
			t.Fatalf("%s: delivered %v, %v", load[0], heard[mapped.number], heard[direct.number])
		}
		w.verdict(t, mapped)
		w.verdict(t, direct)
		if len(mapped.verdicts) != 1 || !mapped.verdicts[0].Certain || mapped.verdicts[0].Packets != 1 || len(direct.verdicts) != 0 {
			t.Errorf("%s: %+v, healthy %+v", load[0], mapped.verdicts, direct.verdicts)
		}
		if load[0] == "nft" {
			continue
		}
		save := strings.Replace(load[0], "restore", "save", 1)
		if saved := w.firewall.run("", save); !strings.Contains(saved, mapped.verdicts[0].Rule+"\n") {
			t.Errorf("%q is not in\n%s", mapped.verdicts[0].Rule, saved)
		}
	}
}
