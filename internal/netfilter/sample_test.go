package netfilter

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

// redirecting is the same in three languages: uid 7 goes past, port 22 goes
// past, mark 9 goes past, and all other TCP to port 9000.
var redirecting = []struct{ tool, rules, backend string }{
	{"nft", "table ip n { set quiet { type inet_service; elements = { 22 }; }; chain user { meta mark 9 return; meta l4proto tcp redirect to :9000; }; chain unused { meta l4proto tcp redirect to :9999; };" +
		" chain o { type nat hook output priority -100; meta skuid 7 return; tcp dport @quiet return; jump user; }; chain r { type filter hook output priority raw; ct zone set 3; }; }\n", "nft"},
	{"iptables-nft-restore", iptablesRedirecting, "iptables-nft"},
	{"iptables-legacy-restore", iptablesRedirecting, "iptables-legacy"},
}

const iptablesRedirecting = "*raw\n:OUTPUT ACCEPT\n-A OUTPUT -j CT --zone 3\nCOMMIT\n*nat\n:OUTPUT ACCEPT\n:user -\n:unused -\n-A OUTPUT -m owner --uid-owner 7 -j RETURN\n" +
	"-A OUTPUT -p tcp -m multiport --dports 22 -j RETURN\n-A OUTPUT -p tcp -j user\n-A user -m mark --mark 9 -j RETURN\n-A user -p tcp -j REDIRECT --to-ports 9000\n-A unused -p tcp -j REDIRECT --to-ports 9999\nCOMMIT\n"

func outgoing(port uint16, owner Owner, mark uint32) Sample {
	return Sample{Hook: trace.Output, Owner: owner, Mark: mark, Out: trace.Interface{Device: trace.Device{Name: "eth0"}}, Tuple: trace.Tuple{Protocol: trace.TCP,
		Src: netip.MustParseAddrPort("10.0.0.5:40000"), Dst: netip.AddrPortFrom(netip.MustParseAddr("203.0.113.7"), port)}}
}

func TestMeet(t *testing.T) {
	user := func(uid uint32) Owner { return Owner{Known: true, UID: uid} }
	for _, rr := range redirecting {
		t.Run(rr.tool, func(t *testing.T) {
			s := newSpace(t)
			args := []string{rr.tool}
			if rr.tool == "nft" {
				args = append(args, "-f", "-")
			}
			s.run(rr.rules, args...)
			s.in(func() {
				rules, err := Load(false)
				if err != nil {
					t.Error(err)
					return
				}
				defer rules.Close()
				for _, tt := range []struct {
					name           string
					sample         Sample
					taken, excused bool
					doubts         int
				}{
					{"anybody", outgoing(80, user(1), 0), true, false, 0},
					{"the proxy", outgoing(80, user(7), 0), false, true, 0},
					{"a port that is let go", outgoing(22, user(1), 0), false, true, 0},
					{"marked", outgoing(80, user(1), 9), false, true, 0},
					{"unknown owner", outgoing(80, Owner{}, 0), true, false, 1},
				} {
					m, err := rules.Meet(tt.sample)
					if err != nil || m.Taken != tt.taken || m.Excused != tt.excused || len(m.Doubts) != tt.doubts || m.Zone != 3 {
						t.Errorf("%s: %+v %v", tt.name, m, err)
					}
					if m.Taken && (m.Diversion != Diversion{Kind: DivertRedirect, Port: 9000, Known: true} || m.Backend != rr.backend || !slices.Equal(m.Chains, []string{"user"})) {
						t.Errorf("%s: %+v", tt.name, m)
					}
				}
				checkMentions(t, rules)
			})
		})
	}
}

func checkMentions(t *testing.T, rules *Rules) {
	t.Helper()
	m, err := rules.Mentions()
	if err != nil || !slices.Contains(m.UIDs, 7) || !slices.Contains(m.Ports, 22) || !slices.Contains(m.Marks, 9) || m.Opaque {
		t.Errorf("mentions %+v %v", m, err)
	}
	for _, c := range m.Chains {
		want := []trace.NetfilterHook{trace.Output}
		port := uint16(9000)
		if c.Name == "unused" {
			want, port = nil, 9999
		}
		if !slices.Equal(c.Reached, want) || !slices.Equal(c.Ports, []uint16{port}) {
			t.Errorf("chain %+v", c)
		}
	}
	if len(m.Chains) != 3 {
		t.Errorf("%d chains divert", len(m.Chains))
	}
}

func TestMeetTransparentProxy(t *testing.T) {
	in := Sample{Hook: trace.Prerouting, In: trace.Interface{Device: trace.Device{Name: "eth0"}}, Tuple: trace.Tuple{Protocol: trace.TCP,
		Src: netip.MustParseAddrPort("203.0.113.7:40000"), Dst: netip.MustParseAddrPort("10.0.0.5:80")}}
	for tool, rules := range map[string]string{
		"nft":                     "table ip n { chain p { type filter hook prerouting priority mangle; socket transparent 1 accept; tcp dport 80 tproxy to :7000 meta mark set 1 accept; }; }\n",
		"iptables-legacy-restore": "*mangle\n:PREROUTING ACCEPT\n-A PREROUTING -p tcp -m socket --transparent -j ACCEPT\n-A PREROUTING -p tcp --dport 80 -j TPROXY --on-port 7000 --tproxy-mark 1\nCOMMIT\n",
	} {
		t.Run(tool, func(t *testing.T) {
			s := newSpace(t)
			args := []string{tool}
			if tool == "nft" {
				args = append(args, "-f", "-")
			}
			s.run(rules, args...)
			s.in(func() {
				rules, err := Load(false)
				if err != nil {
					t.Error(err)
					return
				}
				defer rules.Close()
				m, err := rules.Meet(in)
				if err != nil || !m.Taken || m.Diversion.Kind != DivertTProxy || m.Diversion.Port != 7000 || len(m.Doubts) > 0 {
					t.Errorf("%+v %v", m, err)
				}
				in := in
				in.Tuple.Dst = netip.MustParseAddrPort("10.0.0.5:81")
				if m, err := rules.Meet(in); err != nil || m.Taken {
					t.Errorf("port 81: %+v %v", m, err)
				}
			})
		})
	}
}
