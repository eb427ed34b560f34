package diagnose

import (
	"fmt"
	"slices"
	"strings"

	"github.com/replypath/replypath/pkg/trace"
)

var netfilterDrop = Rule{
	ID:       "netfilter-drop",
	Title:    "a rule or chain policy dropped it: hook, table, chain, rule if it can be told",
	Severity: trace.Error,
	Doc: "The kernel says that netfilter dropped the packet (reason NETFILTER_DROP); the hook follows from the packet's route. The rules of the namespace (nftables, iptables-nft, " +
		"iptables-legacy) are then walked for this packet, and the rule or chain policy that drops it is named; where a match cannot be judged from outside, the candidates are. What a rule's counter says, and how it moved since it was first read, is told as evidence. " +
		"Packets that cross a bridge are judged by the rules of family bridge and, with br_netfilter, by those of their protocol. A rule that queues packets for a program that does not take them is named too. " +
		"`--trace-rules` has nftables itself say which rule it was.",
	explain: func(c *trace.Case, s *trace.HostState) *explanation {
		if c.Symptom != trace.SymptomDrop || !isNetfilterDrop(c) || isRerouted(c, s) {
			return nil
		}
		if len(s.Filters) == 0 && s.Asked() && isBridgeEntry(&c.Event) && !c.Verdict.Known() {
			return nil // a port that is blocked drops there too
		}
		if isFlooded(c, s) {
			return nil
		}
		return explainFilter(c, s, tense(c, "dropped", "would drop"))
	},
}

var netfilterReject = Rule{
	ID:       "netfilter-reject",
	Title:    "a rule answered with an ICMP error or a reset",
	Severity: trace.Error,
	Doc:      "As netfilter-drop, but the rule also answered: an ICMP error or a reset left for this very packet, or the rule that matches it is a reject.",
	explain: func(c *trace.Case, s *trace.HostState) *explanation {
		if c.Symptom != trace.SymptomDrop || !isNetfilterDrop(c) {
			return nil
		}
		if !c.Rejected && !isReject(judgedFilters(c, s.Filters)) {
			return nil
		}
		return explainFilter(c, s, tense(c, "rejected", "would reject"))
	},
}

func explainFilter(c *trace.Case, s *trace.HostState, verb string) *explanation {
	ev := &c.Event
	here := name(c.Place)
	filters := judgedFilters(c, s.Filters)
	hook := netfilterHooks(c)[0]
	if len(filters) > 0 && filters[0].Hook != "" {
		hook = filters[0].Hook
	}
	e := &explanation{confidence: trace.Certain, device: filterDevice(c, s), hook: string(hook)}
	e.evidence = append(e.evidence, filterEvidence(s, filters)...)
	what := fmt.Sprintf("%s %s -> %s", packetName(ev), ev.Tuple.Src, ev.Tuple.Dst)
	switch len(filters) {
	case 0:
		explainUnseenFilter(e, c, s, verb, string(hook))
	case 1:
		v := &filters[0]
		e.summary = fmt.Sprintf("%s %s the %s in %s", showShort(v), verb, packetName(ev), here)
		e.cause = fmt.Sprintf("%s %s the %s at hook %s in %s.", capital(showVerdict(v)), verb, what, hook, here)
		if !v.Certain {
			e.cause += " Not every match of the rule can be judged from outside, but no other rule or policy that is loaded there would."
		}
		e.fault = faultOf(v)
		e.fix = []string{acceptBefore(c, v)}
		if v.Queue {
			explainQueue(e, c, v)
			break
		}
		if len(s.ReplyFilters) > 0 {
			e.cause += fmt.Sprintf(" The answer would meet %s.", showShort(&s.ReplyFilters[0]))
			e.fix = append(e.fix, acceptBefore(answer(c), &s.ReplyFilters[0]))
		}
	default:
		names := make([]string, len(filters))
		for i := range filters {
			names[i] = showShort(&filters[i])
		}
		e.summary = fmt.Sprintf("a filter rule %s the %s in %s (hook %s)", verb, packetName(ev), here, hook)
		e.cause = fmt.Sprintf("One of these %s the %s: %s. Which one cannot be told from outside.", verb, what, strings.Join(names, "; "))
		e.fix = []string{"# " + acceptBefore(c, &filters[0]) + "   # or before another of the candidates"}
	}
	if len(e.verify) == 0 {
		e.verify = []string{verifyFilter(c, filters)}
	}
	return e
}

