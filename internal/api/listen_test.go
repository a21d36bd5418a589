package api

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
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
	for _, bad := range []ListenConfig{{Addr: "nowhere"}, {Addr: "nowhere", TLS: true}, {Addr: "192.0.2.1:0", TLS: true}} {
		if ln, err := bad.Listen(t.Context()); err == nil {
			ln.Close()
			t.Errorf("%+v was accepted", bad)
		}
	}
}

// certificate makes a self-signed certificate for 127.0.0.1 and localhost.
func certificate(t *testing.T) (*tls.Config, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		MinVersion:   tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
	}, pool
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
