package api

import (
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
)

// TestMethodsOfEachPath asks every path of the API for what it does not take: the
// answer names what it takes, and no more.
func TestMethodsOfEachPath(t *testing.T) {
	h := serve(t, &stub{err: skerry.Errorf(skerry.CodeConflict, "the request was accepted")})
	names := regexp.MustCompile(`\{[^}]*\}`)
	takes := map[string][]string{}
	for _, rt := range h.srv.routes() {
		takes[rt.path] = append(takes[rt.path], rt.method)
	}
	for path, methods := range takes {
		at := names.ReplaceAllString(path, "x")
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions, http.MethodTrace} {
			if slices.Contains(methods, method) {
				continue
			}
			a := h.call(method, at, "")
			allow := strings.Split(a.header.Get("Allow"), ", ")
			slices.Sort(allow)
			slices.Sort(methods)
			if a.status != http.StatusMethodNotAllowed || !slices.Equal(allow, methods) {
				t.Errorf("%s %s: %d, Allow %v, want %v", method, at, a.status, allow, methods)
			}
		}
	}
	for _, path := range []string{"/v2/nothing", "/v1/sandboxes", "/v2/sandboxes/sessions", "/"} {
		if a := h.call(http.MethodTrace, path, ""); a.status != http.StatusMethodNotAllowed {
			t.Errorf("TRACE %s: %d", path, a.status)
		}
	}
}

// TestIntegers: an integer may be written as JSON writes any number.
func TestIntegers(t *testing.T) {
	stub := &stub{err: skerry.Errorf(skerry.CodeConflict, "the request was accepted")}
	h := serve(t, stub)
	for _, n := range []string{"600000", "600000.0", "6e5", "60000000E-2"} {
		stub.created = skerry.CreateParams{}
		h.refused("POST", "/v3/sandboxes", `{"timeout":`+n+`,"resources":{"vcpus":4.0}}`, 409, skerry.CodeConflict, "")
		if got := stub.created; got.Timeout.Std() != 10*time.Minute || got.VCPUs != 4 {
			t.Errorf("%s is read as %v, with %d CPUs", n, got.Timeout.Std(), got.VCPUs)
		}
	}
	for _, n := range []string{"600000.5", "6e-5", "1e400"} {
		h.refused("POST", "/v3/sandboxes", `{"timeout":`+n+`}`, 400, skerry.CodeBadRequest, "timeout")
	}
}

// TestBodyOfWhiteSpace is not JSON, and not the absence of a body.
func TestBodyOfWhiteSpace(t *testing.T) {
	h := serve(t, &stub{err: skerry.Errorf(skerry.CodeConflict, "the request was accepted")})
	for _, path := range []string{"/v3/sandboxes", "/v2/sandboxes/a/fork"} {
		h.refused("POST", path, "", 409, skerry.CodeConflict, "")
		for _, body := range []string{"\n", " \t\r\n"} {
			h.refused("POST", path, body, 400, skerry.CodeBadRequest, "")
		}
	}
}
