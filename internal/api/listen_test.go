package api

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry/internal/controller/controllertest"
)

func TestListenRefusesPlaintextBeyondLoopback(t *testing.T) {
	for addr, fine := range map[string]bool{
		"127.0.0.1:0": true, "127.1.2.3:0": true, "localhost:0": true,
		":0": false, "0.0.0.0:0": false, "[::]:0": false, "10.0.0.1:0": false, "example.com:0": false,
		"[::ffff:10.0.0.1]:0": false, "localhost.example.com:0": false,
	} {
		ln, err := ListenConfig{Addr: addr}.Listen(t.Context())
		if err == nil {
			ln.Close()
		}
		if fine != (err == nil) || !fine && !errors.Is(err, ErrPlaintext) {
			t.Errorf("%s: %v", addr, err)
		}
	}
	ln, err := ListenConfig{Addr: "0.0.0.0:0", AllowPlaintext: true}.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	for _, bad := range []ListenConfig{{Addr: "nowhere"}, {Addr: "127.0.0.1:0", CertFile: "a"}, {Addr: "127.0.0.1:0", CertFile: "a", KeyFile: "b"}} {
		if ln, err := bad.Listen(t.Context()); err == nil {
			ln.Close()
			t.Errorf("%+v was accepted", bad)
		}
	}
}

// certificate writes a self-signed certificate for 127.0.0.1.
func certificate(t *testing.T) (certFile, keyFile string, pool *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: der},
		keyFile:  {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AddCert(cert)
	return certFile, keyFile, pool
}

func TestServeOverTLSSpeaksHTTP2(t *testing.T) {
	certFile, keyFile, pool := certificate(t)
	ctx, cancel := context.WithCancel(t.Context())
	ln, err := ListenConfig{Addr: "127.0.0.1:0", CertFile: certFile, KeyFile: keyFile}.Listen(ctx)
	if err != nil {
		t.Fatal(err)
	}
	srv := quietServer(t, controllertest.New(t))
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx, ln, nil) }()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	for path, proto := range map[string]int{"/healthz": 2, "/api/v2/user": 2} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+ln.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+testToken)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 || resp.ProtoMajor != proto {
			t.Errorf("%s: %d over %s", path, resp.StatusCode, resp.Proto)
		}
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestServeLetsCallsFinish(t *testing.T) {
	started, finish := make(chan struct{}), make(chan struct{})
	svc := &stub{write: func(string, io.Reader) error {
		close(started)
		<-finish
		return nil
	}}
	ctx, cancel := context.WithCancel(t.Context())
	ln, err := ListenConfig{Addr: "127.0.0.1:0"}.Listen(ctx)
	if err != nil {
		t.Fatal(err)
	}
	srv := quietServer(t, svc)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx, ln, nil) }()
	answered := make(chan int, 1)
	go func() {
		req, err := http.NewRequest("POST", "http://"+ln.Addr().String()+"/v2/sandboxes/sessions/s/fs/write", strings.NewReader("some tar"))
		if err != nil {
			panic(err)
		}
		req.Header.Set("Authorization", "Bearer "+testToken)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			answered <- 0
			return
		}
		resp.Body.Close()
		answered <- resp.StatusCode
	}()
	<-started
	cancel()
	close(finish)
	if status := <-answered; status != 200 {
		t.Errorf("a call in progress was answered %d", status)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}
