// Package issuertest is an OpenID provider for tests: a real server on a loopback
// address, with keys that rotate, faults that can be switched on, and tokens with the
// claims of GitHub Actions, GitLab, Kubernetes, Vercel and Google. It must not be
// used for anything else: it signs whatever it is asked to.
package issuertest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Audience is that of tokens which do not say otherwise.
const Audience = "https://skerry.example.com"

// Options are how an issuer is. The zero value is plain HTTP, RS256, and no path.
type Options struct {
	// TLS serves HTTPS, with a certificate for 127.0.0.1 and Host that CA verifies.
	TLS bool
	// Host is in the URL instead of 127.0.0.1. The client's Dial has to lead it to
	// Address.
	Host string
	// Path is that of the issuer's URL, such as "/acme".
	Path string
	// Listen is the address; "" is a free port of 127.0.0.1.
	Listen string
	// Algorithm is that of the first key.
	Algorithm jose.SignatureAlgorithm
	// Clock is for the times in tokens; nil is time.Now.
	Clock func() time.Time
}

// Faults are what an issuer does wrong.
type Faults struct {
	// Down answers 503 to everything.
	Down bool
	// Hold, if it is not nil, has answers wait until it is closed.
	Hold chan struct{}
	// Issuer and JWKS replace what discovery says.
	Issuer, JWKS string
	// Keys replaces the document of keys, if it is not nil.
	Keys []byte
	// Redirect, if it is not "", is where requests for keys are sent.
	Redirect string
}

// Issuer is a provider that runs.
type Issuer struct {
	url, ca string
	clock   func() time.Time
	server  *http.Server
	ln      net.Listener

	mu              sync.Mutex
	current         *Key
	published       []*Key
	faults          Faults
	cacheControl    string
	discovery, keys int // requests
}

// New starts an issuer that ends with the test.
func New(t testing.TB, o Options) *Issuer {
	t.Helper()
	i, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(i.Close)
	return i
}

// Start starts an issuer. Close ends it.
func Start(o Options) (*Issuer, error) {
	if o.Algorithm == "" {
		o.Algorithm = jose.RS256
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	ln, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return nil, err
	}
	i := &Issuer{clock: o.Clock, ln: ln}
	i.server = &http.Server{Handler: i.handler(o.Path), ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	i.url = "http://" + ln.Addr().String() + o.Path
	if _, err := i.Rotate(o.Algorithm); err != nil {
		ln.Close()
		return nil, err
	}
	if !o.TLS {
		go i.server.Serve(ln)
		return i, nil
	}
	certificate, pem, err := selfSigned(o.Host)
	if err != nil {
		ln.Close()
		return nil, err
	}
	i.ca, i.url = pem, "https"+strings.TrimPrefix(i.url, "http")
	if o.Host != "" {
		i.url = "https://" + o.Host + o.Path
	}
	i.server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{*certificate}}
	go i.server.ServeTLS(ln, "", "")
	return i, nil
}

func selfSigned(host string) (*tls.Certificate, string, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "issuer for tests"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(365 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	if host != "" {
		template.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, "", err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private},
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), nil
}

// Close ends the server and all its connections.
func (i *Issuer) Close() { i.server.Close() }

// URL is what tokens have as "iss".
func (i *Issuer) URL() string { return i.url }

// JWKSURL is where the keys are.
func (i *Issuer) JWKSURL() string { return i.url + "/jwks" }

// Address is where the server listens.
func (i *Issuer) Address() string { return i.ln.Addr().String() }

// CA is the certificate that verifies the server, in PEM; "" without TLS.
func (i *Issuer) CA() string { return i.ca }

// Fail sets the faults. Those from before end.
func (i *Issuer) Fail(f Faults) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.faults = f
}

// CacheControl sets the header of that name in answers with keys.
func (i *Issuer) CacheControl(s string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.cacheControl = s
}

// Requests returns how many requests there were, for discovery and for keys.
func (i *Issuer) Requests() (discovery, keys int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.discovery, i.keys
}

// JWKS is the document of keys.
func (i *Issuer) JWKS() []byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, k := range i.published {
		set.Keys = append(set.Keys, k.Public())
	}
	b, err := json.Marshal(set)
	if err != nil {
		panic(err) // all keys are ours
	}
	return b
}

func (i *Issuer) handler(path string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+path+"/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
		f, ok := i.begin(w, r, &i.discovery)
		if !ok {
			return
		}
		document := map[string]any{
			"issuer": i.url, "jwks_uri": i.JWKSURL(),
			"response_types_supported": []string{"id_token"}, "subject_types_supported": []string{"public"},
			"id_token_signing_alg_values_supported": []string{"RS256", "ES256", "EdDSA"},
		}
		if f.Issuer != "" {
			document["issuer"] = f.Issuer
		}
		if f.JWKS != "" {
			document["jwks_uri"] = f.JWKS
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(document)
	})
	keys := func(w http.ResponseWriter, r *http.Request) {
		f, ok := i.begin(w, r, &i.keys)
		if !ok {
			return
		}
		if f.Redirect != "" && r.URL.Path == path+"/jwks" {
			http.Redirect(w, r, f.Redirect, http.StatusFound)
			return
		}
		b := f.Keys
		if b == nil {
			b = i.JWKS()
		}
		i.mu.Lock()
		if i.cacheControl != "" {
			w.Header().Set("Cache-Control", i.cacheControl)
		}
		i.mu.Unlock()
		w.Header().Set("Content-Type", "application/jwk-set+json")
		w.Write(b)
	}
	mux.HandleFunc("GET "+path+"/jwks", keys)
	mux.HandleFunc("GET "+path+"/moved", keys) // for redirects within the origin
	return mux
}

// begin counts a request, and has it suffer from the faults of all requests.
func (i *Issuer) begin(w http.ResponseWriter, r *http.Request, count *int) (Faults, bool) {
	i.mu.Lock()
	f := i.faults
	*count++
	i.mu.Unlock()
	if f.Hold != nil {
		select {
		case <-f.Hold:
		case <-r.Context().Done():
			return f, false
		}
	}
	if f.Down {
		http.Error(w, "down", http.StatusServiceUnavailable)
	}
	return f, !f.Down
}
