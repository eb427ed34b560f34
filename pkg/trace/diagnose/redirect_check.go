package diagnose

import (
	"fmt"
	"slices"
	"strings"

	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/mesh"
)

// looped finds traffic of the proxy that is sent back to it.
func (j *redirectJudge) looped() {
	for _, f := range j.families() {
		for i := range f.Legs {
			l := &f.Legs[i]
			if !l.Taken {
				continue
			}
			switch l.Role {
			case trace.RoleProxy:
				j.proxyLoop(f, l, f.Leg(trace.RoleOutbound))
			case trace.RoleProxyDNS:
				j.proxyLoop(f, l, f.Leg(trace.RoleDNS))
			case trace.RolePassthrough:
				j.passLoop(f, l)
			}
		}
	}
}

func (j *redirectJudge) proxyLoop(f *trace.RedirectFamily, l, app *trace.RedirectLeg) {
	if app == nil || l.Target != app.Target {
		return
	}
	p := j.r.Proxy
	if !p.Known && (f.Distinguished || f.Opaque || len(l.Doubts) > 0) {
		return
	}
	here := name(j.r.Place)
	finding := trace.Finding{Fault: "proxy's own traffic", Where: trace.Where{Hook: "OUTPUT"}, Confidence: trace.Certain}
	if l.Role == trace.RoleProxyDNS {
		finding.Fault, finding.Confidence = "proxy's own DNS", trace.Likely
		if j.told(redirectLoop.ID) {
			return // the same user's
		}
	}
	who := j.proxyName()
	finding.Summary = fmt.Sprintf("%s is redirected to itself in %s", who, here)
	finding.Cause = fmt.Sprintf("What %s sends to %s is redirected to port %d, where it listens itself: each connection makes another, until ports or memory run out. ", who, l.Packet.Dst, l.Target.Port())
	finding.Evidence = append(finding.Evidence, j.saw("%s of uid %d to %s: %s to %s (%s)", l.Packet.Protocol, l.UID, l.Packet.Dst, l.Kind, l.Target, l.Rule))
	uid := l.UID
	switch {
	case !p.Known:
		finding.Confidence = trace.Likely
		finding.Cause += "No rule lets the proxy's own traffic go: none asks for an owner, a mark or a cgroup."
		uid = j.proxyUID()
	case len(f.UIDs)+len(f.GIDs) > 0:
		finding.Cause += fmt.Sprintf("The rules are for another user: they let %s go, not uid %d.", showOwners(f), uid)
		finding.Evidence = append(finding.Evidence, j.saw("%s rules let go: %s", showFamily(f.Six), showOwners(f)))
	default:
		finding.Cause += fmt.Sprintf("No rule lets uid %d go.", uid)
	}
	match := []string{"! -o lo -m owner --uid-owner %d", "oifname != lo meta skuid %d"}
	if l.Role == trace.RoleProxyDNS {
		match = []string{"-p udp --dport 53 -m owner --uid-owner %d", "udp dport 53 meta skuid %d"}
	}
	finding.Fix = []string{j.insert(l, "OUTPUT", fmt.Sprintf(match[0], uid)+" -j RETURN", fmt.Sprintf(match[1], uid)+" return")}
	if m := mesh.Named(j.r.Mesh); m != nil && m.Install != "" && len(f.UIDs) > 0 {
		finding.Fix = append(finding.Fix, "# or write the rules anew, for that user: "+at(j.r.Place, m.Install, uid))
	}
	j.add(&redirectLoop, l, finding)
}

// showOwners lists whose packets rules let go.
func showOwners(f *trace.RedirectFamily) string {
	var out []string
	for _, id := range f.UIDs {
		out = append(out, fmt.Sprintf("uid %d", id))
	}
	for _, id := range f.GIDs {
		out = append(out, fmt.Sprintf("gid %d", id))
	}
	return strings.Join(out, ", ")
}

func (j *redirectJudge) passLoop(f *trace.RedirectFamily, l *trace.RedirectLeg) {
	if j.told(redirectLoop.ID) {
		return
	}
	src := l.Packet.Src.Addr()
	j.add(&redirectLoop, l, trace.Finding{
		Fault: "passthrough", Where: trace.Where{Hook: "OUTPUT"},
		Summary: fmt.Sprintf("what the proxy hands to the application from %s is redirected back to it in %s", src, name(j.r.Place)),
		Cause: fmt.Sprintf("The proxy hands connections on to the application from %s, so that rules can tell them. No rule lets them go: they are redirected to port %d, back to the proxy, and never reach the application.",
			src, l.Target.Port()),
		Fix:      []string{j.insert(l, "OUTPUT", fmt.Sprintf("-s %s -o lo -j RETURN", src), fmt.Sprintf("%s saddr %s oifname lo return", ipFamily(f.Six), src))},
		Evidence: []trace.Evidence{j.saw("%s: %s to %s (%s)", l.Packet, l.Kind, l.Target, l.Rule)},
	})
}

