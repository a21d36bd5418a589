package api

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/skerry-dev/skerry"
)

const (
	// maxURL limits a request's path and query, in bytes. Names and cursors are short,
	// and paths of files are in bodies.
	maxURL = 16 << 10
	// maxQueryParams limits the parameters of a query. A listing has up to 64 tags.
	maxQueryParams = 128
)

// door decides which requests come in, by the name that the client has for the server
// and by the page that a browser was on. Tokens are not sent by browsers on their own,
// so this is a second line: a page of another site, or one whose name an attacker has
// pointed to this machine (DNS rebinding), gets to nothing that needs no token either.
// Clients that are no browsers send neither Origin nor Sec-Fetch-Site.
type door struct {
	trustForwarded bool
	// hosts are the names of the server besides the loopback ones; nil accepts any.
	hosts map[string]bool
	// origins are those whose pages may change something: that of the public URL, and
	// those of cors.
	origins map[string]bool
	cors    *cors
}

// newDoor takes the options about hosts and origins. Without a public URL and allowed
// hosts, any host is accepted, unless the server listens at a loopback address.
func newDoor(o *Options, public *url.URL, routes []route) (*door, error) {
	d := &door{trustForwarded: o.TrustForwarded, origins: map[string]bool{}}
	if public != nil || len(o.AllowedHosts) > 0 || o.Loopback {
		d.hosts = map[string]bool{}
	}
	for _, host := range o.AllowedHosts {
		if err := CheckHost(host); err != nil {
			return nil, fmt.Errorf("api: allowed host %q: %w", host, err)
		}
		d.hosts[hostName(host)] = true
	}
	if public != nil {
		d.hosts[hostName(public.Host)] = true
		d.origins[originOf(public)] = true
	}
	for _, origin := range o.CORSOrigins {
		if err := CheckOrigin(origin); err != nil {
			return nil, fmt.Errorf("api: CORS origin %q: %w", origin, err)
		}
		d.origins[origin] = true
	}
	d.cors = newCORS(o.CORSOrigins, routes)
	return d, nil
}

// CheckHost refuses what is not a host name or an IP address alone.
func CheckHost(host string) error {
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return nil
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || strings.Trim(strings.ToLower(label), "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return errors.New("must be a host name or an IP address, without a port")
		}
	}
	return nil
}

// CheckOrigin refuses what is not an origin as browsers send it.
func CheckOrigin(origin string) error {
	u, err := url.Parse(origin)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || origin != u.Scheme+"://"+strings.ToLower(u.Host) || CheckHost(u.Hostname()) != nil {
		return errors.New("must be a scheme, a host and perhaps a port in lower case, such as https://app.example.com")
	}
	if _, port, err := net.SplitHostPort(u.Host); err == nil {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || port == defaultPorts[u.Scheme] {
			return errors.New("must have a port that is a number, and not the usual one of the scheme, which browsers leave out")
		}
	}
	return nil
}

// originOf returns the origin of a URL as browsers send it.
func originOf(u *url.URL) string {
	return u.Scheme + "://" + strings.ToLower(strings.TrimSuffix(u.Host, ":"+defaultPorts[u.Scheme]))
}

var defaultPorts = map[string]string{"http": "80", "https": "443"}

// anyHost reports whether a route is for any name of the server: load balancers check
// its health by its address.
func (rt *route) anyHost() bool { return rt.id == "health" || rt.id == "healthz" }

// receive answers a request, or refuses it for where it comes from.
func (s *Server) receive(c *call, rt route) error {
	if !rt.anyHost() {
		if err := s.door.checkHost(c.r); err != nil {
			return err
		}
	}
	if s.door.cors.preflight(c.w, c.r) {
		return nil
	}
	if err := s.door.checkOrigin(c.r); err != nil {
		return err
	}
	if len(c.r.RequestURI) > maxURL {
		return skerry.Invalid("", "the URL must have at most %d bytes", maxURL)
	}
	if strings.Count(c.r.URL.RawQuery, "&") >= maxQueryParams {
		return skerry.Invalid("", "the query must have at most %d parameters", maxQueryParams)
	}
	return s.dispatch(c, rt)
}

