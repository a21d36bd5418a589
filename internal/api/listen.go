package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// ListenConfig is where to listen and under what protection.
type ListenConfig struct {
	// Addr is "host:port"; an empty host is every address.
	Addr string
	// CertFile and KeyFile, PEM, turn on TLS.
	CertFile, KeyFile string
	// AllowPlaintext permits an address that other machines can reach
	// without TLS, for a server behind a proxy that ends TLS.
	AllowPlaintext bool
}

// ErrPlaintext is why Listen refuses an address that other machines can reach:
// access tokens would cross the network in the clear.
var ErrPlaintext = errors.New("refusing to listen beyond loopback without TLS")

// Listen opens the listener. It fails with ErrPlaintext when the address is
// not a loopback address, and neither TLS nor AllowPlaintext is set.
func (l ListenConfig) Listen(ctx context.Context) (net.Listener, error) {
	if (l.CertFile == "") != (l.KeyFile == "") {
		return nil, errors.New("TLS needs both a certificate and a key")
	}
	host, _, err := net.SplitHostPort(l.Addr)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", l.Addr, err)
	}
	if l.CertFile == "" && !l.AllowPlaintext && !loopback(host) {
		return nil, fmt.Errorf("%w on %q: give a certificate and a key, listen on 127.0.0.1, or allow it explicitly behind a proxy that ends TLS", ErrPlaintext, l.Addr)
	}
	var conf *tls.Config
	if l.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(l.CertFile, l.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("loading the TLS certificate: %w", err)
		}
		conf = &tls.Config{
			Certificates: []tls.Certificate{cert},
			MinVersion:   tls.VersionTLS12,
			NextProtos:   []string{"h2", "http/1.1"},
		}
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", l.Addr)
	if err != nil {
		return nil, fmt.Errorf("listening on %q: %w", l.Addr, err)
	}
	if conf != nil {
		ln = tls.NewListener(ln, conf)
	}
	return ln, nil
}

// loopback reports whether only this machine can reach host. Other names than
// localhost are not resolved: what they resolve to can change.
func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}
