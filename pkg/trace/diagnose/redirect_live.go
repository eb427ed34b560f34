package diagnose

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/mesh"
)

// AsksRedirectAlone reports a case of which nothing is asked but what the rules
// make of a transparent proxy's traffic.
func AsksRedirectAlone(c *trace.Case) bool {
	return c.Symptom == trace.SymptomPassed || c.Symptom == trace.SymptomUnsent
}

// DependsOnRedirect reports whether the cause depends on what the rules make of a
// transparent proxy's traffic: then HostState.Redirect has to be filled.
func DependsOnRedirect(c *trace.Case) bool {
	ev := &c.Event
	switch c.Symptom {
	case trace.SymptomPassed, trace.SymptomUnsent:
		return true
	case trace.SymptomRefused:
		return c.Direction == trace.Request && (wasRedirected(c) || isPassthrough(ev.Tuple.Dst.Addr()))
	case trace.SymptomDrop:
		return isLocalnetDrop(ev) || isNetfilterDrop(c) && !ev.HasRoute && c.Direction == trace.Request && ev.Flags.IsSYN() || isNetfilterDrop(c) && (onLoopback(c) || wasRedirected(c))
	case trace.SymptomSilence:
		return wasRedirected(c)
	case trace.SymptomUnmatched:
		return isUnrestored(c)
	}
	return false
}

// RedirectPacket is the packet of a case as its sender meant it, in the case's
// namespace, and the part that it plays there.
func RedirectPacket(c *trace.Case) (trace.RedirectRole, trace.Tuple) {
	packet, made := meantHere(c)
	switch {
	case !made, c.Symptom == trace.SymptomPassed && AnswerStrayed(&c.Path):
		return trace.RoleInbound, packet
	case packet.Dst.Port() == dnsPort && packet.Protocol == trace.UDP:
		return trace.RoleDNS, packet
	case packet.Dst.Port() == dnsPort:
		return trace.RoleDNSTCP, packet
	}
	return trace.RoleOutbound, packet
}

const dnsPort = 53

// meantHere returns the packet of the case's request before this namespace's rules, and whether it was made here.
func meantHere(c *trace.Case) (packet trace.Tuple, made bool) {
	if c.Leg.IsValid() {
		return c.Leg, true
	}
	if AsksRedirectAlone(c) {
		return c.Event.Tuple, c.Event.InIndex == 0
	}
	for i := range c.Path.Request {
		h := &c.Path.Request[i]
		if h.Place.Netns != c.Place.Netns {
			continue
		}
		if h.In.Index == 0 {
			return c.Path.Connection, true
		}
		return h.Arrived, false
	}
	if ct := c.Event.Conntrack; ct.Known() {
		return ct.Original, c.Event.InIndex == 0
	}
	return c.Event.Tuple, c.Event.InIndex == 0
}

// wasRedirected reports a request that the rules of the case's own namespace sent elsewhere.
func wasRedirected(c *trace.Case) bool {
	packet, _ := meantHere(c)
	t := c.Event.Tuple
	if c.Direction == trace.Reply {
		t = t.Reverse()
	}
	return packet.IsValid() && t.IsValid() && packet.Dst != t.Dst
}

// isLow reports an address that only lo has: 127/8, ::1, or ::6 and its like.
func isLow(a netip.Addr) bool { return a.IsLoopback() || isPassthrough(a) }

// isPassthrough reports an address from which a proxy calls its application: 127.0.0.6, ::6.
func isPassthrough(a netip.Addr) bool {
	return a == netip.AddrFrom4([4]byte{127, 0, 0, 6}) || a == netip.AddrFrom16([16]byte{15: 6})
}

// onLoopback reports a packet that stays in its namespace.
func onLoopback(c *trace.Case) bool {
	ev := &c.Event
	return ev.Device.Name == "lo" || isLow(ev.Tuple.Src.Addr()) || isLow(ev.Tuple.Dst.Addr()) ||
		ev.Device.Index == 0 && ev.OutIndex == loopbackIndex
}

// loopbackIndex is lo's in every namespace.
const loopbackIndex = 1