// host returns the host by which the client reaches the server. A page on a name that
// was rebound can set X-Forwarded-Host on requests that do not pass the proxy; then its
// Origin is not this host.
func (d *door) host(r *http.Request) string {
	if d.trustForwarded {
		if host := firstValue(r.Header.Get("X-Forwarded-Host")); host != "" {
			return host
		}
	}
	return r.Host
}

// https reports whether the client reaches the server over TLS, here or at a proxy.
func (d *door) https(r *http.Request) bool {
	return r.TLS != nil || d.trustForwarded && firstValue(r.Header.Get("X-Forwarded-Proto")) == "https"
}

// checkHost refuses requests by a name that is not the server's. Every browser sends a
// host; HTTP/1.0 has none.
func (d *door) checkHost(r *http.Request) error {
	host := d.host(r)
	if d.hosts == nil || host == "" {
		return nil
	}
	if name := hostName(host); isLoopback(name) || d.hosts[name] {
		return nil
	}
	return skerry.Errorf(skerry.CodeForbidden, "%q is not a host of this server; its operator can name hosts with --public-url and --allowed-host", shorten(host))
}

// OnLoopback serves what has no tokens to requests by loopback names alone.
func OnLoopback(h http.Handler) http.Handler {
	d := &door{hosts: map[string]bool{}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d.checkHost(r) != nil {
			http.Error(w, "only for this machine, by localhost or 127.0.0.1", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// checkOrigin refuses requests of pages of other origins that could change something,
// and their WebSockets. Their other requests are answered; the browser does not show
// them the answer. Browsers send Origin with all of these, and Sec-Fetch-Site to servers
// with TLS or on this machine. Pages can set neither. (http.CrossOriginProtection is the
// same without the scheme, the usual ports and WebSockets.)
func (d *door) checkOrigin(r *http.Request) error {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		if r.Header.Get("Upgrade") == "" {
			return nil
		}
	}
	origins := r.Header["Origin"]
	trusted := len(origins) > 0
	for _, origin := range origins {
		if d.origins[origin] {
			continue
		}
		if trusted = false; !sameOrigin(origin, d.host(r), d.https(r)) {
			return foreignOrigin(origin)
		}
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
		return nil
	}
	if trusted {
		return nil
	}
	return foreignOrigin(r.Header.Get("Origin"))
}

func foreignOrigin(origin string) error {
	return skerry.Errorf(skerry.CodeForbidden, "a page of another origin (%q) must not make this request; the operator can allow origins with --cors-origin, and names this server's own with --public-url", shorten(origin))
}

// sameOrigin compares an origin with the host of a request. Whether the client uses TLS
// is not known behind a proxy that does not say so. Where it is, a page without TLS is
// another origin.
func sameOrigin(origin, host string, https bool) bool {
	u, err := url.Parse(origin)
	if err != nil || defaultPorts[u.Scheme] == "" || u.Host == "" || https && u.Scheme != "https" {
		return false
	}
	return strings.EqualFold(withPort(u.Host, u.Scheme), withPort(host, u.Scheme))
}

func withPort(host, scheme string) string {
	if _, _, err := net.SplitHostPort(host); err == nil {
		return host
	}
	return host + ":" + defaultPorts[scheme]
}

// hostName returns the name or the address in a Host header, "" if there is none.
func hostName(host string) string {
	if h, port, err := net.SplitHostPort(host); err == nil {
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return ""
		}
		host = h
	} else if inner, ok := strings.CutPrefix(host, "["); ok {
		host = strings.TrimSuffix(inner, "]")
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Unmap().WithZone("").String()
	}
	return host
}

// isLoopback reports whether a name means this machine everywhere. DNS servers do not
// answer for localhost and what is below it (RFC 6761).
func isLoopback(name string) bool {
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return true
	}
	addr, err := netip.ParseAddr(name)
	return err == nil && addr.Unmap().IsLoopback()
}
