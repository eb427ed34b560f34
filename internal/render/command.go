package render

import (
	"strings"
)

// commands writes shell commands. They are there to be copied: a command is
// never wrapped, and each line of a wrapped comment is a comment.
func (t Text) commands(b *strings.Builder, label string, list []string) {
	for _, c := range list {
		command, comment := splitComment(c)
		if comment != "" && labelWidth+columns(Escape(c)) <= t.width() {
			command, comment = c, "" // room for both on one line
		}
		if comment != "" {
			t.label(b, label)
			label = ""
			t.wrap(b, labelWidth, strings.Repeat(" ", labelWidth)+"# ", words(dim, comment))
		}
		if command != "" {
			t.field(b, label, []word{unbroken(green, command)})
			label = ""
		}
	}
}

// splitComment separates a command from the comment after it. A # within quotes is none.
func splitComment(line string) (command, comment string) {
	if strings.HasPrefix(line, "#") {
		return "", line
	}
	before, after, found := strings.Cut(line, " # ")
	if !found || strings.Count(before, "'")%2 != 0 || strings.Count(before, `"`)%2 != 0 {
		return line, ""
	}
	return strings.TrimRight(before, " "), "# " + after
}
