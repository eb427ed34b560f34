package netfilter

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/replypath/replypath/pkg/trace"
)

// TestChanges reads NAT rules and marks that nft and iptables themselves wrote.
func TestChanges(t *testing.T) {
	s := newSpace(t)
	to, to6 := netip.MustParseAddr("10.2.0.20"), netip.MustParseAddr("2001:db8:2::20")
	dnat := Translation{Kind: DestinationNAT, Addr: to, Port: 8080, Certain: true}
	maybe := func(t Translation) Translation { t.Certain = false; return t }
	tests := []struct {
		name, tool, rules string
		hook              trace.NetfilterHook
		six               bool
		want              []Translation
		mark, conn        uint32 // conn: the connection's; known where it was
		unknown           bool   // the mark
	}{
		{name: "nft dnat", tool: "nft", rules: "table ip n { chain p { type nat hook prerouting priority -100; tcp dport 80 dnat to 10.2.0.20:8080; }; }\n", want: []Translation{dnat}},
		{name: "nft dnat of IPv6", tool: "nft", six: true, rules: "table ip6 n { chain p { type nat hook prerouting priority -100; dnat to 2001:db8:2::20; }; }\n",
			want: []Translation{{Kind: DestinationNAT, Addr: to6, Certain: true}}},
		{name: "nft of another port", tool: "nft", rules: "table ip n { chain p { type nat hook prerouting priority -100; tcp dport 81 dnat to 10.2.0.20; }; }\n"},
		{name: "nft by chance", tool: "nft", rules: "table ip n { chain p { type nat hook prerouting priority -100; dnat to numgen random mod 2 map { 0: 10.2.0.20, 1: 10.2.0.21 }; }; }\n",
			want: []Translation{{Kind: DestinationNAT, Unknown: true}}},
		{name: "nft masquerade", tool: "nft", hook: trace.Postrouting, rules: "table ip n { chain p { type nat hook postrouting priority 100; masquerade; }; }\n",
			want: []Translation{{Kind: Masquerade, Certain: true}}},
		{name: "nft redirect", tool: "nft", rules: "table ip n { chain p { type nat hook prerouting priority -100; tcp dport 80 redirect to :8080; }; }\n",
			want: []Translation{{Kind: Redirect, Port: 8080, Certain: true}}},
		{name: "nft mark", tool: "nft", rules: "table ip n { chain p { type filter hook prerouting priority -150; tcp dport 80 meta mark set 5; }; }\n", mark: 5},
		{name: "connmark", tool: "iptables-nft-restore", rules: "*mangle\n:PREROUTING ACCEPT\n-A PREROUTING -j CONNMARK --set-mark 9\n-A PREROUTING -j CONNMARK --restore-mark\nCOMMIT\n", conn: 9, mark: 9},
		{name: "legacy connmark", tool: "iptables-legacy-restore", rules: "*mangle\n:PREROUTING ACCEPT\n-A PREROUTING -j MARK --set-mark 6\n-A PREROUTING -j CONNMARK --save-mark\nCOMMIT\n", conn: 6, mark: 6},
		{name: "nft connmark", tool: "nft", rules: "table ip n { chain p { type filter hook prerouting priority -150; ct mark set 5; meta mark set ct mark; }; }\n", conn: 5, mark: 5},
		{name: "nft mark of conntrack", tool: "nft", rules: "table ip n { chain p { type filter hook prerouting priority -150; meta mark set ct mark; }; }\n", unknown: true},
		{name: "iptables", tool: "iptables-nft-restore", rules: "*nat\n:PREROUTING ACCEPT\n-A PREROUTING -d 203.0.113.80 -p tcp --dport 80 -j DNAT --to-destination 10.2.0.20:8080\nCOMMIT\n", want: []Translation{dnat}},
		{name: "iptables of IPv6", tool: "ip6tables-nft-restore", six: true, rules: "*nat\n:PREROUTING ACCEPT\n-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 2001:db8:2::20\nCOMMIT\n",
			want: []Translation{{Kind: DestinationNAT, Addr: to6, Certain: true}}},
		{name: "iptables by chance", tool: "iptables-nft-restore", rules: "*nat\n:PREROUTING ACCEPT\n:SVC -\n-A PREROUTING -p tcp -j SVC\n" +
			"-A SVC -p tcp -m statistic --mode random --probability 0.5 -j DNAT --to-destination 10.2.0.20:8080\n-A SVC -p tcp -j DNAT --to-destination 10.2.0.20:8080\nCOMMIT\n",
			want: []Translation{maybe(dnat), dnat}},
		{name: "legacy", tool: "iptables-legacy-restore", hook: trace.Postrouting, rules: "*nat\n:POSTROUTING ACCEPT\n-A POSTROUTING -p tcp -j SNAT --to-source 10.2.0.20\nCOMMIT\n",
			want: []Translation{{Kind: SourceNAT, Addr: to, Certain: true}}},
		{name: "legacy of IPv6", tool: "ip6tables-legacy-restore", hook: trace.Postrouting, six: true, rules: "*nat\n:POSTROUTING ACCEPT\n-A POSTROUTING -j MASQUERADE\nCOMMIT\n",
			want: []Translation{{Kind: Masquerade, Certain: true}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s.run("", "nft", "flush", "ruleset")
			s.run("*nat\nCOMMIT\n*mangle\nCOMMIT\n", "iptables-legacy-restore")
			s.run("*nat\nCOMMIT\n", "ip6tables-legacy-restore")
			if tt.tool == "nft" {
				s.run(tt.rules, "nft", "-f", "-")
			} else {
				s.run(tt.rules, tt.tool)
			}
			q := trace.Question{Flags: trace.SYN, In: 1, Out: 1, Ahead: true, Packet: trace.Tuple{
				Protocol: trace.TCP, Src: netip.MustParseAddrPort("198.51.100.7:41000"), Dst: netip.MustParseAddrPort("203.0.113.80:80")}}
			if tt.six {
				q.Packet.Src, q.Packet.Dst = netip.MustParseAddrPort("[2001:db8:1::7]:41000"), netip.MustParseAddrPort("[2001:db8:80::80]:80")
			}
			q.Conntrack = trace.Conntrack{Original: q.Packet, Reply: q.Packet.Reverse(), Info: infoNew}
			q.ConnMark.Known = !tt.unknown
			hook := tt.hook
			if hook == "" {
				hook = trace.Prerouting
			}
			var got Change
			s.do(func() (err error) {
				eth := trace.Interface{Device: trace.Device{Index: 1, Name: "eth0"}}
				got, err = Changes(q, eth, eth, hook)
				return err
			})
			for i := range got.Translations {
				if got.Translations[i].Unknown {
					got.Translations[i].Addr = netip.Addr{} // whatever it holds means nothing
				}
			}
			want := Change{Translations: tt.want, Mark: tt.mark, MarkKnown: !tt.unknown, ConnMark: trace.ConnMark{Known: !tt.unknown, Value: tt.conn}}
			if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}), cmpopts.EquateEmpty(), cmpopts.IgnoreFields(Change{}, "By")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			checkBy(t, tt.tool, &got)
		})
	}
}

