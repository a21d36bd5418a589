package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// ListenConfig is the configuration of Listen.
type ListenConfig struct {
	// Addr is "host:port". An empty host is every address.
	Addr string
	// TLS says that the caller wraps the listener in TLS before it is served. It wraps
	// what Listen returns, so that connections are limited before their handshake.
	TLS bool
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
	if _, _, err := net.SplitHostPort(l.Addr); err != nil {
		return fmt.Errorf("address %q: %w", l.Addr, err)
	}
	if !l.TLS && !l.AllowPlaintext && !l.Loopback() {
		return fmt.Errorf("%w on %q: use TLS, listen on 127.0.0.1, or allow it explicitly behind a proxy that terminates TLS", ErrPlaintext, l.Addr)
	}
	return nil
}

// Loopback reports whether only this machine can reach the address.
func (l ListenConfig) Loopback() bool {
	host, _, err := net.SplitHostPort(l.Addr)
	return err == nil && loopback(host)
}

// Listen opens the listener, unless Check refuses it.
func (l ListenConfig) Listen(ctx context.Context) (net.Listener, error) {
	if err := l.Check(); err != nil {
		return nil, err
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", l.Addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", l.Addr, err)
	}
	return guard(ln, cmp.Or(l.MaxConnections, DefaultMaxConnections)), nil
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
