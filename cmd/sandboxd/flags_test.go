package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/usage"
)

// TestFlags has serve refuse flags before it makes anything.
func TestFlags(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	const acme = "--domain a.example --acme --acme-agree-terms "
	const tlsACME = "--tls-acme --acme-agree-terms --public-url https://api.example.com "
	dir := t.TempDir()
	cert, key := writePair(t, dir, "a", "api.example.com")
	_, otherKey := writePair(t, dir, "b", "api.example.com")
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
		{"--domain A.example --ingress-tls-cert c --ingress-tls-key k", `--domain: "A.example" is not a domain name in lower case`},
		{"--publish-ports 9-1", `--publish-ports "9-1" is not of the form FIRST-LAST, such as 20000-29999`},
		{"--acme-agree-terms", "--acme-agree-terms needs --acme or --tls-acme"},
		{"--acme-ca https://ca.example/", "--acme-ca needs --acme or --tls-acme"},
		{"--acme-resolver r --acme-tsig-file f --acme-rfc2136 s --acme-dns-hook h --acme-ca-root r --acme-email e", "--acme-email needs --acme or --tls-acme"},
		{"--acme-ca-root r", "--acme-ca-root needs --acme or --tls-acme"},
		{"--acme-dns-hook h", "--acme-dns-hook needs --acme or --tls-acme"},
		{"--acme-rfc2136 s", "--acme-rfc2136 needs --acme or --tls-acme"},
		{"--acme-tsig-file f", "--acme-tsig-file needs --acme or --tls-acme"},
		{"--acme-resolver r", "--acme-resolver needs --acme or --tls-acme"},
		{"--acme-eab-kid k", "--acme-eab-kid needs --acme or --tls-acme"},
		{"--allow-private here", `--allow-private "here": not a network such as 10.1.0.0/16`},
		{"--allow-private 10.1.0.0/16,10.2.3.4/16", `--allow-private "10.2.3.4/16": 10.2.3.4/16 has bits beyond its prefix; the network is 10.2.0.0/16`},
		{"--allow-private 10.1.2.3 --allow-private fd00::/8", `--allow-private "fd00::/8": fd00::/8 is not IPv4, and sandboxes have no IPv6`},
		{"--allow-private 127.0.0.1", `--allow-private "127.0.0.1": no sandbox may ever reach 127.0.0.1/32 (it is in 127.0.0.0/8)`},
		{"--acme-eab-key-file k", "--acme-eab-key-file needs --acme or --tls-acme"},
		{acme + "--ingress-tls-cert c", "--acme and --ingress-tls-cert exclude each other"},
		{acme + "--ingress-tls-key k", "--acme and --ingress-tls-key exclude each other"},
		{acme + "--acme-dns-hook h --acme-rfc2136 s --acme-tsig-file f", "--acme-dns-hook and --acme-rfc2136 exclude each other"},
		{acme + "--acme-rfc2136 s", "--acme-rfc2136 needs --acme-tsig-file"},
		{acme + "--acme-tsig-file f", "--acme-tsig-file needs --acme-rfc2136"},
		{acme + "--acme-resolver r", "--acme-resolver needs --acme-dns-hook or --acme-rfc2136"},
		{acme + "--acme-eab-kid k", "--acme-eab-kid needs --acme-eab-key-file"},
		{acme + "--acme-eab-key-file k", "--acme-eab-key-file needs --acme-eab-kid"},
		{"--disk 0", "--disk must be 1 to 16384 GiB, not 0"},
		{"--idle often", `--idle must be default, never, pause or hibernate, not "often"`},
		{"--idle pause --idle-pause 0", "--idle pause has no effect with --idle-pause 0, which pauses no sandbox"},
		{"--idle hibernate --idle-pause 0", "--idle hibernate has no effect with --idle-pause 0, which pauses no sandbox"},
		{"--idle-hibernate 1h --idle-pause 0", "--idle-hibernate has no effect with --idle-pause 0, which pauses no sandbox"},
		{"--idle-hibernate 721h", "--idle-hibernate must be 0s to 720h, not 721h0m0s"},
		{"--idle-pause 25h", "--idle-pause must be 0s to 24h, not 25h0m0s"},
		{"--heartbeat 1ms", "--heartbeat must be 100ms to 1h, not 1ms"},
		{"--overcommit-cpu nan", "--overcommit-cpu must be 0 to 1000000, not NaN"},
		{"--max-vcpus 3", "--max-vcpus must be a power of two, as the number of a sandbox's vCPUs is, not 3"},
		{"--drive-size 6 --max-drive-size 5", "--drive-size must be at most --max-drive-size, 5 GiB, not 6"},
		{"--public-url foo", `--public-url "foo" is not a URL such as https://skerry.example.com`},
		{"--public-url http://:80", `--public-url "http://:80" is not a URL such as https://skerry.example.com`},
		{"--oidc-issuer https://a.example/?b", `--oidc-issuer "https://a.example/?b" is not a URL such as https://skerry.example.com`},
		{"--s3-endpoint s3.example", `--s3-endpoint "s3.example" is not a URL such as https://skerry.example.com`},
		{"--listen 7700", `--listen "7700" is not of the form HOST:PORT, such as 127.0.0.1:7700 or :443`},
		{"--listen 127.0.0.1:http", `--listen "127.0.0.1:http" is not of the form HOST:PORT, such as 127.0.0.1:7700 or :443`},
		{"--listen 0.0.0.0:7700", `--listen "0.0.0.0:7700" is not a loopback address: tokens would cross the network in the clear; give --tls-cert and --tls-key, or --tls-acme, or, behind a proxy that terminates TLS, --allow-plaintext`},
		{acme + "--acme-dns-hook h --acme-resolver r", `--acme-resolver "r" is not of the form HOST:PORT, such as 127.0.0.1:7700 or :443`},
		{"--s3-endpoint https://s3.example.com", "--s3-endpoint needs --s3-bucket"},
		{"--s3-region r", "--s3-region needs --s3-bucket"},
		{"--s3-prefix p", "--s3-prefix needs --s3-bucket"},
		{"--s3-bucket b", "--s3-bucket needs credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"},
		{"--tls-cert c", "--tls-cert and --tls-key need each other"},
		{"--tls-key k", "--tls-cert and --tls-key need each other"},
		{"--tls-acme --acme-agree-terms", "--tls-acme needs --public-url"},
		{tlsACME + "--tls-cert c --tls-key k", "--tls-acme and --tls-cert exclude each other"},
		{tlsACME + "--tls-key k", "--tls-acme and --tls-key exclude each other"},
		{"--tls-acme --public-url https://api.example.com", "--tls-acme needs --acme-agree-terms: read the terms of service of the authority first"},
		{tlsACME + "--acme-rfc2136 s", "--acme-rfc2136 needs --acme-tsig-file"},
		{tlsACME + "--acme-resolver 1.1.1.1:53", "--acme-resolver needs --acme-dns-hook or --acme-rfc2136"},
		{tlsACME + "--acme-ca-root /nowhere", "--acme-ca-root /nowhere: no such file or directory"},
		{tlsACME + "--public-url http://api.example.com", `--tls-acme needs a --public-url of the form https://HOST with a domain name in lower case, not "http://api.example.com"`},
		{tlsACME + "--public-url https://192.0.2.1", `--tls-acme needs a --public-url of the form https://HOST with a domain name in lower case, not "https://192.0.2.1"`},
		{tlsACME + "--public-url https://[2001:db8::1]:1", `--tls-acme needs a --public-url of the form https://HOST with a domain name in lower case, not "https://[2001:db8::1]:1"`},
		{tlsACME + "--public-url https://localhost", `--tls-acme needs a --public-url of the form https://HOST with a domain name in lower case, not "https://localhost"`},
		{tlsACME + "--public-url https://API.example.com", `--tls-acme needs a --public-url of the form https://HOST with a domain name in lower case, not "https://API.example.com"`},
		{"--allowed-host a.example:80", `--allowed-host "a.example:80" must be a host name or an IP address, without a port`},
		{"--allowed-host a.example,*", `--allowed-host "*" must be a host name or an IP address, without a port`},
		{"--cors-origin *", `--cors-origin "*" must be a scheme, a host and perhaps a port in lower case, such as https://app.example.com`},
		{"--cors-origin null", `--cors-origin "null" must be a scheme, a host and perhaps a port in lower case, such as https://app.example.com`},
		{"--cors-origin https://a.example --cors-origin https://b.example/", `--cors-origin "https://b.example/" must be a scheme, a host and perhaps a port in lower case, such as https://app.example.com`},
		{"--cors-origin https://a.example:443", `--cors-origin "https://a.example:443" must have a port that is a number, and not the usual one of the scheme, which browsers leave out`},
		{"--metrics-listen 7702", `--metrics-listen "7702" is not of the form HOST:PORT, such as 127.0.0.1:7700 or :443`},
		{"--otlp-endpoint collector:4318", "--otlp-endpoint: not a URL such as http://127.0.0.1:4318"},
		{"--otlp-endpoint http://user:word@collector", "--otlp-endpoint: a URL with a password; put credentials into OTEL_EXPORTER_OTLP_HEADERS"},
		{"--audit some", `--audit must be changes, all or off, not "some"`},
		{"--audit off --audit-required", "--audit-required has no effect with --audit off"},
		{"--audit off --audit-file -", "--audit-file has no effect with --audit off"},
		{"--audit off --audit-otlp http://c", "--audit-otlp has no effect with --audit off"},
		{"--audit-file log", `--audit-file must be an absolute path or "-", not "log"`},
		{"--audit-otlp collector:4318", "--audit-otlp: not a URL such as http://127.0.0.1:4318"},
		{"--audit-otlp http://user:word@collector", "--audit-otlp: a URL with a password; put credentials into OTEL_EXPORTER_OTLP_HEADERS"},
		{"--audit-keep-days 0", "--audit-keep-days must be 1 to 36500, not 0"},
		{"--pprof-listen 0.0.0.0:7703", `--pprof-listen "0.0.0.0:7703" is not a loopback address, such as 127.0.0.1:7703`},
		{"--pprof-listen skerry.example.com:7703", `--pprof-listen "skerry.example.com:7703" is not a loopback address, such as 127.0.0.1:7703`},
		{"--publish-host a_b", `--publish-host "a_b" is neither an address nor a host name`},
		{"--publish-address 1.2.3.4:5", `--publish-address "1.2.3.4:5" is neither an address nor a host name`},
		{"--network here", `--network "here": not an IPv4 network such as 10.201.0.0/16`},
		{"--network 8.8.8.0/16", `--network "8.8.8.0/16": 8.8.8.0/16 has bits beyond its prefix; the network is 8.8.0.0/16`},
		{"--network fd00::/16", `--network "fd00::/16": sandboxes have no IPv6; give an IPv4 network such as 10.201.0.0/16`},
		{"--network 10.0.0.0/8", `--network "10.0.0.0/8": must be from /14 to /28, is /8`},
		{"--resolver fd00::1", `--resolver "fd00::1" is not an IPv4 address`},
		{"--network-log log", `--network-log must be an absolute path or "-", not "log"`},
		{"--run-dir run", `--run-dir must be an absolute path, not "run"`},
		{"--sandbox-env /nowhere", "--sandbox-env /nowhere: no such file or directory"},
		{"--sandbox-ca /", "--sandbox-ca /: it is a folder"},
		{"--tls-cert /nowhere --tls-key /nowhere", "--tls-cert /nowhere: no such file or directory"},
		{"--tls-cert " + cert + " --tls-key /", "--tls-key /: it is a folder"},
		{"--tls-cert " + cert + " --tls-key " + otherKey, "--tls-cert, --tls-key: " + cert + " with the key " + otherKey + ": tls: private key does not match public key"},
		{"--tls-cert " + cert + " --tls-key " + os.DevNull, "--tls-cert, --tls-key: " + os.DevNull + " is not a regular file"},
		{"--tls-cert " + key + " --tls-key " + cert, "--tls-cert, --tls-key: " + key + " with the key " + cert + ": tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have been switched"},
		{"--domain a.example --ingress-tls-cert " + cert + " --ingress-tls-key " + otherKey, "--ingress-tls-cert, --ingress-tls-key: " + cert + " with the key " + otherKey + ": tls: private key does not match public key"},
	} {
		var o serveOptions
		cmd := newServe()
		o.state = filepath.Join(t.TempDir(), "state")
		cmd.ResetFlags()
		o.flags(cmd.Flags())
		if err := cmd.ParseFlags(strings.Fields(c.args)); err != nil {
			t.Fatal(err)
		}
		err := o.main(cmd)
		if _, misused := errors.AsType[usage.Error](err); !misused || err.Error() != c.want {
			t.Errorf("%s: %v, want %s", c.args, err, c.want)
		}
		if _, err := os.Stat(o.state); err == nil {
			t.Errorf("%s: there is a state folder", c.args)
		}
	}
}

