package api

import (
	"encoding/binary"
	"math/bits"
	"unicode/utf16"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// Words of eight equal bytes, to check eight bytes at once.
const (
	lowBits  = 0x0101010101010101
	highBits = 0x8080808080808080
)

// plainPrefix returns the number of bytes at the start of s that need no escape in a
// JSON string: printable ASCII except the quote and the backslash.
func plainPrefix(s []byte) int {
	n := 0
	for len(s)-n >= 8 {
		if m := special(binary.LittleEndian.Uint64(s[n:])); m != 0 {
			return n + bits.TrailingZeros64(m)/8
		}
		n += 8
	}
	for n < len(s) && s[n] >= 0x20 && s[n] < 0x80 && s[n] != '"' && s[n] != '\\' {
		n++
	}
	return n
}

// special sets the high bit of the first byte of w that needs an escape. Higher bits may
// be wrong, because the subtractions borrow upwards.
func special(w uint64) uint64 {
	quote := w ^ lowBits*'"'
	slash := w ^ lowBits*'\\'
	control := (w - lowBits*0x20) &^ w
	equal := (quote-lowBits)&^quote | (slash-lowBits)&^slash
	return (control | equal | w) & highBits
}

// appendEscaped appends s as the inside of a JSON string, in ASCII. The public
// TypeScript client decodes each piece that it reads from the network separately, and
// breaks a character that is split between two. Bytes that are not UTF-8 become
// U+FFFD.
func appendEscaped(dst, s []byte) []byte {
	for len(s) > 0 {
		n := plainPrefix(s)
		dst = append(dst, s[:n]...)
		if s = s[n:]; len(s) == 0 {
			break
		}
		if s[0] >= utf8.RuneSelf {
			r, size := utf8.DecodeRune(s)
			dst = appendRune(dst, r)
			s = s[size:]
			continue
		}
		dst = appendControl(dst, s[0])
		s = s[1:]
	}
	return dst
}

// appendControl appends the escape of a quote, a backslash or a control
// character.
func appendControl(dst []byte, b byte) []byte {
	switch b {
	case '"', '\\':
		return append(dst, '\\', b)
	case '\n':
		return append(dst, '\\', 'n')
	case '\r':
		return append(dst, '\\', 'r')
	case '\t':
		return append(dst, '\\', 't')
	}
	return append(dst, '\\', 'u', '0', '0', hexDigits[b>>4], hexDigits[b&15])
}

// appendRune appends r as one or two \u escapes.
func appendRune(dst []byte, r rune) []byte {
	if high, low := utf16.EncodeRune(r); high != utf8.RuneError {
		return appendUnit(appendUnit(dst, high), low)
	}
	return appendUnit(dst, r)
}

func appendUnit(dst []byte, u rune) []byte {
	return append(dst, '\\', 'u', hexDigits[u>>12&15], hexDigits[u>>8&15], hexDigits[u>>4&15], hexDigits[u&15])
}

// appendASCII appends valid JSON with non-ASCII characters escaped. These can only be
// in strings.
func appendASCII(dst, json []byte) []byte {
	for len(json) > 0 {
		r, size := utf8.DecodeRune(json)
		if r < utf8.RuneSelf {
			dst = append(dst, json[0])
		} else {
			dst = appendRune(dst, r)
		}
		json = json[size:]
	}
	return dst
}

// incompleteTail returns the number of bytes at the end of s that are the beginning of
// an incomplete character: 0 to 3.
func incompleteTail(s []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(s); n++ {
		if tail := s[len(s)-n:]; utf8.RuneStart(tail[0]) {
			if utf8.FullRune(tail) {
				return 0
			}
			return n
		}
	}
	return 0
}