// isLocalnetDrop reports a packet from outside to 127/8, which the kernel takes for a martian.
func isLocalnetDrop(ev *trace.Event) bool {
	if ev.Tuple.Is6() || !ev.Tuple.Dst.Addr().IsLoopback() || ev.InIndex <= loopbackIndex {
		return false
	}
	return ev.Reason == "IP_LOCALNET" || isMartian(ev) || isRoutingDrop(ev)
}

// judged makes an explanation of what the judge of a whole namespace found.
func judged(f *trace.Finding) *explanation {
	return &explanation{
		confidence: f.Confidence, direction: f.Direction, summary: f.Summary, cause: f.Cause, fault: f.Fault,
		fix: f.Fix, verify: f.Verify, device: f.Where.Device, hook: f.Where.Hook, evidence: f.Evidence,
	}
}

// askedLeg is what becomes of the case's own packet; nil: it was not asked.
func askedLeg(s *trace.HostState) *trace.RedirectLeg {
	if s.Redirect == nil || len(s.Redirect.Asked) == 0 {
		return nil
	}
	return &s.Redirect.Asked[0]
}

// judgement returns what the judge found of one kind that is about the case.
func judgement(c *trace.Case, s *trace.HostState, id string, concerns func(*trace.Finding) bool) *explanation {
	if s.Redirect == nil {
		return nil
	}
	found := Redirection(s.Redirect)
	for i := range found {
		if found[i].ID == id && concerns(&found[i]) {
			e := judged(&found[i])
			e.evidence = append([]trace.Evidence{met(c)}, e.evidence...)
			return e
		}
	}
	return nil
}

// met tells which connection it was.
func met(c *trace.Case) trace.Evidence {
	packet, made := meantHere(c)
	how := "came in"
	if made {
		how = "was made"
	}
	text := fmt.Sprintf("connection %s %s in %s", packet, how, name(c.Place))
	if packet.Protocol == trace.UDP {
		text = fmt.Sprintf("datagram %s %s in %s", packet, how, name(c.Place))
	}
	return trace.Evidence{Time: c.Event.Time, Text: text}
}

// isMesh reports rules that redirect to a proxy: not only some port, or one address, to another.
func isMesh(r *trace.Redirection) bool {
	if r.Mesh != "" {
		return true
	}
	for i := range r.Families {
		for _, l := range r.Families[i].Legs {
			general := l.Role == trace.RoleOutbound || l.Role == trace.RoleInbound || l.Role == trace.RoleDNS || l.Role == trace.RoleDNSTCP
			if general && (l.Lacks != nil || l.Taken && (l.Kind != "dnat" || l.Target.Addr().IsLoopback())) {
				return true
			}
		}
	}
	return false
}

// IsMesh reports whether there is, or was meant to be, a transparent proxy: a
// namespace in which nothing is redirected is no mesh, unless a proxy's sockets are there.
func IsMesh(r *trace.Redirection) bool { return isMesh(r) || listensAsProxy(r) }

// listensAsProxy reports sockets at ports that a mesh's proxy is known for: one alone
// may be anybody's, two of one user, or one of the mesh's own user, are not. Its DNS alone
// is none: kuma-dp has it also where applications call the proxy themselves.
func listensAsProxy(r *trace.Redirection) bool {
	for i := range r.Strays {
		a := &r.Strays[i]
		if a.Role == trace.RoleDNS {
			continue
		}
		if a.Process.Comm == "envoy" || a.Process.Comm == "kuma-dp" || a.Process.Comm == "pilot-agent" || a.UID == 5678 || a.UID == 1337 {
			return true
		}
		for k := range r.Strays {
			b := &r.Strays[k]
			if a.Role != b.Role && a.UID == b.UID && a.Process.PID == b.Process.PID {
				return true
			}
		}
	}
	return false
}

