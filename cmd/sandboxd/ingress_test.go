package main

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestIngressFlags(t *testing.T) {
	for args, want := range map[string]string{
		"": "",
		"--domain a.example --ingress-tls-cert c --ingress-tls-key k --ingress-http-listen :80": "",
		"--domain a.example --acme --acme-agree-terms":                                          "",
		"--domain a.example --acme --acme-agree-terms --acme-rfc2136 ns --acme-tsig-file k":     "",
		"--domain a.example":                                                              "--domain needs certificates",
		"--domain a.example --ingress-tls-cert c":                                         "--domain needs certificates",
		"--ingress-tls-cert c":                                                            "--ingress-tls-cert needs --domain",
		"--ingress-listen :1":                                                             "--ingress-listen needs --domain",
		"--ingress-http-listen :1":                                                        "--ingress-http-listen needs --domain",
		"--acme --acme-agree-terms":                                                       "--acme needs --domain",
		"--acme-tsig-file k --acme-ca u --acme-dns-hook h":                                "--acme-ca needs --acme",
		"--domain a.example --acme":                                                       "--acme needs --acme-agree-terms",
		"--domain a.example --acme --ingress-tls-key k":                                   "exclude each other",
		"--publish-ports 5-1":                                                             "--publish-ports",
		"--domain a.example --acme --acme-agree-terms --acme-rfc2136 ns":                  "--acme-rfc2136 and --acme-tsig-file need each other",
		"--domain a.example --acme --acme-agree-terms --acme-tsig-file k":                 "--acme-rfc2136 and --acme-tsig-file need each other",
		"--domain a.example --acme --acme-agree-terms --acme-dns-hook h --acme-rfc2136 n": "--acme-dns-hook and --acme-rfc2136 exclude",
		"--domain a.example --acme --acme-agree-terms --acme-resolver r":                  "--acme-resolver needs",
	} {
		var o ingressOptions
		f := pflag.NewFlagSet("serve", pflag.ContinueOnError)
		o.flags(f)
		if err := f.Parse(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		err := o.check(f.Changed)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
}
