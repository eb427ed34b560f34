package render

import (
	"bytes"
	"encoding/json"
	"strings"
)

// controlMark stands before a command that cannot be shown as it is.
const controlMark = "# (contains control characters) "

// commands writes shell commands. They are there to be copied: a command is
// never wrapped, and each line of a wrapped comment is a comment. A command with
// characters that must not reach a terminal would not be the same command when
// escaped: it is shown within a comment, as the JSON output has it.
func (t Text) commands(b *strings.Builder, label string, list []string) {
	for _, c := range list {
		command, comment := splitComment(c)
		look := green
		switch {
		case !printable(command):
			command, look = controlMark+quoteJSON(command), dim
		case comment != "" && labelWidth+columns(Escape(c)) <= t.width():
			command, comment = c, "" // room for both on one line
		}
		if comment != "" {
			t.label(b, label)
			label = ""
			t.wrap(b, labelWidth, strings.Repeat(" ", labelWidth)+"# ", words(dim, comment))
		}
		if command != "" {
			t.field(b, label, []word{unbroken(look, command)})
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

// quoteJSON returns s as a JSON string of printable characters.
func quoteJSON(s string) string {
	var quoted bytes.Buffer
	e := json.NewEncoder(&quoted)
	e.SetEscapeHTML(false)
	if err := e.Encode(mend(s)); err != nil {
		return Escape(s) // a string can always be encoded
	}
	return string(escapeJSON(bytes.TrimSuffix(quoted.Bytes(), []byte("\n"))))
}
