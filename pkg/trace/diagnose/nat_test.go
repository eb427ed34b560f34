package diagnose

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

// TestMasquerade is about the mend of a host that translates, whose language is that of its rules.
func TestMasquerade(t *testing.T) {
	chain := func(hook trace.NetfilterHook, backend, family, table, name string) trace.NATChain {
		return trace.NATChain{Hook: hook, Backend: backend, Family: family, Table: table, Chain: name}
	}
	const rule = "ip daddr 10.2.0.20 tcp dport 8080 masquerade"
	for name, tt := range map[string]struct {
		rules trace.NATRules
		want  []string
		list  string
	}{
		"nothing is known": {trace.NATRules{}, []string{"ip netns exec lb iptables -t nat -A POSTROUTING -p tcp -d 10.2.0.20 --dport 8080 -j MASQUERADE"}, "nft list ruleset; iptables-save"},
		"nft, with a chain for it": {trace.NATRules{Read: true, Chains: []trace.NATChain{chain(trace.Postrouting, "nft", "inet", "a", "post"), chain(trace.Prerouting, "nft", "ip", "b", "pre"),
			chain(trace.Postrouting, "nft", "ip", "b", "my post")}}, []string{"ip netns exec lb nft add rule ip b 'my post' " + rule}, "exec cl nft list ruleset"},
		"nft, with a chain in another table": {trace.NATRules{Read: true, Chains: []trace.NATChain{chain(trace.Prerouting, "nft", "ip", "b", "pre"), chain(trace.Postrouting, "nft", "inet", "a", "post")}},
			[]string{"ip netns exec lb nft add rule inet a post " + rule}, "nft list ruleset"},
		"nft, without one": {trace.NATRules{Read: true, Chains: []trace.NATChain{chain(trace.Prerouting, "nft", "inet", "b", "pre")}},
			[]string{"ip netns exec lb nft add chain inet b hide-clients '{ type nat hook postrouting priority 100; }'", "ip netns exec lb nft add rule inet b hide-clients " + rule}, "nft list ruleset"},
		"iptables-nft": {trace.NATRules{Read: true, Chains: []trace.NATChain{chain(trace.Prerouting, "iptables-nft", "ip", "nat", "PREROUTING"), chain(trace.Postrouting, "iptables-nft", "ip", "nat", "POSTROUTING")}},
			[]string{"ip netns exec lb iptables -t nat -A POSTROUTING -p tcp -d 10.2.0.20 --dport 8080 -j MASQUERADE"}, "nft list ruleset"},
		"iptables-legacy": {trace.NATRules{Read: true, Legacy: true, Chains: []trace.NATChain{chain(trace.Postrouting, "iptables-legacy", "ip", "nat", "POSTROUTING")}},
			[]string{"ip netns exec lb iptables-legacy -t nat -A POSTROUTING -p tcp -d 10.2.0.20 --dport 8080 -j MASQUERADE"}, "nft list ruleset; iptables-legacy-save"},
	} {
		t.Run(name, func(t *testing.T) {
			none := trace.Tuple{}
			c := back(exchange(behind, throughHop(be, none, behind.Reverse(), true), throughHop(clientPlace, behind.Reverse(), behind.Reverse(), false)), trace.SymptomMisaddressed)
			suspect := Suspects(&c)
			if len(suspect) == 0 || !DependsOnNAT(&suspect[len(suspect)-1]) {
				t.Fatalf("suspects %+v", suspect)
			}
			s := trace.HostState{NAT: tt.rules}
			f, ok := Explain(&suspect[len(suspect)-1], &s)
			if !ok || f.ID != "reply-wrong-source" {
				t.Fatalf("found %+v", f)
			}
			fix := slices.Clone(f.Fix[:len(f.Fix)-1])
			last, _, _ := strings.Cut(fix[len(fix)-1], "   #")
			fix[len(fix)-1] = last
			if !slices.Equal(fix, tt.want) {
				t.Errorf("fix %q, want %q", fix, tt.want)
			}
			if list := listRules(&c, &s, ""); !strings.Contains(list, tt.list) {
				t.Errorf("lists by %q, want %q", list, tt.list)
			}
		})
	}
}