// isProxys reports a connection of the proxy's own, or to a socket of its own.
func isProxys(c *trace.Case, s *trace.HostState) bool {
	r, leg := s.Redirect, askedLeg(s)
	if leg == nil {
		return false
	}
	own := func(uid uint32) bool {
		return r.Proxy.Known && uid == r.Proxy.UID || slices.ContainsFunc(r.Families, func(f trace.RedirectFamily) bool { return slices.Contains(f.UIDs, uid) })
	}
	if leg.Role == trace.RoleInbound {
		strange := func(k trace.Socket) bool {
			return !own(k.UID) && !slices.ContainsFunc(r.Strays, func(t trace.RedirectStray) bool {
				return t.Inode == k.Inode || t.Process.PID != 0 && t.UID == k.UID && t.UID != 0
			})
		}
		return !slices.ContainsFunc(leg.Sockets, strange) // nobody's, or the proxy's: what it has to itself
	}
	if pid := c.Path.Process.PID; pid != 0 {
		if pid == r.Proxy.Process.PID || slices.ContainsFunc(r.Strays, func(t trace.RedirectStray) bool { return t.Process.PID == pid }) {
			return true
		}
	}
	return own(leg.UID)
}

// wentPast reports a connection that no rule takes, nor lets go on purpose.
func wentPast(c *trace.Case, s *trace.HostState) bool {
	leg := askedLeg(s)
	if c.Symptom != trace.SymptomPassed || leg == nil || leg.Taken || leg.Excused && !shadowed(s.Redirect, leg) || len(leg.Doubts) > 0 || !IsMesh(s.Redirect) {
		return false
	}
	local := leg.Device == "lo" || isLow(leg.Packet.Dst.Addr()) || leg.Packet.Src.Addr() == leg.Packet.Dst.Addr()
	return !local && !isProxys(c, s)
}

// shadowed reports a packet that is let go by the very rule that lets all of its kind go, before others that redirect.
func shadowed(r *trace.Redirection, leg *trace.RedirectLeg) bool {
	for i := range r.Families {
		f := &r.Families[i]
		all := f.Leg(leg.Role)
		if f.Six == leg.Packet.Is6() && all != nil && all.Excused && all.Table == leg.Table && all.Chain == leg.Chain && all.Rule == leg.Rule {
			return slices.ContainsFunc(f.Dangling, func(c trace.RedirectChain) bool { return c.Shadowed && c.Role == leg.Role })
		}
	}
	return false
}

func explainRedirectMissing(c *trace.Case, s *trace.HostState) *explanation {
	if c.Symptom == trace.SymptomRefused && isPassthrough(c.Event.Tuple.Dst.Addr()) {
		return notBroughtBack(c, s)
	}
	if e := explainUnrouted(c, s, redirectMissing.ID); e != nil || !wentPast(c, s) {
		return e
	}
	leg := askedLeg(s)
	twin := len(s.Redirect.Twins) > 0 && s.Redirect.Twins[0].Taken
	e := judgement(c, s, redirectMissing.ID, func(f *trace.Finding) bool {
		switch f.Fault {
		case "rules":
			return leg.Packet.Protocol == trace.TCP
		case "missing IPv4":
			return !leg.Packet.Is6() && twin
		case "missing self":
			return false
		case "missing DNS":
			return leg.Role == trace.RoleDNS && f.Path.Server.Addr().Is6() == leg.Packet.Is6()
		case "missing outbound":
			return leg.Role == trace.RoleOutbound || leg.Role == trace.RoleDNSTCP
		}
		return f.Fault == "missing "+string(leg.Role)
	})
	if e != nil && (e.fault == "rules" || !c.Path.Answered) { // that there should be rules is inferred
		e.confidence = min(e.confidence, trace.Likely)
	}
	return e
}

