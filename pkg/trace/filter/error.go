package filter

import (
	"fmt"
	"unicode/utf8"
)

// SyntaxError says where and why an expression cannot be understood. Its text
// is one line; words of the expression are quoted in it.
type SyntaxError struct {
	Column int // in characters, from 1
	Reason string
}

// Error returns "filter: column 10: expected an address after "host", got "port"".
func (e *SyntaxError) Error() string {
	return fmt.Sprintf("filter: column %d: %s", e.Column, e.Reason)
}

// maxQuoted is the length at which a quoted word is cut, in bytes.
const maxQuoted = 64

// quote makes a word of the expression safe to print.
func quote(word string) string {
	if len(word) <= maxQuoted {
		return fmt.Sprintf("%q", word)
	}
	cut := maxQuoted
	for cut > maxQuoted-utf8.UTFMax && !utf8.RuneStart(word[cut]) {
		cut--
	}
	return fmt.Sprintf("%q…", word[:cut])
}
