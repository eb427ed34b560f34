package diagnose

import (
	"fmt"
	"strings"

	"github.com/replypath/replypath/pkg/trace"
)

// bypassed finds IPv6 that is not redirected as IPv4 is, or the other way round.
func (j *redirectJudge) bypassed() {
	families := j.families()
	if len(families) < 2 {
		return
	}
	four, six := families[0], families[1]
	if roles := missingRoles(four, six); len(roles) > 0 && six.Used {
		j.bypass(four, six, roles)
	}
	if roles := missingRoles(six, four); len(roles) > 0 && four.Used && !j.told(redirectMissing.ID) {
		l := four.Leg(roles[0])
		j.add(&redirectMissing, l, trace.Finding{
			Fault: "missing IPv4", Where: trace.Where{Hook: hookOf(roles[0])},
			Summary: fmt.Sprintf("IPv6 is redirected to the proxy in %s, IPv4 is not (%s)", name(j.r.Place), joinRoles(roles)),
			Cause:   fmt.Sprintf("The rules for IPv6 redirect %s traffic, those for IPv4 do not: it goes past the proxy.", joinRoles(roles)),
			Fix:     j.twin(six, false, roles),
			Evidence: []trace.Evidence{j.saw("%s %s: not redirected%s", roles[0], l.Packet, through(l)),
				j.saw("%s %s: %s to %s", roles[0], six.Leg(roles[0]).Packet, six.Leg(roles[0]).Kind, six.Leg(roles[0]).Target)},
		})
	}
}

// missingRoles are what one family redirects and the other neither redirects nor drops.
func missingRoles(has, lacks *trace.RedirectFamily) []trace.RedirectRole {
	var out []trace.RedirectRole
	for _, role := range []trace.RedirectRole{trace.RoleOutbound, trace.RoleInbound} {
		l := lacks.Leg(role)
		if has.Takes(role) && l != nil && !l.Taken && l.Lacks == nil && l.Drop == nil && len(l.Doubts) == 0 {
			out = append(out, role)
		}
	}
	if l := lacks.Leg(trace.RoleDNS); has.Takes(trace.RoleDNS) && lacks.ResolversKnown && l != nil && !l.Taken && !l.Excused {
		out = append(out, trace.RoleDNS)
	}
	return out
}

func joinRoles(roles []trace.RedirectRole) string {
	var out []string
	for _, r := range roles {
		out = append(out, string(r))
	}
	return strings.Join(out, " and ")
}

func hookOf(role trace.RedirectRole) string {
	if role == trace.RoleInbound {
		return "PREROUTING"
	}
	return "OUTPUT"
}

func (j *redirectJudge) bypass(four, six *trace.RedirectFamily, roles []trace.RedirectRole) {
	here := name(j.r.Place)
	l := six.Leg(roles[0])
	f := trace.Finding{
		Fault: "IPv6", Where: trace.Where{Hook: hookOf(roles[0])},
		Summary: fmt.Sprintf("IPv4 is redirected to the proxy in %s, IPv6 is not (%s)", here, joinRoles(roles)),
		Cause: fmt.Sprintf("There is the IPv6 address %[2]s in %[1]s. The rules for IPv4 redirect %[3]s traffic, those for IPv6 do not: whoever has both takes IPv6 first, past the proxy with its policies and encryption.",
			here, six.Address, joinRoles(roles)),
		Fix: j.twin(four, true, roles),
	}
	for _, role := range roles {
		a, b := four.Leg(role), six.Leg(role)
		f.Evidence = append(f.Evidence, j.saw("%s %s: %s to %s", role, a.Packet, a.Kind, a.Target), j.saw("%s %s: not redirected%s", role, b.Packet, through(b)))
	}
	for _, c := range six.Dangling {
		if !c.Hooked && !c.Unmatched && !c.Shadowed {
			f.Evidence = append(f.Evidence, j.saw("chain %s %s %s redirects to port %s; nothing jumps to it", c.Family, c.Table, c.Name, ports(c.Ports)))
		}
	}
	j.add(&redirectBypassedIPv6, l, f)
}

// twin are rules like those of the other family.
func (j *redirectJudge) twin(model *trace.RedirectFamily, six bool, roles []trace.RedirectRole) []string {
	var out []string
	uid := j.proxyUID()
	for _, role := range roles {
		m := *model.Leg(role)
		port := m.Target.Port()
		iptables, nft := fmt.Sprintf("-p tcp ! -o lo -m owner ! --uid-owner %d -j REDIRECT --to-ports %d", uid, port),
			fmt.Sprintf("meta l4proto tcp oifname != lo meta skuid != %d redirect to :%d", uid, port)
		if role == trace.RoleInbound {
			iptables, nft = fmt.Sprintf("-p tcp -j REDIRECT --to-ports %d", port), fmt.Sprintf("meta l4proto tcp redirect to :%d", port)
		}
		if role == trace.RoleDNS {
			iptables, nft = fmt.Sprintf("-p udp --dport 53 -m owner ! --uid-owner %d -j REDIRECT --to-ports %d", uid, port),
				fmt.Sprintf("udp dport 53 meta skuid != %d redirect to :%d", uid, port)
		}
		hook := hookOf(role)
		if m.Backend == "nft" {
			table := "mesh"
			where := fmt.Sprintf("%s %s", ipFamily(six), table)
			chain := where + " " + strings.ToLower(hook)
			out = append(out, strings.Join([]string{at(j.r.Place, "nft add table %s", where),
				at(j.r.Place, "nft add chain %s '{ type nat hook %s priority -100; }'", chain, strings.ToLower(hook)),
				at(j.r.Place, "nft add rule %s %s", chain, nft)}, " && "))
			continue
		}
		out = append(out, at(j.r.Place, "%s -t nat -A %s %s", toolOf(m.Backend, six), hook, iptables))
	}
	if six {
		out = append(out, "# or do without IPv6: "+at(j.r.Place, "sysctl -w net.ipv6.conf.all.disable_ipv6=1"))
	}
	return out
}

func ipFamily(six bool) string {
	if six {
		return "ip6"
	}
	return "ip"
}
