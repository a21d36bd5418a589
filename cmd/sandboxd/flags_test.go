package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFlags has serve refuse flags before it makes anything.
func TestFlags(t *testing.T) {
	const acme = "--domain a.example --acme --acme-agree-terms "
	for _, c := range []struct{ args, want string }{
		{"--ingress-listen :1", "--ingress-listen needs --domain"},
		{"--ingress-port 1", "--ingress-port needs --domain"},
		{"--ingress-http-listen :80", "--ingress-http-listen needs --domain"},
		{"--ingress-tls-cert c --ingress-tls-key k", "--ingress-tls-cert needs --domain"},
		{"--ingress-tls-key k", "--ingress-tls-key needs --domain"},
		{"--acme", "--acme needs --domain"},
		{"--domain a.example --acme", "--acme needs --acme-agree-terms: read the terms of service of the authority first"},
		{"--domain a.example", "--domain needs certificates: --ingress-tls-cert and --ingress-tls-key, or --acme"},
		{"--domain a.example --ingress-tls-cert c", "--domain needs certificates: --ingress-tls-cert and --ingress-tls-key, or --acme"},
		{"--domain A.example --ingress-tls-cert c --ingress-tls-key k", `ingress: "A.example" is no domain in lower case`},
		{"--publish-ports 9-1", `--publish-ports "9-1" is not of the form FIRST-LAST, such as 20000-29999`},
		{"--acme-agree-terms", "--acme-agree-terms needs --acme"},
		{"--acme-ca https://ca.example/", "--acme-ca needs --acme"},
		{"--acme-resolver r --acme-tsig-file f --acme-rfc2136 s --acme-dns-hook h --acme-ca-root r --acme-email e", "--acme-email needs --acme"},
		{"--acme-ca-root r", "--acme-ca-root needs --acme"},
		{"--acme-dns-hook h", "--acme-dns-hook needs --acme"},
		{"--acme-rfc2136 s", "--acme-rfc2136 needs --acme"},
		{"--acme-tsig-file f", "--acme-tsig-file needs --acme"},
		{"--acme-resolver r", "--acme-resolver needs --acme"},
		{"--acme-eab-kid k", "--acme-eab-kid needs --acme"},
		{"--acme-eab-key-file k", "--acme-eab-key-file needs --acme"},
		{acme + "--ingress-tls-cert c", "--acme and --ingress-tls-cert exclude each other"},
		{acme + "--ingress-tls-key k", "--acme and --ingress-tls-key exclude each other"},
		{acme + "--acme-dns-hook h --acme-rfc2136 s --acme-tsig-file f", "--acme-dns-hook and --acme-rfc2136 exclude each other"},
		{acme + "--acme-rfc2136 s", "--acme-rfc2136 needs --acme-tsig-file"},
		{acme + "--acme-tsig-file f", "--acme-tsig-file needs --acme-rfc2136"},
		{acme + "--acme-resolver r", "--acme-resolver needs --acme-dns-hook or --acme-rfc2136"},
		{acme + "--acme-eab-kid k", "--acme-eab-kid needs --acme-eab-key-file"},
		{acme + "--acme-eab-key-file k", "--acme-eab-key-file needs --acme-eab-kid"},
	} {
		var o serveOptions
		cmd := newServe()
		o.state = filepath.Join(t.TempDir(), "state")
		cmd.ResetFlags()
		o.ingress.flags(cmd.Flags())
		if err := cmd.ParseFlags(strings.Fields(c.args)); err != nil {
			t.Fatal(err)
		}
		if err := o.main(cmd); err == nil || err.Error() != c.want {
			t.Errorf("%s: %v, want %s", c.args, err, c.want)
		}
		if _, err := os.Stat(o.state); err == nil {
			t.Errorf("%s: there is a state folder", c.args)
		}
	}
}