// TestBoundsOfFlags: every numeric flag of serve has bounds, its default is within
// them, and what is one step beyond them is refused.
func TestBoundsOfFlags(t *testing.T) {
	set := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	new(serveOptions).flags(set)
	numeric := map[string]bool{}
	set.VisitAll(func(f *pflag.Flag) {
		var beyond func(s string, by int64) string
		switch f.Value.Type() {
		case "int", "float64":
			beyond = func(s string, by int64) string {
				n, err := strconv.ParseInt(s, 10, 64)
				if err != nil {
					t.Errorf("--%s has the bound %q: %v", f.Name, s, err)
				}
				return strconv.FormatInt(n+by, 10)
			}
		case "duration":
			beyond = func(s string, by int64) string {
				d, err := time.ParseDuration(s)
				if err != nil {
					t.Errorf("--%s has the bound %q: %v", f.Name, s, err)
				}
				return (d + time.Duration(by)*time.Millisecond).String()
			}
		case "bool", "string", "stringSlice":
			return
		default:
			t.Errorf("--%s is a %s: say here whether it has bounds", f.Name, f.Value.Type())
			return
		}
		numeric[f.Name] = true
		b, is := bounds[f.Name]
		if !is {
			t.Errorf("--%s has no bounds", f.Name)
			return
		}
		for _, value := range []string{f.DefValue, b.least, b.most} {
			if err := errors.Join(f.Value.Set(value), checkBounds(f)); err != nil {
				t.Errorf("--%s %s: %v", f.Name, value, err)
			}
		}
		for _, value := range []string{beyond(b.least, -1), beyond(b.most, 1)} {
			if err := f.Value.Set(value); err != nil {
				t.Errorf("--%s %s: %v", f.Name, value, err)
			}
			want := "--" + f.Name + " must be " + b.least + " to " + b.most
			if err := checkBounds(f); err == nil || !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), "not "+f.Value.String()) {
				t.Errorf("--%s %s: %v", f.Name, value, err)
			}
		}
	})
	for name := range bounds {
		if !numeric[name] {
			t.Errorf("there is no numeric flag --%s", name)
		}
	}
	for _, name := range []string{"drive-size", "max-drive-size"} {
		if most := strconv.Itoa(skerry.MaxDriveSize >> 30); bounds[name].most != most {
			t.Errorf("--%s has the bound %s, and drives have %s GiB", name, bounds[name].most, most)
		}
	}
}
