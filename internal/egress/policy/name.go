package policy

import (
	"errors"
	"net/netip"
	"strings"

	"golang.org/x/net/idna"
)

// Limits of DNS for a name in text.
const (
	maxName  = 253
	maxLabel = 63
)

// Normalize returns the form in which names are compared: lower case, ASCII,
// without a final dot. It refuses what is no name of a host, IP addresses in
// any of their spellings among it.
func Normalize(name string) (string, error) { return normalize(name, false) }

func normalize(name string, wildcards bool) (string, error) {
	if len(name) > 4*maxName {
		return "", errors.New("too long for a domain name")
	}
	name = strings.TrimSuffix(name, ".")
	if !ascii(name) {
		a, err := idna.Lookup.ToASCII(name)
		if err != nil {
			return "", errors.New("no valid domain name")
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
	if numeric(last) {
		return "", errors.New("an IP address is no domain name (see subnets)")
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
			return errors.New(`"*" stands for a whole label`)
		default:
			return errors.New("a domain name has letters, digits, \"-\", \"_\" and \".\" only")
		}
	}
	return nil
}

// numeric reports whether a name with this last label could be taken for an IPv4
// address, as programs do that read 0x7f.1 as 127.0.0.1.
func numeric(last string) bool {
	if _, err := netip.ParseAddr(last); err == nil {
		return true
	}
	digits, hex := strings.CutPrefix(last, "0x")
	for i := range len(digits) {
		c := digits[i]
		if ('0' > c || c > '9') && (!hex || 'a' > c || c > 'f') {
			return false
		}
	}
	return true
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
