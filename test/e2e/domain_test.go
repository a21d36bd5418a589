package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry/client"
)

// wildcard writes a certificate for all names below a domain, and returns who
// trusts it.
func wildcard(t *testing.T, domain string) (certFile, keyFile string, trust *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"*." + domain}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(certFile, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600); err != nil {
		t.Fatal(err)
	}
	trust = x509.NewCertPool()
	trust.AppendCertsFromPEM(cert)
	return certFile, keyFile, trust
}

func TestDomain(t *testing.T) {
	const domain = "sandboxes.example.com"
	certFile, keyFile, trust := wildcard(t, domain)
	s := newServer(t, "--domain", domain, "--ingress-listen", "127.0.0.1:0", "--ingress-tls-cert", certFile, "--ingress-tls-key", keyFile)
	sb := s.create(client.CreateOptions{Ports: []int{3000}, Persistent: new(bool)})
	at, err := sb.Domain(3000)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(at)
	if err != nil || u.Scheme != "https" || u.Hostname() != sb.Routes()[0].Subdomain+"."+domain {
		t.Fatalf("the route is %s: %v", at, err)
	}
	browser := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: trust}, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", "127.0.0.1:"+u.Port())
		},
	}}
	defer browser.CloseIdleConnections()
	get := func() (int, string, int) {
		res, err := browser.Get(at)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(b), res.ProtoMajor
	}
	if status, _, proto := get(); status != 502 || proto != 2 {
		t.Errorf("nothing listens: %d over HTTP/%d", status, proto)
	}
	if err := sb.WriteFile(t.Context(), "web.js", []byte(webServer), 0o644); err != nil {
		t.Fatal(err)
	}
	s.detach(sb, "exec node web.js 3000")
	s.waitFor("the web server", func() bool { status, _, _ := get(); return status == 200 })
	if _, body, _ := get(); !strings.Contains(body, "X-Forwarded-Proto|https") || !strings.Contains(body, "Host|"+u.Host) {
		t.Errorf("the sandbox saw %s", body)
	}
	// It is not persistent: a request does not start it again.
	if _, err := sb.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if status, body, _ := get(); status != 503 || !strings.Contains(body, "stopped") {
		t.Errorf("stopped: %d %s", status, body)
	}
}