// notBroughtBack is a proxy's call to 127.0.0.6 or ::6 that nobody took: a mesh's
// own validation makes it, and a rule has to bring it to the inbound port.
func notBroughtBack(c *trace.Case, s *trace.HostState) *explanation {
	leg := askedLeg(s)
	if leg == nil || leg.Taken || !IsMesh(s.Redirect) && !slices.ContainsFunc(mesh.Known, func(m mesh.Mesh) bool { return m.SelfCalls && m.UID == leg.UID }) {
		return nil // where there is no mesh, only its validation calls there, as its proxy's user
	}
	e := judgement(c, s, redirectMissing.ID, func(*trace.Finding) bool { return true })
	if e == nil && isMesh(s.Redirect) {
		r := s.Redirect
		e = &explanation{
			confidence: trace.Likely, fault: "missing self", hook: "OUTPUT", device: "lo",
			summary: fmt.Sprintf("what uid %d sends to %s is not brought back to the proxy in %s", leg.UID, leg.Packet.Dst.Addr(), name(c.Place)),
			cause: fmt.Sprintf("A mesh's rule redirects what its proxy sends by lo to its inbound port; its validation asks for that with connections to %s. Here they are for another user than uid %d%s.",
				leg.Packet.Dst.Addr(), leg.UID, letGo(r)),
			fix:    (&redirectJudge{r: r}).install(meshOf(r)),
			verify: []string{(&redirectJudge{r: r}).verify() + fmt.Sprintf(" --proxy-uid %d --probe", leg.UID)},
		}
	}
	if e == nil {
		return nil
	}
	e.confidence = min(e.confidence, trace.Likely)
	e.evidence = append(e.evidence, state(s, "uid %d to %s: not redirected%s", leg.UID, leg.Packet.Dst, through(leg)))
	return e
}

// letGo says whose packets the rules are for; "" when that is not known.
func letGo(r *trace.Redirection) string {
	for i := range r.Families {
		if f := &r.Families[i]; len(f.UIDs)+len(f.GIDs) > 0 {
			return ": " + showOwners(f)
		}
	}
	return ""
}

func meshOf(r *trace.Redirection) (*mesh.Mesh, bool) { return (&redirectJudge{r: r}).mesh() }

func explainBypassedIPv6(c *trace.Case, s *trace.HostState) *explanation {
	if e := explainUnrouted(c, s, redirectBypassedIPv6.ID); e != nil {
		return e
	}
	leg := askedLeg(s)
	if !wentPast(c, s) || !leg.Packet.Is6() || len(s.Redirect.Twins) == 0 || !s.Redirect.Twins[0].Taken {
		return nil
	}
	if leg.Role == trace.RoleInbound && publishesPorts(s.Redirect) {
		return nil
	}
	return judgement(c, s, redirectBypassedIPv6.ID, func(*trace.Finding) bool { return true })
}

// publishesPorts reports rules that give some ports of IPv4 to others, as to a server that may not
// listen below 1024, and are nobody's mesh: what is called by IPv6 is served as it is.
func publishesPorts(r *trace.Redirection) bool {
	if r.Mesh != "" || len(r.Strays) > 0 || len(r.Families) == 0 || r.Families[0].Takes(trace.RoleOutbound) {
		return false
	}
	for i := range r.Families[0].Legs {
		if l := &r.Families[0].Legs[i]; l.Role == trace.RoleInbound {
			return !l.Taken // the first is about a port that no rule knows
		}
	}
	return false
}

// explainTargetNotListening: a redirected request was refused where it was sent to.
func explainTargetNotListening(c *trace.Case, s *trace.HostState) *explanation {
	if c.Direction != trace.Request || s.Redirect == nil {
		return nil
	}
	leg, to := askedLeg(s), c.Event.Tuple.Dst
	handed := leg != nil && leg.Taken && leg.Kind == "tproxy" && len(leg.Sockets) == 0 &&
		(c.Symptom == trace.SymptomDrop && isNetfilterDrop(c) || c.Symptom == trace.SymptomPassed)
	if !handed && (c.Symptom != trace.SymptomRefused || !wasRedirected(c)) {
		return nil
	}
	if leg == nil || !leg.Taken || !handed && leg.Target.Port() != to.Port() || leg.Kind == "dnat" && !leg.Target.Addr().IsLoopback() && s.Redirect.Mesh == "" {
		return nil
	}
	e := judgement(c, s, redirectTargetNotListening.ID, func(*trace.Finding) bool { return true })
	here := name(c.Place)
	if e == nil {
		e = &explanation{
			confidence: trace.Certain, fault: "listeners", hook: hookOf(leg.Role), device: c.Arrival.Device.Name,
			summary: fmt.Sprintf("traffic in %s is redirected to %s, where nobody listens", here, leg.Target),
			cause:   fmt.Sprintf("%s sends the request for %s to port %d, and no socket took it.", ruleName(leg), leg.Packet.Dst, leg.Target.Port()),
			fix:     []string{fmt.Sprintf("# start the proxy, or see why it is not ready; it has to listen on %s %d", leg.Packet.Protocol, leg.Target.Port())},
			verify:  []string{at(c.Place, "ss -lntup"), (&redirectJudge{r: s.Redirect}).verify()},
		}
		if len(leg.Sockets) > 0 {
			e.confidence = trace.Likely
			e.cause += " By now a socket does: it may have started a moment ago."
		}
	}
	e.evidence = append(e.evidence, state(s, "%s: %s to %s (%s)", leg.Packet, leg.Kind, leg.Target, ruleName(leg)))
	return e
}