// TestUnboundServer is about a UDP server's answer from another address than it was asked at.
func TestUnboundServer(t *testing.T) {
	udp := func(t trace.Tuple) trace.Tuple { t.Protocol = trace.UDP; return t }
	asked, answer := udp(vip4), udp(tuple("10.2.0.20:80", "198.51.100.7:41822"))
	p := exchange(asked, throughHop(be, trace.Tuple{}, answer, true), throughHop(clientPlace, answer, answer, false))
	p.Protocol = trace.UDP
	for i := range p.Request {
		if p.Request[i].Arrived.IsValid() {
			p.Request[i].Arrived = asked
		}
		p.Request[i].Tuple = asked
	}
	socket := func(local string) []trace.Socket {
		return []trace.Socket{{Protocol: trace.UDP, Local: netip.MustParseAddrPort(local), Process: trace.Process{PID: 7, Comm: "named"}}}
	}
	for name, tt := range map[string]struct {
		sockets []trace.Socket
		refused bool
		want    trace.Confidence
		cause   string
	}{
		"bound to nothing, refused":   {socket("0.0.0.0:80"), true, trace.Certain, "bound to no address"},
		"bound to nothing, repeated":  {socket("0.0.0.0:80"), false, trace.Likely, "bound to no address"},
		"not known":                   {nil, true, trace.Likely, "bound to no address"},
		"bound to what was asked for": {socket("203.0.113.80:80"), true, trace.Certain, "something in be rewrites"},
		"bound to it, nobody refused": {socket("203.0.113.80:80"), false, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := back(p, trace.SymptomMisaddressed)
			c.Rejected = tt.refused
			suspects := Suspects(&c)
			s := suspects[len(suspects)-1]
			if q, ok := Question(&s); !ok || !q.Receivers || q.Packet != asked {
				t.Errorf("asks %+v", q)
			}
			f, ok := Explain(&s, &trace.HostState{Sockets: tt.sockets})
			if tt.want == 0 {
				if ok {
					t.Errorf("a server that answers from another socket: %+v", f)
				}
				return
			}
			if !ok || f.ID != "reply-wrong-source" || f.Where.Place != be || f.Confidence != tt.want || !strings.Contains(f.Cause, tt.cause) {
				t.Errorf("found %+v", f)
			}
		})
	}
}

// TestExempt is about the rule that changes an answer's source, and the command that has answers pass it by.
func TestExempt(t *testing.T) {
	nft := trace.FilterVerdict{Backend: "nft", Family: "ip", Table: "n", Chain: "post", Handle: 4, Rule: "masquerade", Certain: true}
	legacy := trace.FilterVerdict{Backend: "iptables-legacy", Family: "ip", Table: "nat", Chain: "HIDE", Line: 3, Rule: "-A HIDE -j MASQUERADE", Certain: true}
	unsure := nft
	unsure.Certain = false
	made := throughHop(be, trace.Tuple{}, behind.Reverse(), true)
	atClient := throughHop(clientPlace, behind.Reverse(), behind.Reverse(), false)
	own := exchange(vip4, made, atClient)
	kept := exchange(behind, made, throughHop(balancerPlace, behind.Reverse(), behind.Reverse(), true), atClient)
	for name, tt := range map[string]struct {
		p     trace.Path
		rules []trace.FilterVerdict
		asks  trace.Tuple
		fix   string
	}{
		"nft":              {own, []trace.FilterVerdict{nft}, vip4.Reverse(), "ip netns exec be nft insert rule ip n post handle 4 ip saddr 203.0.113.80 tcp sport 80 accept"},
		"iptables":         {own, []trace.FilterVerdict{unsure, legacy}, vip4.Reverse(), "ip netns exec be iptables-legacy -t nat -I HIDE 3 -p tcp -s 203.0.113.80 --sport 80 -j ACCEPT"},
		"not restored":     {kept, []trace.FilterVerdict{nft}, behind.Reverse(), "ip netns exec lb nft insert rule ip n post handle 4 ip saddr 10.2.0.20 tcp sport 8080 accept"},
		"cannot be told":   {own, []trace.FilterVerdict{unsure}, vip4.Reverse(), "# ip netns exec be sh -c"},
		"nothing was read": {own, nil, vip4.Reverse(), "# ip netns exec be sh -c"},
	} {
		t.Run(name, func(t *testing.T) {
			c := back(tt.p, trace.SymptomMisaddressed)
			suspects := Suspects(&c)
			s := suspects[len(suspects)-1]
			q, hooks := AnswerQuestion(&s, trace.Question{Place: s.Place})
			if !DependsOnNAT(&s) || q.Packet != tt.asks || !q.Ahead || len(hooks) == 0 || q.Conntrack.Original != tt.asks {
				t.Errorf("asks %+v at %v", q, hooks)
			}
			f, ok := Explain(&s, &trace.HostState{NAT: trace.NATRules{Read: true, By: tt.rules}})
			if !ok || !strings.HasPrefix(f.Fix[0], tt.fix) {
				t.Errorf("fix %q, want %q", f.Fix, tt.fix)
			}
			if strings.HasPrefix(f.Fix[0], "#") != (len(f.Verify) == 1) {
				t.Errorf("verify %q", f.Verify)
			}
			checkWords(t, &f)
		})
	}
}