func ipFamily(six bool) string {
	if six {
		return "ip6"
	}
	return "ip"
}

// insert is the command that puts a rule first into the base chain that a leg came through.
func (j *redirectJudge) insert(l *trace.RedirectLeg, chain, iptables, nft string) string {
	if l.Backend == "nft" {
		return at(j.r.Place, "nft insert rule %s %s %s %s", l.Family, quote(l.Table), quote(l.Base), nft)
	}
	return at(j.r.Place, "%s -t nat -I %s 1 %s", toolOf(l.Backend, l.Packet.Is6()), chain, iptables)
}

// partial finds chains of rules that have no part in anything.
func (j *redirectJudge) partial() {
	for _, f := range j.families() {
		for i := range f.Dangling {
			c := &f.Dangling[i]
			if f.Takes(c.Role) || f.Six && !f.Used || f.Six && j.takesElsewhere(f, c.Role) {
				continue // it is redirected all the same; or nobody misses it; or that is redirect-bypassed-ipv6
			}
			j.dangles(f, c)
		}
	}
}

// takesElsewhere reports whether the other IP version redirects a role.
func (j *redirectJudge) takesElsewhere(f *trace.RedirectFamily, role trace.RedirectRole) bool {
	return slices.ContainsFunc(j.families(), func(g *trace.RedirectFamily) bool { return g != f && g.Takes(role) })
}

func (j *redirectJudge) dangles(f *trace.RedirectFamily, c *trace.RedirectChain) {
	role := c.Role
	fault := "missing " + string(role)
	if slices.ContainsFunc(j.found, func(g trace.Finding) bool { return g.ID == redirectMissing.ID && g.Fault == fault }) {
		return
	}
	here := name(j.r.Place)
	hook := map[bool]string{true: "PREROUTING", false: "OUTPUT"}[role == trace.RoleInbound]
	finding := trace.Finding{Fault: fault, Where: trace.Where{Hook: hook}}
	leg := f.Leg(role)
	next, port := j.nextChain(f, c)
	at4 := fmt.Sprintf("chain %s %s %s", c.Family, c.Table, c.Name)
	switch {
	case c.Hooked && next != "":
		finding.Summary = fmt.Sprintf("%s of %s are incomplete: nothing in chain %s redirects %s traffic", j.rulesName(), here, c.Name, role)
		finding.Cause = fmt.Sprintf("%s traffic comes through %s (%s), but no rule there sends it on to chain %s, which redirects to port %d: it goes past the proxy.", capital(string(role)), at4, c.Backend, next, port)
		finding.Fix = []string{j.append4(c, f.Six, c.Name, "-p tcp -j "+quote(next), "meta l4proto tcp jump "+quote(next))}
	case c.Hooked:
		port = j.usualPort(role)
		finding.Summary = fmt.Sprintf("%s of %s are incomplete: nothing in chain %s redirects %s traffic", j.rulesName(), here, c.Name, role)
		finding.Cause = fmt.Sprintf("%s traffic comes through %s (%s), but no rule there redirects it: it goes past the proxy.", capital(string(role)), at4, c.Backend)
		finding.Fix = []string{j.append4(c, f.Six, c.Name, fmt.Sprintf("-p tcp -j REDIRECT --to-ports %d", port), fmt.Sprintf("meta l4proto tcp redirect to :%d", port))}
	case c.Shadowed && leg != nil:
		finding.Summary = fmt.Sprintf("a rule in chain %s of %s lets all %s traffic go before it is redirected", c.Name, here, role)
		finding.Cause = fmt.Sprintf("%s (%s) redirects to port %s further on, but its rule %q comes first and lets all %s traffic go: it goes past the proxy.", capital(at4), c.Backend, ports(c.Ports), leg.Rule, role)
		finding.Fix = []string{j.remove(c, leg, f.Six)}
		finding.Evidence = append(finding.Evidence, j.saw("%s: %s", at4, leg.Rule))
	case c.Unmatched && leg != nil && leg.Untracked:
		finding.Summary = fmt.Sprintf("a rule of %s exempts %s traffic from connection tracking: it is not redirected", here, role)
		finding.Cause = fmt.Sprintf("%s (%s) redirects to port %s, but a rule at %s in table raw (NOTRACK) exempts %s traffic from connection tracking. What is not tracked is not redirected: it goes past the proxy.",
			capital(at4), c.Backend, ports(c.Ports), hook, role)
		finding.Fix = []string{"# delete the rule with NOTRACK: " + at(j.r.Place, "%s -t raw -L %s -nv --line-numbers", toolOf(c.Backend, f.Six), hook)}
		if c.Backend == "nft" {
			finding.Fix = []string{"# delete the rule with notrack: " + at(j.r.Place, "nft -a list ruleset")}
		}
	case c.Unmatched:
		finding.Summary = fmt.Sprintf("%s of %s do not fit: no %s traffic gets to chain %s", j.rulesName(), here, role, c.Name)
		finding.Cause = fmt.Sprintf("%s (%s) redirects to port %s, and rules at %s lead there, but they ask for a device, an address or a port that %s traffic does not have: it goes past the proxy.",
			capital(at4), c.Backend, ports(c.Ports), hook, role)
		finding.Fix = []string{j.append4(c, f.Six, hook, "-p tcp -j "+quote(c.Name), "meta l4proto tcp jump "+quote(c.Name))}
	default:
		finding.Summary = fmt.Sprintf("%s of %s are incomplete: no rule leads to chain %s, which redirects %s traffic", j.rulesName(), here, c.Name, role)
		finding.Cause = fmt.Sprintf("%s (%s) redirects to port %s, but no rule at %s, nor anywhere else, jumps to it: %s traffic goes past the proxy.", capital(at4), c.Backend, ports(c.Ports), hook, role)
		base := hook
		if leg != nil && leg.Base != "" && leg.Table == c.Table && leg.Backend == "nft" {
			base = leg.Base
		}
		if parent := j.parentOf(f, c); parent != "" {
			base = parent
		}
		finding.Fix = []string{j.append4(c, f.Six, base, "-p tcp -j "+quote(c.Name), "meta l4proto tcp jump "+quote(c.Name))}
	}
	if leg != nil {
		finding.Evidence = append(finding.Evidence, j.saw("%s %s: not redirected%s", role, leg.Packet, through(leg)))
	}
	if len(c.Ports) > 0 && !c.Unmatched && !c.Shadowed {
		finding.Evidence = append(finding.Evidence, j.saw("%s redirects to port %s; nothing jumps to it", at4, ports(c.Ports)))
	}
	if m := mesh.Named(j.r.Mesh); m != nil && m.Install != "" {
		finding.Fix = append(finding.Fix, "# or write all rules anew: "+at(j.r.Place, m.Install, j.proxyUID()))
	}
	j.add(&redirectMissing, leg, finding)
}

