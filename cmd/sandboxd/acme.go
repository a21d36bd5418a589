package main

import (
	"crypto/x509"
	"errors"
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
}

// check refuses what contradicts itself.
func (o *acmeOptions) check(i *ingressOptions) error {
	if !o.on {
		for name, value := range map[string]string{
			"--acme-email": o.email, "--acme-ca-root": o.root, "--acme-dns-hook": o.hook, "--acme-rfc2136": o.server,
			"--acme-tsig-file": o.key, "--acme-resolver": o.resolver,
		} {
			if value != "" {
				return fmt.Errorf("%s needs --acme", name)
			}
		}
		return nil
	}
	switch {
	case i.domain == "":
		return errors.New("--acme needs --domain")
	case i.certFile != "" || i.keyFile != "":
		return errors.New("--acme and --ingress-tls-cert, --ingress-tls-key exclude each other")
	case !o.agreed:
		return errors.New("--acme needs --acme-agree-terms: read the terms of service of the authority first")
	case o.hook != "" && o.server != "":
		return errors.New("--acme-dns-hook and --acme-rfc2136 exclude each other")
	case (o.server == "") != (o.key == ""):
		return errors.New("--acme-rfc2136 and --acme-tsig-file need each other")
	case o.resolver != "" && o.hook == "" && o.server == "":
		return errors.New("--acme-resolver needs --acme-dns-hook or --acme-rfc2136")
	}
	return nil
}

func (o *acmeOptions) open(domain, dir string, at net.Addr, log *slog.Logger) (*acme.Certificates, error) {
	cfg := acme.Config{Log: log, Dir: dir, Domain: domain, CA: o.ca, Email: o.email, Resolver: o.resolver, Listener: at}
	var err error
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
