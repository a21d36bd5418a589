package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/skerry-dev/skerry/internal/egress/policy"
)

// protocols are what may be spoken in TLS that is ended here.
var protocols = []string{"h2", "http/1.1"}

// endTLS ends the TLS of a connection and has its requests served.
func (p *Proxy) endTLS(c *conn, name string, site *policy.Site, offered []string) {
	if p.cfg.CA == nil {
		p.denyTLS(c, alertInternalError, reasonNoCA, name)
		return
	}
	cert, err := p.cfg.CA.Certificate(name)
	if err != nil {
		p.cfg.Log.Error("cannot sign a certificate", "error", err)
		p.denyTLS(c, alertInternalError, reasonNoCA, name)
		return
	}
	alpn := slices.DeleteFunc(slices.Clone(protocols), func(s string) bool { return !slices.Contains(offered, s) })
	up, err := p.firstUpstream(c, name, site, alpn)
	if reasonOf(err) == reasonCertificate && err != nil {
		p.denyTLS(c, alertFor(err), reasonCertificate, name)
		return
	}
	choice := protocols
	if up != nil { // the sandbox gets what the site speaks
		choice = []string{"http/1.1"}
		if s := up.ConnectionState().NegotiatedProtocol; s != "" {
			choice = []string{s}
		}
	}
	server := tls.Server(c, &tls.Config{
		Certificates: []tls.Certificate{*cert}, NextProtos: choice, MinVersion: tls.VersionTLS12, SessionTicketsDisabled: true,
	})
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.Limits.Hello)
	defer cancel()
	if err := server.HandshakeContext(ctx); err != nil {
		p.deny(c, ProtocolTLS, reasonHandshake, name)
		return
	}
	if server.ConnectionState().ServerName != name { // we read what crypto/tls reads
		p.deny(c, ProtocolTLS, reasonHello, name)
		return
	}
	c.serverName, c.transport = name, p.newTransport(c, up, alpn)
	p.feed.put(p.ctx, server)
}

// firstUpstream makes the upstream connection of TLS that is ended here, if
// requests can need one. Failing for another reason than the certificate, it
// leaves it to the requests: not all may need it.
func (p *Proxy) firstUpstream(c *conn, name string, site *policy.Site, alpn []string) (*tls.Conn, error) {
	if !site.NeedsUpstream() {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.Limits.Connect)
	defer cancel()
	return p.dialTLS(ctx, c, name, alpn)
}

// certificateError means that an upstream server is not proven to be who it
// should be.
type certificateError struct{ err error }

func (e *certificateError) Error() string { return e.err.Error() }
func (e *certificateError) Unwrap() error { return e.err }

func (p *Proxy) dialTLS(ctx context.Context, c *conn, name string, alpn []string) (*tls.Conn, error) {
	raw, err := p.connect(ctx, c, name)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, &tls.Config{ServerName: name, RootCAs: p.cfg.Roots, NextProtos: alpn, MinVersion: tls.VersionTLS12})
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		var invalid *tls.CertificateVerificationError
		if errors.As(err, &invalid) {
			return nil, &certificateError{fmt.Errorf("the certificate of %s: %w", name, invalid.Err)}
		}
		return nil, fmt.Errorf("TLS with %s: %w", name, err)
	}
	return conn, nil
}

func alertFor(err error) byte {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return alertUnknownCA
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return alertCertificateExpired
	}
	return alertBadCertificate
}

// once hands the first upstream connection to the one who asks first.
type once struct {
	mu   sync.Mutex
	conn *tls.Conn
}

func (o *once) take() *tls.Conn {
	o.mu.Lock()
	defer o.mu.Unlock()
	conn := o.conn
	o.conn = nil
	return conn
}
