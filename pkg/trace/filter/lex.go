package filter

import (
	"strings"
	"unicode/utf8"
)

type tokenKind uint8

const (
	tokenEnd tokenKind = iota
	tokenWord
	tokenOpen
	tokenClose
	tokenNot
	tokenAnd
	tokenOr
)

// token is a piece of the expression and where it starts.
type token struct {
	kind   tokenKind
	text   string // as written
	word   string // in lower case, for tokenWord
	offset int    // in bytes
}

// is reports whether the token is the given keyword.
func (t token) is(keyword string) bool { return t.kind == tokenWord && t.word == keyword }

// String returns the token as errors name it.
func (t token) String() string {
	if t.kind == tokenEnd {
		return "the end"
	}
	return quote(t.text)
}

// lex splits an expression; the last token is tokenEnd.
func lex(input string) ([]token, error) {
	var tokens []token
	for i := 0; i < len(input); {
		switch c := input[i]; c {
		case ' ', '\t', '\n', '\r':
			i++
			continue
		case '(':
			tokens = append(tokens, token{kind: tokenOpen, text: "(", offset: i})
		case ')':
			tokens = append(tokens, token{kind: tokenClose, text: ")", offset: i})
		case '!':
			tokens = append(tokens, token{kind: tokenNot, text: "!", offset: i})
		case '&', '|':
			if i+1 >= len(input) || input[i+1] != c {
				return nil, syntaxError(input, i, "expected "+quote(input[i:i+1]+input[i:i+1])+", got "+quote(input[i:i+1]))
			}
			kind := tokenAnd
			if c == '|' {
				kind = tokenOr
			}
			tokens = append(tokens, token{kind: kind, text: input[i : i+2], offset: i})
			i++
		default:
			end := i + strings.IndexAny(input[i:]+" ", " \t\n\r()!&|")
			tokens = append(tokens, wordToken(input[i:end], i))
			i = end
			continue
		}
		i++
	}
	return append(tokens, token{offset: len(input)}), nil
}

// wordToken tells the operators that are words from the other words.
func wordToken(text string, offset int) token {
	t := token{kind: tokenWord, text: text, word: strings.ToLower(text), offset: offset}
	switch t.word {
	case "not":
		t.kind = tokenNot
	case "and":
		t.kind = tokenAnd
	case "or":
		t.kind = tokenOr
	}
	return t
}

func syntaxError(input string, offset int, reason string) *SyntaxError {
	return &SyntaxError{Column: utf8.RuneCountInString(input[:offset]) + 1, Reason: reason}
}