// ruleName names the rule that decided a leg.
func ruleName(l *trace.RedirectLeg) string {
	if l.Rule == "" {
		return "a rule"
	}
	return fmt.Sprintf("rule %q", l.Rule)
}

// fewRepeats is how many times a proxy has to be seen to call itself.
const fewRepeats = 3

func explainRedirectLoop(c *trace.Case, s *trace.HostState) *explanation {
	if c.Symptom != trace.SymptomPassed || c.Repeats < fewRepeats || s.Redirect == nil || c.Path.Protocol == trace.UDP { // of DNS, the queries tell
		return nil
	}
	e := judgement(c, s, redirectLoop.ID, func(*trace.Finding) bool { return true })
	if e == nil {
		e = cameBack(c, s)
	}
	if e != nil {
		e.evidence = append(e.evidence, trace.Evidence{Time: c.Event.Time, Text: fmt.Sprintf("%d connections of the proxy came back to it", c.Repeats)})
	}
	return e
}

// cameBack tells of a call of the proxy to another host that was sent to the port at which it listens itself, though
// rules would let its packets go: if they had the mark that these ask for.
func cameBack(c *trace.Case, s *trace.HostState) *explanation {
	r, p := s.Redirect, c.Looped
	if p == nil || len(p.Request) == 0 || p.Process.PID == 0 || p.Process.PID != r.Proxy.Process.PID || p.Connection.Src.Addr() == p.Connection.Dst.Addr() {
		return nil
	}
	family := slices.IndexFunc(r.Families, func(f trace.RedirectFamily) bool { return f.Six == p.Connection.Is6() })
	if family < 0 {
		return nil
	}
	f := &r.Families[family]
	leg := f.Leg(trace.RoleOutbound)
	if leg == nil || !leg.Taken || leg.Target.Port() != p.Request[0].Tuple.Dst.Port() {
		return nil
	}
	j := &redirectJudge{r: r}
	e := &explanation{
		confidence: trace.Certain, fault: "proxy's own traffic", hook: "OUTPUT", direction: trace.Request,
		summary: fmt.Sprintf("%s is redirected to itself in %s", j.proxyName(), name(c.Place)),
		cause: fmt.Sprintf("What %s sends to %s is redirected to port %d, where it listens itself: each connection makes another, until ports or memory run out. ",
			j.proxyName(), p.Connection.Dst, leg.Target.Port()),
		fix: []string{"# let the rules of " + name(c.Place) + " except what the proxy sends, by its user or group: " + j.insert(leg, "OUTPUT", fmt.Sprintf("! -o lo -m owner --uid-owner %d -j RETURN", r.Proxy.UID),
			fmt.Sprintf("oifname != lo meta skuid %d return", r.Proxy.UID))},
		verify: []string{j.verify()},
		evidence: []trace.Evidence{met(c), {Time: p.First, Text: fmt.Sprintf("pid %d called %s, and was sent to %s", p.Process.PID, p.Connection.Dst, p.Request[0].Tuple.Dst)},
			state(s, "%s: %s to %s (%s)", leg.Packet, leg.Kind, leg.Target, ruleName(leg))},
	}
	if len(f.Marks) > 0 {
		mark := fmt.Sprintf("0x%x", f.Marks[0])
		e.cause += fmt.Sprintf("The rules let packets with the mark %s go, which its packets lack.", mark)
		e.fix = append([]string{fmt.Sprintf("# have the proxy mark its own packets with %s (SO_MARK, for which it needs CAP_NET_ADMIN)", mark)}, e.fix...)
	}
	return e
}

