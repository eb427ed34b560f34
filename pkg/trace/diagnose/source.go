package diagnose

import (
	"fmt"

	"github.com/replypath/replypath/pkg/trace"
)

var replyWrongSource = Rule{
	ID:       "reply-wrong-source",
	Title:    "the reply left with a source other than what the client asked, so nobody takes it",
	Severity: trace.Error,
	Doc: "The answer came back with another source address or port than the one that the client had asked, so that the client drops it, mostly with a reset. Request and answer are " +
		"compared from host to host: either a host that answers the client directly (DSR) did not keep the address that it was asked at, or a host that translated the request (NAT) " +
		"let the answer pass untranslated, or never saw it, because the answer takes a way around it. A host that redirects its own queries (a mesh's DNS) does so too where its rules put the answers into another zone of connection tracking.",
	explain: explainWrongSource,
}

func explainWrongSource(c *trace.Case, s *trace.HostState) *explanation {
	if e := either(explainHider, explainUnrestored)(c, s); e != nil {
		return e
	}
	if c.Symptom != trace.SymptomMisaddressed || !c.Suspect {
		return nil
	}
	f, ok := wrongSource(&c.Path)
	if !ok {
		return nil
	}
	here, answering := name(c.Place), name(c.Path.Reply[0].Place)
	asked := c.Path.Server
	e := &explanation{
		confidence: trace.Certain,
		direction:  trace.Reply,
		device:     f.at.Out.Name,
		fault:      fmt.Sprintf("%d %s", f.deviation, asked),
		summary:    fmt.Sprintf("the reply reached the client from %s instead of %s", f.got.Src, asked),
		verify:     []string{fmt.Sprintf("# repeat the request: the reply must reach %s from %s", c.Path.Client.Addr(), asked)},
	}
	if c.Path.Protocol == trace.UDP && !c.Rejected {
		e.confidence = trace.Likely // a socket took it: that its program did not is told by the question's repetition alone
	}
	e.evidence = append(e.evidence, state(s, "the client asked %s; the reply has the source %s", asked, f.got.Src))
	switch f.deviation {
	case bypassed:
		explainBypass(e, c, s, &f, here, answering)
	case notRestored:
		e.cause = fmt.Sprintf("%s translated the request from %s to %s. The reply came back to it from there, but %s sent it on with the source %s and did not restore %s: "+
			"it was exempt from connection tracking, in another zone, or its entry was gone.", here, f.at.Tuple.Reverse().Dst, f.got.Src, here, f.got.Src, f.want.Src)
		if asked := requestAt(&c.Path, c.Place.Netns); asked != nil {
			e.cause = fmt.Sprintf("%s translated the request for %s to %s. The reply came back through it, but %s sent it on from %s and did not restore %s: "+
				"it is exempt from connection tracking (notrack), in another zone, or its entry was gone.", here, asked.Arrived.Dst, asked.Tuple.Dst, here, f.got.Src, f.want.Src)
		}
		exempt(e, c, s, f.at.Arrived, listRules(c, s, "")+fmt.Sprintf("   # remove the notrack (or zone) rule that takes replies from %s", f.got.Src))
		e.verify = append(e.verify, at(c.Place, "conntrack -L -p %s -d %s", f.got.Protocol, f.want.Src.Addr())+"   # must not say UNREPLIED")
	case ownSource:
		if f.got.Protocol == trace.UDP && !isBound(s) && !c.Asked {
			explainUnbound(e, c, s, &f, here)
			break
		}
		if f.got.Protocol == trace.UDP && !c.Rejected && !c.Asked {
			return nil // a server may answer from another of its sockets on purpose (RFC 8489), and nobody refused it
		}
		e.summary = fmt.Sprintf("%s answered from %s instead of %s", here, f.got.Src, f.want.Src)
		e.cause = fmt.Sprintf("The request reached %s for %s, and the reply left it from %s: something in %s rewrites its source.", here, f.want.Src, f.got.Src, here)
		if f.direct {
			e.cause = fmt.Sprintf("%s answers the client directly (DSR), so it has to answer from %s, which the client asked. The reply left it from %s: something in %s rewrites the source.",
				here, f.want.Src, f.got.Src, here)
		}
		exempt(e, c, s, f.want, listRules(c, s, f.at.Out.Name)+fmt.Sprintf("   # remove what changes the source %s to %s", f.want.Src, f.got.Src))
	case changed:
		e.summary = fmt.Sprintf("%s changed the reply's source from %s to %s", here, f.want.Src, f.got.Src)
		e.cause = fmt.Sprintf("The reply from %s came to %s with the right source %s, and left it from %s: source NAT there takes replies too, which it did not translate as requests.",
			answering, here, f.want.Src, f.got.Src)
		exempt(e, c, s, f.want, listRules(c, s, "")+fmt.Sprintf("   # exempt the source %s from source NAT", f.want.Src))
	}
	return e
}

