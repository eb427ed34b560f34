package diagnose

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/dns"
)

var dnsUnanswered = Rule{
	ID:       "dns-unanswered",
	Title:    "the query reached the resolver's socket (or: was last seen there), and no answer came",
	Severity: trace.Error,
	Doc: "A DNS query got no response within five seconds, nor did the same question by another query, and no other finding explains it: a query that was dropped, misrouted or answered from a wrong address is told as that. " +
		"The finding is at the last place where the query or its response was seen: the resolver that keeps silent (direction REPLY), or the host that sent it on to where nobody is traced (direction REQUEST). " +
		"A resolver that asked others which did not answer is not blamed; they are. A first server that is dead is told although the second one answers. " +
		"Not told are queries whose client went away at once, and single ones that were lost and asked again.",
	explain: explainUnanswered,
}

var dnsErrorResponse = Rule{
	ID:       "dns-error-response",
	Title:    "the resolver answered SERVFAIL, REFUSED, … (NXDOMAIN alone is no fault)",
	Severity: trace.Error,
	Doc: "The response says that something went wrong. It is told where the error was made: a resolver that only passes on what another one answered is not blamed. NXDOMAIN and empty answers are answers. " +
		"An error is no fault where the client asks another server, or again in simpler words, and is answered at once.",
	explain: explainErrorResponse,
}

var dnsLateReply = Rule{
	ID:       "dns-late-reply",
	Title:    "the answer came after the client had given up",
	Severity: trace.Error,
	Doc: "The response came when the client's socket was gone, or when it had asked again. Where the time was spent is told: at the resolver, at one that it asked, or on the way. " +
		"The answer of a slower server is no fault where another one, asked side by side, had answered already.",
	explain: explainLateReply,
}

var dnsTCPFallbackBlocked = Rule{
	ID:       "dns-tcp-fallback-blocked",
	Title:    "truncated answer, and the TCP retry fails",
	Severity: trace.Error,
	Doc: "The answer did not fit into a datagram (flag TC), so the client asked again by TCP, and that failed: a filter, a port on which nobody listens, or no answer at all. " +
		"Whatever befell the connection is told under this id, at its place: a finding about the same connection without a truncated answer before it keeps its own.",
	explain: explainFallback,
}

var dnsSearchAmplification = Rule{
	ID:       "dns-search-amplification",
	Title:    "one name cost many queries (search list, ndots); information",
	Severity: trace.Info,
	Doc: "A name that exists as it is was asked only after three or more names that the search list made of it, none of which exists: it has fewer dots than the option ndots demands. " +
		"A walk through the search list that ends at one of its names is what the list is for, and a name that does not exist at all is nobody's fault.",
	explain: explainAmplification,
}

// rcodeMeaning says what a response code mostly means.
var rcodeMeaning = map[string]string{
	"SERVFAIL": "it could not find out: its own upstream or the zone's servers did not answer it, or DNSSEC validation failed",
	"REFUSED":  "it does not serve this client or this name: its access list, or no upstream and no zone for the name",
	"FORMERR":  "it did not understand the query, as old servers and middleboxes do not understand EDNS",
	"NOTIMP":   "it does not know this kind of query",
	"NOTAUTH":  "it does not have the zone",
	"BADVERS":  "it does not know this version of EDNS",
}

// asker calls a query's client what is known of it.
func asker(x *trace.Exchange) string {
	who := x.Client.Addr().String()
	if home := x.Home(); home.Netns != 0 {
		who = name(home)
	}
	if x.Process.Comm != "" {
		return printable(x.Process.Comm) + " in " + who
	}
	return who
}

// question is what a query asks.
func question(x *trace.Exchange) string { return printable(dns.Question(x.Type, x.Name)) }

// dig is the command that asks a question again.
func dig(x *trace.Exchange, options ...string) string {
	args := append([]string{"dig", "+tries=1"}, options...)
	if p := x.Server.Port(); p != 53 {
		args = append(args, fmt.Sprintf("-p %d", p))
	}
	return at(x.Home(), "%s", strings.Join(append(args, "@"+x.Server.Addr().String(), quote(x.Name), dns.TypeName(x.Type)), " "))
}

