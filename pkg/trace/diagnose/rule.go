package diagnose

import (
	"strings"

	"github.com/replypath/replypath/pkg/trace"
)

// Rule is one entry of the catalogue.
type Rule struct {
	ID    string // stable; scripts rely on it
	Title string // what it says, in one line
	// Doc says how the fault comes about, by which signals it is recognised, and
	// where these end. Markdown, one paragraph.
	Doc      string
	Severity trace.Severity

	// explain returns what the rule makes of the case, or nil.
	explain func(*trace.Case, *trace.HostState) *explanation
}

// explanation is what a rule adds to the case to make a finding.
type explanation struct {
	confidence trace.Confidence
	direction  trace.Direction // if not the case's
	summary    string
	cause      string
	fault      string // see trace.Finding
	fix        []string
	verify     []string
	device     string
	hook       string // if not the kernel hook of the case's event
	evidence   []trace.Evidence
	place      trace.Place // where it is mended, if not in the case's namespace
}

// Rules is the catalogue, in the order in which rules are tried.
func Rules() []Rule {
	return append([]Rule{
		dnsTCPFallbackBlocked,
		conntrackInsertRace,
	}, append(live(), []Rule{
		dnsUnanswered,
		dnsErrorResponse,
		dnsLateReply,
		dnsSearchAmplification,
		mtuBlackhole,
		fragmentDrop,
		xdpDrop,
		tcDrop,
		openvswitchDrop,
		tunnelMismatch,
		socketBufferFull,
		replyPolicyRouted,
		replyWrongSource,
		conntrackEntryLost,
		neighborConflict,
		conntrackFull,
		conntrackInvalidDrop,
		netfilterReject,
		netfilterDrop,
		replyRouteRejected,
		replyNoRoute,
		requestRouteRejected,
		requestNoRoute,
		rpFilterDrop,
		vipNotLocal,
		neighborUnresolved,
		forwardingDisabled,
		routingLoop,
		acceptQueueFull,
		portNotListening,
	}...)...)
}

var rules = Rules()

// Explain returns the finding that explains a case, given what the case's
// namespace said. False means that no rule of the catalogue does.
func Explain(c *trace.Case, s *trace.HostState) (trace.Finding, bool) {
	for i := range rules {
		if e := rules[i].explain(c, s); e != nil {
			f := finding(&rules[i], e, c, s)
			withDNS(&f, c)
			return f, true
		}
	}
	return trace.Finding{}, false
}

func finding(r *Rule, e *explanation, c *trace.Case, s *trace.HostState) trace.Finding {
	f := trace.Finding{
		ID: r.ID, Severity: r.Severity, Confidence: e.confidence, Direction: e.direction,
		Summary: e.summary, Cause: e.cause, Fix: e.fix, Verify: e.verify, Fault: e.fault,
		Where: trace.Where{Place: c.Place, Device: e.device, Hook: e.hook},
		Path:  c.Path, Count: 1, FirstSeen: c.Event.Time, LastSeen: c.Event.Time,
		Connections: []trace.Connection{{Tuple: c.Path.Connection, Count: 1, Last: c.Event.Time}},
	}
	if e.place.Netns != 0 {
		f.Where.Place = e.place
	}
	if f.Fault == "" {
		f.Fault = mended(c, f.Where.Place, f.Fix)
	}
	if f.Direction == trace.DirectionUnknown {
		f.Direction = c.Direction
	}
	if f.Direction == trace.Reply && !strings.Contains(f.Cause, "(DSR)") {
		f.Cause += directAnswer(c, s)
	}
	for _, device := range []string{c.Arrival.Device.Name, c.Event.Device.Name, s.In.Name, s.Out.Name, s.Onward.Device.Name} {
		if f.Where.Device == "" {
			f.Where.Device = device
		}
	}
	if f.Where.Hook == "" && !c.Asked {
		f.Where.Hook = c.Event.Hook.String()
	}
	if c.Asked {
		f.Count, f.Connections = 0, nil // nobody has met it yet
	}
	f.Evidence = append(seen(c), e.evidence...)
	if c.Asked && r.ID == neighborUnresolved.ID && s.NextHop.State != "FAILED" {
		f.Confidence = min(f.Confidence, trace.Likely) // nobody has asked it yet
	}
	if c.Path.Guessed {
		f.Confidence = min(f.Confidence, trace.Likely)
		f.Evidence = append(f.Evidence, trace.Evidence{Time: c.Path.First, Text: "the connection began before it was traced: the side with the higher port is taken for the client"})
	}
	for _, u := range s.Unread {
		f.Evidence = append(f.Evidence, trace.Evidence{Time: s.ReadAt, Text: "could not be read: " + u})
	}
	return f
}
