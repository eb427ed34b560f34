package diagnose

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/mesh"
)

// Redirection returns what is wrong with a namespace's redirection to a
// transparent proxy. One fault is one finding, though it may show in several
// legs and in both IP versions.
func Redirection(r *trace.Redirection) []trace.Finding {
	j := &redirectJudge{r: r}
	j.loopbackDown()
	if !j.installed() {
		return j.found
	}
	j.looped()
	j.unrouted()
	j.partial()
	j.strays()
	j.pastResolver()
	j.bypassed()
	j.unheard()
	j.zoned()
	j.localnet()
	j.blocked()
	j.selfCalls()
	j.probed()
	return j.found
}

// redirectJudge collects findings about one redirection.
type redirectJudge struct {
	r     *trace.Redirection
	found []trace.Finding
}

// told reports whether there is a finding of that id.
func (j *redirectJudge) told(ids ...string) bool {
	return slices.ContainsFunc(j.found, func(f trace.Finding) bool { return slices.Contains(ids, f.ID) })
}

// add makes a finding about a leg. What was found already, by its id and fault, is found once.
func (j *redirectJudge) add(rule *Rule, leg *trace.RedirectLeg, f trace.Finding) {
	for i := range j.found {
		if g := &j.found[i]; g.ID == rule.ID && f.Fault != "" && g.Fault == f.Fault {
			g.Evidence = append(g.Evidence, f.Evidence...)
			for _, c := range f.Fix {
				if !slices.Contains(g.Fix, c) {
					g.Fix = append(g.Fix, c)
				}
			}
			return
		}
	}
	f.ID, f.Severity, f.Direction = rule.ID, rule.Severity, trace.Request
	f.Where.Place = j.r.Place
	if f.Confidence == 0 {
		f.Confidence = trace.Certain
	}
	if leg != nil {
		p := leg.Packet
		f.Path = trace.Path{Protocol: p.Protocol, Client: p.Src, Server: p.Dst, Connection: p}
		if f.Where.Device == "" {
			f.Where.Device = leg.Device
		}
	}
	if len(f.Verify) == 0 {
		f.Verify = []string{j.verify()}
	}
	for _, u := range j.r.Unread {
		f.Evidence = append(f.Evidence, j.saw("could not be read: %s", u))
	}
	j.found = append(j.found, f)
}

// verify asks again.
func (j *redirectJudge) verify() string {
	switch p := j.r.Place; {
	case p.Name != "":
		return "replypath validate redirect --netns " + quote(p.Name)
	case p.PID != 0 && !p.Host:
		return fmt.Sprintf("replypath validate redirect --pid %d", p.PID)
	}
	return "replypath validate redirect"
}

func (j *redirectJudge) saw(format string, args ...any) trace.Evidence {
	return trace.Evidence{Time: j.r.ReadAt, Text: fmt.Sprintf(format, args...)}
}

// families are those whose rules were read.
func (j *redirectJudge) families() []*trace.RedirectFamily {
	var out []*trace.RedirectFamily
	for i := range j.r.Families {
		if f := &j.r.Families[i]; !f.Unread {
			out = append(out, f)
		}
	}
	return out
}

// mesh is whose rules they are; what is known of Kuma where nobody's.
func (j *redirectJudge) mesh() (*mesh.Mesh, bool) {
	if m := mesh.Named(j.r.Mesh); m != nil {
		return m, true
	}
	if m := mesh.OfPlugin(j.r.Setup.CNIPlugin); m != nil {
		return m, true
	}
	return &mesh.Known[0], false
}

// rulesName is how the rules are called: "Kuma's redirect rules".
func (j *redirectJudge) rulesName() string {
	if j.r.Mesh != "" {
		return j.r.Mesh + "'s redirect rules"
	}
	return "the redirect rules"
}

// meshsName is "Kuma's".
func (j *redirectJudge) meshsName() string {
	if j.r.Mesh != "" {
		return j.r.Mesh + "'s"
	}
	return "a mesh's"
}

// idle is a chain of a mesh that redirects nothing; "" when there is none.
func idle(families []*trace.RedirectFamily) string {
	for _, f := range families {
		if len(f.IdleChains) > 0 {
			return f.IdleChains[0]
		}
	}
	return ""
}

