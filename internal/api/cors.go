package api

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skerry-dev/skerry/internal/tracing"
)

// corsMaxAge is how long a browser may remember the answer to a preflight.
const corsMaxAge = 10 * time.Minute

// cors lets pages of named origins call the API with a token (Cross-Origin Resource
// Sharing). Credentials that browsers send on their own are never allowed.
type cors struct {
	origins          map[string]bool
	methods, headers string
}

// corsExposed are the headers of answers that pages may read.
const corsExposed = "Retry-After, " + headerHeartbeat + ", X-Request-Id"

func newCORS(origins []string, routes []route) *cors {
	c := &cors{origins: map[string]bool{}}
	for _, origin := range origins {
		c.origins[origin] = true
	}
	methods, headers := map[string]bool{}, map[string]bool{}
	// What clients send beyond what browsers always allow.
	for _, name := range []string{"Authorization", "Content-Type", "User-Agent", headerHeartbeat, tracing.Header} {
		headers[strings.ToLower(name)] = true
	}
	for _, rt := range routes {
		methods[rt.method] = true
		for name := range rt.headers {
			headers[strings.ToLower(name)] = true
		}
	}
	c.methods = strings.Join(slices.Sorted(maps.Keys(methods)), ", ")
	c.headers = strings.Join(slices.Sorted(maps.Keys(headers)), ", ")
	return c
}

// allow adds the headers that let an allowed origin read the answer.
func (c *cors) allow(h http.Header, r *http.Request) {
	if len(c.origins) == 0 {
		return
	}
	h.Add("Vary", "Origin")
	if origin := r.Header.Get("Origin"); c.origins[origin] {
		h.Set("Access-Control-Allow-Origin", origin)
		h.Set("Access-Control-Expose-Headers", corsExposed)
	}
}

// preflight answers a browser that asks whether an allowed origin may make a request,
// and reports whether it did. Others are answered as every request of that method.
func (c *cors) preflight(w http.ResponseWriter, r *http.Request) bool {
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" || !c.origins[r.Header.Get("Origin")] {
		return false
	}
	h := w.Header()
	h.Set("Access-Control-Allow-Methods", c.methods)
	h.Set("Access-Control-Allow-Headers", c.headers)
	h.Set("Access-Control-Max-Age", strconv.Itoa(int(corsMaxAge.Seconds())))
	w.WriteHeader(http.StatusNoContent)
	return true
}