// askedFor tells of the query, and of the ones that were made of it.
func askedFor(t *trace.Trouble) string {
	text := fmt.Sprintf("The client, %s, asked %s for %s.", asker(t.Exchange), t.Server, question(t.Exchange))
	if u := t.Upstream; u != nil {
		text += fmt.Sprintf(" The resolver in %s asked %s for it.", name(u.Home()), u.Server)
	}
	return text
}

// actual is the address to which a query came after all NAT that was seen.
func actual(x *trace.Exchange) string {
	server := x.Server
	for i := range x.Sightings {
		if s := &x.Sightings[i]; !s.Reply {
			server = x.TupleOf(s).Dst
		}
	}
	if server != x.Server {
		return fmt.Sprintf("%s (asked as %s)", server, x.Server)
	}
	return server.String()
}

// queryEvidence tells where a query and its response were seen.
func queryEvidence(t *trace.Trouble) []trace.Evidence {
	var lines []trace.Evidence
	for _, x := range []*trace.Exchange{t.Exchange, t.Upstream} {
		if x == nil {
			continue
		}
		for i := range x.Sightings {
			s := &x.Sightings[i]
			what, way, verb := "query "+question(x), x.TupleOf(s), "came in on"
			if s.Reply {
				what = "response " + dns.RcodeName(x.Rcode) + " to " + question(x)
			}
			if s.Transmit {
				verb = "left by"
			}
			if s.Place != nil {
				lines = append(lines, trace.Evidence{Time: s.Time, Text: fmt.Sprintf("%s (id %d) %s -> %s %s %s of %s", what, x.ID, way.Src, way.Dst, verb, s.Device.Name, name(*s.Place))})
			}
		}
		if d := x.Drop; d != nil {
			lines = append(lines, trace.Evidence{Time: d.Time, Text: fmt.Sprintf("%s dropped it (%s)", name(d.Place), dropText(&trace.Event{Reason: d.Reason, Symbol: d.Symbol, Device: d.Device}))})
		}
	}
	slices.SortStableFunc(lines, func(a, b trace.Evidence) int { return a.Time.Compare(b.Time) })
	return lines
}

// receiver names the socket that took a query: "dnsmasq (pid 12)"; "" when it is not known.
func receiver(s *trace.HostState) (string, *trace.Socket) {
	for i := range s.Sockets {
		if p := s.Sockets[i].Process; p.PID != 0 {
			return fmt.Sprintf("%s (pid %d)", printable(p.Comm), p.PID), &s.Sockets[i]
		}
	}
	if len(s.Sockets) > 0 {
		return "", &s.Sockets[0]
	}
	return "", nil
}

func explainUnanswered(c *trace.Case, s *trace.HostState) *explanation {
	t := c.Trouble
	if c.Symptom != trace.SymptomUnanswered || t.Served && !t.Dead {
		return nil
	}
	root, here := t.Root(), name(c.Place)
	switch {
	case t.Lossy && !t.Dead:
		return nil // the response may be what was not seen
	case waitsInFull(c, s):
		return nil // that is told
	case s.Asked() && !s.DstLocal && root.Stage == trace.StageReceived && !root.Sightings[0].Made:
		return nil // it passes here, perhaps by a program that shows no packets
	}
	e := &explanation{
		confidence: trace.Likely, device: c.Event.Device.Name, cause: askedFor(t) + " ", evidence: queryEvidence(t),
		summary: fmt.Sprintf("%s got no answer from %s to %s", asker(t.Exchange), t.Server, question(t.Exchange)),
		verify:  []string{dig(t.Exchange)}, fault: "unanswered by " + root.Server.String(),
	}
	switch {
	case root.Drop != nil && c.Place.Netns == root.Drop.Place.Netns:
		e.cause += fmt.Sprintf("It was dropped in %s.", here)
		e.fix = []string{"# " + at(c.Place, "nft list ruleset") + "   # and routes, neighbours and sysctls there: why is it dropped?"}
	case c.Direction == trace.Reply && root.Stage == trace.StageReceived:
		explainSilent(e, c, s, root)
	case c.Direction == trace.Reply:
		e.cause += fmt.Sprintf("The response of %s was last seen in %s on %s, and did not reach the client.", actual(root), here, c.Event.Device.Name)
		e.fix = []string{fmt.Sprintf("# follow the response from %s towards %s: it was not seen to be dropped", here, root.Client.Addr())}
	default:
		e.cause += fmt.Sprintf("The query to %s left %s by %s, and was not seen again; no response came back.", actual(root), here, c.Event.Device.Name)
		e.fix = []string{fmt.Sprintf("# is %s there, and does it answer? What lies beyond %s of %s was not traced", actual(root), c.Event.Device.Name, here)}
	}
	if t.Lossy {
		e.confidence = trace.Possible
		e.evidence = append(e.evidence, trace.Evidence{Time: t.Last, Text: "events were lost meanwhile: of a response, too, nothing may have been seen"})
	}
	if t.Served {
		e.summary = fmt.Sprintf("%s answers nothing; %s was served by another server", t.Server, asker(t.Exchange))
		e.cause += " Another server answered the question in the end."
	}
	return e
}

