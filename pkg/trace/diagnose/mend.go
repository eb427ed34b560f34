package diagnose

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/replypath/replypath/pkg/trace"
)

// mended says what has to be mended, for trace.Finding.Fault, where a rule does
// not: the fix, without remarks, and without the names by which places are
// known, for these may become known while connections still meet the fault.
func mended(c *trace.Case, where trace.Place, fix []string) string {
	places := []trace.Place{where, c.Place}
	for _, hops := range [][]trace.Hop{c.Path.Request, c.Path.Reply} {
		for i := range hops {
			places = append(places, hops[i].Place)
		}
	}
	// A name may be the beginning of another.
	slices.SortFunc(places, func(a, b trace.Place) int { return cmp.Compare(len(name(b)), len(name(a))) })
	unnamed := func(line string) string {
		for _, p := range places {
			if !p.Host {
				netns := fmt.Sprintf("netns %d", p.Netns)
				line = strings.ReplaceAll(line, at(p, ""), netns+" ")
				line = replaceWord(line, name(p), netns)
			}
		}
		return line
	}
	lines := make([]string, 0, len(fix))
	for _, line := range fix {
		command, _, _ := strings.Cut(line, "   # ")
		lines = append(lines, unnamed(command))
	}
	return strings.Join(lines, "\n")
}

// replaceWord replaces a word, or several, where they are not a part of a longer one.
func replaceWord(s, word, by string) string {
	inWord := func(b byte) bool {
		return b == '-' || b == '_' || b == '.' || b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= 0x80
	}
	var out strings.Builder
	done := 0
	for {
		i := strings.Index(s[done:], word)
		if i < 0 {
			return out.String() + s[done:]
		}
		begin, end := done+i, done+i+len(word)
		out.WriteString(s[done:begin])
		if begin > 0 && inWord(s[begin-1]) || end < len(s) && inWord(s[end]) {
			out.WriteString(word)
		} else {
			out.WriteString(by)
		}
		done = end
	}
}
