package ingress

import (
	"fmt"
	"net"
	"strconv"
	"strings"
)

// CheckDomain refuses what no host name can end with.
func CheckDomain(domain string) error {
	bad := fmt.Errorf("%q is not a domain name in lower case", domain)
	if len(domain) > 200 || net.ParseIP(domain) != nil {
		return bad
	}
	for label := range strings.SplitSeq(domain, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return bad
		}
		for _, c := range label {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return bad
			}
		}
	}
	return nil
}

// subdomainOf returns the label of a Host header before the domain. Anything
// but one label of letters and digits, the domain, and maybe a port is nobody's.
func subdomainOf(host, domain string) (string, bool) {
	name, port, withPort := strings.Cut(host, ":")
	if withPort {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || strings.Trim(port, "0123456789") != "" {
			return "", false
		}
	}
	if len(name) <= len(domain)+1 {
		return "", false
	}
	label, rest := name[:len(name)-len(domain)-1], name[len(name)-len(domain)-1:]
	if rest[0] != '.' || !strings.EqualFold(rest[1:], domain) {
		return "", false
	}
	label = strings.ToLower(label)
	for _, c := range []byte(label) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return "", false
		}
	}
	return label, true
}

// portInURLs is ":PORT" unless that is the one of HTTPS.
func (i *Ingress) portInURLs() string {
	port := i.cfg.URLPort
	if addr, ok := i.cfg.Listener.Addr().(*net.TCPAddr); ok && port == 0 {
		port = addr.Port
	}
	if port == 0 || port == 443 {
		return ""
	}
	return ":" + strconv.Itoa(port)
}