// explainSilent tells of a query that came to its end, where no response was made.
func explainSilent(e *explanation, c *trace.Case, s *trace.HostState, root *trace.Exchange) {
	here, dst := name(c.Place), c.Event.Tuple.Dst
	who, socket := receiver(s)
	if s.Asked() && !s.DstLocal {
		e.direction = trace.Request
		e.cause += fmt.Sprintf("The query to %s came to %s, which does not have that address, and did not send it on.", dst.Addr(), here)
		e.fix = []string{"# " + at(c.Place, "%s route get %s", ipCommand(dst.Addr()), dst.Addr()) + "   # where it is to go, and why it does not"}
		if s.NextHop.State != "" {
			e.evidence = append(e.evidence, state(s, "neighbour %s is %s", s.NextHop.Addr, s.NextHop.State))
		}
		return
	}
	e.fault = fmt.Sprintf("silent resolver on port %d", dst.Port())
	e.cause += fmt.Sprintf("The query reached %s in %s, and no response left there.", dst, here)
	owner := "the resolver"
	if who != "" {
		owner = who
	}
	switch {
	case socket == nil && s.Asked():
		e.cause += " No socket takes queries there now."
	case socket == nil:
	case socket.Used > 0:
		e.confidence = trace.Certain
		e.cause += fmt.Sprintf(" %d bytes wait in the socket of %s: it does not read them (stopped, deadlocked, overloaded).", socket.Used, owner)
	default:
		e.confidence = trace.Certain
		e.cause += fmt.Sprintf(" The socket of %s has been read: it took the query and answered nothing.", owner)
	}
	if socket != nil {
		e.evidence = append(e.evidence, state(s, "socket %s of %s: receive buffer %d of %d bytes, %d drops", socket.Local, owner, socket.Used, socket.Buffer, socket.Drops))
	}
	e.fix = []string{fmt.Sprintf("# look at the log of %s in %s: does it wait for an upstream, drop by a policy, or hang? Or restart it", owner, here)}
	e.verify = append(e.verify, at(c.Place, "ss -Huanmp 'sport = :%d'", dst.Port())+"   # Recv-Q must be 0")
}

func explainErrorResponse(c *trace.Case, s *trace.HostState) *explanation {
	t := c.Trouble
	if c.Symptom != trace.SymptomErrorResponse {
		return nil
	}
	root, here := t.Root(), name(c.Place)
	code := dns.RcodeName(root.Rcode)
	if m, err := dns.Parse(root.Response, int(root.ResponseLength)); err == nil {
		code = dns.RcodeName(m.Rcode)
	}
	made := c.Event.Tuple.Src == root.Responder || c.Place.Netns != root.Home().Netns
	server := root.Responder.String()
	if root.Responder != root.Server {
		server += fmt.Sprintf(" (asked as %s)", root.Server)
	}
	e := &explanation{
		confidence: trace.Certain, device: c.Event.Device.Name, evidence: queryEvidence(t), fault: code + " from " + root.Server.String(),
		summary: fmt.Sprintf("%s answered %s to %s", t.Server, code, question(t.Exchange)),
		cause:   fmt.Sprintf("%s %s answered %s", askedFor(t), server, code),
		verify:  []string{dig(t.Exchange) + "   # status must be NOERROR"},
	}
	if meaning := rcodeMeaning[code]; meaning != "" {
		e.cause += ": " + meaning
	}
	e.cause += "."
	if t.Upstream != nil {
		e.cause += fmt.Sprintf(" The client got %s.", outcomeText(t.Exchange))
	}
	if !made {
		e.cause += fmt.Sprintf(" The server is not among the namespaces that are traced; %s is the one that asked it.", here)
		e.fix = []string{fmt.Sprintf("# look at the log of the resolver %s, or let %s ask another one", root.Server, here)}
		return e
	}
	owner := "the resolver"
	if who, _ := receiver(s); who != "" {
		owner = who
	}
	e.fault = fmt.Sprintf("%s from port %d", code, root.Responder.Port())
	e.fix = []string{fmt.Sprintf("# look at the log and the configuration of %s in %s (upstreams, zones, access lists) for %s", owner, here, question(root))}
	return e
}

