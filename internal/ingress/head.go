package ingress

import (
	"errors"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/skerry-dev/skerry/internal/cgivar"
)

// errBadRequest is a request that cannot be written as one of HTTP/1.
var errBadRequest = errors.New("the request cannot be sent on")

// appendHead appends the first lines of the request that goes to a sandbox,
// made of those that a client has sent. What frames the body is made here and
// never copied, and so are the headers that speak for the proxy. Whatever could
// end a line or a word early is an error or left out: HTTP/2 has other rules.
func appendHead(b []byte, r *http.Request, host string) ([]byte, error) {
	target := r.URL.RequestURI()
	// net/http's server has looked at the Host header, but not at a host in the
	// target.
	if !isToken(r.Method) || !isTarget(target, r.Method) || !httpguts.ValidHostHeader(r.Host) || !httpguts.ValidHostHeader(host) {
		return nil, errBadRequest
	}
	b = append(b, r.Method...)
	b = append(b, ' ')
	b = append(b, target...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, host...)
	b = append(b, "\r\n"...)
	named := r.Header["Connection"]
	// In one order, so that two equal requests are equal for the sandbox too.
	var some [24]string
	names := some[:0]
	for name := range r.Header {
		if !ofThisHop(name, named) && !ofTheProxy(name) && isToken(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		for _, v := range r.Header[name] {
			b = appendLine(b, name, v)
		}
	}
	if hasToken(r.Header["Te"], "trailers") {
		b = append(b, "Te: trailers\r\n"...)
	}
	if kind := upgradeOf(r.Header); kind != "" {
		b = append(b, "Connection: Upgrade\r\n"...)
		b = appendLine(b, "Upgrade", kind)
	}
	if ip, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		b = appendLine(b, "X-Forwarded-For", ip)
		b = appendLine(b, "X-Real-Ip", ip)
	}
	b = appendLine(b, "X-Forwarded-Host", r.Host)
	proto := "http"
	if r.TLS != nil {
		proto = "https"
	}
	b = appendLine(b, "X-Forwarded-Proto", proto)
	switch {
	case !hasBody(r):
		// Servers refuse these methods without a length.
		if r.Method == http.MethodPost || r.Method == http.MethodPut || r.Method == http.MethodPatch {
			b = append(b, "Content-Length: 0\r\n"...)
		}
	case r.ContentLength > 0:
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, r.ContentLength, 10)
		b = append(b, "\r\n"...)
	default:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		for _, name := range slices.Sorted(maps.Keys(r.Trailer)) {
			if isTrailer(name) {
				b = appendLine(b, "Trailer", name)
			}
		}
	}
	return append(b, "\r\n"...), nil
}

// isTrailer reports whether a header may follow a body.
func isTrailer(name string) bool {
	return isToken(name) && !ofThisHop(name, nil) && !ofTheProxy(name)
}

// hasBody tells a request with a body, if an empty one, from those without.
func hasBody(r *http.Request) bool {
	return r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0
}

// appendLine appends a header, unless it would be more than that.
func appendLine(b []byte, name, value string) []byte {
	for i := range len(value) {
		if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return b
		}
	}
	b = append(b, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	return append(b, "\r\n"...)
}

// ofThisHop reports whether a header is for the next recipient alone: one that
// always is, frames a message, or is named by Connection.
func ofThisHop(name string, connection []string) bool {
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding",
		"Upgrade", "Content-Length", "Host":
		return true
	}
	return len(connection) > 0 && hasToken(connection, name)
}

// ofTheProxy reports whether a header of a request speaks for the proxy, or would
// to a program that does not tell "-" from "_": in the variables of CGI, which many
// servers still make of headers, every character but letters and digits is "_".
func ofTheProxy(name string) bool {
	if cgivar.HasPrefix(name, "X-Forwarded-") {
		return true
	}
	for _, own := range []string{"Forwarded", "X-Real-Ip", TokenHeader} {
		if cgivar.Same(name, own) {
			return true
		}
	}
	for _, own := range framing {
		if name != own && cgivar.Same(name, own) {
			return true
		}
	}
	return false
}

// framing are headers that the proxy makes itself, as ofThisHop has them.
var framing = []string{"Host", "Connection", "Content-Length", "Transfer-Encoding", "Proxy-Authorization"}

// hasToken looks for a word in the lists that the values are.
func hasToken(values []string, word string) bool {
	for _, v := range values {
		for part := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.Trim(part, " \t"), word) {
				return true
			}
		}
	}
	return false
}

// upgradeOf is the protocol that a message asks for or agrees to, or empty.
func upgradeOf(h http.Header) string {
	if len(h["Upgrade"]) == 0 || !hasToken(h["Connection"], "Upgrade") {
		return ""
	}
	return h.Get("Upgrade")
}

// isToken reports whether s is a word as methods and names of headers are.
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if ('a' > c || c > 'z') && ('A' > c || c > 'Z') && ('0' > c || c > '9') && !strings.Contains("!#$%&'*+-.^_`|~", string(rune(c))) {
			return false
		}
	}
	return s != ""
}

// isTarget reports whether s is a path, with a query or not, or the asterisk
// of OPTIONS.
func isTarget(s, method string) bool {
	return isVisible(s) && (s[0] == '/' || s == "*" && method == http.MethodOptions)
}

// isVisible reports whether s is one word on a line.
func isVisible(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c == 0x7f {
			return false
		}
	}
	return s != ""
}
