package policy

import (
	"errors"
	"strings"

	"golang.org/x/net/idna"

	"github.com/skerry-dev/skerry"
)

const (
	maxName  = skerry.MaxDomainLength
	maxLabel = skerry.MaxLabelLength
)

// Normalize returns the form in which names are compared: lower case, ASCII,
// without a final dot. It refuses what is not the name of a host, including IP
// addresses in any spelling. It is for names that a sandbox asks for, which may be
// written in more ways than skerry.ParseDomain accepts in a policy: in Unicode, or
// with a hyphen at the edge of a label.
func Normalize(name string) (string, error) { return normalize(name, false) }

func normalize(name string, wildcards bool) (string, error) {
	if len(name) > 4*maxName {
		return "", errors.New("is too long for a domain name")
	}
	name = strings.TrimSuffix(name, ".")
	if !ascii(name) {
		a, err := idna.Lookup.ToASCII(name)
		if err != nil {
			return "", errors.New("is not a valid domain name")
		}
		name = a
	}
	name = lower(name)
	if name == "" || len(name) > maxName {
		return "", errors.New("a domain name has 1 to 253 bytes")
	}
	last := ""
	for label := range strings.SplitSeq(name, ".") {
		if err := checkLabel(label, wildcards); err != nil {
			return "", err
		}
		last = label
	}
	if skerry.AddressLabel(last) {
		return "", errors.New("an IP address is not a domain name (see subnets)")
	}
	return name, nil
}

func checkLabel(label string, wildcards bool) error {
	if label == "" || len(label) > maxLabel {
		return errors.New("a label of a domain name has 1 to 63 bytes")
	}
	if wildcards && label == "*" {
		return nil
	}
	for i := range len(label) {
		switch c := label[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		case c == '*' && wildcards:
			return errors.New(`"*" must stand for a whole label`)
		default:
			return errors.New("a domain name may contain only letters, digits, \"-\", \"_\" and \".\"")
		}
	}
	return nil
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// lower is about ASCII alone and keeps a string that needs no change.
func lower(s string) string {
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'Z' {
			return strings.ToLower(s)
		}
	}
	return s
}