// proxyUID is the proxy's user: known, or else what is usual.
func (j *redirectJudge) proxyUID() uint32 {
	if p := j.r.Proxy; p.Known || p.UID != 0 {
		return p.UID
	}
	for _, f := range j.families() {
		if len(f.UIDs) > 0 {
			return f.UIDs[0]
		}
	}
	for _, s := range j.r.Strays {
		return s.UID
	}
	m, _ := j.mesh()
	return m.UID
}

// proxyName calls the proxy what is known of it.
func (j *redirectJudge) proxyName() string {
	p := j.r.Proxy
	switch {
	case p.Process.Comm != "":
		return fmt.Sprintf("the proxy (%s, pid %d, uid %d)", printable(p.Process.Comm), p.Process.PID, p.UID)
	case p.Known:
		return fmt.Sprintf("the proxy (uid %d)", p.UID)
	}
	return "the proxy"
}

func (j *redirectJudge) loopbackDown() {
	lo := j.r.Loopback
	if lo.Up {
		return
	}
	here := name(j.r.Place)
	f := trace.Finding{
		Summary: "the loopback device is down in " + here,
		Cause: fmt.Sprintf("Device lo of %s is down. All that is redirected to a proxy in the same namespace, and all that the proxy hands on to the application, goes by lo: "+
			"connections fail before there is a packet, or get no answer.", here),
		Fix:      []string{at(j.r.Place, "ip link set lo up")},
		Verify:   []string{at(j.r.Place, "ip link show lo"), j.verify()},
		Fault:    "lo",
		Where:    trace.Where{Device: "lo"},
		Evidence: []trace.Evidence{j.saw("device lo: down")},
	}
	loop := netip.MustParseAddr("127.0.0.1")
	leg := &trace.RedirectLeg{Device: "lo", Packet: trace.Tuple{Protocol: trace.TCP, Src: netip.AddrPortFrom(loop, 49160), Dst: netip.MustParseAddrPort("127.0.0.6:24242")}}
	j.add(&loopbackDown, leg, f)
}

// installed reports whether there is anything to judge: rules that redirect.
func (j *redirectJudge) installed() bool {
	families := j.families()
	if len(families) == 0 {
		return false
	}
	for _, f := range families {
		lacks := func(l trace.RedirectLeg) bool { return l.Lacks != nil }
		if f.Redirects() || len(f.Dangling) > 0 || slices.ContainsFunc(f.Legs, lacks) {
			return true
		}
	}
	f := families[0]
	leg := f.Leg(trace.RoleOutbound)
	here := name(j.r.Place)
	m, known := j.mesh()
	finding := trace.Finding{
		Fault:   "rules",
		Where:   trace.Where{Hook: "OUTPUT"},
		Summary: fmt.Sprintf("no rule in %s redirects anything to a proxy", here),
		Fix:     j.install(m, known),
	}
	if len(families) == len(j.r.Families) {
		finding.Evidence = append(finding.Evidence, j.saw("neither IPv4 nor IPv6 rules (nftables, iptables-nft, iptables-legacy) redirect a connection to %s", leg.Packet.Dst))
	} else {
		finding.Confidence = trace.Likely
		finding.Evidence = append(finding.Evidence, j.saw("no rule of %s redirects a connection to %s; others could not be read", showFamily(f.Six), leg.Packet.Dst))
	}
	if c := idle(families); c != "" {
		finding.Summary = fmt.Sprintf("%s chains are there in %s, but no rule in them redirects anything", j.meshsName(), here)
		finding.Evidence = append(finding.Evidence, j.saw("chain %s redirects nothing", c))
	} else if s := j.r.Setup; s.CNIDir != "" && len(s.CNI) == 0 {
		finding.Summary += ": no mesh's CNI plugin is installed on this node, nor were rules written otherwise"
	}
	cause := fmt.Sprintf("Nothing that applications in %s send or get is redirected to a proxy: the rules of a transparent proxy are not installed. ", here)
	if s := j.r.Strays; len(s) > 0 {
		finding.Summary = fmt.Sprintf("a proxy listens on port %d in %s, but no rule redirects anything to it", s[0].Local.Port(), here)
		cause = fmt.Sprintf("%s listens on %s, where a proxy would, but no rule sends it anything: traffic goes past it. ", showSocket(&s[0].Socket), s[0].Local)
		for i := range s {
			finding.Evidence = append(finding.Evidence, j.saw("%s listens on %s %s", showSocket(&s[i].Socket), s[i].Protocol, s[i].Local))
		}
	}
	finding.Cause = strings.TrimSpace(cause + j.setup(&finding))
	if len(j.r.Setup.Missing) > 0 {
		finding.Fix = append([]string{"modprobe -a " + strings.Join(j.r.Setup.Missing, " ")}, finding.Fix...)
	}
	j.add(&redirectMissing, leg, finding)
	return false
}

