package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/skerry-dev/skerry/internal/acme/acmetest"
	"github.com/skerry-dev/skerry/internal/api"
)

// writePair writes a self-signed certificate and its key.
func writePair(t *testing.T, dir, name string, hosts ...string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: serial, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: hosts}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// serveFlags parses flags of serve.
func serveFlags(t *testing.T, args ...string) *serveOptions {
	t.Helper()
	var o serveOptions
	f := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	o.flags(f)
	if err := f.Parse(args); err != nil {
		t.Fatal(err)
	}
	o.run = t.TempDir()
	if err := o.check(f); err != nil {
		t.Fatal(err)
	}
	return &o
}

// transport runs the listeners of a server with the given flags, in the order in which
// serve opens them, and answers requests to the API with 200. It returns where the API
// listens and its URL.
func transport(t *testing.T, o *serveOptions) (ln net.Listener, url string) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	ln, err := o.listen.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	gate, err := o.ingress.open(t.Context(), t.TempDir(), apiName{host: o.acmeHost(), at: ln.Addr()}, log)
	if err != nil {
		t.Fatal(err)
	}
	gate.Start(nil)
	secured, err := o.api.secure(ln, gate.certs, log)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(secured) }()
	t.Cleanup(func() {
		if err := gate.Close(); err != nil {
			t.Error(err)
		}
		_ = server.Close()
		<-served
	})
	return ln, serverURL(ln, o.api.tls(), o.publicURL)
}

// asked is a request to an URL whose host is at a listener.
func asked(ln net.Listener, url string, roots *x509.CertPool) (*http.Response, error) {
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
		},
	}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr, Timeout: time.Minute}).Get(url)
	if err == nil {
		resp.Body.Close()
	}
	return resp, err
}

func TestAPIByFiles(t *testing.T) {
	cert, key := writePair(t, t.TempDir(), "cert", "localhost")
	pem, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	o := serveFlags(t, "--listen", "0.0.0.0:0", "--tls-cert", cert, "--tls-key", key)
	ln, url := transport(t, o)
	if want := "https://" + ln.Addr().String(); url != want {
		t.Errorf("the URL is %s, want %s", url, want)
	}
	resp, err := asked(ln, "https://localhost/", roots)
	if err != nil || resp.StatusCode != 200 || resp.ProtoMajor != 2 {
		t.Fatal(resp, err)
	}
	old, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "localhost", MaxVersion: tls.VersionTLS11})
	if err == nil {
		old.Close()
		t.Error("a client speaks TLS 1.1")
	}
	// A client that forgets about TLS is told.
	plain, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	fmt.Fprint(plain, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
	if answer, err := http.ReadResponse(bufio.NewReader(plain), nil); err != nil || answer.StatusCode != 400 {
		t.Error(answer, err)
	}
}

// TestAPIByACME: the API has the certificate of its public URL's host, without a domain
// for ports, with one by files, and with one whose certificates come from the authority
// too, where proofs are looked for at the ingress.
func TestAPIByACME(t *testing.T) {
	cert, key := writePair(t, t.TempDir(), "cert", "*.sandboxes.example.com")
	for name, c := range map[string]struct {
		args      []string
		atIngress bool
	}{
		"alone":                    {nil, false},
		"with a domain by files":   {[]string{"--domain", "sandboxes.example.com", "--ingress-tls-cert", cert, "--ingress-tls-key", key}, false},
		"with a domain by ACME":    {[]string{"--domain", "sandboxes.example.com", "--acme"}, true},
		"with a domain over HTTP":  {[]string{"--domain", "sandboxes.example.com", "--acme", "--ingress-http-listen", "127.0.0.1:@HTTP"}, false},
		"with DNS records by hook": {[]string{"--acme-dns-hook", "@HOOK", "--acme-resolver", "@DNS"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			tlsPort, httpPort, dns := 0, 0, slices.Contains(c.args, "@HOOK")
			apiAt, ingressAt := freePort(t), freePort(t)
			switch over := slices.Contains(c.args, "127.0.0.1:@HTTP"); {
			case over:
				httpPort = freePort(t)
			case c.atIngress:
				tlsPort = ingressAt
			case !dns:
				tlsPort = apiAt
			}
			ca := acmetest.Start(t, acmetest.Options{TLSPort: tlsPort, HTTPPort: httpPort})
			args := append([]string{
				"--listen", "127.0.0.1:" + strconv.Itoa(apiAt), "--public-url", "https://api.example.com", "--tls-acme", "--acme-agree-terms", "--acme-ca", ca.URL, "--acme-ca-root", ca.RootFile,
			}, c.args...)
			if slices.Contains(args, "--domain") {
				args = append(args, "--ingress-listen", "127.0.0.1:"+strconv.Itoa(ingressAt))
			}
			for i := range args {
				args[i] = strings.NewReplacer("@HTTP", strconv.Itoa(httpPort), "@HOOK", ca.DNS.Hook(t), "@DNS", ca.DNS.Addr).Replace(args[i])
			}
			ln, url := transport(t, serveFlags(t, args...))
			if url != "https://api.example.com" {
				t.Errorf("the URL is %s", url)
			}
			tick := time.NewTicker(50 * time.Millisecond)
			defer tick.Stop()
			end := time.After(time.Minute)
			for {
				resp, err := asked(ln, url, ca.Roots)
				if err == nil {
					if names := resp.TLS.PeerCertificates[0].DNSNames; !slices.Equal(names, []string{"api.example.com"}) || resp.ProtoMajor != 2 {
						t.Errorf("%s with a certificate for %v", resp.Proto, names)
					}
					return
				}
				select {
				case <-tick.C:
				case <-end:
					t.Fatal(err)
				}
			}
		})
	}
}

// freePort returns a port that nothing listens at.
func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// TestHostsOfTheServer: who asks for the issuer's keys is let in.
func TestHostsOfTheServer(t *testing.T) {
	for args, want := range map[string][]string{
		"":                        nil,
		"--allowed-host a,b":      {"a", "b"},
		"--oidc-issuer https://i": {"i"},
		"--oidc-issuer https://i:8443/x --public-url https://p":               {"i"},
		"--oidc-issuer https://i --listen 0.0.0.0:1 --allow-plaintext":        nil, // any is accepted
		"--allowed-host a --oidc-issuer https://i --allowed-host 192.0.2.1":   {"a", "192.0.2.1", "i"},
		"--allowed-host a --listen 0.0.0.0:1 --allow-plaintext":               {"a"},
		"--listen 0.0.0.0:1 --allow-plaintext --public-url https://p":         nil,
		"--cors-origin https://a --cors-origin https://b,http://localhost:30": nil,
	} {
		o := serveFlags(t, strings.Fields(args)...)
		if got := o.hosts(); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", args, got, want)
		}
		for _, origin := range o.api.corsOrigins {
			if err := api.CheckOrigin(origin); err != nil {
				t.Error(err)
			}
		}
	}
}
