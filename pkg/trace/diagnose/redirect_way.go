package diagnose

import (
	"fmt"
	"slices"
	"strings"

	"github.com/replypath/replypath/pkg/trace"
)

// insert is the command that puts a rule first into the base chain that a leg came through.
func (j *redirectJudge) insert(l *trace.RedirectLeg, chain, iptables, nft string) string {
	if l.Backend == "nft" {
		return at(j.r.Place, "nft insert rule %s %s %s %s", l.Family, quote(l.Table), quote(l.Base), nft)
	}
	return at(j.r.Place, "%s -t nat -I %s 1 %s", toolOf(l.Backend, l.Packet.Is6()), chain, iptables)
}

func (j *redirectJudge) append4(c *trace.RedirectChain, six bool, chain, iptables, nft string) string {
	if c.Backend == "nft" {
		return at(j.r.Place, "nft add rule %s %s %s %s", c.Family, quote(c.Table), quote(chain), nft)
	}
	return at(j.r.Place, "%s -t %s -A %s %s", toolOf(c.Backend, six), quote(c.Table), quote(chain), iptables)
}

// insertNew is insert, for rules of a hook that may have no base chain in nftables yet.
func (j *redirectJudge) insertNew(by *trace.RedirectLeg, chain, iptables, nft string) string {
	if by.Backend == "nft" {
		base := "replypath-" + strings.ToLower(chain)
		where := fmt.Sprintf("%s %s %s", by.Family, quote(by.Table), base)
		return at(j.r.Place, "nft add chain %s '{ type nat hook %s priority -100; }'", where, strings.ToLower(chain)) + " && " +
			at(j.r.Place, "nft add rule %s %s", where, nft)
	}
	return at(j.r.Place, "%s -t nat -A %s %s", toolOf(by.Backend, by.Packet.Is6()), chain, iptables)
}

// unheard finds redirects to ports where nobody listens.
func (j *redirectJudge) unheard() {
	if j.r.Before || slices.ContainsFunc(j.r.Unread, func(u string) bool { return strings.HasPrefix(u, "listeners") }) {
		return
	}
	type hole struct {
		family *trace.RedirectFamily
		leg    *trace.RedirectLeg
	}
	var holes []hole
	for _, f := range j.families() {
		if f.Six && !f.Used {
			continue
		}
		for _, role := range []trace.RedirectRole{trace.RoleOutbound, trace.RoleInbound, trace.RoleDNS} {
			if l := f.Leg(role); l != nil && l.Taken && len(l.Sockets) == 0 && l.Kind != "dnat" || l != nil && l.Taken && len(l.Sockets) == 0 && l.Target.Addr().IsLoopback() {
				holes = append(holes, hole{f, l})
			}
		}
	}
	if len(holes) == 0 {
		return
	}
	here := name(j.r.Place)
	var told []string
	first := holes[0].leg
	f := trace.Finding{Fault: "listeners", Where: trace.Where{Hook: hookOf(first.Role), Device: first.Device}}
	var elsewhere string
	for _, h := range holes {
		text := fmt.Sprintf("%s %d (%s)", h.leg.Packet.Protocol, h.leg.Target.Port(), h.leg.Role)
		if !slices.Contains(told, text) {
			told = append(told, text)
		}
		f.Evidence = append(f.Evidence, j.saw("%s %s: %s to %s, where nobody listens", h.leg.Role, h.leg.Packet, h.leg.Kind, h.leg.Target))
		for i := range h.leg.Others {
			o := &h.leg.Others[i]
			elsewhere = fmt.Sprintf(" %s listens on that port, but on %s, which does not get %s sent to %s.", capital(showSocket(o)), o.Local, showFamily(h.family.Six), h.leg.Target.Addr())
			f.Evidence = append(f.Evidence, j.saw("%s listens on %s", showSocket(o), o.Local))
		}
	}
	f.Summary = fmt.Sprintf("traffic in %s is redirected to %s, where nobody listens", here, strings.Join(told, ", "))
	f.Cause = fmt.Sprintf("%s send traffic to a proxy that is not there: connections are refused.%s", capital(j.rulesName()), elsewhere)
	if elsewhere == "" {
		f.Cause += " The proxy, or that part of it, is not started, not ready, or has ended; or it listens on other ports than the rules say."
	}
	f.Fix = []string{"# start the proxy, or see why it is not ready; it has to listen on " + strings.Join(told, ", ")}
	f.Verify = []string{at(j.r.Place, "ss -lntup"), j.verify()}
	j.add(&redirectTargetNotListening, first, f)
}

// localnet finds traffic from outside that is sent to 127/8, which the kernel refuses.
func (j *redirectJudge) localnet() {
	for _, f := range j.families() {
		l := f.Leg(trace.RoleInbound)
		if l == nil || !l.LocalnetOff {
			continue
		}
		key := sysctlKey("ipv4", l.Device, "route_localnet")
		j.add(&routeLocalnetDisabled, l, trace.Finding{
			Fault: "route_localnet", Where: trace.Where{Device: l.Device, Hook: "PREROUTING"},
			Summary: fmt.Sprintf("inbound traffic of %s is sent to %s, and route_localnet is off", name(j.r.Place), l.Target.Addr()),
			Cause: fmt.Sprintf("%s sends what comes in by %s to %s. The kernel takes a packet from outside to 127/8 for a martian, and drops it without a word, unless route_localnet is on for that device.",
				l.Rule, l.Device, l.Target),
			Fix:      []string{at(j.r.Place, "sysctl -w %s=1", key), "# or redirect instead (REDIRECT): it sends to the device's own address"},
			Verify:   []string{at(j.r.Place, "sysctl %s", key), j.verify()},
			Evidence: []trace.Evidence{j.saw("%s: dnat to %s", l.Packet, l.Target), j.saw("%s = 0, and so is that of all", key)},
		})
	}
}