// filterEvidence is what rules and policies say of themselves.
func filterEvidence(s *trace.HostState, filters []trace.FilterVerdict) []trace.Evidence {
	var lines []trace.Evidence
	for i := range filters {
		line := state(s, "%s%s", showVerdict(&filters[i]), showCounter(&filters[i]))
		if filters[i].Counted {
			line.Series = "counter " + faultOf(&filters[i])
		}
		lines = append(lines, line)
	}
	if len(filters) == 1 && filters[0].Traced {
		lines = append(lines, state(s, "nftables' own trace: %s dropped it", showShort(&filters[0])))
	}
	return lines
}

// blame names the rules or policies that dropped what is neither a handshake nor
// whole: the words for the cause, the commands, and the evidence. It reports
// whether one alone is to blame.
func blame(e *explanation, c *trace.Case, s *trace.HostState) (one bool) {
	filters := judgedFilters(c, s.Filters)
	e.evidence = append(e.evidence, filterEvidence(s, filters)...)
	switch v := c.Verdict; len(filters) {
	case 0:
		if v.By == trace.ByChain {
			e.cause += fmt.Sprintf(" Chain %s of nftables table %s does it.", v.Chain, v.Table)
		}
		return false
	case 1:
		e.cause += fmt.Sprintf(" It is %s that drops it, at hook %s.", showVerdict(&filters[0]), filters[0].Hook)
	default:
		names := make([]string, len(filters))
		for i := range filters {
			names[i] = showShort(&filters[i])
		}
		e.cause += fmt.Sprintf(" One of these drops it: %s. Which one cannot be told from outside.", strings.Join(names, "; "))
	}
	e.hook = string(filters[0].Hook)
	e.fix = []string{acceptBefore(c, &filters[0])}
	e.verify = append([]string{verifyFilter(c, filters)}, e.verify...)
	if len(filters) > 1 {
		e.fix[0] = "# " + e.fix[0] + ", or before another of the candidates"
		return false
	}
	e.fault = faultOf(&filters[0])
	if !filters[0].Certain {
		e.confidence = min(e.confidence, trace.Likely)
	}
	return true
}

// judgedFilters are the rules and policies that can have given the kernel's own
// verdict; all of them where it gave none, or one that fits none.
func judgedFilters(c *trace.Case, all []trace.FilterVerdict) []trace.FilterVerdict {
	queued := isQueueDrop(&c.Event)
	all = slices.DeleteFunc(slices.Clone(all), func(f trace.FilterVerdict) bool { return f.Queue != queued })
	v := c.Verdict
	if v.Table == "" || queued {
		return all
	}
	var fit []trace.FilterVerdict
	for _, f := range all {
		if f.Table == v.Table && (f.Backend == "iptables-legacy") == (v.By == trace.ByTable) {
			fit = append(fit, f)
		}
	}
	if len(fit) == 0 {
		return all
	}
	return fit
}

// explainUnseenFilter explains a drop by netfilter that no rule which is loaded
// now would make. What the kernel's own verdict names is certain all the same.
func explainUnseenFilter(e *explanation, c *trace.Case, s *trace.HostState, verb, hook string) {
	ev := &c.Event
	here := name(c.Place)
	what := fmt.Sprintf("%s %s -> %s", packetName(ev), ev.Tuple.Src, ev.Tuple.Dst)
	who := "The kernel"
	e.fault = hook
	e.fix = []string{"# " + at(c.Place, "nft list ruleset") + "   # look for what handles this packet"}
	e.verify = []string{at(c.Place, "nft list ruleset")}
	switch v := c.Verdict; v.By {
	case trace.ByChain:
		who = fmt.Sprintf("Chain %s of nftables table %s", v.Chain, v.Table)
		e.fault = strings.Join([]string{hook, v.Table, v.Chain}, " ")
	case trace.ByTable:
		who = fmt.Sprintf("Table %s of iptables-legacy", v.Table)
		e.fault = hook + " " + v.Table
		e.fix = []string{"# " + at(c.Place, "%s-save -t %s -c", iptablesTool(ev.Tuple, "iptables-legacy"), quote(v.Table)) + "   # look for what handles this packet"}
		e.verify = []string{at(c.Place, "%s -t %s -nvL", iptablesTool(ev.Tuple, "iptables-legacy"), quote(v.Table))}
	default:
		e.confidence = trace.Likely
	}
	e.summary = fmt.Sprintf("netfilter %s the %s in %s (hook %s)", verb, packetName(ev), here, hook)
	if !s.Asked() {
		e.cause = fmt.Sprintf("%s %s the %s at netfilter's hook %s in %s, whose rules could not be read.", who, verb, what, hook, here)
		return
	}
	e.cause = fmt.Sprintf("%s %s the %s at netfilter's hook %s in %s, but no rule or policy that is loaded there now would: "+
		"it may be a BPF program, an expression that cannot be judged from outside, conntrack itself, or rules that have changed since.", who, verb, what, hook, here)
}

