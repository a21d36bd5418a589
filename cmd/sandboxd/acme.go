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
	f.BoolVar(&o.on, "acme", false, "get and renew the certificates of --domain from an ACME authority: one for all names with --acme-dns-hook or --acme-rfc2136, otherwise one for each published port at its first request (port 443 must lead to --ingress-listen)")
	f.BoolVar(&o.agreed, "acme-agree-terms", false, "agree to the authority's terms of service; --acme and --tls-acme need it")
	f.StringVar(&o.email, "acme-email", "", "email address for messages from the authority")
	f.StringVar(&o.ca, "acme-ca", acme.DefaultCA, "URL of the authority's directory")
	f.StringVar(&o.root, "acme-ca-root", "", "PEM file with the root certificates for TLS connections to the authority (default: the system's)")
	f.StringVar(&o.hook, "acme-dns-hook", "", "program that sets DNS records, called as PROGRAM present|cleanup NAME VALUE; its environment has only PATH, and it must finish within 2 minutes")
	f.StringVar(&o.server, "acme-rfc2136", "", "DNS server, HOST[:PORT], that accepts dynamic updates (RFC 2136), instead of --acme-dns-hook")
	f.StringVar(&o.key, "acme-tsig-file", "", "file with the TSIG key for --acme-rfc2136, as ALGORITHM:NAME:SECRET; only its owner may read it")
	f.StringVar(&o.resolver, "acme-resolver", "", "DNS server, HOST:PORT, for checking that a record exists (default: the domain's own servers)")
	f.StringVar(&o.eabID, "acme-eab-kid", "", "id of the key for external account binding, if the authority requires one")
	f.StringVar(&o.eabFile, "acme-eab-key-file", "", "file with the key for external account binding in base64url, as the authority issued it; only its owner may read it")
}

// open returns the certificates for the names below a domain, and for the API's host.
// Either may be empty. Names are proved at the listeners if no DNS records are set.
func (o *acmeOptions) open(domain, host, dir string, at net.Addr, plain net.Listener, log *slog.Logger) (*acme.Certificates, error) {
	cfg := acme.Config{Log: log, Dir: dir, Domain: domain, Host: host, CA: o.ca, Email: o.email, Resolver: o.resolver, Listener: at}
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
