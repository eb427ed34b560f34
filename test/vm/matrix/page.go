package main

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// page is docs/kernels.md: a few tables, each with a column for each kernel.
type page struct {
	kernels []string // series, oldest first
	tables  [tables]table
}

// The tables of a page.
const (
	tableKernels = iota
	tableFindings
	tableBase
	tableHooks
	tableConditions
	tables
)

// heads are what stands above each table, and in the corner of its head.
var heads = [tables]struct{ title, text, corner string }{
	tableKernels: {"Kernels", "", ""},
	tableFindings: {"Findings", "Each finding is shown by several labs; the cell is the lowest confidence among them.",
		"finding"},
	tableBase: {"Findings without kernel functions", "The same with `--tier base`, as on hosts that refuse fentry and kprobes: tracepoints and the state of the\nhost alone; the findings that could depend on it.", "finding"},
	tableHooks: {"Hooks", "As `replypath status` tells them: how a hook is attached, or that it is refused or absent. `-`: this kernel\nneeds no such hook.",
		"hook"},
	tableConditions: {"Hosts that make it hard", "`works`: labs are explained as ever. `says`: it ends with 3 and one line that says what to do.\n`-`: not tried.",
		"host"},
}

// table is a table's rows, in order.
type table []row

type row struct {
	name  string
	cells map[string]cell // by kernel
}

// cell is a word or two, and perhaps why.
type cell struct{ text, note string }

// none stands where a kernel has no such row: a hook that it does not need, for example.
const none = "-"

func newPage() *page { return new(page) }

// set fills a cell, in a row of its own if there is none of that name.
func (t *table) set(name, kernel string, c cell) {
	for _, r := range *t {
		if r.name == name {
			r.cells[kernel] = c
			return
		}
	}
	*t = append(*t, row{name, map[string]cell{kernel: c}})
}

// replace takes over all columns of another page. Rows come in its order; those
// that it does not have stay at the end, as long as another kernel has them.
func (p *page) replace(with *page) {
	p.kernels = slices.Concat(p.kernels, with.kernels)
	slices.SortFunc(p.kernels, bySeries)
	p.kernels = slices.Compact(p.kernels)
	for i := range p.tables {
		p.tables[i] = merge(p.tables[i], with.tables[i], with.kernels)
	}
}

func merge(old, fresh table, kernels []string) table {
	var merged table
	for _, r := range slices.Concat(fresh, old) {
		for kernel, c := range r.cells {
			if slices.ContainsFunc(merged, func(m row) bool { return m.name == r.name && m.cells[kernel] != cell{} }) {
				continue // fresh comes first
			}
			if _, isFresh := find(fresh, r.name, kernel); !isFresh && slices.Contains(kernels, kernel) {
				continue // what was found no longer has it
			}
			merged.set(r.name, kernel, c)
		}
	}
	return merged
}

func find(t table, name, kernel string) (cell, bool) {
	for _, r := range t {
		if r.name == name {
			c, ok := r.cells[kernel]
			return c, ok
		}
	}
	return cell{}, false
}

// bySeries compares 5.10 with 6.1 and 6.12, number by number; those for arm64 come last.
func bySeries(a, b string) int {
	number := func(s string) (numbers []int) {
		series, isARM := strings.CutSuffix(s, arm64)
		numbers = append(numbers, 0)
		if isARM {
			numbers[0] = 1
		}
		for part := range strings.SplitSeq(series, ".") {
			n, _ := strconv.Atoi(part)
			numbers = append(numbers, n)
		}
		return numbers
	}
	return cmp.Or(slices.Compare(number(a), number(b)), strings.Compare(a, b))
}

// rowRelease differs with every update of a kernel.
const rowRelease = "release"

// compare fails when a cell of this page is not what the committed one has.
// Releases and notes may differ.
func (p *page) compare(committed *page) error {
	var errs []error
	for i := range p.tables {
		names := make(map[string]bool)
		for _, r := range slices.Concat(p.tables[i], committed.tables[i]) {
			if names[r.name] || r.name == rowRelease {
				continue
			}
			names[r.name] = true
			for _, kernel := range p.kernels {
				found, _ := find(p.tables[i], r.name, kernel)
				was, _ := find(committed.tables[i], r.name, kernel)
				if found.text != was.text {
					errs = append(errs, fmt.Errorf("kernel %s: %s: found %q, the page has %q", kernel, r.name, found.text, was.text))
				}
			}
		}
	}
	if len(errs) > 0 {
		errs = append(errs, errors.New("if that is how it should be, write the page: make test-vm"))
	}
	return errors.Join(errs...)
}

