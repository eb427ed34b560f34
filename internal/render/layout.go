package render

import (
	"strings"
	"time"
	"unicode"

	"golang.org/x/text/width"
)

// DefaultWidth is the line width, in columns, where there is no terminal to ask.
const DefaultWidth = 100

// minWidth keeps very narrow terminals readable: below it lines run over.
const minWidth = 40

// labelWidth is the column at which text starts: two spaces, the longest label, two spaces.
const labelWidth = 11

// Text writes messages for people. The zero value is plain, DefaultWidth wide
// and in UTC.
type Text struct {
	Width int  // columns; 0: DefaultWidth
	Color bool // ANSI colours; only for a terminal
	Zone  *time.Location
	// Now is what the age of a finding counts from; zero: ages are not told.
	Now time.Time
	// Trim is what the names of namespaces are shown without in hops and prose
	// (not where they are to be used): all namespaces of one lab share a prefix.
	Trim string
}

func (t Text) width() int {
	if t.Width <= 0 {
		return DefaultWidth
	}
	return max(t.Width, minWidth)
}

func (t Text) clock(at time.Time) string {
	if t.Zone != nil {
		return at.In(t.Zone).Format("15:04:05.000")
	}
	return at.UTC().Format("15:04:05.000")
}

// style is an ANSI "select graphic rendition" (ECMA-48, section 8.3.117).
type style string

const (
	plain  style = ""
	bold   style = "1"
	dim    style = "2"
	red    style = "1;31"
	green  style = "32"
	yellow style = "1;33"
)

func (t Text) paint(s style, text string) string {
	if !t.Color || s == plain || text == "" {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

// span is text in one style, escaped when it is made.
type span struct {
	style style
	text  string
}

func styled(s style, text string) span { return span{s, Escape(text)} }

// word is what is never broken over two lines: a hop, a tuple, a whole command.
type word []span

func unbroken(s style, text string) word { return word{styled(s, text)} }

// words splits prose at its spaces.
func words(s style, prose string) []word {
	var ws []word
	for field := range strings.FieldsSeq(Escape(prose)) {
		ws = append(ws, word{{s, field}})
	}
	return ws
}

func (w word) columns() int {
	n := 0
	for _, s := range w {
		n += columns(s.text)
	}
	return n
}

// columns returns how many terminal columns s takes (Unicode Standard Annex 11).
func columns(s string) int {
	n := 0
	for _, r := range s {
		switch {
		case unicode.Is(unicode.M, r):
		case wide(r):
			n += 2
		default:
			n++
		}
	}
	return n
}

func wide(r rune) bool {
	kind := width.LookupRune(r).Kind()
	return kind == width.EastAsianWide || kind == width.EastAsianFullwidth
}

func (t Text) word(b *strings.Builder, w word) {
	for _, s := range w {
		b.WriteString(t.paint(s.style, s.text))
	}
}

// field writes words under a label, wrapped, with continuation lines aligned.
func (t Text) field(b *strings.Builder, label string, ws []word) {
	if len(ws) == 0 {
		return
	}
	t.label(b, label)
	t.wrap(b, labelWidth, strings.Repeat(" ", labelWidth), ws)
}

func (t Text) label(b *strings.Builder, label string) {
	b.WriteString("  " + t.paint(dim, label) + strings.Repeat(" ", max(labelWidth-2-len(label), 1)))
}

// prose is text of ours about somebody's namespaces.
func (t Text) prose(text string) string {
	if t.Trim == "" {
		return text
	}
	return strings.ReplaceAll(text, t.Trim, "")
}

// wrap writes words and a newline; the first stands at column at, and lines
// that follow start with indent.
func (t Text) wrap(b *strings.Builder, at int, indent string, ws []word) {
	for i, w := range ws {
		n := w.columns()
		switch {
		case i == 0:
		case at+1+n > t.width():
			b.WriteString("\n" + indent)
			at = len(indent)
		default:
			b.WriteByte(' ')
			at++
		}
		t.word(b, w)
		at += n
	}
	b.WriteByte('\n')
}

// lines writes one field a line under one label, each wrapped by itself.
func (t Text) lines(b *strings.Builder, label string, rows [][]word) {
	for i, row := range rows {
		if i > 0 {
			label = ""
		}
		t.field(b, label, row)
	}
}