// iptablesTool is the command that shows and changes a backend's rules for the packet.
func iptablesTool(t trace.Tuple, backend string) string {
	tool := "iptables"
	if t.Is6() {
		tool = "ip6tables"
	}
	if backend == "iptables-legacy" {
		tool += "-legacy"
	}
	return tool
}

// isFlooded reports a packet to another MAC that only its copy's receiver
// dropped, at a device that is no port of a bridge.
func isFlooded(c *trace.Case, s *trace.HostState) bool {
	return c.Event.OtherHost && s.In.Name != "" && s.In.Index == c.Event.InIndex
}

// faultOf names what has to be mended: one rule or policy, whatever meets it.
func faultOf(v *trace.FilterVerdict) string {
	rule := v.Rule
	if rule == "" && !v.Policy {
		rule = fmt.Sprintf("handle %d, line %d", v.Handle, v.Line)
	}
	return fmt.Sprintf("%s %s %s %s %s policy=%t %s", v.Backend, v.Family, v.Table, v.Chain, v.Hook, v.Policy, rule)
}

// isTracked reports whether conntrack knows the connection that a reply belongs
// to, so that only replies need to be let in. A router that sees one direction
// alone does not.
func isTracked(c *trace.Case) bool {
	return c.Event.Conntrack.Known() && c.Event.Conntrack.Info == conntrackEstablishedReply
}

// answer is the case of the packet that answers the one of c.
func answer(c *trace.Case) *trace.Case {
	r := *c
	r.Direction = trace.Reply
	r.Event.Tuple = c.Event.Tuple.Reverse()
	if r.Event.Conntrack.Known() {
		r.Event.Conntrack.Info = conntrackEstablishedReply
	}
	return &r
}

// filterDevice is the device whose packets the filter took: in, or out where nothing came in.
func filterDevice(c *trace.Case, s *trace.HostState) string {
	switch {
	case s.In.Name != "":
		return s.In.Name
	case c.Event.Device.Name != "":
		return c.Event.Device.Name
	case s.Out.Name != "":
		return s.Out.Name
	}
	return c.Arrival.Device.Name
}

// showShort names a rule or policy in a few words.
func showShort(v *trace.FilterVerdict) string {
	place := fmt.Sprintf("%s %s %s", v.Family, v.Table, v.Chain)
	switch {
	case v.Policy:
		return "the policy of chain " + place
	case v.Line != 0 && v.Backend != "nft":
		return fmt.Sprintf("rule %d of chain %s", v.Line, place)
	}
	return fmt.Sprintf("rule handle %d of chain %s", v.Handle, place)
}

// showVerdict names a rule or policy with all that is known of it.
func showVerdict(v *trace.FilterVerdict) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%s", showShort(v), v.Backend)
	if v.Rule != "" {
		fmt.Fprintf(&b, ": %s", v.Rule)
	}
	b.WriteByte(')')
	if v.Comment != "" && !strings.Contains(v.Rule, v.Comment) {
		fmt.Fprintf(&b, " %q", v.Comment)
	}
	return b.String()
}

