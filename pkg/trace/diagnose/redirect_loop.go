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
	m := mesh.Named(j.r.Mesh)
	if self := f.Leg(trace.RoleSelf); m != nil && m.SelfCalls && f.Passes && self != nil && !self.Taken && l.Role == trace.RoleProxy {
		finding.Fix = append(finding.Fix, j.selfRule(f, self)) // it is for that other user, too
	}
	if dns := f.Leg(trace.RoleDNS); dns != nil && dns.Taken && isZoned(dns) {
		finding.Fix = append(finding.Fix, otherZone(j.r, dns).fix...) // and so is the rule about its answers
	}
	if m != nil && m.Install != "" && len(f.UIDs) > 0 {
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

// selfCalls finds rules of a mesh that do not bring back what its proxy sends to an address of this namespace.
func (j *redirectJudge) selfCalls() {
	m := mesh.Named(j.r.Mesh)
	passes := func(f *trace.RedirectFamily) bool { return f.Passes }
	if m == nil || !m.SelfCalls || j.told(redirectLoop.ID) || !slices.ContainsFunc(j.families(), passes) {
		return // without that address it is another way of doing it, as Istio's ambient mode is
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
		loop := "127.0.0.1"
		if f.Six {
			loop = "::1"
		}
		j.add(&redirectMissing, l, trace.Finding{
			Fault: "missing self", Where: trace.Where{Hook: "OUTPUT", Device: "lo"},
			Summary: fmt.Sprintf("%s of %s are incomplete: what the proxy sends to %s is not brought back to it", j.rulesName(), name(j.r.Place), l.Packet.Dst.Addr()),
			Cause: fmt.Sprintf("%s has a rule that redirects what its proxy (uid %d) sends by lo, to another address than %s, to the inbound port %d: an application that calls its own service goes that way, and the mesh's own validation. It is missing here, or for another user.",
				m.Name, j.proxyUID(), loop, in.Target.Port()),
			Fix:      []string{j.selfRule(f, l)},
			Evidence: []trace.Evidence{j.saw("uid %d, %s: not redirected%s", l.UID, l.Packet, through(l))},
		})
	}
}

// selfRule is the command that brings what the proxy sends to an address of this namespace back to its inbound port.
func (j *redirectJudge) selfRule(f *trace.RedirectFamily, self *trace.RedirectLeg) string {
	in, pass, loop, uid := f.Leg(trace.RoleInbound), self.Packet.Dst.Addr(), "127.0.0.1", j.proxyUID()
	if f.Six {
		loop = "::1"
	}
	return j.insert(in0(in, self), "OUTPUT", fmt.Sprintf("! -s %s ! -d %s -o lo -p tcp -m owner --uid-owner %d -j REDIRECT --to-ports %d", pass, loop, uid, in.Target.Port()),
		fmt.Sprintf("%s saddr != %s %s daddr != %s oifname lo meta l4proto tcp meta skuid %d redirect to :%d", ipFamily(f.Six), pass, ipFamily(f.Six), loop, uid, in.Target.Port()))
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
