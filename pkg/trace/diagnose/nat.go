package diagnose

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/replypath/replypath/pkg/trace"
)

// DependsOnNAT reports whether the mend depends on the language of the host's
// rules that translate addresses: then HostState.NAT has to be filled.
func DependsOnNAT(c *trace.Case) bool { return c.Symptom == trace.SymptomMisaddressed && c.Suspect }

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
