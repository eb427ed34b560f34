package render_test

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
	"github.com/replypath/replypath/internal/render"
)

func TestEscape(t *testing.T) {
	cases := []struct{ name, in, want string }{
		{"clean", `nft add rule 'a b' \x1b`, `nft add rule 'a b' \x1b`},
		{"letters of any script", "büro-網路", "büro-網路"},
		{"ESC", "a\x1b[2Jb", `a\x1b[2Jb`},
		{"line ends", "a\r\n\tb", `a\r\n\tb`},
		{"NUL and DEL", "\x00\x7f", `\x00\x7f`},
		{"C1 control", "\u009b31m", `\u009b31m`},
		{"bidi override", "\u202egnp", `\u202egnp`},
		{"bidi isolate", "\u2066x\u2069", `\u2066x\u2069`},
		{"zero width", "a\u200bb\ufeff", `a\u200bb\ufeff`},
		{"no-break space", "a\u00a0b", `a\u00a0b`},
		{"line separator", "a\u2028b", `a\u2028b`},
		{"tag character", "\U000e0041", `\U000e0041`},
		{"not UTF-8", "a\xffb\xc3", `a\xffb\xc3`},
		{"surrogate half", "\xed\xa0\x80", `\xed\xa0\x80`},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			if got := render.Escape(tc.in); got != tc.want {
				t.Errorf("Escape(%q) = %q, want %q", tc.in, got, tc.want)
			}
		})
	}
}

func FuzzEscape(f *testing.F) {
	for _, s := range []string{"eth0", "\x1b[2J", "\u202e", "a\xff", "\U000e0041", "網"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := render.Escape(s)
		if !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Fatalf("Escape(%q) = %q is not printable", s, got)
		}
		if again := render.Escape(got); again != got {
			t.Fatalf("escaping %q again gives %q", got, again)
		}
		if utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) && got != s {
			t.Fatalf("Escape changed clean text %q to %q", s, got)
		}
	})
}

// FuzzFinding puts hostile text into every place of a finding that holds text.
func FuzzFinding(f *testing.F) {
	f.Add("eth0", "\x1b[2J", 80)
	f.Add("\u202e", "a\xff\nb", 0)
	f.Fuzz(func(t *testing.T, a, b string, width int) {
		hops := []*tracev1.Hop{{Netns: a, InDevice: b, OutDevice: a, Source: b, Destination: a, Workload: b}, {Netns: b, OutDevice: b}}
		m := &tracev1.Finding{Id: a, Severity: b, Confidence: a, Direction: tracev1.Direction_REPLY, Summary: b, Cause: a,
			Fix: []string{a, b}, Verify: []string{b}, Where: &tracev1.Where{Node: a, Netns: b, Device: a, Hook: b},
			Path:     &tracev1.Path{Protocol: a, Client: b, Server: a, Request: hops, Reply: hops, Process: &tracev1.Process{Comm: b}},
			Evidence: []*tracev1.Evidence{{Text: a}, {Text: b}}, Connections: []*tracev1.Connection{{Protocol: a, Client: b, Server: a}}}
		text := render.Text{Width: width}.Finding(m) + render.Text{}.Path(m.GetPath())
		if strings.ContainsFunc(strings.ReplaceAll(text, "\n", ""), func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Fatalf("not printable: %q", text)
		}
		line, err := render.JSON(m)
		if err != nil {
			t.Fatal(err)
		}
		if !json.Valid(line) || strings.Count(string(line), "\n") != 1 {
			t.Fatalf("not one line of JSON: %q", line)
		}
	})
}