// outcomeText says how a query ended for its client.
func outcomeText(x *trace.Exchange) string {
	if x.Outcome == trace.Failed {
		return dns.RcodeName(x.Rcode)
	}
	if x.Outcome == trace.Late {
		return "its answer too late"
	}
	return "no answer"
}

func explainLateReply(c *trace.Case, s *trace.HostState) *explanation {
	t := c.Trouble
	if c.Symptom != trace.SymptomLate {
		return nil
	}
	root, here := t.Root(), name(c.Place)
	took := t.Latency.Round(time.Millisecond)
	e := &explanation{
		confidence: trace.Likely, device: c.Event.Device.Name, evidence: queryEvidence(t), fault: "late answers of " + root.Server.String(),
		summary: fmt.Sprintf("the answer to %s took %v, and %s had given up", question(t.Exchange), took, asker(t.Exchange)),
		cause:   fmt.Sprintf("%s Its response came after %v", askedFor(t), took),
		verify:  []string{dig(t.Exchange, "+time=10") + "   # Query time must be well below what clients wait"},
	}
	if t.Gone {
		e.cause += ", when the client's socket was gone."
	} else {
		e.cause += ", when the client had asked again."
	}
	held, before, after := root.Held()
	held = held.Round(time.Millisecond)
	switch {
	case after == nil:
	case after.Reply && after.Made && before.Place.Netns == after.Place.Netns:
		owner := "the resolver"
		if who, _ := receiver(s); who != "" {
			owner = who
		}
		e.confidence, e.fault = trace.Certain, fmt.Sprintf("slow resolver on port %d", root.Responder.Port())
		e.cause += fmt.Sprintf(" %v of it %s in %s took to answer.", held, owner, here)
		e.fix = []string{fmt.Sprintf("# find out why %s in %s is slow (its upstreams, its load, its limits on CPU)", owner, here)}
	case before.Place.Netns == after.Place.Netns && before.Transmit && !after.Transmit:
		e.cause += fmt.Sprintf(" %v of it passed beyond %s of %s: the resolver %s or the way to it is slow.", held, before.Device.Name, here, actual(root))
		e.fix = []string{fmt.Sprintf("# look at %s and the way to it: what lies beyond %s of %s was not traced", actual(root), before.Device.Name, here)}
	default:
		e.cause += fmt.Sprintf(" %v of it passed between %s of %s and %s of %s.", held, before.Device.Name, name(*before.Place), after.Device.Name, name(*after.Place))
		e.fix = []string{"# " + at(*before.Place, "tc -s qdisc show dev %s", quote(before.Device.Name)) + "   # a queue, or a limit of its rate"}
	}
	if len(e.fix) == 0 {
		e.fix = []string{fmt.Sprintf("# find out why %s is slow", actual(root))}
	}
	return e
}

func explainFallback(c *trace.Case, _ *trace.HostState) *explanation {
	t := c.Trouble
	if c.Symptom != trace.SymptomUnanswered || !t.Truncated || t.Protocol != trace.TCP {
		return nil
	}
	here := name(c.Place)
	return &explanation{
		confidence: trace.Likely, device: c.Event.Device.Name, evidence: queryEvidence(t), fault: "tcp to " + t.Server.String(),
		summary: fmt.Sprintf("the answer to %s did not fit into a datagram, and %s does not answer by TCP", question(t.Exchange), t.Server),
		cause: fmt.Sprintf("The client, %s, got a truncated answer to %s and asked %s again by TCP, which was not answered. It was last seen in %s on %s.",
			asker(t.Exchange), question(t.Exchange), t.Server, here, c.Event.Device.Name),
		fix:    []string{fmt.Sprintf("# let %s be reached by TCP too (RFC 7766): on every filter on the way, and the resolver has to listen", t.Server)},
		verify: []string{dig(t.Exchange, "+tcp")},
	}
}

