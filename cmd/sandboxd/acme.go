package main

import (
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"os"

	"github.com/spf13/pflag"

	"github.com/skerry-dev/skerry/internal/acme"
)

// acmeOptions are the flags about certificates of an ACME authority.
type acmeOptions struct {
	on, agreed        bool
	email, ca, root   string
	hook, server, key string
	resolver          string
	eabID, eabFile    string
}

func (o *acmeOptions) flags(f *pflag.FlagSet) {
	f.BoolVar(&o.on, "acme", false, "get the certificates of --domain from an ACME authority, and renew them; for all names at once with --acme-dns-hook or --acme-rfc2136, otherwise for each published port when it is first reached (port 443 must lead to --ingress-listen)")
	f.BoolVar(&o.agreed, "acme-agree-terms", false, "agree to the authority's terms of service; --acme needs it")
	f.StringVar(&o.email, "acme-email", "", "address at which the authority may reach you")
	f.StringVar(&o.ca, "acme-ca", acme.DefaultCA, "URL of the authority's directory")
	f.StringVar(&o.root, "acme-ca-root", "", "PEM file with the certificates that the authority's own TLS is trusted by (default: the system's)")
	f.StringVar(&o.hook, "acme-dns-hook", "", "program that sets DNS records, called as PROGRAM present|cleanup NAME VALUE with PATH as its whole environment; it has 2 minutes")
	f.StringVar(&o.server, "acme-rfc2136", "", "DNS server, HOST[:PORT], that takes dynamic updates, in the place of a hook")
	f.StringVar(&o.key, "acme-tsig-file", "", "file with the key of these updates: ALGORITHM:NAME:SECRET, readable by its owner alone")
	f.StringVar(&o.resolver, "acme-resolver", "", "DNS server, HOST:PORT, that is asked whether a record is there (default: the domain's own)")
	f.StringVar(&o.eabID, "acme-eab-kid", "", "id of the key with which the authority knows whose account it is (external account binding), if it wants one")
	f.StringVar(&o.eabFile, "acme-eab-key-file", "", "file with that key in base64url, as the authority has given it, readable by its owner alone")
}

func (o *acmeOptions) open(domain, dir string, at net.Addr, plain net.Listener, log *slog.Logger) (*acme.Certificates, error) {
	cfg := acme.Config{Log: log, Dir: dir, Domain: domain, CA: o.ca, Email: o.email, Resolver: o.resolver, Listener: at}
	if plain != nil && o.hook == "" && o.server == "" {
		cfg.HTTPListener = plain.Addr()
	}
	var err error
	if o.eabID != "" {
		if cfg.Binding, err = acme.ReadBinding(o.eabID, o.eabFile); err != nil {
			return nil, err
		}
	}
	switch {
	case o.hook != "":
		cfg.DNS, err = acme.NewHook(o.hook, log)
	case o.server != "":
		cfg.DNS, err = acme.NewUpdate(o.server, o.key)
	}
	if err != nil {
		return nil, err
	}
	if o.root != "" {
		b, err := os.ReadFile(o.root)
		if err != nil {
			return nil, fmt.Errorf("--acme-ca-root: %w", err)
		}
		if cfg.Roots = x509.NewCertPool(); !cfg.Roots.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("--acme-ca-root: %s has no certificate", o.root)
		}
	}
	return acme.Open(cfg)
}
