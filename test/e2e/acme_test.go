package e2e

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/acme/acmetest"
)

func TestDomainACME(t *testing.T) {
	ca := acmetest.Start(t, acmetest.Options{})
	s := newServer(t, "--domain", "sandboxes.example.com", "--ingress-listen", "127.0.0.1:0", "--acme", "--acme-agree-terms",
		"--acme-ca", ca.URL, "--acme-ca-root", ca.RootFile, "--acme-dns-hook", ca.DNS.Hook(t), "--acme-resolver", ca.DNS.Addr)
	sb := s.create(client.CreateOptions{Ports: []int{3000}, Persistent: new(bool)})
	at, err := sb.Domain(3000)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	browser := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: ca.Roots}, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", "127.0.0.1:"+u.Port())
		},
	}}
	defer browser.CloseIdleConnections()
	if err := sb.WriteFile(t.Context(), "web.js", []byte(webServer), 0o644); err != nil {
		t.Fatal(err)
	}
	s.detach(sb, "exec node web.js 3000")
	s.waitFor("the web server, over TLS of the authority", func() bool {
		res, err := browser.Get(at)
		if err != nil {
			return false // no certificate yet
		}
		res.Body.Close()
		return res.StatusCode == 200
	})
}