func explainLoopbackDown(c *trace.Case, s *trace.HostState) *explanation {
	if s.Redirect == nil || s.Redirect.Loopback.Up || s.Redirect.Loopback.Index == 0 {
		return nil
	}
	switch c.Symptom {
	case trace.SymptomPassed:
		if leg := askedLeg(s); (leg == nil || !leg.Taken) && !stuckOnLoopback(c) {
			return nil
		}
	case trace.SymptomUnsent, trace.SymptomRefused, trace.SymptomDrop:
	default:
		return nil
	}
	return judgement(c, s, loopbackDown.ID, func(*trace.Finding) bool { return true })
}

// stuckOnLoopback reports a connection that left its program for lo, and got no answer.
func stuckOnLoopback(c *trace.Case) bool {
	if c.Path.Answered || len(c.Path.Request) == 0 {
		return false
	}
	h := &c.Path.Request[0]
	return h.Place.Netns == c.Place.Netns && h.In.Index == 0 && h.Out.Name == "lo"
}

// explainSourceLeaked: a packet from an address of lo is for another host.
func explainSourceLeaked(c *trace.Case, s *trace.HostState) *explanation {
	src, dst, place, device, left := leaked(c)
	if c.Symptom == trace.SymptomUnsent && src.Is4() && (s.Redirect == nil || slices.Contains(s.Redirect.Localnet, device)) {
		return nil // it may leave, with another source in the end: so a node's ports are reached from itself
	}
	if !src.IsValid() || s.Redirect != nil && place.Netns == c.Place.Netns && !s.Redirect.Loopback.Up {
		return nil
	}
	here := name(place)
	e := &explanation{
		confidence: trace.Certain, direction: trace.Request, place: place, device: device, fault: "source " + src.String(),
		summary: fmt.Sprintf("%s calls %s from %s, an address that only lo has", here, dst, src),
		cause: fmt.Sprintf("A socket in %s that is bound to %s calls %s, which is not in that namespace. No answer can come back to such an address: it is one of each host's own. ",
			here, src, dst),
		fix: []string{
			fmt.Sprintf("# let the program in %s bind to no address, or to one of its devices, for what is not in its own namespace", here),
		},
		verify: []string{at(place, "%s route get %s", ipCommand(dst.Addr()), dst.Addr()) + "   # says local if it is to be called from there"},
	}
	if isPassthrough(src) {
		e.fix = append(e.fix, fmt.Sprintf("# a mesh's proxy uses %s for calls to its own application alone: see why it takes %s for that (an address that is gone, or a service's port)", src, dst))
	}
	if left {
		e.cause += "It did leave, and whoever gets it drops it or answers to itself."
	} else {
		e.cause += "The kernel refuses that in connect() or sendto() (EINVAL), before there is a packet."
	}
	if who := c.Path.Process; c.Leg.IsValid() && c.Event.Process.PID != 0 {
		e.evidence = append(e.evidence, trace.Evidence{Time: c.Event.Time, Text: fmt.Sprintf("%s, pid %d, called %s from %s", printable(c.Event.Process.Comm), c.Event.Process.PID, dst, src)})
	} else if who.PID != 0 {
		e.evidence = append(e.evidence, trace.Evidence{Time: c.Event.Time, Text: fmt.Sprintf("%s, pid %d, called %s from %s", printable(who.Comm), who.PID, dst, src)})
	}
	return e
}

// leaked finds the hop at which a packet left its namespace from an address of lo.
func leaked(c *trace.Case) (src netip.Addr, dst netip.AddrPort, place trace.Place, device string, left bool) {
	ev := &c.Event
	if c.Symptom == trace.SymptomUnsent {
		if ev.Errno == 0 && isLow(ev.Tuple.Src.Addr()) && !isLow(ev.Tuple.Dst.Addr()) {
			return ev.Tuple.Src.Addr(), ev.Tuple.Dst, c.Place, ev.Device.Name, ev.Tuple.Is6()
		}
		return
	}
	for i := range c.Path.Request {
		h := &c.Path.Request[i]
		if h.In.Index == 0 && h.Out.Index > loopbackIndex && isLow(h.Tuple.Src.Addr()) && !isLow(h.Tuple.Dst.Addr()) {
			return h.Tuple.Src.Addr(), h.Tuple.Dst, h.Place, h.Out.Name, true
		}
	}
	return
}

