package api

import (
	"net/http"
	"strconv"
	"time"
)

// hstsMaxAge is how long a browser uses only TLS for this host (HTTP Strict Transport
// Security). It does not cover names below the host, which may be others'.
const hstsMaxAge = 365 * 24 * time.Hour

// setHeaders sets what browsers need to know of every answer, also of those that
// http.ServeMux gives itself. No answer is a page with parts, and none may be part of
// another site's page. A handler that serves a page sets its own policy.
func (s *Server) setHeaders(h http.Header, r *http.Request) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	// On localhost it would also concern every other server that a developer runs.
	if s.door.https(r) && !isLoopback(hostName(s.door.host(r))) {
		h.Set("Strict-Transport-Security", "max-age="+strconv.Itoa(int(hstsMaxAge.Seconds())))
	}
	s.door.cors.allow(h, r)
}
