package render

import (
	"fmt"
	"strings"
	"time"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

// Finding returns a finding as a block: a headline, the request and the reply
// path with the break marked, then why, where, fix, verify, evidence, and the
// other connections that met the same fault.
func (t Text) Finding(f *tracev1.Finding) string {
	var b strings.Builder
	t.headline(&b, f, "")
	p := f.GetPath()
	if unsent(f) == "" {
		t.field(&b, "request", t.requestLine(f, p))
		t.field(&b, "reply", t.replyLine(f, p))
	}
	t.lines(&b, "why", t.whyLines(f))
	t.field(&b, "where", words(plain, whereTold(f.GetWhere())))
	t.commands(&b, "fix", f.GetFix())
	t.commands(&b, "verify", f.GetVerify())
	t.lines(&b, "seen", t.evidence(f))
	t.lines(&b, "also", others(f))
	return b.String()
}

// oldFinding is the age from which a finding may be of what is mended by now.
const oldFinding = 30 * time.Second

// age says how long ago a finding was last met, when that is a while.
func (t Text) age(f *tracev1.Finding) []string {
	if t.Now.IsZero() || !f.GetLastSeen().IsValid() {
		return nil
	}
	if age := t.Now.Sub(f.GetLastSeen().AsTime()); age >= oldFinding {
		return []string{"last " + short(age) + " ago"}
	}
	return nil
}

// Again returns one line for a finding that was shown before and goes on.
func (t Text) Again(f *tracev1.Finding) string {
	var b strings.Builder
	t.headline(&b, f, " AGAIN")
	return b.String()
}

// headline puts what happened to whom on the left and, where there is room, the
// finding's id and weight at the right margin.
func (t Text) headline(b *strings.Builder, f *tracev1.Finding, again string) {
	mark, s := severityMark(f)
	p := f.GetPath()
	left := word{styled(s, mark+" "+outcome(f)+again), styled(bold, "  "+tuple(p.GetProtocol(), p.GetClient(), p.GetServer()))}
	if unsent(f) != "" {
		left = left[:1]
	}
	right := strings.Join(append(weight(f), t.age(f)...), ", ")
	t.word(b, left)
	if gap := t.width() - left.columns() - columns(Escape(right)); right == "" {
		b.WriteByte('\n')
		return
	} else if gap >= 2 {
		b.WriteString(strings.Repeat(" ", gap) + Escape(right) + "\n")
		return
	}
	b.WriteByte('\n')
	t.field(b, "finding", words(plain, right))
}

func severityMark(f *tracev1.Finding) (string, style) {
	switch f.GetSeverity() {
	case "error":
		return "x", red
	case "info":
		return "-", bold
	}
	return "!", yellow
}

// refusals are the findings whose packet was answered with a refusal, not lost.
var refusals = map[string]bool{"port-not-listening": true, "netfilter-reject": true, "redirect-target-not-listening": true}

// outcome says in capitals what became of the packet.
func outcome(f *tracev1.Finding) string {
	what := "PACKET"
	if f.GetDirection() != tracev1.Direction_DIRECTION_UNSPECIFIED {
		what = f.GetDirection().String()
	}
	switch {
	case unsent(f) != "":
		return unsent(f)
	case bypasses[f.GetId()] && foretold(f):
		return what + " WOULD GO PAST THE PROXY"
	case bypasses[f.GetId()]:
		return what + " WENT PAST THE PROXY"
	case f.GetSeverity() == "info":
		return what + " NOTE"
	case f.GetSeverity() != "error":
		return what + " AT RISK"
	case refusals[f.GetId()] && foretold(f):
		return what + " WOULD BE REFUSED"
	case refusals[f.GetId()]:
		return what + " REFUSED"
	case foretold(f):
		return what + " WOULD BE LOST"
	}
	return what + " LOST"
}

// foretold reports whether nobody has met the fault: it is what would happen.
func foretold(f *tracev1.Finding) bool { return f.GetCount() == 0 }

// weight is id, confidence and how often in which time.
func weight(f *tracev1.Finding) []string {
	parts := []string{f.GetId()}
	if f.GetConfidence() != "" {
		parts = append(parts, f.GetConfidence())
	}
	switch n := f.GetCount(); {
	case n == 1 && !countsAll(f):
		parts = append(parts, "at least once")
	case n == 1:
		parts = append(parts, "once")
	case n > 1:
		times := grouped(uint64(n)) + " times"
		if !countsAll(f) {
			times = "at least " + times
		}
		if f.GetFirstSeen().IsValid() && f.GetLastSeen().IsValid() {
			if span := f.GetLastSeen().AsTime().Sub(f.GetFirstSeen().AsTime()); span > 0 {
				times += " in " + short(span)
			}
		}
		parts = append(parts, times)
	}
	return parts
}

// short writes a duration with two or three digits: 2.5s, 41ms, 4m50s.
func short(d time.Duration) string {
	switch {
	case d >= 10*time.Second:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Microsecond).String()
}

func (t Text) requestLine(f *tracev1.Finding, p *tracev1.Path) []word {
	ws := line(f, t.requestWay(p), tracev1.Direction_REQUEST)
	var notes []string
	if n := p.GetRequests(); n > 0 {
		notes = append(notes, packets(p.GetProtocol(), n, "SYN"))
	}
	if c := p.GetProcess(); c.GetComm() != "" {
		notes = append(notes, fmt.Sprintf("from %s, pid %d", c.GetComm(), c.GetPid()))
	}
	if f.GetDirection() == tracev1.Direction_REPLY && len(ws) > 0 && !foretold(f) {
		notes = append(notes, "delivered")
	}
	return append(ws, noted(notes)...)
}

func (t Text) replyLine(f *tracev1.Finding, p *tracev1.Path) []word {
	ws := line(f, t.replyWay(p), tracev1.Direction_REPLY)
	switch {
	case len(ws) == 0 && f.GetId() == "port-not-listening": // a reset is no hop, but it was sent
		at := f.GetWhere()
		return append([]word{unbroken(bold, t.replyWay(p).hopBox(whereHop(at)))}, words(plain, "RST")...)
	case len(ws) == 0 && foretold(f):
		return words(dim, "none is sent yet")
	case len(ws) == 0:
		return words(dim, "none seen")
	}
	var notes []string
	if hops := p.GetReply(); len(hops) > 0 && hops[0].GetCount() > 0 {
		name := "SYN-ACK"
		if refusals[f.GetId()] {
			name = "RST"
		}
		notes = append(notes, packets(p.GetProtocol(), hops[0].GetCount(), name))
	}
	if p.GetAnswered() {
		notes = append(notes, "reached the client")
	}
	return append(ws, noted(notes)...)
}

func noted(notes []string) []word {
	if len(notes) == 0 {
		return nil
	}
	return words(dim, "("+strings.Join(notes, ", ")+")")
}

// line draws one direction, with the break if the finding is about it.
func line(f *tracev1.Finding, w way, d tracev1.Direction) []word {
	if f.GetDirection() != d {
		return w.draw(-1, nil)
	}
	at := hopAt(w.hops, f.GetWhere())
	mark := breakMark(f, d == tracev1.Direction_REPLY && neverLeft(w, at))
	switch {
	case at >= 0:
		return w.draw(at, mark)
	case len(w.hops) > 0:
		return append(w.draw(-1, nil), mark...)
	}
	return append([]word{unbroken(bold, w.hopBox(whereHop(f.GetWhere())))}, mark...)
}

// whereHop is the place of a fault as a hop.
func whereHop(at *tracev1.Where) *tracev1.Hop {
	return &tracev1.Hop{Netns: at.GetNetns(), NetnsInode: at.GetNetnsInode(), Workload: at.GetWorkload(), Node: at.GetNode()}
}

// neverLeft reports whether the answering host did not send the reply at all.
func neverLeft(w way, at int) bool {
	return len(w.hops) == 0 || at == 0 && len(w.hops) == 1 && w.hops[0].GetInDevice() == "" && w.hops[0].GetOutDevice() == ""
}

func breakMark(f *tracev1.Finding, never bool) []word {
	mark, s := severityMark(f)
	ws := append([]word{unbroken(s, mark)}, words(s, breakTold(f))...)
	if never {
		ws = append(ws, words(s, "(never left)")...)
	}
	return ws
}

// breakTold says in a few words, beside the break, why the packet got no
// further. Findings without words of their own are told by their id.
func breakTold(f *tracev1.Finding) string {
	client, server := f.GetPath().GetClient(), f.GetPath().GetServer()
	if n := len(f.GetPath().GetRequest()); n > 0 { // after NAT, as the host where it arrived saw it
		server = or(f.GetPath().GetRequest()[n-1].GetDestination(), server)
	}
	switch f.GetId() {
	case "reply-no-route":
		return "no route to " + host(client)
	case "reply-route-rejected":
		return "route rejects " + host(client)
	case "request-no-route":
		return "no route to " + host(server)
	case "request-route-rejected":
		return "route rejects " + host(server)
	case "rp-filter-drop":
		return "dropped by reverse-path filter"
	case "neighbor-unresolved":
		return "next hop does not answer"
	case "forwarding-disabled":
		return "forwarding is off"
	case "vip-not-local":
		return host(server) + " is not an address of this host"
	case "netfilter-drop":
		if hook := f.GetWhere().GetHook(); hook != "" {
			return "dropped by a filter at " + hook
		}
		return "dropped by a filter"
	case "port-not-listening":
		return "nobody listens on port " + port(server)
	}
	if told := redirectTold[f.GetId()]; told != "" {
		return told
	}
	return strings.ReplaceAll(f.GetId(), "-", " ")
}

// whyLines are the summary and the cause; a cause that repeats the summary stands alone.
func (t Text) whyLines(f *tracev1.Finding) [][]word {
	summary, cause := strings.TrimSpace(t.prose(f.GetSummary())), strings.TrimSpace(t.prose(f.GetCause()))
	if cause == "" || strings.HasPrefix(cause, strings.TrimSuffix(summary, ".")) {
		summary, cause = or(cause, summary), ""
	}
	var rows [][]word
	if summary != "" {
		rows = append(rows, words(bold, summary))
	}
	if cause != "" {
		rows = append(rows, words(plain, cause))
	}
	return rows
}

func whereTold(at *tracev1.Where) string {
	var parts []string
	if at.GetWorkload() != "" {
		parts = append(parts, at.GetWorkload())
	}
	switch {
	case at.GetNetns() != "" && at.GetNetnsInode() != 0:
		parts = append(parts, fmt.Sprintf("netns %s (%d)", at.GetNetns(), at.GetNetnsInode()))
	case at.GetNetns() != "":
		parts = append(parts, "netns "+at.GetNetns())
	case at.GetNetnsInode() != 0:
		parts = append(parts, fmt.Sprintf("netns %d", at.GetNetnsInode()))
	}
	for _, p := range []struct{ name, value string }{
		{"device", at.GetDevice()}, {"hook", at.GetHook()}, {"node", at.GetNode()},
	} {
		if p.value != "" {
			parts = append(parts, p.name+" "+p.value)
		}
	}
	return strings.Join(parts, ", ")
}
