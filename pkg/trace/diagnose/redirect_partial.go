package diagnose

import (
	"fmt"
	"slices"
	"strings"

	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/mesh"
)

// partial finds chains of rules that have no part in anything.
func (j *redirectJudge) partial() {
	for _, f := range j.families() {
		for i := range f.Dangling {
			c := &f.Dangling[i]
			if l := f.Leg(c.Role); l != nil && l.Lacks != nil {
				continue // it is led there, but for a route
			}
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
	leg := f.Leg(role)
	finding := trace.Finding{Fault: fault, Where: trace.Where{Hook: hookOf(role)}}
	j.lacks(f, c, leg, &finding)
	if leg != nil {
		finding.Evidence = append(finding.Evidence, j.saw("%s %s: not redirected%s", role, leg.Packet, through(leg)))
	}
	if len(c.Ports) > 0 && !c.Unmatched && !c.Shadowed {
		finding.Evidence = append(finding.Evidence, j.saw("%s redirects to port %s; nothing jumps to it", showChain(c), ports(c.Ports)))
	}
	if m := mesh.Named(j.r.Mesh); m != nil && m.Install != "" {
		finding.Fix = append(finding.Fix, "# or write all rules anew: "+at(j.r.Place, m.Install, j.proxyUID()))
	}
	j.add(&redirectMissing, leg, finding)
}

// showChain names a chain with its table.
func showChain(c *trace.RedirectChain) string {
	return fmt.Sprintf("chain %s %s %s", c.Family, c.Table, c.Name)
}

// lacks says what is missing for a chain to have a part in it, and the command that adds it.
func (j *redirectJudge) lacks(f *trace.RedirectFamily, c *trace.RedirectChain, leg *trace.RedirectLeg, finding *trace.Finding) {
	role, here, hook, at4 := c.Role, name(j.r.Place), hookOf(c.Role), showChain(c)
	next, port := j.nextChain(f, c)
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
	case c.Unmatched && c.Base:
		port = c.Ports[0]
		finding.Summary = fmt.Sprintf("%s of %s do not fit: none in chain %s is for %s traffic", j.rulesName(), here, c.Name, role)
		finding.Cause = fmt.Sprintf("%s (%s) redirects to port %s, but its rules ask for a device, an address or a port that %s traffic does not have: it goes past the proxy.",
			capital(at4), c.Backend, ports(c.Ports), role)
		finding.Fix = []string{j.append4(c, f.Six, c.Name, fmt.Sprintf("-p tcp -j REDIRECT --to-ports %d", port), fmt.Sprintf("meta l4proto tcp redirect to :%d", port))}
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

// pastResolver finds DNS that is redirected for some resolvers, but not for that of the application.
func (j *redirectJudge) pastResolver() {
	for _, f := range j.families() {
		for i := range f.Legs {
			l := &f.Legs[i]
			if l.Role != trace.RoleDNS || l.Taken || l.Excused || !f.ResolversKnown || f.DNSPort == 0 || len(l.Doubts) > 0 {
				continue
			}
			server, uid := l.Packet.Dst.Addr(), j.proxyUID()
			var fix []string
			if l.Zone == 0 && l.AnswerZone != 0 {
				like := *j.anyLeg(f)
				like.Packet, like.AnswerZone = l.Packet, l.AnswerZone
				fix = []string{j.queryZone(&like, uid)}
			}
			j.add(&redirectMissing, l, trace.Finding{
				Fault: "missing DNS", Where: trace.Where{Hook: "OUTPUT"},
				Summary: fmt.Sprintf("DNS queries to %s go past the proxy in %s", server, name(j.r.Place)),
				Cause: fmt.Sprintf("DNS is redirected to port %d, but not what is sent to %s, the name server of the application: names that only the mesh knows are not found.",
					f.DNSPort, server),
				Fix: append(fix, j.insertNew(j.anyLeg(f), "OUTPUT", fmt.Sprintf("-p udp -d %s --dport 53 -m owner ! --uid-owner %d -j REDIRECT --to-ports %d", server, uid, f.DNSPort),
					fmt.Sprintf("%s daddr %s udp dport 53 meta skuid != %d redirect to :%d", ipFamily(f.Six), server, uid, f.DNSPort))),
				Evidence: []trace.Evidence{j.saw("%s: not redirected%s", l.Packet, through(l)), j.saw("resolv.conf of the application names %s", server)},
			})
		}
	}
}
