// Package acmetest starts a certificate authority for tests: pebble, of
// Let's Encrypt, with a DNS server that it asks.
package acmetest

import (
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
)

// Options are how the authority is to be. Zero ports are looked at by nobody.
type Options struct {
	// TLSPort and HTTPPort are where it looks for proofs.
	TLSPort, HTTPPort int
	// Validity of certificates, in seconds; 0 is 90 days.
	Validity uint64
	// BindingID and BindingKey, in base64url, are of the external account that
	// accounts must be bound to, if there is one.
	BindingID, BindingKey string
}

// Authority is a certificate authority that validates for real.
type Authority struct {
	// URL is that of the directory, RootFile has who signs its TLS.
	URL, RootFile string
	// Roots are what its certificates end at.
	Roots *x509.CertPool
	// DNS is what it resolves names with.
	DNS *DNS

	orders atomic.Int64
	down   atomic.Bool
	// held is locked while requests are to wait.
	held sync.RWMutex
}

// Start starts an authority that ends with the test.
func Start(t testing.TB, o Options) *Authority {
	t.Helper()
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	a := &Authority{DNS: startDNS(t)}
	silent := log.New(io.Discard, "", 0)
	store := db.NewMemoryStore()
	if o.Validity == 0 {
		o.Validity = 90 * 24 * 3600
	}
	issuer := ca.New(silent, store, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {Description: "test", ValidityPeriod: o.Validity}})
	if o.BindingID != "" {
		if err := store.AddExternalAccountKeyByID(o.BindingID, o.BindingKey); err != nil {
			t.Fatal(err)
		}
	}
	validator := va.New(silent, o.HTTPPort, o.TLSPort, false, a.DNS.Addr, store)
	front := wfe.New(silent, store, validator, issuer, []string{"ca.example"}, false, o.BindingID != "", 0, 0)
	api := front.Handler()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a.down.Load() {
			panic(http.ErrAbortHandler)
		}
		a.held.RLock()
		defer a.held.RUnlock()
		if strings.HasSuffix(r.URL.Path, "/order-plz") {
			a.orders.Add(1)
		}
		api.ServeHTTP(w, r)
	}))
	server.Config.ErrorLog = silent
	server.StartTLS()
	t.Cleanup(server.Close)
	a.URL = server.URL + wfe.DirectoryPath
	a.RootFile = filepath.Join(t.TempDir(), "root.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(a.RootFile, block, 0o600); err != nil {
		t.Fatal(err)
	}
	a.Roots = x509.NewCertPool()
	a.Roots.AddCert(issuer.GetRootCert(0).Cert)
	return a
}

// Orders is how many certificates were asked for. One that is asked for again
// as its nonce was not taken counts twice.
func (a *Authority) Orders() int64 { return a.orders.Load() }

// SetDown has it drop all connections, or answer again.
func (a *Authority) SetDown(down bool) { a.down.Store(down) }

// Hold has it answer nothing before the release.
func (a *Authority) Hold() (release func()) {
	a.held.Lock()
	return a.held.Unlock
}

// APIRoots are who signs its own TLS.
func (a *Authority) APIRoots(t testing.TB) *x509.CertPool {
	t.Helper()
	b, err := os.ReadFile(a.RootFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(b)
	return pool
}