// through names the chains that a packet came through.
func through(l *trace.RedirectLeg) string {
	if len(l.Chains) == 0 {
		return ""
	}
	return " (it comes through " + strings.Join(l.Chains, ", ") + ")"
}

// nextChain is the chain that redirects, to which a mesh's chain should jump.
func (j *redirectJudge) nextChain(f *trace.RedirectFamily, c *trace.RedirectChain) (string, uint16) {
	for i := range f.Dangling {
		if d := &f.Dangling[i]; !d.Hooked && d.Role == c.Role && d.Table == c.Table && len(d.Ports) > 0 {
			return d.Name, d.Ports[0]
		}
	}
	if c.Role != trace.RoleInbound {
		return "", 0
	}
	if self := f.Leg(trace.RoleSelf); self != nil && self.Taken && len(self.Chains) > 0 {
		return self.Chains[len(self.Chains)-1], self.Target.Port() // the proxy's own calls are led there
	}
	return "", 0
}

// parentOf is a chain of the mesh that packets come through in vain, from which c should be led to.
func (j *redirectJudge) parentOf(f *trace.RedirectFamily, c *trace.RedirectChain) string {
	for i := range f.Dangling {
		if d := &f.Dangling[i]; d.Hooked && d.Role == c.Role && d.Name != c.Name {
			return d.Name
		}
	}
	return ""
}

func (j *redirectJudge) append4(c *trace.RedirectChain, six bool, chain, iptables, nft string) string {
	if c.Backend == "nft" {
		return at(j.r.Place, "nft add rule %s %s %s %s", c.Family, quote(c.Table), quote(chain), nft)
	}
	return at(j.r.Place, "%s -t %s -A %s %s", toolOf(c.Backend, six), quote(c.Table), quote(chain), iptables)
}

