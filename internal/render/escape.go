package render

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Escape returns s fit for a terminal and for one line. Whatever is not a
// printable character (control characters, ESC, bidi overrides, spaces other
// than U+0020, invalid UTF-8) becomes \n, \x1b, \u202e or \U000e0001. Escaping
// twice is the same as escaping once; text that is clean stays as it is, so
// that commands can be copied.
func Escape(s string) string {
	if printable(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			writeHex(&b, `\x`, rune(s[i]), 2)
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			writeEscape(&b, r)
		}
		i += size
	}
	return b.String()
}

func printable(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}

func writeEscape(b *strings.Builder, r rune) {
	switch {
	case r == '\n':
		b.WriteString(`\n`)
	case r == '\r':
		b.WriteString(`\r`)
	case r == '\t':
		b.WriteString(`\t`)
	case r < 0x80:
		writeHex(b, `\x`, r, 2)
	case r <= 0xffff:
		writeHex(b, `\u`, r, 4)
	default:
		writeHex(b, `\U`, r, 8)
	}
}

func writeHex(b *strings.Builder, prefix string, r rune, digits int) {
	hex := strconv.FormatInt(int64(r), 16)
	b.WriteString(prefix)
	for range digits - len(hex) {
		b.WriteByte('0')
	}
	b.WriteString(hex)
}

// escapeJSON escapes the same characters in finished, compact JSON. They can
// stand only inside strings there, where RFC 8259, section 7, allows \uXXXX for
// any character, so the values stay what they were.
func escapeJSON(line []byte) []byte {
	s := string(line)
	if printable(s) {
		return line
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r <= 0xffff:
			writeHex(&b, `\u`, r, 4)
		default:
			high, low := utf16.EncodeRune(r)
			writeHex(&b, `\u`, high, 4)
			writeHex(&b, `\u`, low, 4)
		}
	}
	return []byte(b.String())
}
