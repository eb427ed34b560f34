package netfilter

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

// TestShapes has rules that nft and iptables wrote judge fragments, ICMP errors
// and what they make of a packet besides NAT.
func TestShapes(t *testing.T) {
	s := newSpace(t)
	v4 := trace.Tuple{Protocol: trace.UDP, Src: netip.MustParseAddrPort("198.51.100.7:41000"), Dst: netip.MustParseAddrPort("203.0.113.80:53")}
	v6 := trace.Tuple{Protocol: trace.UDP, Src: netip.MustParseAddrPort("[2001:db8:1::7]:41000"), Dst: netip.MustParseAddrPort("[2001:db8:80::80]:53")}
	later := func(p trace.Tuple) trace.Question {
		p.Src, p.Dst = netip.AddrPortFrom(p.Src.Addr(), 0), netip.AddrPortFrom(p.Dst.Addr(), 0)
		return trace.Question{Packet: p, Fragment: true}
	}
	icmp := func(p trace.Tuple, protocol trace.Protocol, kind, code uint8) trace.Question {
		q := later(p)
		q.Fragment, q.Packet.Protocol, q.ICMPType, q.ICMPCode = false, protocol, kind, code
		return q
	}
	chain := func(rule string) string {
		return "table inet t { chain f { type filter hook forward priority 0; " + rule + "; }; }\n"
	}
	tests := []struct {
		name, tool, rules string
		q                 trace.Question
		drops             bool
	}{
		{"nft fragment", "nft", chain("ip frag-off & 0x1fff != 0 drop"), later(v4), true},
		{"nft fragment, and none", "nft", chain("ip frag-off & 0x1fff != 0 drop"), trace.Question{Packet: v4}, false},
		{"nft fragment of IPv6", "nft", chain("exthdr frag exists drop"), later(v6), true},
		{"nft offset of IPv6", "nft", chain("frag frag-off != 0 drop"), later(v6), true},
		{"nft fragment of IPv6, and none", "nft", chain("exthdr frag exists drop"), trace.Question{Packet: v6}, false},
		{"nft ports of a fragment", "nft", chain("udp dport 53 drop"), later(v4), false},
		{"iptables fragment", "iptables-nft-restore", "*filter\n:FORWARD ACCEPT\n-A FORWARD -f -j DROP\nCOMMIT\n", later(v4), true},
		{"iptables ports of a fragment", "iptables-nft-restore", "*filter\n:FORWARD ACCEPT\n-A FORWARD -p udp --dport 53 -j DROP\nCOMMIT\n", later(v4), false},
		{"ip6tables fragment", "ip6tables-nft-restore", "*filter\n:FORWARD ACCEPT\n-A FORWARD -m frag -j DROP\nCOMMIT\n", later(v6), true},
		{"legacy fragment", "iptables-legacy-restore", "*filter\n:FORWARD ACCEPT\n-A FORWARD -f -j DROP\nCOMMIT\n", later(v4), true},
		{"nft ICMP", "nft", chain("icmp type destination-unreachable icmp code frag-needed drop"), icmp(v4, trace.ICMP, 3, 4), true},
		{"nft other ICMP", "nft", chain("icmp type time-exceeded drop"), icmp(v4, trace.ICMP, 3, 4), false},
		{"nft ICMPv6", "nft", chain("icmpv6 type packet-too-big drop"), icmp(v6, trace.ICMPv6, 2, 0), true},
		{"iptables ICMP", "iptables-nft-restore", "*filter\n:FORWARD ACCEPT\n-A FORWARD -p icmp --icmp-type fragmentation-needed -j DROP\nCOMMIT\n", icmp(v4, trace.ICMP, 3, 4), true},
		{"iptables other ICMP", "iptables-nft-restore", "*filter\n:FORWARD ACCEPT\n-A FORWARD -p icmp --icmp-type echo-request -j DROP\nCOMMIT\n", icmp(v4, trace.ICMP, 3, 4), false},
		{"ip6tables ICMPv6", "ip6tables-legacy-restore", "*filter\n:FORWARD ACCEPT\n-A FORWARD -p icmpv6 --icmpv6-type packet-too-big -j DROP\nCOMMIT\n", icmp(v6, trace.ICMPv6, 2, 0), true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s.load(tt.tool, tt.rules)
			q := tt.q
			q.In, q.Out, q.Ahead, q.Filters = 1, 1, true, []trace.NetfilterHook{trace.Forward}
			var got []trace.FilterVerdict
			s.do(func() (err error) {
				eth := trace.Interface{Device: trace.Device{Index: 1, Name: "eth0"}}
				got, err = Verdicts(q, eth, eth)
				return err
			})
			if certain := len(got) == 1 && got[0].Certain; certain != tt.drops || !tt.drops && len(got) > 0 {
				t.Errorf("verdicts %+v, want a drop: %t", got, tt.drops)
			}
		})
	}
	t.Run("notrack", func(t *testing.T) {
		for tool, rules := range map[string]string{
			"nft":                     "table ip t { chain p { type filter hook prerouting priority -300; notrack; }; }\n",
			"iptables-nft-restore":    "*raw\n:PREROUTING ACCEPT\n-A PREROUTING -j NOTRACK\nCOMMIT\n",
			"iptables-legacy-restore": "*raw\n:PREROUTING ACCEPT\n-A PREROUTING -j CT --notrack\nCOMMIT\n",
		} {
			s.load(tool, rules)
			if got := s.change(t, v4, trace.Prerouting); !got.Untracked {
				t.Errorf("%s: %+v", tool, got)
			}
		}
	})
	t.Run("segment size", func(t *testing.T) {
		syn := v4
		syn.Protocol = trace.TCP
		for tool, rules := range map[string]string{
			"nft":                  chain("tcp flags syn tcp option maxseg size set rt mtu"),
			"iptables-nft-restore": "*mangle\n:FORWARD ACCEPT\n-A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu\nCOMMIT\n",
		} {
			s.load(tool, rules)
			if got := s.change(t, syn, trace.Forward); !got.Clamped {
				t.Errorf("%s: %+v", tool, got)
			}
			if got := s.change(t, v4, trace.Forward); got.Clamped {
				t.Errorf("%s: datagrams too", tool)
			}
		}
	})
	t.Run("rewritten", func(t *testing.T) {
		s.load("nft", "table ip t { chain p { type filter hook postrouting priority 300; ip saddr set 192.0.2.1; }; }\n")
		if got := s.change(t, v4, trace.Postrouting); got.Packet.Src != netip.MustParseAddrPort("192.0.2.1:41000") {
			t.Errorf("%+v", got)
		}
	})
}

// load replaces the rules.
func (s *space) load(tool, rules string) {
	if s.legacy {
		for _, legacy := range []string{"iptables-legacy-restore", "ip6tables-legacy-restore"} {
			s.run("*raw\nCOMMIT\n*filter\nCOMMIT\n", legacy)
		}
	}
	s.legacy = strings.Contains(tool, "legacy")
	if tool == "nft" {
		s.run("flush ruleset\n"+rules, "nft", "-f", "-")
		return
	}
	s.run("", "nft", "flush", "ruleset")
	s.run(rules, tool)
}

// change asks what the rules at a hook make of a packet.
func (s *space) change(t *testing.T, p trace.Tuple, hook trace.NetfilterHook) (got Change) {
	t.Helper()
	q := trace.Question{In: 1, Out: 1, Ahead: true, Packet: p, Conntrack: trace.Conntrack{Original: p, Reply: p.Reverse(), Info: infoNew}}
	if p.Protocol == trace.TCP {
		q.Flags = trace.SYN
	}
	s.do(func() (err error) {
		eth := trace.Interface{Device: trace.Device{Index: 1, Name: "eth0"}}
		got, err = Changes(q, eth, eth, hook)
		return err
	})
	return got
}
