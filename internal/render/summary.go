package render

import (
	"fmt"
	"slices"
	"strings"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

// Summary returns the last lines of an answer: what the verdict is, and what
// was lost on the way to it. The findings are those of the answer: connections
// that they do not list are not among those that the summary counts.
func (t Text) Summary(s *tracev1.Summary, findings []*tracev1.Finding) string {
	var b strings.Builder
	omitted := func(f *tracev1.Finding) bool { return f.GetConnectionsOmitted() > 0 }
	head, style := verdict(s, slices.ContainsFunc(findings, omitted))
	t.wrap(&b, 0, "", words(style, head))
	if told := lossTold(s); told != "" {
		t.wrap(&b, 0, "", words(yellow, told))
	}
	if silent := s.GetUnanswered(); len(silent) > 0 {
		t.wrap(&b, 0, "", words(yellow, "Did not answer: "+strings.Join(silent, ", ")+"."))
	}
	return b.String()
}

func verdict(s *tracev1.Summary, atLeast bool) (string, style) {
	paths := count(s.GetPaths(), "connection")
	if atLeast {
		paths = "at least " + paths
	}
	if s.GetNodes() > 1 {
		paths += fmt.Sprintf(" (%d nodes)", s.GetNodes())
	}
	switch {
	case s.GetFindings() > 0 && s.GetPaths() == 0:
		return count(s.GetFindings(), "fault") + ".", red
	case s.GetFindings() > 0:
		return fmt.Sprintf("%s in %s.", count(s.GetFindings(), "fault"), paths), red
	case s.GetPaths() == 0 && s.GetVerdict() == "incomplete":
		return "Nothing to explain: no matching connection was seen, but not everything was seen.", yellow
	case s.GetPaths() == 0:
		return "Nothing to explain: no matching connection was seen (TCP and UDP are traced).", yellow
	case s.GetVerdict() == "ok":
		return fmt.Sprintf("No fault found in %s.", paths), green
	}
	return fmt.Sprintf("No fault found in %s, but not everything was seen.", paths), yellow
}

func lossTold(s *tracev1.Summary) string {
	total := uint64(s.GetLostEvents())
	if total == 0 {
		return ""
	}
	told := fmt.Sprintf("%s events were lost", grouped(total))
	if total == 1 {
		told = "1 event was lost"
	}
	if causes := causesTold(s.GetLosses(), total); causes != "" {
		told += " (" + causes + ")"
	}
	if s.GetFindings() > 0 {
		return told + ": there may be more faults than are shown."
	}
	return told + ": there may be faults that are not shown."
}

// causesTold lists causes, with a count for each if there is more than one.
func causesTold(losses []*tracev1.Loss, total uint64) string {
	var told []string
	for _, l := range losses {
		switch {
		case l.GetCount() == 0:
		case uint64(l.GetCount()) == total:
			told = append(told, causeTold(l.GetCause()))
		default:
			told = append(told, fmt.Sprintf("%s: %s", causeTold(l.GetCause()), grouped(uint64(l.GetCount()))))
		}
	}
	return strings.Join(told, ", ")
}

// Lost returns the line for messages that a live stream had to leave out.
func (t Text) Lost(l *tracev1.LostEvents) string {
	var b strings.Builder
	told := count(l.GetCount(), "message")
	if l.GetCount() == 1 {
		told += " was lost"
	} else {
		told += " were lost"
	}
	if l.GetCause() != "" {
		told += " (" + causeTold(l.GetCause()) + ")"
	}
	t.wrap(&b, 0, "  ", words(yellow, "! "+told+": there may be faults that are not shown."))
	return b.String()
}

// causeTold makes words of a cause, which may be written as metrics write it: ring_buffer_full. What it
// is of, a namespace, keeps its name.
func causeTold(cause string) string {
	kind, of, found := strings.Cut(cause, " of ")
	kind = strings.ReplaceAll(kind, "_", " ")
	if !found {
		return kind
	}
	return kind + " of " + of
}

// count writes "1 fault" or "2,113 faults".
func count(n uint32, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return grouped(uint64(n)) + " " + noun + "s"
}
