package diagnose

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/replypath/replypath/pkg/trace"
)

// DependsOnNAT reports whether the mend depends on the language of the host's
// rules that translate addresses: then HostState.NAT has to be filled.
func DependsOnNAT(c *trace.Case) bool {
	return c.Suspect && (c.Symptom == trace.SymptomMisaddressed || c.Symptom == trace.SymptomUnmatched && c.Direction == trace.Reply)
}

// AnswerQuestion is about the answer as it should have left the case's host: which
// rules change it, at one of the hooks, which stand in its order.
func AnswerQuestion(c *trace.Case, q trace.Question) (trace.Question, []trace.NetfilterHook) {
	q.Ahead, q.Filters, q.Arrived, q.Fragment = true, nil, 0, false
	hooks := []trace.NetfilterHook{trace.Prerouting, trace.Forward, trace.Postrouting}
	var h *trace.Hop
	if c.Symptom == trace.SymptomUnmatched {
		if h = replyAt(&c.Path, c.Place.Netns); h == nil {
			return q, nil
		}
		q.Packet, q.Flags = h.Tuple, trace.PSH|trace.ACK
	} else {
		f, ok := wrongSource(&c.Path)
		switch {
		case !ok || f.deviation == bypassed:
			return q, nil
		case f.deviation == notRestored:
			f.want, hooks = f.at.Arrived, hooks[:1]
		}
		h, q.Packet = f.at, f.want
	}
	if h.In.Index == 0 {
		hooks = []trace.NetfilterHook{trace.Output, trace.Postrouting}
	}
	q.In, q.Out, q.Mark = h.In.Index, h.Out.Index, h.Mark
	q.Conntrack = trace.Conntrack{Original: q.Packet, Reply: q.Packet.Reverse(), Info: conntrackNew}
	return q, hooks
}

// exempt has answers pass by the rule that changes them, or keeps them from being
// changed back; where it is not known, what shows the rules is told, and what to look for.
func exempt(e *explanation, c *trace.Case, s *trace.HostState, answer trace.Tuple, otherwise string) {
	i := slices.IndexFunc(s.NAT.By, func(v trace.FilterVerdict) bool { return v.Certain })
	if i < 0 {
		e.fix = append(e.fix, "# "+otherwise)
		return
	}
	v := &s.NAT.By[i]
	from, note := answer.Src, "   # before: "+printable(v.Rule)
	if v.Backend == backendNFT {
		family := "ip"
		if answer.Is6() {
			family = "ip6"
		}
		e.fix = append(e.fix, at(c.Place, "nft insert rule %s %s %s handle %d %s saddr %s %s sport %d accept", v.Family, quote(v.Table), quote(v.Chain), v.Handle,
			family, from.Addr(), answer.Protocol, from.Port())+note)
	} else {
		e.fix = append(e.fix, at(c.Place, "%s -t %s -I %s %d -p %s -s %s --sport %d -j ACCEPT", iptablesTool(answer, v.Backend), quote(v.Table), quote(v.Chain), max(v.Line, 1),
			answer.Protocol, from.Addr(), from.Port())+note)
	}
	if answer.Protocol == trace.UDP {
		e.fix = append(e.fix, "# and, for what is translated already: "+at(c.Place, "conntrack -D -p udp --orig-src %s --orig-port-src %d", from.Addr(), from.Port()))
	}
	e.verify = append(e.verify, verifyFilter(c, s.NAT.By[i:i+1])+"   # the exception must stand before the rule")
	e.cause += fmt.Sprintf(" %s takes it.", capital(showVerdict(v)))
}

// backendNFT is trace.FilterVerdict's word for rules in nft's own language.
const backendNFT = "nft"

// sourceChain chooses the chain that a rule for source NAT belongs into: one beside
// the chain that translates destinations, if there is one.
func sourceChain(rules *trace.NATRules) (source, beside *trace.NATChain) {
	for i := range rules.Chains {
		if c := &rules.Chains[i]; c.Hook == trace.Prerouting && (beside == nil || beside.Backend != backendNFT) {
			beside = c
		}
	}
	for i := range rules.Chains {
		c := &rules.Chains[i]
		if c.Hook != trace.Postrouting {
			continue
		}
		if source == nil || beside != nil && c.Backend == beside.Backend && c.Family == beside.Family && c.Table == beside.Table {
			source = c
		}
	}
	return source, beside
}

// masquerade is how the host hides the clients from a server, in the language of
// the rules that it has.
func masquerade(c *trace.Case, s *trace.HostState, protocol trace.Protocol, server netip.AddrPort) []string {
	source, beside := sourceChain(&s.NAT)
	family, tool := "ip", "iptables"
	if server.Addr().Is6() {
		family, tool = "ip6", "ip6tables"
	}
	match := fmt.Sprintf("%s daddr %s %s dport %d masquerade", family, server.Addr(), protocol, server.Port())
	switch {
	case source != nil && source.Backend == backendNFT:
		return []string{at(c.Place, "nft add rule %s %s %s %s", source.Family, quote(source.Table), quote(source.Chain), match)}
	case source == nil && beside != nil && beside.Backend == backendNFT:
		where := beside.Family + " " + quote(beside.Table)
		return []string{
			at(c.Place, "nft add chain %s hide-clients '{ type nat hook postrouting priority 100; }'", where),
			at(c.Place, "nft add rule %s hide-clients %s", where, match),
		}
	case source != nil && source.Backend == "iptables-legacy":
		tool += "-legacy"
	}
	return []string{at(c.Place, "%s -t nat -A POSTROUTING -p %s -d %s --dport %d -j MASQUERADE", tool, protocol, server.Addr(), server.Port())}
}

// listRules is the command that shows all rules that may change packets of the
// case: those of nftables, to which iptables' own belong, unless there are tables of
// iptables-legacy; and where a device is named, what tc does as they leave.
func listRules(c *trace.Case, s *trace.HostState, device string) string {
	commands := []string{"nft list ruleset"}
	save := "iptables"
	if c.Event.Tuple.Is6() {
		save = "ip6tables"
	}
	switch {
	case !s.NAT.Read:
		commands = append(commands, save+"-save")
	case s.NAT.Legacy:
		commands = append(commands, save+"-legacy-save")
	}
	if device != "" {
		commands = append(commands, fmt.Sprintf("tc filter show dev %s egress", device))
	}
	if len(commands) == 1 {
		return at(c.Place, "%s", commands[0])
	}
	return at(c.Place, "sh -c '%s'", strings.Join(commands, "; "))
}
