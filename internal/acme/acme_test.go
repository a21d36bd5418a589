package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry/internal/acme/acmetest"
)

// serve serves what Certificates has at a listener.
func serve(t *testing.T, ln net.Listener, c *Certificates) {
	t.Helper()
	serveWith(t, ln, c, c.TLS())
}

func serveWith(t *testing.T, ln net.Listener, c *Certificates, conf *tls.Config) {
	t.Helper()
	srv := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: 5 * time.Second}
	srv.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(tls.NewListener(ln, conf)) }()
	t.Cleanup(func() { c.Close(); _ = srv.Close(); <-done })
}

func listen(t *testing.T) (ln net.Listener, port int) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln, ln.Addr().(*net.TCPAddr).Port
}

// shake returns the certificate that a name is served with, and verified by.
func shake(ln net.Listener, name string, roots *x509.CertPool) (*x509.Certificate, error) {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: time.Minute}, Config: &tls.Config{ServerName: name, RootCAs: roots}}
	conn, err := d.DialContext(context.Background(), "tcp", ln.Addr().String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// await tries until there is a certificate that is wanted.
func await(t *testing.T, ln net.Listener, name string, roots *x509.CertPool, want func(*x509.Certificate) bool) *x509.Certificate {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	end := time.After(time.Minute)
	for {
		cert, err := shake(ln, name, roots)
		if err == nil && want(cert) {
			return cert
		}
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("%s: no such certificate: %v", name, err)
		}
	}
}

func anyOf(*x509.Certificate) bool { return true }

func open(t *testing.T, cfg Config) *Certificates {
	t.Helper()
	cfg.Log = slog.New(slog.DiscardHandler)
	if cfg.Host == "" {
		cfg.Domain = "sandboxes.example.com"
	}
	c, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestWildcardByHook(t *testing.T) {
	ca := acmetest.Start(t, acmetest.Options{})
	hook, err := NewHook(ca.DNS.Hook(t), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "acme")
	cfg := Config{Dir: dir, CA: ca.URL, Roots: ca.APIRoots(t), DNS: hook, Resolver: ca.DNS.Addr, retry: 100 * time.Millisecond}
	ca.SetDown(true) // the server is there before its authority
	ln, _ := listen(t)
	c := open(t, cfg)
	serve(t, ln, c)
	c.Start(func(string) bool { return false })
	if _, err := shake(ln, "aaaa.sandboxes.example.com", ca.Roots); err == nil {
		t.Fatal("a handshake without a certificate")
	}
	ca.SetDown(false)
	first := await(t, ln, "aaaa.sandboxes.example.com", ca.Roots, anyOf)
	if got := strings.Join(first.DNSNames, " "); got != "*.sandboxes.example.com" {
		t.Errorf("it is for %s", got)
	}
	if n := ca.DNS.Left(); n != 0 {
		t.Errorf("%d records are left: %v", n, ca.DNS.Changes())
	}
	c.Close()
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if info, ierr := d.Info(); ierr != nil || info.Mode()&0o077 != 0 {
			t.Errorf("%s may be read by others", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	orders := ca.Orders()
	ln2, _ := listen(t)
	again := open(t, cfg)
	serve(t, ln2, again)
	again.Start(func(string) bool { return false })
	if got := await(t, ln2, "bbbb.sandboxes.example.com", ca.Roots, anyOf); got.SerialNumber.Cmp(first.SerialNumber) != 0 || ca.Orders() != orders {
		t.Errorf("a restart has asked for another certificate: %d orders, then %d", orders, ca.Orders())
	}
}

func TestWildcardByUpdates(t *testing.T) {
	ca := acmetest.Start(t, acmetest.Options{})
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(acmetest.TSIGKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	update, err := NewUpdate(ca.DNS.Addr, key)
	if err != nil {
		t.Fatal(err)
	}
	ln, _ := listen(t)
	c := open(t, Config{Dir: t.TempDir(), CA: ca.URL, Roots: ca.APIRoots(t), DNS: update, Resolver: ca.DNS.Addr})
	serve(t, ln, c)
	c.Start(func(string) bool { return false })
	await(t, ln, "aaaa.sandboxes.example.com", ca.Roots, anyOf)
	if n := ca.DNS.Left(); n != 0 {
		t.Errorf("%d records are left: %v", n, ca.DNS.Changes())
	}
}

func TestEachName(t *testing.T) {
	ln, port := listen(t)
	ca := acmetest.Start(t, acmetest.Options{TLSPort: port})
	c := open(t, Config{Dir: t.TempDir(), CA: ca.URL, Roots: ca.APIRoots(t), Listener: ln.Addr()})
	serve(t, ln, c)
	c.Start(func(name string) bool { return name == "aaaa.sandboxes.example.com" })
	for _, name := range []string{"bbbb.sandboxes.example.com", "sandboxes.example.com", "a.aaaa.sandboxes.example.com", "other.org"} {
		if _, err := shake(ln, name, ca.Roots); err == nil {
			t.Errorf("%s has a certificate", name)
		}
	}
	if n := ca.Orders(); n != 0 {
		t.Errorf("%d certificates were asked for names that are no routes", n)
	}
	if cert, err := shake(ln, "AAAA.sandboxes.example.com", ca.Roots); err != nil {
		t.Error(err)
	} else if len(cert.DNSNames) != 1 || cert.DNSNames[0] != "aaaa.sandboxes.example.com" {
		t.Errorf("it is for %v", cert.DNSNames)
	}
}

func TestRenewal(t *testing.T) {
	ln, port := listen(t)
	ca := acmetest.Start(t, acmetest.Options{TLSPort: port, Validity: 12})
	c := open(t, Config{Dir: t.TempDir(), CA: ca.URL, Roots: ca.APIRoots(t), Listener: ln.Addr(), check: 500 * time.Millisecond})
	serve(t, ln, c)
	c.Start(func(string) bool { return true })
	first := await(t, ln, "aaaa.sandboxes.example.com", ca.Roots, anyOf)
	await(t, ln, "aaaa.sandboxes.example.com", ca.Roots, func(cert *x509.Certificate) bool {
		return cert.SerialNumber.Cmp(first.SerialNumber) != 0
	})
}

func TestHookFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nenv; echo why >&2; exit 3\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	var logged strings.Builder
	hook, err := NewHook(path, slog.New(slog.NewTextHandler(io.Writer(&logged), nil)))
	if err != nil {
		t.Fatal(err)
	}
	if err := hook.run(t.Context(), "present", "a.", "b"); err == nil || !strings.Contains(logged.String(), "why") {
		t.Errorf("%v; logged %s", err, &logged)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := NewHook(path, hook.log); err == nil {
		t.Error("a program that anyone may write to is taken")
	}
}