// explainUnbound tells of a UDP server whose socket is bound to no address: the
// kernel then gives an answer the source that its route prefers.
func explainUnbound(e *explanation, c *trace.Case, s *trace.HostState, f *sourceFault, here string) {
	e.summary = fmt.Sprintf("%s answered from %s instead of %s", here, f.got.Src, f.want.Src)
	e.cause = fmt.Sprintf("The request reached %s for %s, and the answer left it from %s. A UDP socket that is bound to no address answers from the one that the route to the client prefers, "+
		"unless its program takes the source from the request (IP_PKTINFO); or something in %s rewrites the source.", here, f.want.Src, f.got.Src, here)
	if len(s.Sockets) == 0 {
		e.confidence = trace.Likely
	}
	for _, k := range s.Sockets {
		line := fmt.Sprintf("socket %s takes what is for %s", k.Local, f.want.Src)
		if k.Process.PID != 0 {
			line += fmt.Sprintf(" (%s, pid %d)", printable(k.Process.Comm), k.Process.PID)
		}
		e.evidence = append(e.evidence, state(s, "%s", line))
	}
	e.fix = []string{
		fmt.Sprintf("# let the server in %s bind to %s (with other sockets for its other addresses), or answer with the address that it was asked at (IP_PKTINFO, IPV6_PKTINFO)", here, f.want.Src),
		"# or, if its socket is bound to it: " + listRules(c, s, f.at.Out.Name) + "   # remove what changes the source",
	}
	e.verify = append(e.verify, at(c.Place, "ss -Huanp 'sport = :%d'", f.want.Src.Port())+fmt.Sprintf("   # the local address must be %s", f.want.Src.Addr()))
}

// isBound reports whether every socket that took the question is bound to an address.
func isBound(s *trace.HostState) bool {
	for _, k := range s.Sockets {
		if k.Local.Addr().IsUnspecified() {
			return false
		}
	}
	return len(s.Sockets) > 0
}

// explainBypass tells of an answer that went around the host which would have restored its source.
func explainBypass(e *explanation, c *trace.Case, s *trace.HostState, f *sourceFault, here, answering string) {
	backend := f.at.Tuple.Dst
	e.cause = fmt.Sprintf("%s translated the request for %s to %s (NAT), and has to restore %s in the reply. But %s answers %s by a way that does not go back through %s, "+
		"so the reply arrives from %s and nobody takes it.", here, f.at.Arrived.Dst, backend, f.at.Arrived.Dst, answering, c.Path.Client.Addr(), here, f.got.Src)
	hide := masquerade(c, s, f.got.Protocol, backend)
	hide[len(hide)-1] += fmt.Sprintf("   # the reply then comes back to %s", here)
	e.fix = append(hide, fmt.Sprintf("# or route replies of %s to %s through %s", answering, c.Path.Client.Addr(), here))
	e.verify = append(e.verify, at(c.Path.Reply[0].Place, "%s route get %s from %s", ipCommand(backend.Addr()), c.Path.Client.Addr(), f.got.Src.Addr())+
		fmt.Sprintf("   # where replies go without source NAT: must lead to %s", here))
}

// hiders are the hosts that may have changed the source of answers after the
// handshake, which they let pass: the reset that refuses one shows its source.
func hiders(c *trace.Case) []trace.Case {
	if c.Direction != trace.Reply || c.Suspect || c.Event.Tuple.Src == c.Path.Server {
		return nil
	}
	var suspects []trace.Case
	for i := range c.Path.Reply {
		h := &c.Path.Reply[i]
		made := h.In.Index == 0 && h.Tuple.Src.Port() == c.Event.Tuple.Src.Port()
		if h.Bridged || h.Out.Index == 0 || !made && (h.In.Index == 0 || h.Arrived != h.Tuple) {
			continue
		}
		s := suspect(c, trace.SymptomUnmatched, h)
		s.Event.Tuple, s.Event.InIndex = c.Event.Tuple, 0
		suspects = append(suspects, s)
	}
	return suspects
}

// explainHider tells of a host that lets the SYN-ACK pass, as conntrack has seen no
// SYN and NAT leaves alone what is INVALID, and takes what follows for a new connection
// whose source it is to hide behind an address of its own.
func explainHider(c *trace.Case, s *trace.HostState) *explanation {
	h := replyAt(&c.Path, c.Place.Netns)
	if c.Symptom != trace.SymptomUnmatched || !c.Suspect || c.Direction != trace.Reply || !s.SrcLocal || h == nil || h.Tuple.Src == c.Event.Tuple.Src || h.In.Index != 0 && h.Arrived != h.Tuple {
		return nil
	}
	here, right, got := name(c.Place), h.Tuple.Src, c.Event.Tuple.Src
	did, cure := "passed", fmt.Sprintf("exempt the source %s from source NAT, or let requests pass %s (tracked) too", right, here)
	if h.In.Index == 0 {
		did, cure = "left", fmt.Sprintf("exempt the source %s from source NAT, or let requests be tracked (no notrack) in %s", right, here)
	}
	e := &explanation{
		confidence: trace.Likely,
		direction:  trace.Reply,
		device:     h.Out.Name,
		fault:      fmt.Sprintf("%d %s", changed, c.Path.Server),
		summary:    fmt.Sprintf("%s changed the reply's source from %s to %s", here, right, got),
		cause: fmt.Sprintf("The SYN-ACK from %s %s %s as it was, and a later packet of the same connection came to the client from %s, an address of %s: source NAT there takes replies too. "+
			"It let the SYN-ACK alone, as its connection tracking had not seen the SYN.", right, did, here, got, here),
		verify:   []string{fmt.Sprintf("# repeat the request: the reply must reach %s from %s", c.Path.Client.Addr(), c.Path.Server)},
		evidence: []trace.Evidence{state(s, "the client refused a packet from %s with a reset; the SYN-ACK had come from %s", got, right)},
	}
	exempt(e, c, s, h.Tuple, listRules(c, s, "")+"   # "+cure)
	return e
}

// replyAt returns the hop of the reply in a namespace, or nil.
func replyAt(p *trace.Path, ns trace.Netns) *trace.Hop {
	for i := range p.Reply {
		if h := &p.Reply[i]; h.Place.Netns == ns {
			return h
		}
	}
	return nil
}