// remove is the command that deletes the rule that decided a leg.
func (j *redirectJudge) remove(c *trace.RedirectChain, l *trace.RedirectLeg, six bool) string {
	if c.Backend == "nft" {
		return at(j.r.Place, "nft delete rule %s %s %s handle %d", c.Family, quote(c.Table), quote(c.Name), l.Handle)
	}
	return at(j.r.Place, "%s -t %s -D %s %d", toolOf(c.Backend, six), quote(c.Table), quote(c.Name), l.Line)
}

func ports(list []uint16) string {
	var out []string
	for _, p := range list {
		out = append(out, fmt.Sprint(p))
	}
	return strings.Join(out, ", ")
}

// usualPort is the port of a role's listener: one that is there, or the mesh's.
func (j *redirectJudge) usualPort(role trace.RedirectRole) uint16 {
	m, _ := j.mesh()
	switch role {
	case trace.RoleInbound:
		return j.portOf(role, m.Inbound[0])
	case trace.RoleDNS, trace.RoleDNSTCP:
		return j.portOf(trace.RoleDNS, 15053)
	}
	return j.portOf(role, m.Outbound[0])
}

// strays finds a proxy that listens for a kind of traffic that goes past it.
func (j *redirectJudge) strays() {
	for _, f := range j.families() {
		if f.Six {
			continue // IPv4 tells; IPv6 beside it is judged by itself
		}
		for i := range j.r.Strays {
			j.stray(f, &j.r.Strays[i])
		}
	}
}

func (j *redirectJudge) stray(f *trace.RedirectFamily, s *trace.RedirectStray) {
	leg := f.Leg(s.Role)
	if leg == nil || leg.Taken || leg.Excused || j.takesElsewhere(f, s.Role) || slices.ContainsFunc(f.Legs, func(l trace.RedirectLeg) bool {
		return l.Taken && l.Target.Port() == s.Local.Port() && l.Packet.Protocol == s.Protocol
	}) && s.Role != trace.RoleInbound {
		return
	}
	if s.Role == trace.RoleDNS && (f.DNSPort != 0 || !f.KnowsDNS) || s.Role == trace.RoleInbound && j.gateway(f) {
		return
	}
	fault := "missing " + string(s.Role)
	if slices.ContainsFunc(j.found, func(g trace.Finding) bool { return g.Fault == fault }) {
		return
	}
	here := name(j.r.Place)
	hook := map[bool]string{true: "PREROUTING", false: "OUTPUT"}[s.Role == trace.RoleInbound]
	port, uid := s.Local.Port(), j.proxyUID()
	finding := trace.Finding{
		Fault: fault, Confidence: trace.Likely, Where: trace.Where{Hook: hook},
		Summary: fmt.Sprintf("%s traffic of %s goes past the proxy that listens for it on port %d", s.Role, here, port),
		Cause: fmt.Sprintf("%s listens on %s for %s traffic, other traffic is redirected to the proxy, but no rule redirects this.",
			capital(showSocket(&s.Socket)), s.Local, s.Role),
		Evidence: []trace.Evidence{j.saw("%s %s: not redirected%s", s.Role, leg.Packet, through(leg)), j.saw("%s listens on %s %s", showSocket(&s.Socket), s.Protocol, s.Local)},
	}
	by := j.anyLeg(f)
	switch s.Role {
	case trace.RoleInbound:
		finding.Fix = []string{j.insertNew(by, "PREROUTING", fmt.Sprintf("-p tcp -j REDIRECT --to-ports %d", port), fmt.Sprintf("meta l4proto tcp redirect to :%d", port))}
	case trace.RoleDNS:
		finding.Severity = trace.Warning
		finding.Fix = []string{j.insertNew(by, "OUTPUT", fmt.Sprintf("-p udp --dport 53 -m owner ! --uid-owner %d -j REDIRECT --to-ports %d", uid, port),
			fmt.Sprintf("udp dport 53 meta skuid != %d redirect to :%d", uid, port))}
	default:
		finding.Fix = []string{j.insertNew(by, "OUTPUT", fmt.Sprintf("-p tcp ! -o lo -m owner ! --uid-owner %d -j REDIRECT --to-ports %d", uid, port),
			fmt.Sprintf("meta l4proto tcp oifname != lo meta skuid != %d redirect to :%d", uid, port))}
	}
	j.add(&redirectMissing, leg, finding)
}

// gateway reports rules that leave inbound traffic alone on purpose: a mesh's chain for it is there, and redirects nothing.
func (j *redirectJudge) gateway(f *trace.RedirectFamily) bool {
	m := mesh.Named(j.r.Mesh)
	return m != nil && slices.ContainsFunc(f.IdleChains, m.IsInbound)
}

