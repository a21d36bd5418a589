package egress

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/skerry-dev/skerry/internal/issuer"
)

// Headers of forwarded requests, as the proxy library of the public SDK reads
// them.
const (
	headerHost   = "Vercel-Forwarded-Host"
	headerScheme = "Vercel-Forwarded-Scheme"
	headerPort   = "Vercel-Forwarded-Port"
	headerPath   = "Vercel-Forwarded-Path"
	headerToken  = "Vercel-Sandbox-Oidc-Token"
)

var errNoTokens = errors.New("no key for tokens")

// forwarding makes of a request the one that is sent to the forwardURL. Path and
// query are appended, which is what the library takes off again to learn the
// audience.
func (x *exchange) forwarding(out *http.Request) error {
	if x.p.cfg.Tokens == nil {
		return errNoTokens
	}
	to := x.action.ForwardURL
	token, err := x.p.cfg.Tokens.Forwarded(out.Context(), x.sandbox.Claims, issuer.ForwardedAudience(to))
	if err != nil {
		return err
	}
	original := x.target(out.URL)
	scheme, port := "http", "80"
	if x.tls {
		scheme, port = "https", "443"
	}
	for k, v := range map[string]string{
		headerHost: x.name, headerScheme: scheme, headerPort: port, headerPath: original.RequestURI(), headerToken: token,
	} {
		out.Header[k] = []string{v}
	}
	out.URL = &url.URL{
		Scheme: to.Scheme, Host: to.Host, RawQuery: original.RawQuery, ForceQuery: original.ForceQuery,
		Path:    strings.TrimRight(to.Path, "/") + original.Path,
		RawPath: strings.TrimRight(to.EscapedPath(), "/") + original.EscapedPath(),
	}
	out.Host = to.Host
	return nil
}

// forwarder adds to a request what it is forwarded with.
type forwarder struct{ x *exchange }

func (f forwarder) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	if err := f.x.forwarding(r); err != nil {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, err
	}
	return f.x.p.forward.RoundTrip(r)
}

// newForwardTransport makes connections to where requests are forwarded. They
// are shared: each request proves for itself where it comes from.
func (p *Proxy) newForwardTransport() *http.Transport {
	return &http.Transport{
		DialContext:            p.dialForward,
		TLSClientConfig:        &tls.Config{RootCAs: p.cfg.Roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    p.cfg.Limits.Connect,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true,
		MaxIdleConns:           256,
		MaxIdleConnsPerHost:    32,
		IdleConnTimeout:        keepAlive,
		MaxResponseHeaderBytes: maxAnswerHeader,
	}
}

// dialForward is not about the policy, which names the place itself, but about
// what is forbidden to all.
func (p *Proxy) dialForward(ctx context.Context, _, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Limits.Connect)
	defer cancel()
	u := url.URL{Host: addr}
	port, err := netip.ParseAddrPort("0.0.0.0:" + u.Port())
	if err != nil {
		return nil, err
	}
	addrs, _, err := p.cfg.Resolver.Lookup(ctx, u.Hostname())
	if err != nil {
		return nil, err
	}
	err = &forbiddenError{reasonForbidden}
	for _, a := range addrs[:min(len(addrs), maxTries)] {
		if reason := p.forbidden(a); reason != "" {
			err = &forbiddenError{reason}
			continue
		}
		var conn *net.TCPConn
		if conn, err = p.dial(ctx, netip.AddrPortFrom(a, port.Port())); err == nil {
			return conn, nil
		}
	}
	return nil, err
}
