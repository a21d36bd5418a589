package ingress

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"strconv"
	"strings"

	"github.com/skerry-dev/skerry"
)

// refusal is an answer of the ingress itself.
type refusal struct {
	status int
	code   string
	title  string
	text   string
	// again is after how many seconds it is worth another try; a page then
	// loads itself. 0 is never.
	again int
}

// The answers. Their text may have one %d, for the route's port.
var (
	noRoute = refusal{status: http.StatusNotFound, code: "route_not_found", title: "Nothing is published here",
		text: "There is no sandbox at this address. It may have been deleted, or its port is no longer published."}
	badRequest = refusal{status: http.StatusBadRequest, code: "bad_request", title: "The request cannot be sent on",
		text: "Its method, its target or its host is not valid in HTTP/1."}
	noTunnels = refusal{status: http.StatusMethodNotAllowed, code: "method_not_allowed", title: "This method is not supported",
		text: "CONNECT is for proxies, and this server is not a proxy."}
	tooMany = refusal{status: http.StatusServiceUnavailable, code: "too_many_requests", title: "The sandbox is busy",
		text: "Too many requests to port %d are in progress.", again: 2}
	noToken = refusal{status: http.StatusUnauthorized, code: "token_required", title: "This address is private",
		text: "A token is needed to open it. Ask its owner for a link; tokens expire."}
	stopped = refusal{status: http.StatusServiceUnavailable, code: "sandbox_stopped", title: "The sandbox has stopped",
		text: "A request does not start it again."}
	notStarted = refusal{status: http.StatusServiceUnavailable, code: "sandbox_unavailable", title: "The sandbox could not be started",
		text: "It had stopped, and starting it again failed.", again: 5}
	starting = refusal{status: http.StatusServiceUnavailable, code: "sandbox_starting", title: "The sandbox is still starting",
		text: "It takes longer than usual.", again: 3}
	notListening = refusal{status: http.StatusBadGateway, code: "port_not_listening", title: "Nothing is listening yet",
		text: "The sandbox runs, but no program in it accepts connections on port %d.", again: 2}
	noAnswer = refusal{status: http.StatusGatewayTimeout, code: "upstream_timeout", title: "The sandbox does not answer",
		text: "The program on port %d took too long."}
	brokenAnswer = refusal{status: http.StatusBadGateway, code: "upstream_failed", title: "The sandbox did not answer properly",
		text: "The program on port %d closed the connection, or its answer was not valid HTTP."}
	ended = refusal{status: http.StatusServiceUnavailable, code: "sandbox_stopping", title: "The sandbox is stopping",
		text: "The next request starts it again, if requests may start this sandbox.", again: 2}
)

// unreachable says why there is no session to send a request to.
func unreachable(err error) refusal {
	switch code := skerry.CodeOf(err); {
	case code == skerry.CodeNotFound:
		return noRoute
	case code == skerry.CodeSandboxStopped:
		return stopped
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return starting
	}
	return notStarted
}

// unanswered says why a session gave no answer.
func unanswered(err error) refusal {
	switch skerry.CodeOf(err) {
	case skerry.CodeUnavailable:
		return notListening
	case skerry.CodeSandboxStopped, skerry.CodeNotFound:
		return ended
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return noAnswer
	}
	return brokenAnswer
}

// wantsPage tells a browser that shows a page from everything else.
func wantsPage(r *http.Request) bool {
	if mode := r.Header.Get("Sec-Fetch-Mode"); mode != "" && mode != "navigate" {
		return false
	}
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && r.Header.Get("Upgrade") == "" &&
		strings.Contains(r.Header.Get("Accept"), "text/html")
}

// refuse answers in the place of the sandbox: with a page for people, JSON or
// a line for programs.
func (i *Ingress) refuse(w http.ResponseWriter, r *http.Request, rt *route, no refusal) {
	text := no.text
	if strings.Contains(text, "%d") {
		text = fmt.Sprintf(text, rt.Port)
	}
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Skerry-Error", no.code)
	if no.again > 0 {
		h.Set("Retry-After", strconv.Itoa(no.again))
	}
	switch {
	case wantsPage(r):
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors *")
		w.WriteHeader(no.status)
		// The client may be gone; there is nobody else to tell.
		_ = page.Execute(w, map[string]any{"Status": no.status, "Title": no.title, "Text": text, "Again": no.again})
	case strings.Contains(r.Header.Get("Accept"), "json"):
		h.Set("Content-Type", "application/json")
		w.WriteHeader(no.status)
		_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]string{"code": no.code, "message": text}})
	default:
		h.Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(no.status)
		_, _ = fmt.Fprintf(w, "%s: %s\n", no.title, text)
	}
}

var page = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
{{if .Again}}<meta http-equiv="refresh" content="{{.Again}}">
{{end}}<title>{{.Title}}</title>
<style>
:root { color-scheme: light dark; --ink: #1d2730; --quiet: #5d6b78; --paper: #f6f8f9; --sea: #2f7f93; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf1; --quiet: #93a3b0; --paper: #11181d; --sea: #6bc0d3; } }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: var(--paper); color: var(--ink); font: 1rem/1.6 system-ui, sans-serif; }
main { max-width: 30rem; padding: 2rem; }
p { margin: .5rem 0 0; color: var(--quiet); }
h1 { margin: 0; font-size: 1.4rem; font-weight: 600; }
.status { color: var(--sea); font-variant-numeric: tabular-nums; font-weight: 600; letter-spacing: .05em; }
.bar { height: 2px; margin-top: 1.5rem; background: linear-gradient(90deg, transparent, var(--sea), transparent) 0 / 40% no-repeat; animation: tide 1.6s ease-in-out infinite alternate; }
@keyframes tide { to { background-position: 100% 0; } }
@media (prefers-reduced-motion: reduce) { .bar { animation: none; } }
</style>
</head>
<body>
<main>
<div class="status">{{.Status}}</div>
<h1>{{.Title}}</h1>
<p>{{.Text}}{{if .Again}} This page tries again by itself.{{end}}</p>
{{if .Again}}<div class="bar" role="presentation"></div>
{{end}}</main>
</body>
</html>
`))