// anyLeg is one that was taken: it tells in which language rules are written here.
func (j *redirectJudge) anyLeg(f *trace.RedirectFamily) *trace.RedirectLeg {
	for i := range f.Legs {
		if f.Legs[i].Taken {
			return &f.Legs[i]
		}
	}
	return &f.Legs[0]
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

// pastResolver finds DNS that is redirected for some resolvers, but not for that of the application.
func (j *redirectJudge) pastResolver() {
	for _, f := range j.families() {
		for i := range f.Legs {
			l := &f.Legs[i]
			if l.Role != trace.RoleDNS || l.Taken || l.Excused || !f.ResolversKnown || f.DNSPort == 0 || len(l.Doubts) > 0 {
				continue
			}
			server, uid := l.Packet.Dst.Addr(), j.proxyUID()
			j.add(&redirectMissing, l, trace.Finding{
				Fault: "missing DNS", Where: trace.Where{Hook: "OUTPUT"},
				Summary: fmt.Sprintf("DNS queries to %s go past the proxy in %s", server, name(j.r.Place)),
				Cause: fmt.Sprintf("DNS is redirected to port %d, but not what is sent to %s, the name server of the application: names that only the mesh knows are not found.",
					f.DNSPort, server),
				Fix: []string{j.insertNew(j.anyLeg(f), "OUTPUT", fmt.Sprintf("-p udp -d %s --dport 53 -m owner ! --uid-owner %d -j REDIRECT --to-ports %d", server, uid, f.DNSPort),
					fmt.Sprintf("%s daddr %s udp dport 53 meta skuid != %d redirect to :%d", ipFamily(f.Six), server, uid, f.DNSPort))},
				Evidence: []trace.Evidence{j.saw("%s: not redirected%s", l.Packet, through(l)), j.saw("resolv.conf of the application names %s", server)},
			})
		}
	}
}

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
		if has.Takes(role) && l != nil && !l.Taken && l.Drop == nil && len(l.Doubts) == 0 {
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

// selfCalls finds rules of a mesh that do not bring back what its proxy sends to an address of this namespace.
func (j *redirectJudge) selfCalls() {
	m := mesh.Named(j.r.Mesh)
	if m == nil || !m.SelfCalls || j.told(redirectLoop.ID) {
		return
	}
	for _, f := range j.families() {
		l := f.Leg(trace.RoleSelf)
		if f.Six && !f.Used || l == nil || l.Taken || len(l.Doubts) > 0 || l.Probe.Arrived {
			continue
		}
		if !f.Takes(trace.RoleOutbound) && j.told(redirectMissing.ID, redirectBypassedIPv6.ID) {
			continue // no rule for what is sent is there, and that is told
		}
		in := f.Leg(trace.RoleInbound)
		port, uid, pass := in.Target.Port(), j.proxyUID(), l.Packet.Dst.Addr()
		loop := "127.0.0.1"
		if f.Six {
			loop = "::1"
		}
		j.add(&redirectMissing, l, trace.Finding{
			Fault: "missing self", Where: trace.Where{Hook: "OUTPUT", Device: "lo"},
			Summary: fmt.Sprintf("%s of %s are incomplete: what the proxy sends to %s is not brought back to it", j.rulesName(), name(j.r.Place), pass),
			Cause: fmt.Sprintf("%s has a rule that redirects what its proxy (uid %d) sends by lo, to another address than %s, to the inbound port %d: an application that calls its own service goes that way, and the mesh's own validation. It is missing here, or for another user.",
				m.Name, uid, loop, port),
			Fix: []string{j.insert(in0(in, l), "OUTPUT", fmt.Sprintf("! -s %s ! -d %s -o lo -p tcp -m owner --uid-owner %d -j REDIRECT --to-ports %d", pass, loop, uid, port),
				fmt.Sprintf("%s saddr != %s %s daddr != %s oifname lo meta l4proto tcp meta skuid %d redirect to :%d", ipFamily(f.Six), pass, ipFamily(f.Six), loop, uid, port))},
			Evidence: []trace.Evidence{j.saw("uid %d, %s: not redirected%s", l.UID, l.Packet, through(l))},
		})
	}
}

// in0 is the leg whose base chain takes a rule about self calls: that of OUTPUT, in the backend of the others.
func in0(in, self *trace.RedirectLeg) *trace.RedirectLeg {
	out := *self
	out.Backend = in.Backend
	if out.Table == "" {
		out.Table, out.Family, out.Base = in.Table, in.Family, "output"
	}
	return &out
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