// showCounter is what a rule or policy has counted.
func showCounter(v *trace.FilterVerdict) string {
	switch {
	case !v.Counted:
		return ""
	case v.EarlierAt.IsZero() || v.Packets < v.Earlier:
		return fmt.Sprintf("; its counter says %d packets", v.Packets)
	case v.Packets == v.Earlier:
		return fmt.Sprintf("; its counter still says %d packets, as at %s", v.Packets, v.EarlierAt.UTC().Format("15:04:05.000"))
	}
	return fmt.Sprintf("; its counter went from %d to %d packets since %s", v.Earlier, v.Packets, v.EarlierAt.UTC().Format("15:04:05.000"))
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// acceptBefore is the command that lets this traffic pass the rule or policy.
func acceptBefore(c *trace.Case, v *trace.FilterVerdict) string {
	t := c.Event.Tuple
	note := "   # if this traffic is meant to pass"
	if v.Backend == "nft" {
		where := fmt.Sprintf("%s %s %s", v.Family, quote(v.Table), quote(v.Chain))
		if v.Policy {
			return at(c.Place, "nft add rule %s %s accept", where, nftMatch(c, v)) + note
		}
		return at(c.Place, "nft insert rule %s handle %d %s accept", where, v.Handle, nftMatch(c, v)) + note
	}
	tool := iptablesTool(t, v.Backend)
	if v.Policy {
		return at(c.Place, "%s -t %s -A %s %s -j ACCEPT", tool, quote(v.Table), quote(v.Chain), iptablesMatch(c, v)) + note
	}
	return at(c.Place, "%s -t %s -I %s %d %s -j ACCEPT", tool, quote(v.Table), quote(v.Chain), max(v.Line, 1), iptablesMatch(c, v)) + note
}

// takesFragments reports whether the rule or policy took the packet as a
// fragment, not by its ports.
func takesFragments(c *trace.Case, v *trace.FilterVerdict) bool {
	return c.Event.Fragment || c.Event.MoreFragments && namesFragments([]trace.FilterVerdict{*v})
}

// nftMatch matches the case's packet, and others of its kind, in nft's words.
func nftMatch(c *trace.Case, v *trace.FilterVerdict) string {
	pieces := takesFragments(c, v)
	t, family := c.Event.Tuple, "ip"
	if t.Is6() {
		family = "ip6"
	}
	switch {
	case c.Symptom == trace.SymptomTooBig && t.Is6():
		return "icmpv6 type packet-too-big"
	case c.Symptom == trace.SymptomTooBig:
		return "icmp type destination-unreachable icmp code frag-needed"
	case pieces && t.Is6():
		return fmt.Sprintf("ip6 saddr %s ip6 daddr %s exthdr frag exists", t.Src.Addr(), t.Dst.Addr())
	case pieces:
		return fmt.Sprintf("ip saddr %s ip daddr %s ip frag-off \\& 0x3fff != 0", t.Src.Addr(), t.Dst.Addr())
	case toTunnel(c):
		return fmt.Sprintf("%s saddr %s %s daddr %s udp dport %d", family, t.Src.Addr(), family, t.Dst.Addr(), t.Dst.Port())
	case c.Direction != trace.Reply:
		return fmt.Sprintf("%s daddr %s %s dport %d", family, t.Dst.Addr(), t.Protocol, t.Dst.Port())
	}
	match := fmt.Sprintf("%s saddr %s %s sport %d", family, t.Src.Addr(), t.Protocol, t.Src.Port())
	if isTracked(c) {
		match += " ct state established"
	}
	return match
}

// toTunnel reports a packet of a tunnel over UDP. What it carries has two
// directions; it goes to the tunnel's port in both, and each flow within from another.
func toTunnel(c *trace.Case) bool {
	return c.Event.Carried.Known() && c.Event.Tuple.Protocol == trace.UDP
}

// iptablesMatch is nftMatch in the words of iptables.
func iptablesMatch(c *trace.Case, v *trace.FilterVerdict) string {
	pieces := takesFragments(c, v)
	t := c.Event.Tuple
	switch {
	case c.Symptom == trace.SymptomTooBig && t.Is6():
		return "-p ipv6-icmp --icmpv6-type packet-too-big"
	case c.Symptom == trace.SymptomTooBig:
		return "-p icmp --icmp-type fragmentation-needed"
	case pieces && t.Is6():
		return fmt.Sprintf("-s %s -d %s -m frag", t.Src.Addr(), t.Dst.Addr())
	case pieces:
		return fmt.Sprintf("-s %s -d %s -f", t.Src.Addr(), t.Dst.Addr())
	case toTunnel(c):
		return fmt.Sprintf("-p udp -s %s -d %s --dport %d", t.Src.Addr(), t.Dst.Addr(), t.Dst.Port())
	case c.Direction != trace.Reply:
		return fmt.Sprintf("-p %s -d %s --dport %d", t.Protocol, t.Dst.Addr(), t.Dst.Port())
	}
	match := fmt.Sprintf("-p %s -s %s --sport %d", t.Protocol, t.Src.Addr(), t.Src.Port())
	if isTracked(c) {
		match += " -m conntrack --ctstate ESTABLISHED"
	}
	return match
}

// verifyFilter shows the chain and its counters.
func verifyFilter(c *trace.Case, filters []trace.FilterVerdict) string {
	v := &filters[0]
	if v.Backend == "nft" {
		return at(c.Place, "nft -a list chain %s %s %s", v.Family, quote(v.Table), quote(v.Chain))
	}
	tool := iptablesTool(c.Event.Tuple, v.Backend)
	return at(c.Place, "%s -t %s -L %s -nv --line-numbers", tool, quote(v.Table), quote(v.Chain))
}

// isReject reports whether the one rule that dropped the packet is a reject.
func isReject(filters []trace.FilterVerdict) bool { return len(filters) == 1 && filters[0].Reject }