func explainLocalnet(c *trace.Case, s *trace.HostState) *explanation {
	ev := &c.Event
	// The way back from 127/8 to another host is refused for the same reason.
	foretold := c.Asked && ev.InIndex > loopbackIndex && ev.Tuple.Dst.Addr().IsLoopback() && !ev.Tuple.Is6() && s.Back.Done && s.Back.Errno == syscall.EINVAL
	if !foretold && (c.Symptom != trace.SymptomDrop || !isLocalnetDrop(ev)) {
		return nil
	}
	here, dev := name(c.Place), ev.Device.Name
	if c.Arrival.Device.Name != "" {
		dev = c.Arrival.Device.Name
	}
	key := sysctlKey("ipv4", dev, "route_localnet")
	e := &explanation{
		confidence: trace.Certain, direction: trace.Request, device: dev, fault: "route_localnet", hook: "PREROUTING",
		summary: fmt.Sprintf("%s got a packet from outside for %s, and route_localnet is off", here, ev.Tuple.Dst.Addr()),
		cause: fmt.Sprintf("What came in by %s is for %s. The kernel takes a packet from outside to 127/8 for a martian, and drops it without a word, unless route_localnet is on for that device.",
			dev, ev.Tuple.Dst),
		fix:      []string{at(c.Place, "sysctl -w %s=1", key), "# or redirect instead (REDIRECT): it sends to the device's own address"},
		verify:   []string{at(c.Place, "sysctl %s", key)},
		evidence: []trace.Evidence{state(s, "%s is for 127/8, and came in by %s", ev.Tuple, dev)},
	}
	if packet, _ := meantHere(c); packet.Dst != ev.Tuple.Dst {
		e.cause = fmt.Sprintf("A rule in %s sends what is meant for %s to %s. ", here, packet.Dst, ev.Tuple.Dst) + e.cause
	}
	if ev.Reason != "IP_LOCALNET" && !foretold {
		leg := askedLeg(s)
		if leg == nil || !leg.LocalnetOff {
			e.confidence = trace.Likely
		}
	}
	return e
}

// explainLoopbackBlocked: a filter dropped what a redirection sends over lo.
func explainLoopbackBlocked(c *trace.Case, s *trace.HostState) *explanation {
	if c.Symptom != trace.SymptomDrop || !isNetfilterDrop(c) || s.Redirect == nil || !isMesh(s.Redirect) || !onLoopback(c) || isRerouted(c, s) {
		return nil
	}
	verb := "dropped"
	if c.Rejected {
		verb = "rejected"
	}
	e := explainFilter(c, s, verb)
	if e == nil {
		return nil
	}
	t := c.Event.Tuple
	what := "what the rules redirect to the proxy"
	if isPassthrough(t.Src.Addr()) || isPassthrough(t.Dst.Addr()) || c.Leg.IsValid() {
		what = "what the proxy sends on to the application"
	}
	e.cause += fmt.Sprintf(" It never leaves %s: it is %s, over lo. The client is connected to the proxy all the same, and gets nothing.", name(c.Place), what)
	if c.Path.Process.PID != 0 && len(c.Path.Request) > 0 && c.Path.Request[0].Place.Netns == c.Place.Netns && !c.Leg.IsValid() {
		e.cause = strings.Replace(e.cause, " The client is connected to the proxy all the same, and gets nothing.", "", 1)
	}
	e.device = "lo"
	if len(s.Filters) == 1 {
		l := &trace.RedirectLeg{Packet: t, Device: "lo", DropAnswer: c.Direction == trace.Reply}
		e.fix = []string{(&redirectJudge{r: s.Redirect}).acceptLoopback(&s.Filters[0], l)}
	}
	return e
}
