package skerry

import (
	"crypto/rand"
	"encoding/base32"
	"strings"
)

// idEncoding has no characters that are mistaken for one another and survives
// being a DNS label, a file name and a URL path segment.
var idEncoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// The prefixes of the ids of each kind of thing.
const (
	PrefixSandbox  = "sb_"
	PrefixSession  = "sbx_"
	PrefixCommand  = "cmd_"
	PrefixSnapshot = "snap_"
	PrefixDrive    = "drv_"
	PrefixTeam     = "team_"
	PrefixProject  = "prj_"
	PrefixToken    = "tok_"
)

// NewID returns a fresh random id, 120 bits behind the prefix.
func NewID(prefix string) string {
	var b [15]byte
	rand.Read(b[:])
	return prefix + idEncoding.EncodeToString(b[:])
}

// ValidID reports whether id has the form of NewID(prefix). It is checked
// before an id from outside is used to name a file or a cgroup.
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
