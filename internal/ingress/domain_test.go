package ingress

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/certfile"
)

const domain = "sandboxes.example.com"

// certificate writes a self-signed wildcard certificate and returns who trusts
// it.
func certificate(t *testing.T, dir string, serial int64) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: domain}, DNSNames: []string{"*." + domain},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return pool
}

// startDomain makes an ingress in domain mode.
func startDomain(t *testing.T, s *sandbox, changes ...func(*Config)) (i *Ingress, ports []skerry.PublishedPort, addr string, trust *x509.CertPool) {
	t.Helper()
	dir := t.TempDir()
	trust = certificate(t, dir, 1)
	cert, err := certfile.Load("the ingress", filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), silent())
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	i, ports, _ = start(t, s, func(c *Config) {
		c.Domain, c.Listener, c.TLS = domain, ln, cert.TLS()
		for _, change := range changes {
			change(c)
		}
	})
	return i, ports, ln.Addr().String(), trust
}

// browser is a client to whom every name below the domain is at addr.
func browser(addr string, trust *x509.CertPool, http2 bool) *http.Client {
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: trust}, ForceAttemptHTTP2: http2, DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		},
	}}
}

func TestDomain(t *testing.T) {
	s := running(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s", r.Host, r.Header.Get("X-Forwarded-Proto"), r.Header.Get("X-Forwarded-Host"))
	})
	i, ports, addr, trust := startDomain(t, s)
	url := i.URL(ports[0])
	_, port, _ := net.SplitHostPort(addr)
	host := ports[0].Subdomain + "." + domain + ":" + port
	if url != "https://"+host {
		t.Fatalf("the URL is %s", url)
	}
	for _, h2 := range []bool{false, true} {
		res, err := browser(addr, trust, h2).Get(url)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if want := host + " https " + host; string(b) != want || (res.ProtoMajor == 2) != h2 {
			t.Errorf("%s: %q, want %q", res.Proto, b, want)
		}
	}
	res, err := browser(addr, trust, true).Get(strings.Replace(url, "aaaa", "aaab", 1))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 404 {
		t.Errorf("a name that nobody has: %d", res.StatusCode)
	}
}

// TestSmuggling sends what proxies and servers are known to disagree about.
// Whatever the answer, the sandbox must see no second request, and no other
// route than the one that is named.
func TestSmuggling(t *testing.T) {
	paths := make(chan string, 64)
	s := running(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		paths <- r.Method + " " + r.RequestURI
	})
	_, ports, addr, trust := startDomain(t, s)
	host := ports[0].Subdomain + "." + domain
	inner := "GET /inner HTTP/1.1\r\nHost: " + host + "\r\n\r\n"
	for name, raw := range map[string]string{
		"length and chunks":  "POST /outer HTTP/1.1\r\nHost: " + host + "\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"two lengths":        "POST /outer HTTP/1.1\r\nHost: " + host + "\r\nContent-Length: 0\r\nContent-Length: " + fmt.Sprint(len(inner)) + "\r\n\r\n" + inner,
		"odd coding":         "POST /outer HTTP/1.1\r\nHost: " + host + "\r\nTransfer-Encoding: xchunked\r\n\r\n" + inner,
		"coding twice":       "POST /outer HTTP/1.1\r\nHost: " + host + "\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
		"space before colon": "POST /outer HTTP/1.1\r\nHost: " + host + "\r\nContent-Length : " + fmt.Sprint(len(inner)) + "\r\n\r\n" + inner,
		"bare line feeds":    "GET /outer HTTP/1.1\nHost: " + host + "\nX: a\rb\n\n",
		"two hosts":          "GET /outer HTTP/1.1\r\nHost: " + host + "\r\nHost: other." + domain + "\r\n\r\n",
		"no host":            "GET /outer HTTP/1.1\r\n\r\n",
		"folded header":      "GET /outer HTTP/1.1\r\nHost: " + host + "\r\nX: a\r\n b\r\n\r\n",
		"negative length":    "POST /outer HTTP/1.1\r\nHost: " + host + "\r\nContent-Length: -1\r\n\r\n" + inner,
		"plus length":        "POST /outer HTTP/1.1\r\nHost: " + host + "\r\nContent-Length: +5\r\n\r\nabcde",
		"bad chunk":          "POST /outer HTTP/1.1\r\nHost: " + host + "\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n" + inner,
		"chunk extension":    "POST /outer HTTP/1.1\r\nHost: " + host + "\r\nTransfer-Encoding: chunked\r\n\r\n0;\n" + inner,
		"tunnel":             "CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: " + host + "\r\n\r\n",
		"absolute elsewhere": "GET http://169.254.169.254/ HTTP/1.1\r\nHost: " + host + "\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: trust, ServerName: host, NextProtos: []string{"http/1.1"}})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			if _, err := io.WriteString(c, raw); err != nil {
				t.Fatal(err)
			}
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			// What is still to come would come on this connection.
			c.Close()
			for {
				select {
				case p := <-paths:
					if !strings.HasSuffix(p, " /outer") {
						t.Errorf("the sandbox was asked for %s", p)
					}
					continue
				case <-time.After(20 * time.Millisecond):
				}
				break
			}
			t.Log(res.Status)
		})
	}
}

func TestSubdomainOf(t *testing.T) {
	for host, want := range map[string]string{
		"abc." + domain: "abc", "ABC." + strings.ToUpper(domain): "abc", "abc." + domain + ":8443": "abc",
		domain: "", "." + domain: "", "a.b." + domain: "", "abc." + domain + ".": "", "abc." + domain + ":": "", "abc." + domain + ":x": "",
		"abc." + domain + ":+1": "", "abc." + domain + ":70000": "", "abcx" + domain: "", "a-b." + domain: "", "abc." + domain + "@x": "",
		"abc." + domain + ":1:2": "", "": "", "127.0.0.1": "", "[::1]:1": "", "ab%63." + domain: "", "abc..": "", "abç." + domain: "",
	} {
		if got, ok := subdomainOf(host, domain); got != want || ok != (want != "") {
			t.Errorf("%q: %q %v", host, got, ok)
		}
	}
}

func FuzzSubdomainOf(f *testing.F) {
	f.Add("abc." + domain + ":443")
	f.Fuzz(func(t *testing.T, host string) {
		if name, ok := subdomainOf(host, domain); ok && (name == "" || strings.ContainsAny(name, ".:/-") || !strings.HasPrefix(strings.ToLower(host), name+".")) {
			t.Errorf("%q: %q", host, name)
		}
	})
}
