package acme

import (
	"crypto/x509"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry/internal/acme/acmetest"
)

const host = "api.example.com"

// names are those of a certificate.
func names(cert *x509.Certificate) string { return strings.Join(cert.DNSNames, " ") }

// TestHost: the API's certificate is proved at its own listener, and is there for
// whatever name a client asks.
func TestHost(t *testing.T) {
	ln, port := listen(t)
	ca := acmetest.Start(t, acmetest.Options{TLSPort: port, Validity: 12})
	dir := t.TempDir()
	c := open(t, Config{Dir: dir, CA: ca.URL, Roots: ca.APIRoots(t), Listener: ln.Addr(), Host: host, check: 500 * time.Millisecond, retry: 100 * time.Millisecond})
	serveWith(t, ln, c, c.HostTLS())
	ca.SetDown(true) // the server is there before its authority
	c.Start(func(string) bool { return true })
	if _, err := shake(ln, host, ca.Roots); err == nil {
		t.Fatal("a handshake without a certificate")
	}
	ca.SetDown(false)
	first := await(t, ln, host, ca.Roots, anyOf)
	if names(first) != host {
		t.Errorf("it is for %s", names(first))
	}
	for _, name := range []string{"other.example.com", "aaaa.sandboxes.example.com", "127.0.0.1", "API.example.com"} {
		cert, err := shake(ln, name, ca.Roots)
		switch {
		case name == "API.example.com":
			if err != nil {
				t.Error(err)
			}
		case err == nil:
			t.Errorf("%s is served %s", name, names(cert))
		case !strings.Contains(err.Error(), "x509: "): // there was one, which does not fit
			t.Errorf("%s: the client gets no certificate: %v", name, err)
		}
	}
	await(t, ln, host, ca.Roots, func(cert *x509.Certificate) bool { return cert.SerialNumber.Cmp(first.SerialNumber) != 0 }) // renewed
	c.Close()
	if _, err := c.begin(host); err == nil {
		t.Error("a certificate is asked for after the end")
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if d != nil && strings.Contains(d.Name(), "sandboxes") {
			t.Errorf("there is %s", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestHandshakeWaitsForTheHost: the first client need not try again.
func TestHandshakeWaitsForTheHost(t *testing.T) {
	ln, port := listen(t)
	ca := acmetest.Start(t, acmetest.Options{TLSPort: port})
	c := open(t, Config{Dir: t.TempDir(), CA: ca.URL, Roots: ca.APIRoots(t), Listener: ln.Addr(), Host: host})
	serveWith(t, ln, c, c.HostTLS())
	release := ca.Hold()
	c.Start(func(string) bool { return false })
	shaken := make(chan error, 1)
	go func() { _, err := shake(ln, host, ca.Roots); shaken <- err }()
	release()
	if err := <-shaken; err != nil {
		t.Error(err)
	}
	if n := ca.Orders(); n > 2 { // one, and perhaps again with a fresh nonce
		t.Errorf("%d orders", n)
	}
}

// TestHostAndDomain: the ingress and the API share an account, and neither serves the
// other's names. The authority looks for all proofs at the ingress, which has port 443.
func TestHostAndDomain(t *testing.T) {
	ln, port := listen(t)
	api, _ := listen(t)
	ca := acmetest.Start(t, acmetest.Options{TLSPort: port})
	dir := t.TempDir()
	c, err := Open(Config{
		Log: slog.New(slog.DiscardHandler), Dir: dir, CA: ca.URL, Roots: ca.APIRoots(t), Listener: ln.Addr(), Host: host, Domain: "sandboxes.example.com",
	})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, ln, c)
	serveWith(t, api, c, c.HostTLS())
	c.Start(func(name string) bool { return name == "aaaa.sandboxes.example.com" })
	if got := names(await(t, api, host, ca.Roots, anyOf)); got != host {
		t.Errorf("the API has %s", got)
	}
	if got := names(await(t, ln, "aaaa.sandboxes.example.com", ca.Roots, anyOf)); got != "aaaa.sandboxes.example.com" {
		t.Errorf("the port has %s", got)
	}
	for name, at := range map[string]net.Listener{host: ln, "bbbb.sandboxes.example.com": ln, "aaaa.sandboxes.example.com": api} {
		if cert, err := shake(at, name, ca.Roots); err == nil {
			t.Errorf("%s is served %s", name, names(cert))
		}
	}
	c.forget()
	if !c.has(host) || !c.has("aaaa.sandboxes.example.com") {
		t.Error("a certificate was forgotten that is used")
	}
	accounts, err := filepath.Glob(filepath.Join(dir, "acme", "*", "users", "*"))
	if err != nil || len(accounts) != 1 {
		t.Errorf("accounts %v, %v", accounts, err)
	}
}

// TestHostByDNS: with DNS records there are two certificates, a wildcard and the API's.
func TestHostByDNS(t *testing.T) {
	ca := acmetest.Start(t, acmetest.Options{})
	hook, err := NewHook(ca.DNS.Hook(t), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ln, _ := listen(t)
	api, _ := listen(t)
	c, err := Open(Config{
		Log: slog.New(slog.DiscardHandler), Dir: t.TempDir(), CA: ca.URL, Roots: ca.APIRoots(t), DNS: hook, Resolver: ca.DNS.Addr, Host: host, Domain: "sandboxes.example.com",
	})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, ln, c)
	serveWith(t, api, c, c.HostTLS())
	c.Start(func(string) bool { return true })
	if got := names(await(t, api, host, ca.Roots, anyOf)); got != host {
		t.Errorf("the API has %s", got)
	}
	if got := names(await(t, ln, "aaaa.sandboxes.example.com", ca.Roots, anyOf)); got != "*.sandboxes.example.com" {
		t.Errorf("the ports have %s", got)
	}
	if n := ca.DNS.Left(); n != 0 {
		t.Errorf("%d records are left", n)
	}
}

func TestNoNames(t *testing.T) {
	if _, err := Open(Config{Log: slog.New(slog.DiscardHandler), Dir: t.TempDir(), Listener: &net.TCPAddr{}}); err == nil {
		t.Error("there is nothing to get a certificate for")
	}
	ln, _ := listen(t)
	c := open(t, Config{Dir: t.TempDir(), CA: "https://127.0.0.1:1/", Listener: ln.Addr()})
	serve(t, ln, c)
	c.Start(func(name string) bool { return name != "" })
	if _, err := shake(ln, "127.0.0.1", nil); err == nil || len(c.orders)+len(c.rests) != 0 {
		t.Errorf("a handshake without a name: %v, %d orders", err, len(c.orders)+len(c.rests))
	}
}