// withDNS adds what DNS has to do with a finding about packets.
func withDNS(f *trace.Finding, c *trace.Case) {
	asFallback(f, c)
	switch {
	case c.Asked || c.Trouble != nil:
		return
	case c.DNS != "" && f.Direction == trace.Reply:
		f.Cause += fmt.Sprintf(" What was lost is the DNS answer of %s to %s.", c.Path.Server, printable(c.DNS))
	case c.DNS != "":
		f.Cause += fmt.Sprintf(" What was lost is the DNS query %s to %s.", printable(c.DNS), c.Path.Server)
	}
	withAddress(f, c)
}

// virtual are the addresses that meshes make up for names: Kuma's virtual IPs, Istio's automatic ones.
var virtual = netip.MustParsePrefix("240.0.0.0/4")

// withAddress adds where the client has the server's address from, where that may be the fault.
func withAddress(f *trace.Finding, c *trace.Case) {
	r, addr := c.Resolved, c.Path.Server.Addr()
	if r.Name == "" || !r.Old() && !virtual.Contains(addr) {
		return
	}
	text := fmt.Sprintf("the client has the address %s from an answer of %s for %s with a TTL of %d s, that came %d s before this connection, and has not asked for it again since",
		addr, r.Server, printable(r.Name), r.TTL, r.Age)
	f.Cause += " " + capital(text)
	if r.Stale() {
		f.Cause += ": its time was over, and it may be another's, or nobody's, by now."
	} else {
		f.Cause += ": if what it stood for was changed or removed meanwhile, the client does not know."
	}
	f.Evidence = append(f.Evidence, trace.Evidence{Time: c.Path.First.Add(-time.Duration(r.Age) * time.Second), Text: text})
}

// asFallback turns the finding about a TCP connection that was to fetch what did
// not fit into a datagram into one about that.
func asFallback(f *trace.Finding, c *trace.Case) {
	if c.Truncated == "" || c.Asked || c.Path.Protocol != trace.TCP {
		return
	}
	f.Summary = fmt.Sprintf("the answer to %s did not fit into a datagram, and TCP fails: %s", printable(c.Truncated), f.Summary)
	f.Cause = fmt.Sprintf("%s answered %s with a truncated message, so the client asked again by TCP. %s", c.Path.Server, printable(c.Truncated), f.Cause)
	f.Evidence = append(f.Evidence, trace.Evidence{Time: c.Path.First, Text: fmt.Sprintf("by itself the connection's fault is %s", f.ID)})
	f.ID, f.Severity = dnsTCPFallbackBlocked.ID, dnsTCPFallbackBlocked.Severity
}

func explainAmplification(c *trace.Case, _ *trace.HostState) *explanation {
	t := c.Trouble
	if c.Symptom != trace.SymptomAmplified {
		return nil
	}
	plain := strings.TrimSuffix(printable(t.Name), ".")
	return &explanation{
		confidence: trace.Certain, device: c.Event.Device.Name, fault: "search list", evidence: []trace.Evidence{
			{Time: c.Event.Time, Text: "asked in vain before: " + strings.Join(t.Steps, ", ")},
		},
		summary: fmt.Sprintf("%s cost %d queries: %d names of the search list were asked first", plain, t.Queries, len(t.Steps)),
		cause: fmt.Sprintf("The client, %s, asked for %s only after %s, none of which exists: the name has fewer dots than the option ndots demands, so the search list comes first.",
			asker(t.Exchange), plain, strings.Join(t.Steps, ", ")),
		fix: []string{
			fmt.Sprintf("# write the name with a dot at its end (%s.), or lower ndots: \"options ndots:1\" in the client's resolv.conf, dnsConfig.options of a pod", plain),
		},
		verify: []string{"replypath dns -- " + at(t.Home(), "getent hosts %s", quote(plain)) + "   # one query of each type"},
	}
}
