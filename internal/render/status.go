package render

import (
	"fmt"
	"strings"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

// Status returns what nodes say of themselves: a head and a table of hooks for each.
func (t Text) Status(nodes []*tracev1.Node) string {
	var b strings.Builder
	for i, n := range nodes {
		if i > 0 {
			b.WriteByte('\n')
		}
		t.node(&b, n)
	}
	if len(nodes) == 0 {
		b.WriteString("No node answered.\n")
	}
	return b.String()
}

func (t Text) node(b *strings.Builder, n *tracev1.Node) {
	about := []string{"Linux " + n.GetKernel(), "replypath " + n.GetVersion(), "tier " + n.GetTier()}
	if n.GetStarted().IsValid() {
		at := n.GetStarted().AsTime()
		if t.Zone != nil {
			at = at.In(t.Zone)
		}
		about = append(about, "since "+at.Format("2006-01-02 15:04:05 MST"))
	}
	t.row(b, "node", []word{unbroken(bold, n.GetName())})
	t.row(b, "", words(plain, strings.Join(about, ", ")))
	t.row(b, "hooks", hooksTold(n.GetHooks()))
	t.row(b, "events", words(plain, grouped(n.GetEvents())+" read"))
	t.row(b, "lost", lostTold(n.GetLosses()))
	t.row(b, "memory", words(plain, fmt.Sprintf("%s live, %s kept, %s kept",
		count(n.GetLivePaths(), "path"), count(n.GetKeptPaths(), "path"), count(n.GetKeptFindings(), "finding"))))
	t.hooks(b, n.GetHooks())
}

const rowLabelWidth = 8

func (t Text) row(b *strings.Builder, label string, ws []word) {
	b.WriteString(t.paint(dim, label) + strings.Repeat(" ", rowLabelWidth-len(label)))
	t.wrap(b, rowLabelWidth, strings.Repeat(" ", rowLabelWidth), ws)
}

func hooksTold(hooks []*tracev1.HookStatus) []word {
	attached := 0
	for _, h := range hooks {
		if h.GetState() == "attached" {
			attached++
		}
	}
	s := green
	if attached < len(hooks) {
		s = yellow
	}
	return words(s, fmt.Sprintf("%d of %d attached", attached, len(hooks)))
}

func lostTold(losses []*tracev1.Loss) []word {
	var told []string
	for _, l := range losses {
		if l.GetCount() > 0 {
			told = append(told, fmt.Sprintf("%s: %s", causeTold(l.GetCause()), grouped(uint64(l.GetCount()))))
		}
	}
	if len(told) == 0 {
		return words(plain, "none")
	}
	return words(yellow, strings.Join(told, ", "))
}

// hooks writes the table: name, state, how it is attached and, where a hook is not, why.
func (t Text) hooks(b *strings.Builder, hooks []*tracev1.HookStatus) {
	if len(hooks) == 0 {
		return
	}
	name, state, by := len("HOOK"), len("STATE"), len("BY")
	for _, h := range hooks {
		name = max(name, columns(Escape(h.GetName())))
		state = max(state, columns(Escape(h.GetState())))
		by = max(by, columns(Escape(h.GetMeans())))
	}
	indent := name + state + by + 6
	b.WriteString("\n" + t.paint(dim, fmt.Sprintf("%-*s  %-*s  %-*s  REASON", name, "HOOK", state, "STATE", by, "BY")) + "\n")
	for _, h := range hooks {
		b.WriteString(pad(Escape(h.GetName()), name) + "  " + t.paint(stateStyle(h), Escape(h.GetState())))
		rest := strings.Repeat(" ", state-columns(Escape(h.GetState()))+2) + pad(Escape(h.GetMeans()), by) + "  "
		if h.GetReason() == "" {
			b.WriteString(strings.TrimRight(rest, " ") + "\n")
			continue
		}
		b.WriteString(rest)
		t.wrap(b, indent, strings.Repeat(" ", indent), words(plain, h.GetReason()))
	}
}

func stateStyle(h *tracev1.HookStatus) style {
	if h.GetState() == "attached" {
		return green
	}
	return yellow
}

func pad(s string, to int) string { return s + strings.Repeat(" ", max(to-columns(s), 0)) }
