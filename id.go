package skerry

import (
	"crypto/rand"
	"encoding/base32"
	"strings"
)

// idEncoding has no characters that look alike. Its strings can be DNS labels, file
// names and path segments of URLs.
var idEncoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// The prefixes of ids.
const (
	PrefixSandbox  = "sb_"
	PrefixSession  = "sbx_"
	PrefixCommand  = "cmd_"
	PrefixSnapshot = "snap_"
	PrefixDrive    = "drv_"
	PrefixTeam     = "team_"
	PrefixProject  = "prj_"
	PrefixUser     = "user_"
	PrefixToken    = "tok_"
)

// NewID returns a random id: the prefix and 120 bits.
func NewID(prefix string) string {
	var b [15]byte
	rand.Read(b[:])
	return prefix + idEncoding.EncodeToString(b[:])
}

// IDPattern is the regular expression of the ids with a prefix.
func IDPattern(prefix string) string { return "^" + prefix + "[0-9a-hjkmnp-tv-z]{24}$" }

// ValidID reports whether id has the form of NewID(prefix). Check an id from outside
// before it becomes the name of a file or a cgroup.
func ValidID(prefix, id string) bool {
	rest, ok := strings.CutPrefix(id, prefix)
	if !ok || len(rest) != 24 {
		return false
	}
	for _, c := range []byte(rest) {
		if !strings.ContainsRune("0123456789abcdefghjkmnpqrstvwxyz", rune(c)) {
			return false
		}
	}
	return true
}