// setup says why the rules may not be there.
func (j *redirectJudge) setup(f *trace.Finding) string {
	s := j.r.Setup
	var out []string
	switch {
	case len(s.CNI) > 0:
		out = append(out, fmt.Sprintf("The CNI configuration %s names the plugin %s, which should have written them: it failed, or the pod was made before it was installed.", s.CNI[0], printable(s.CNIPlugin)))
		f.Evidence = append(f.Evidence, j.saw("%s names %s", strings.Join(s.CNI, ", "), printable(s.CNIPlugin)))
	case s.CNISeen:
		out = append(out, fmt.Sprintf("No CNI configuration in %s names a mesh's plugin: where a CNI plugin is to write them, it is not installed on this node.", s.CNIDir))
		f.Evidence = append(f.Evidence, j.saw("no CNI configuration in %s names a mesh's plugin", s.CNIDir))
	case s.CNIDir != "":
		out = append(out, fmt.Sprintf("There is no CNI configuration in %s: where a CNI plugin is to write them, it is not installed on this node.", s.CNIDir))
		f.Evidence = append(f.Evidence, j.saw("no CNI configuration in %s", s.CNIDir))
	}
	if len(s.Missing) > 0 {
		out = append(out, fmt.Sprintf("The kernel has no support for it loaded or built in (%s), so that they could not be written either.", strings.Join(s.Missing, ", ")))
		f.Evidence = append(f.Evidence, j.saw("not among the kernel's symbols: %s", strings.Join(s.Missing, ", ")))
	} else if s.Asked {
		f.Evidence = append(f.Evidence, j.saw("the kernel has support for it, loaded or built in"))
	}
	return strings.Join(out, " ")
}

// install are the commands that write the rules. Those of a mesh that is not known for sure need a decision.
func (j *redirectJudge) install(m *mesh.Mesh, known bool) []string {
	if m.Install == "" {
		return j.ownRules()
	}
	command := at(j.r.Place, m.Install, j.proxyUID())
	if !known {
		return append([]string{"# " + command + "   # for " + m.Name + "; other meshes have their own"}, j.ownRules()...)
	}
	return []string{command}
}

// ownRules are rules that redirect to the ports that are known, or usual.
func (j *redirectJudge) ownRules() []string {
	m, _ := j.mesh()
	in, out, uid := j.portOf(trace.RoleInbound, m.Inbound[0]), j.portOf(trace.RoleOutbound, m.Outbound[0]), j.proxyUID()
	var commands []string
	for _, f := range j.families() {
		if f.Six && !f.Used {
			continue
		}
		tool := toolOf("", f.Six)
		commands = append(commands,
			at(j.r.Place, "%s -t nat -A OUTPUT -p tcp ! -o lo -m owner ! --uid-owner %d -j REDIRECT --to-ports %d", tool, uid, out),
			at(j.r.Place, "%s -t nat -A PREROUTING -p tcp -j REDIRECT --to-ports %d", tool, in))
	}
	return commands
}

// portOf is the port to which a role is redirected in either family, or at which a proxy listens.
func (j *redirectJudge) portOf(role trace.RedirectRole, usual uint16) uint16 {
	for _, f := range j.families() {
		if l := f.Leg(role); l != nil && l.Taken {
			return l.Target.Port()
		}
	}
	for _, s := range j.r.Strays {
		if s.Role == role {
			return s.Local.Port()
		}
	}
	return usual
}

func toolOf(backend string, six bool) string {
	tool := "iptables"
	if six {
		tool = "ip6tables"
	}
	if backend == "iptables-legacy" {
		tool += "-legacy"
	}
	return tool
}

func showFamily(six bool) string {
	if six {
		return "IPv6"
	}
	return "IPv4"
}

func showSocket(s *trace.Socket) string {
	if s.Process.Comm != "" {
		return fmt.Sprintf("%s (pid %d, uid %d)", printable(s.Process.Comm), s.Process.PID, s.UID)
	}
	return fmt.Sprintf("a process of uid %d", s.UID)
}
