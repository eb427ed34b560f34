package render

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

// The columns of DNS queries, but for the last.
var dnsColumns = []struct {
	title string
	width int
}{{"TIME", 12}, {"CLIENT", 24}, {"QUESTION", 32}, {"RESOLVER", 28}, {"RESULT", 12}, {"LATENCY", 9}, {"PATH", 0}}

// QueryHead returns the line above DNS queries.
func (t Text) QueryHead() string {
	cells := make([]string, len(dnsColumns))
	for i, c := range dnsColumns {
		cells[i] = c.title
	}
	return t.paint(dim, dnsRow(cells)) + "\n"
}

func dnsRow(cells []string) string {
	var b strings.Builder
	for i, c := range cells {
		b.WriteString(pad(c, dnsColumns[i].width))
		if i < len(cells)-1 {
			b.WriteString("  ")
		}
	}
	return strings.TrimRight(b.String(), " ")
}

// Query returns a line for a DNS query that has ended, as a resolver's log would have it.
func (t Text) Query(q *tracev1.DnsQuery) string {
	result, s := queryResult(q)
	cells := []string{
		t.clock(q.GetTime().AsTime()), Escape(clientTold(q)), Escape(q.GetType() + " " + q.GetName()), Escape(resolverTold(q)),
		Escape(result), latencyTold(q.GetLatencySeconds()), Escape(pathTold(q)),
	}
	return t.paint(s, dnsRow(cells)) + "\n"
}

// IsFailure reports an outcome that a client has to bear.
func IsFailure(outcome string) bool {
	return outcome == "error" || outcome == "late" || outcome == "wrong_source" || outcome == "unanswered"
}

func queryResult(q *tracev1.DnsQuery) (string, style) {
	switch q.GetOutcome() {
	case "answered":
		return q.GetRcode(), plain
	case "error":
		return q.GetRcode(), red
	case "cancelled", "pending":
		return q.GetOutcome(), dim
	}
	return strings.ReplaceAll(q.GetOutcome(), "_", " "), red
}

func clientTold(q *tracev1.DnsQuery) string {
	who := cmp.Or(q.GetWorkload(), host(q.GetClient()))
	if p := q.GetProcess(); p.GetPid() != 0 {
		return fmt.Sprintf("%s %s", who, p.GetComm())
	}
	return who
}

// resolverTold names whom the client asked, and who answered where that is another.
func resolverTold(q *tracev1.DnsQuery) string {
	asked := host(q.GetServer())
	if p := port(q.GetServer()); p != "53" {
		asked = q.GetServer()
	}
	if q.GetProtocol() == "tcp" {
		asked += " tcp"
	}
	if by := q.GetResponder(); by != "" && by != q.GetServer() {
		return asked + " (" + by + ")"
	}
	return asked
}

func latencyTold(seconds float64) string {
	if seconds == 0 {
		return "-"
	}
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(10 * time.Microsecond).String()
	}
	return d.Round(time.Millisecond).String()
}

// pathTold says which way the query went; of one that failed, how far it came.
func pathTold(q *tracev1.DnsQuery) string {
	told := []string{strings.ReplaceAll(q.GetVia(), "_", "-")}
	if q.GetOutcome() == "unanswered" || q.GetOutcome() == "wrong_source" {
		told = append(told, "last seen: "+stageTold(q))
	}
	if d := q.GetDrop(); d != nil && IsFailure(q.GetOutcome()) {
		told = append(told, "dropped: "+cmp.Or(d.GetReason(), d.GetSymbol()))
	}
	if n := q.GetAttempts(); n > 1 {
		told = append(told, fmt.Sprintf("asked %d times", n))
	}
	if q.GetRepeats() != 0 {
		told = append(told, "asked again")
	}
	if q.GetTruncated() {
		told = append(told, "truncated")
	}
	return strings.Join(slices.DeleteFunc(told, func(s string) bool { return s == "" }), ", ")
}

func stageTold(q *tracev1.DnsQuery) string {
	hops := q.GetRequest()
	if strings.HasPrefix(q.GetStage(), "reply") || strings.HasPrefix(q.GetStage(), "resolver_answered") || q.GetStage() == "client_received" {
		hops = q.GetReply()
	}
	told := strings.ReplaceAll(q.GetStage(), "_", " ")
	if len(hops) == 0 {
		return told
	}
	last := hops[len(hops)-1]
	return told + " at " + placeName(last.GetNetns(), last.GetNetnsInode(), last.GetWorkload())
}

// DNSSummary returns the last lines: how many queries, how long they took, what failed, and which names were asked for most.
func (t Text) DNSSummary(s *tracev1.DnsSummary) string {
	var b strings.Builder
	failed := uint64(0)
	for _, n := range s.GetFailures() {
		failed += n
	}
	head, style := fmt.Sprintf("%s, %s answered, none failed.", counted(s.GetQueries(), "query", "queries"), grouped(s.GetAnswered())), green
	switch {
	case s.GetQueries() == 0:
		head, style = "No DNS query was seen.", yellow
	case failed > 0:
		head, style = fmt.Sprintf("%s, %s answered, %s failed.", counted(s.GetQueries(), "query", "queries"), grouped(s.GetAnswered()), grouped(failed)), red
	}
	t.wrap(&b, 0, "", words(style, head))
	if s.GetLatencyP50Seconds() > 0 {
		t.field(&b, "latency", words(plain, fmt.Sprintf("half within %s, 95%% within %s, 99%% within %s",
			latencyTold(s.GetLatencyP50Seconds()), latencyTold(s.GetLatencyP95Seconds()), latencyTold(s.GetLatencyP99Seconds()))))
	}
	t.field(&b, "failed", words(plain, countsTold(s.GetFailures())))
	t.field(&b, "rcodes", words(plain, countsTold(s.GetRcodes())))
	var names []string
	for _, n := range s.GetTopNames() {
		names = append(names, fmt.Sprintf("%s (%s)", n.GetName(), grouped(n.GetQueries())))
	}
	t.field(&b, "names", words(plain, strings.Join(names, ", ")))
	if n := s.GetLostEvents(); n > 0 {
		told := "1 event was lost"
		if n > 1 {
			told = grouped(uint64(n)) + " events were lost"
		}
		t.wrap(&b, 0, "", words(yellow, told+" ("+causesTold(s.GetLosses(), uint64(n))+"): there may be queries that are not shown."))
	}
	return b.String()
}

func counted(n uint64, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return grouped(n) + " " + more
}

// countsTold lists counts, the most first.
func countsTold(counts map[string]uint64) string {
	keys := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
	for i, k := range keys {
		keys[i] = fmt.Sprintf("%s: %s", strings.ReplaceAll(k, "_", " "), grouped(counts[k]))
	}
	return strings.Join(keys, ", ")
}

// NamedJSON returns {"name":{…}} and a newline.
func NamedJSON(name string, m proto.Message) ([]byte, error) {
	line, err := JSON(m)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "{%q:%s}\n", name, bytes.TrimSuffix(line, []byte("\n"))), nil
}
