// Package cgivar compares names of headers as servers do that pass them on as
// variables of CGI (RFC 3875): every character but letters and digits is "_" in
// them, and case does not count. What checks or removes a header must do so for all
// names that become the same variable.
package cgivar

// Same reports whether two names become the same variable.
func Same(a, b string) bool { return len(a) == len(b) && HasPrefix(a, b) }

// HasPrefix reports whether a name's variable begins with that of another.
func HasPrefix(name, prefix string) bool {
	if len(name) < len(prefix) {
		return false
	}
	for i := range len(prefix) {
		if fold(name[i]) != fold(prefix[i]) {
			return false
		}
	}
	return true
}

func fold(c byte) byte {
	switch {
	case 'A' <= c && c <= 'Z':
		return c + 'a' - 'A'
	case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		return c
	}
	return '_'
}
