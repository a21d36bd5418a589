package certfile

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// files are a certificate and its key that a test replaces.
type files struct {
	*testing.T
	cert, key string
	log       strings.Builder
}

func newFiles(t *testing.T) *files {
	dir := t.TempDir()
	return &files{T: t, cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem")}
}

// write replaces both by a self-signed certificate.
func (f *files) write(serial int64, from, to time.Time) {
	f.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: from, NotAfter: to, DNSNames: []string{"api.example.com"}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		f.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		f.Fatal(err)
	}
	f.put(f.cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	f.put(f.key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
}

func (f *files) put(path, text string) {
	f.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		f.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		f.Fatal(err)
	}
}

func (f *files) load() (*Certificate, error) {
	return Load("the test", f.cert, f.key, slog.New(slog.NewTextHandler(&f.log, nil)))
}

// served is the certificate that a client gets over a real connection.
func (f *files) served(c *Certificate) *x509.Certificate {
	f.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	defer ln.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := tls.NewListener(ln, c.TLS()).Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.Copy(io.Discard, conn)
	}()
	conn, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		f.Fatal(err)
	}
	defer func() { conn.Close(); <-done }()
	return conn.ConnectionState().PeerCertificates[0]
}

// TestReload: a new certificate is served without a restart. What cannot be used leaves
// the one before in place, and is logged once.
func TestReload(t *testing.T) {
	f := newFiles(t)
	now := time.Now()
	hour := func(n int) time.Time { return now.Add(time.Duration(n) * time.Hour) }
	f.write(1, hour(-1), hour(10))
	c, err := f.load()
	if err != nil {
		t.Fatal(err)
	}
	c.now = func() time.Time { return now }
	want := func(serial int64, why string) {
		t.Helper()
		if got := f.served(c).SerialNumber.Int64(); got != serial {
			t.Errorf("%s: number %d is served, want %d", why, got, serial)
		}
	}
	want(1, "at first")
	f.write(2, hour(-1), hour(10))
	want(1, "before the next check")
	now = now.Add(checkEvery)
	want(2, "after a change")
	other := newFiles(t)
	other.write(3, hour(-1), hour(10))
	for what, change := range map[string]func(){
		"half a file":        func() { f.put(f.cert, "-----BEGIN CERTIFICATE-----\nMIIB") },
		"no file":            func() { _ = os.Remove(f.cert) },
		"another's key":      func() { f.put(f.key, read(t, other.key)) },
		"a folder":           func() { _ = os.Remove(f.key); _ = os.Mkdir(f.key, 0o700) },
		"an expired one":     func() { f.write(4, hour(-3), hour(-2)) },
		"one of later":       func() { f.write(4, hour(2), hour(3)) },
		"much more than PEM": func() { f.put(f.cert, read(t, f.cert)+strings.Repeat("\n", maxFile)) },
	} {
		f.log.Reset()
		change()
		for range 3 {
			now = now.Add(checkEvery)
			want(2, what)
		}
		if n := strings.Count(f.log.String(), "level=ERROR"); n != 1 {
			t.Errorf("%s: %d errors are logged: %s", what, n, f.log.String())
		}
		if err := os.RemoveAll(f.key); err != nil { // it may be a folder
			t.Fatal(err)
		}
		f.write(2, hour(-1), hour(10))
		now = now.Add(checkEvery)
		want(2, "mended after "+what)
	}
	f.log.Reset()
	now = hour(11)
	want(2, "when it has expired")
	want(2, "when it has expired")
	if n := strings.Count(f.log.String(), "has expired"); n != 1 {
		t.Errorf("an expiry is logged %d times: %s", n, f.log.String())
	}
	f.write(5, hour(10), hour(10)) // not better than none, and newer
	now = now.Add(checkEvery)
	want(5, "in place of an expired one")
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestLoadRefuses(t *testing.T) {
	f, other := newFiles(t), newFiles(t)
	now := time.Now()
	f.write(1, now.Add(-time.Hour), now.Add(time.Hour))
	other.write(2, now.Add(-time.Hour), now.Add(time.Hour))
	missing := filepath.Join(t.TempDir(), "missing")
	long := filepath.Join(t.TempDir(), "long")
	f.put(long, strings.Repeat("\n", maxFile+1))
	for _, c := range []struct{ cert, key, want string }{
		{f.cert, other.key, "private key does not match public key"},
		{f.key, f.cert, "failed to find certificate PEM data"},
		{missing, f.key, "no such file"},
		{f.cert, missing, "no such file"},
		{f.cert, t.TempDir(), "not a regular file"},
		{f.cert, "/dev/zero", "not a regular file"},
		{long, f.key, "more than 1048576 bytes"},
		{f.cert, os.DevNull, "not a regular file"},
	} {
		if _, err := Load("the test", c.cert, c.key, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s, %s: %v, want %s", c.cert, c.key, err, c.want)
		}
	}
	f.write(1, now.Add(-2*time.Hour), now.Add(-time.Hour))
	if _, err := f.load(); err != nil || !strings.Contains(f.log.String(), "has expired") {
		t.Errorf("an expired one: %v, logged %q", err, f.log.String())
	}
}
