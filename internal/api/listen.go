package api

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// ListenConfig is the configuration of Listen.
type ListenConfig struct {
	// Addr is "host:port". An empty host is every address.
	Addr string
	// CertFile and KeyFile enable TLS. They are PEM files.
	CertFile, KeyFile string
	// AllowPlaintext allows an address that other machines can reach without TLS, for a
	// server behind a proxy that terminates TLS.
	AllowPlaintext bool
	// MaxConnections limits the open connections; DefaultMaxConnections by default.
	MaxConnections int
}

// ErrPlaintext is the error for an address that other machines can reach without TLS.
// Access tokens would be readable on the network.
var ErrPlaintext = errors.New("refusing to listen beyond loopback without TLS")

// Check returns ErrPlaintext if the address is not a loopback address, and neither TLS
// nor AllowPlaintext is set.
func (l ListenConfig) Check() error {
	if (l.CertFile == "") != (l.KeyFile == "") {
		return errors.New("TLS needs both a certificate and a key")
	}
	host, _, err := net.SplitHostPort(l.Addr)
	if err != nil {
		return fmt.Errorf("address %q: %w", l.Addr, err)
	}
	if l.CertFile == "" && !l.AllowPlaintext && !loopback(host) {
		return fmt.Errorf("%w on %q: give a certificate and a key, listen on 127.0.0.1, or allow it explicitly behind a proxy that terminates TLS", ErrPlaintext, l.Addr)
	}
	return nil
}

// Listen opens the listener, unless Check refuses it.
func (l ListenConfig) Listen(ctx context.Context) (net.Listener, error) {
	if err := l.Check(); err != nil {
		return nil, err
	}
	var conf *tls.Config
	if l.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(l.CertFile, l.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("load the TLS certificate: %w", err)
		}
		conf = &tls.Config{
			Certificates: []tls.Certificate{cert},
			MinVersion:   tls.VersionTLS12,
			NextProtos:   []string{"h2", "http/1.1"},
		}
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", l.Addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", l.Addr, err)
	}
	ln = guard(ln, cmp.Or(l.MaxConnections, DefaultMaxConnections))
	if conf != nil {
		ln = tls.NewListener(ln, conf)
	}
	return ln, nil
}

// loopback reports whether only this machine can reach host. Names other than localhost
// are not resolved, because their addresses can change.
func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}