// checkBy checks that for each translation there is a rule that makes it, named as its tool does.
func checkBy(t *testing.T, tool string, got *Change) {
	t.Helper()
	if len(got.By) != len(got.Translations) {
		t.Fatalf("%d rules for %d translations: %+v", len(got.By), len(got.Translations), got.By)
	}
	for i, v := range got.By {
		if v.Certain != got.Translations[i].Certain || v.Rule == "" || (v.Handle == 0) != (v.Backend == backendLegacy) || tool != "nft" && v.Line != i+1 {
			t.Errorf("rule %+v", v)
		}
	}
}

// TestChangesBy finds rules that exempt a packet from tracking, or write to it.
func TestChangesBy(t *testing.T) {
	s := newSpace(t)
	q := trace.Question{Flags: trace.SYN, In: 1, Ahead: true, Packet: trace.Tuple{
		Protocol: trace.TCP, Src: netip.MustParseAddrPort("198.51.100.7:41000"), Dst: netip.MustParseAddrPort("203.0.113.80:80")}}
	for tool, rules := range map[string]string{
		"nft":                     "table ip n { chain p { type filter hook prerouting priority -300; tcp dport 81 notrack; tcp dport 80 notrack; tcp dport 80 ip saddr set 10.2.0.1; }; }\n",
		"iptables-nft-restore":    "*raw\n:PREROUTING ACCEPT\n-A PREROUTING -p tcp --dport 81 -j NOTRACK\n-A PREROUTING -p tcp --dport 80 -j NOTRACK\nCOMMIT\n",
		"iptables-legacy-restore": "*raw\n:PREROUTING ACCEPT\n-A PREROUTING -p tcp --dport 81 -j NOTRACK\n-A PREROUTING -p tcp --dport 80 -j NOTRACK\nCOMMIT\n",
	} {
		s.run("", "nft", "flush", "ruleset")
		command, want := []string{tool}, 1
		if tool == "nft" {
			command, want = []string{tool, "-f", "-"}, 2
		}
		s.run(rules, command...)
		var got Change
		s.do(func() (err error) {
			got, err = Changes(q, trace.Interface{}, trace.Interface{}, trace.Prerouting)
			return err
		})
		if len(got.By) != want || !got.Untracked || !got.By[0].Certain || tool != "nft" && got.By[0].Line != 2 {
			t.Errorf("%s: %+v", tool, got.By)
		}
	}
}
