package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/skerry-dev/skerry/internal/ingress"
)

// needs are flags of the ingress and of TLS that mean nothing without one of
// others, in the order in which they are complained of.
var needs = []struct {
	flag  string
	oneOf []string
}{
	{"ingress-listen", []string{"domain"}},
	{"ingress-port", []string{"domain"}},
	{"ingress-http-listen", []string{"domain"}},
	{"ingress-tls-cert", []string{"domain"}},
	{"ingress-tls-key", []string{"domain"}},
	{"acme", []string{"domain"}},
	{"tls-acme", []string{"public-url"}},
	{"acme-agree-terms", []string{"acme", "tls-acme"}},
	{"acme-email", []string{"acme", "tls-acme"}},
	{"acme-ca", []string{"acme", "tls-acme"}},
	{"acme-ca-root", []string{"acme", "tls-acme"}},
	{"acme-dns-hook", []string{"acme", "tls-acme"}},
	{"acme-rfc2136", []string{"acme", "tls-acme"}},
	{"acme-tsig-file", []string{"acme", "tls-acme"}},
	{"acme-resolver", []string{"acme", "tls-acme"}},
	{"acme-eab-kid", []string{"acme", "tls-acme"}},
	{"acme-eab-key-file", []string{"acme", "tls-acme"}},
	{"acme-rfc2136", []string{"acme-tsig-file"}},
	{"acme-tsig-file", []string{"acme-rfc2136"}},
	{"acme-resolver", []string{"acme-dns-hook", "acme-rfc2136"}},
	{"acme-eab-kid", []string{"acme-eab-key-file"}},
	{"acme-eab-key-file", []string{"acme-eab-kid"}},
}

// excludes are such flags that contradict each other.
var excludes = [][2]string{
	{"acme", "ingress-tls-cert"},
	{"acme", "ingress-tls-key"},
	{"tls-acme", "tls-cert"},
	{"tls-acme", "tls-key"},
	{"acme-dns-hook", "acme-rfc2136"},
}

// check refuses flags that contradict each other or would be without effect.
// It touches nothing.
func (o *ingressOptions) check() error {
	for _, n := range needs {
		if !o.given(n.flag) {
			continue
		}
		found := false
		for _, other := range n.oneOf {
			found = found || o.given(other)
		}
		if !found {
			return fmt.Errorf("--%s needs --%s", n.flag, strings.Join(n.oneOf, " or --"))
		}
	}
	for _, e := range excludes {
		if o.given(e[0]) && o.given(e[1]) {
			return fmt.Errorf("--%s and --%s exclude each other", e[0], e[1])
		}
	}
	for _, flag := range []string{"acme", "tls-acme"} {
		if o.given(flag) && !o.acme.agreed {
			return fmt.Errorf("--%s needs --acme-agree-terms: read the terms of service of the authority first", flag)
		}
	}
	switch {
	case o.domain == "":
		_, _, err := portRange(o.ports)
		return err
	case !o.acme.on && (o.certFile == "" || o.keyFile == ""):
		return errors.New("--domain needs certificates: --ingress-tls-cert and --ingress-tls-key, or --acme")
	}
	if err := ingress.CheckDomain(o.domain); err != nil {
		return fmt.Errorf("--domain: %w", err)
	}
	return nil
}