// blocked finds filters that drop what a redirection needs.
func (j *redirectJudge) blocked() {
	for _, f := range j.families() {
		if f.Six && !f.Used || !f.Redirects() {
			continue
		}
		for i := range f.Legs {
			l := &f.Legs[i]
			if l.Drop == nil || !l.Taken && l.Role != trace.RolePassthrough {
				continue
			}
			j.block(l)
		}
	}
}

func (j *redirectJudge) block(l *trace.RedirectLeg) {
	v := l.Drop
	here := name(j.r.Place)
	packet := "connections"
	if l.DropAnswer {
		packet = "the answers to connections"
	}
	what := fmt.Sprintf("%s %s", l.Role, packet)
	if l.Role == trace.RolePassthrough {
		what = fmt.Sprintf("%s from %s, by which the proxy hands traffic to the application,", packet, l.Packet.Src.Addr())
	}
	after := l.Packet
	if l.Taken {
		after.Dst = l.Target
	}
	f := trace.Finding{
		Fault: faultOf(v), Where: trace.Where{Hook: string(v.Hook)},
		Summary:  fmt.Sprintf("%s drops %s in %s", showShort(v), strings.TrimSuffix(what, ","), here),
		Cause:    fmt.Sprintf("%s drops %s at hook %s (%s).", capital(showVerdict(v)), what, v.Hook, after),
		Evidence: []trace.Evidence{j.saw("%s%s", showVerdict(v), showCounter(v))},
	}
	if !l.OnLoopback {
		f.Fix = []string{acceptBefore(&trace.Case{Place: j.r.Place, Event: trace.Event{Tuple: after}}, v)}
		j.add(&netfilterDrop, l, f)
		return
	}
	f.Where.Device = "lo"
	f.Fix = []string{j.acceptLoopback(v, l)}
	j.add(&loopbackBlocked, l, f)
}

// acceptLoopback lets all that stays in this namespace pass a rule or policy. A
// packet that was redirected at OUTPUT still has the device there that it was to leave by.
func (j *redirectJudge) acceptLoopback(v *trace.FilterVerdict, l *trace.RedirectLeg) string {
	six := l.Packet.Is6()
	match := map[bool][2]string{
		true:  {"-i lo", "iifname lo"},
		false: {"-o lo", "oifname lo"},
	}[v.Hook == trace.Input || v.Hook == trace.Prerouting]
	if v.Hook == trace.Output && l.Taken && !l.DropAnswer && l.Device != "lo" {
		match = [2]string{"-d 127.0.0.0/8", "ip daddr 127.0.0.0/8"}
		if six {
			match = [2]string{"-d ::1", "ip6 daddr ::1"}
		}
	}
	if v.Backend == "nft" {
		where := fmt.Sprintf("%s %s %s", v.Family, quote(v.Table), quote(v.Chain))
		if v.Policy {
			return at(j.r.Place, "nft add rule %s %s accept", where, match[1])
		}
		return at(j.r.Place, "nft insert rule %s handle %d %s accept", where, v.Handle, match[1])
	}
	tool := toolOf(v.Backend, six)
	if v.Policy {
		return at(j.r.Place, "%s -t %s -A %s %s -j ACCEPT", tool, quote(v.Table), quote(v.Chain), match[0])
	}
	return at(j.r.Place, "%s -t %s -I %s %d %s -j ACCEPT", tool, quote(v.Table), quote(v.Chain), max(v.Line, 1), match[0])
}

// probed judges the real handshakes, where the rules alone tell of no fault.
func (j *redirectJudge) probed() {
	silent := len(j.found) == 0
	for i := range j.r.Families {
		f := &j.r.Families[i]
		l := f.Leg(trace.RoleSelf)
		if l == nil || !l.Probe.Done {
			continue
		}
		p := &l.Probe
		if p.Arrived {
			continue
		}
		evidence := j.saw("%s handshake to %s as uid %d, %d tries: %s", showFamily(f.Six), l.Packet.Dst.Addr(), l.UID, p.Tries, p.Failure)
		if !silent {
			for k := range j.found {
				j.found[k].Evidence = append(j.found[k].Evidence, evidence)
			}
			continue
		}
		if !l.Taken && !f.Unread {
			continue // no rule is meant to bring it back
		}
		rule, cause := &redirectMissing, "no rule brought it back, though the rules that could be read say so"
		if p.TimedOut {
			rule, cause = &loopbackBlocked, "nothing answered: something drops it, though no rule that could be read does"
		}
		j.add(rule, l, trace.Finding{
			Fault: "probe", Confidence: trace.Likely, Where: trace.Where{Hook: "OUTPUT", Device: "lo"},
			Summary:  fmt.Sprintf("a real connection of the proxy's user to %s failed in %s: %s", l.Packet.Dst.Addr(), name(j.r.Place), p.Failure),
			Cause:    fmt.Sprintf("A real connection to %s, made as uid %d, was not taken by port %d: %s. What else handles packets here (eBPF programs, security modules) may do it.", l.Packet.Dst.Addr(), l.UID, l.Target.Port(), cause),
			Fix:      []string{"# " + at(j.r.Place, "nft list ruleset") + "   # look for what handles this connection"},
			Verify:   []string{j.verify() + " --probe"},
			Evidence: []trace.Evidence{evidence},
		})
	}
}