const introduction = `<!-- Written by make test-vm (test/vm/matrix); run it instead of changing this page. -->

# Kernels

What replypath can do on which kernel, and how sure it is, measured on Debian's kernels in virtual machines: each lab was
run with the real program, and what it found compared with the fault that is in the lab. What a kernel can is found out by
trying, never by its version: a kernel between two columns is mostly like the older one, and ` + "`replypath status`" + ` tells.
Columns that end with arm64 are of that processor, the others of amd64. The oldest kernel and the newest are met with all
labs. Those between share them: of the labs with the same finding and topology, each is met with every third one, and
with at least one.

To repeat it: ` + "`make test-vm`" + ` and ` + "`make test-arm64`" + `, or for one kernel ` + "`make test-vm KERNELS=6.1`" + `, which writes its
column only.
`

// String returns the page as Markdown.
func (p *page) String() string {
	var b strings.Builder
	b.WriteString(introduction)
	for i, t := range p.tables {
		if len(t) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n## %s\n\n", heads[i].title)
		if heads[i].text != "" {
			b.WriteString(heads[i].text + "\n\n")
		}
		fmt.Fprintf(&b, "| %s | %s |\n|%s\n", heads[i].corner, strings.Join(p.kernels, " | "), strings.Repeat(" --- |", len(p.kernels)+1))
		p.writeRows(&b, t)
	}
	return b.String()
}

func (p *page) writeRows(b *strings.Builder, t table) {
	var notes []string
	for _, r := range t {
		fmt.Fprintf(b, "| %s |", r.name)
		for _, kernel := range p.kernels {
			c := r.cells[kernel]
			text := cmp.Or(c.text, none)
			if c.note != "" {
				if !slices.Contains(notes, c.note) {
					notes = append(notes, c.note)
				}
				text += fmt.Sprintf(" (%d)", slices.Index(notes, c.note)+1)
			}
			fmt.Fprintf(b, " %s |", text)
		}
		b.WriteString("\n")
	}
	if len(notes) > 0 {
		b.WriteString("\n")
	}
	for i, n := range notes {
		fmt.Fprintf(b, "%d. %s\n", i+1, n)
	}
}

var (
	marked   = regexp.MustCompile(`^(.*) \((\d+)\)$`)
	numbered = regexp.MustCompile(`^(\d+)\. (.*)$`)
)

// parsePage reads what String wrote; an empty text is an empty page.
func parsePage(text string) (*page, error) {
	p := newPage()
	for section := range strings.SplitSeq(text, "\n## ") {
		title, body, _ := strings.Cut(section, "\n")
		i := slices.IndexFunc(heads[:], func(h struct{ title, text, corner string }) bool { return h.title == title })
		if i < 0 {
			continue
		}
		if err := p.parseTable(&p.tables[i], body); err != nil {
			return nil, fmt.Errorf("table %s: %w", title, err)
		}
	}
	return p, nil
}

func (p *page) parseTable(t *table, body string) error {
	var kernels []string
	notes := make(map[string]string)
	for line := range strings.Lines(body) {
		if m := numbered.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			notes[m[1]] = m[2]
		}
	}
	for line := range strings.Lines(body) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "| ---") {
			continue
		}
		cells := strings.Split(strings.TrimSuffix(strings.TrimPrefix(line, "|"), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if kernels == nil {
			kernels = cells[1:]
			continue
		}
		if len(cells) != len(kernels)+1 {
			return fmt.Errorf("row of %d cells below a head of %d: %s", len(cells), len(kernels)+1, line)
		}
		for i, kernel := range kernels {
			c := cell{text: cells[i+1]}
			if m := marked.FindStringSubmatch(c.text); m != nil {
				c = cell{m[1], notes[m[2]]}
			}
			if c.text != none {
				t.set(cells[0], kernel, c)
			}
		}
	}
	p.kernels = slices.Compact(slices.SortedFunc(slices.Values(slices.Concat(p.kernels, kernels)), bySeries))
	return nil
}
