package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"hash/crc32"
	"strings"
)

// A token is Prefix, 39 random characters (195 bits) and 7 characters of a checksum
// (CRC-32, IEEE, of all that is before it), in base32. Prefix and checksum are for
// scanners that look for secrets in source code: they find tokens, and nothing else.
const (
	Prefix      = "skerry_"
	randomChars = 39
	sumChars    = 7
	tokenLength = len(Prefix) + randomChars + sumChars

	// oldPrefix is that of tokens of before, which have no checksum.
	oldPrefix = "sk_"
	oldLength = len(oldPrefix) + randomChars
)

// newToken makes a token.
func newToken() string {
	secret := Prefix + (rand.Text() + rand.Text())[:randomChars]
	return secret + checksum(secret)
}

var encoding = base32.StdEncoding.WithPadding(base32.NoPadding)

func checksum(s string) string {
	return encoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE([]byte(s))))
}

// wellFormed reports whether a text can be a token. What cannot is not looked for.
func wellFormed(token string) bool {
	switch len(token) {
	case tokenLength:
		secret := token[:tokenLength-sumChars]
		return strings.HasPrefix(token, Prefix) && token[len(secret):] == checksum(secret)
	case oldLength:
		return strings.HasPrefix(token, oldPrefix)
	}
	return false
}

// hash is plain SHA-256: a token has 195 random bits, so there is nothing that
// a slow hash would protect from guessing. Looking a token up by its hash is
// also what makes the comparison's timing tell nothing of the token.
func hash(token string) [sha256.Size]byte { return sha256.Sum256([]byte(token)) }
