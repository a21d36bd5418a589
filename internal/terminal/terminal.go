// Package terminal makes text safe to print on a terminal.
package terminal

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Clean makes text from outside safe for a terminal: it replaces control characters, which
// could move the cursor or worse.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || (r >= '\u202a' && r <= '\u202e') || (r >= '\u2066' && r <= '\u2069') {
			return utf8.RuneError
		}
		return r
	}, s)
}
