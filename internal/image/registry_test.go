package image

import (
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestRegistriesOfTheMachine(t *testing.T) {
	home := t.TempDir()
	writeAll(t, home, map[string]string{".npmrc": "fund=false\nregistry = https://npm.example/\n", ".config/pip/pip.conf": "[global]\nindex-url = https://pip.example/simple\n"})
	none := func(string) string { return "" }
	set := func(string) string { return "https://env.example/x" }
	got := []string{npmRegistry(none, t.TempDir()), npmRegistry(none, home), npmRegistry(set, home), pypiIndex(none, home), pypiIndex(set, home)}
	want := []string{
		"https://registry.npmjs.org/", "https://npm.example/", "https://env.example/x/", "https://pip.example/simple/", "https://env.example/x/",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the registries are %q, want %q", got, want)
	}
}

func registryAt(s *httptest.Server) *packageRegistry {
	r := newPackageRegistry()
	r.npm, r.pypi, r.client = s.URL+"/", s.URL+"/", s.Client()
	return r
}

func TestFetchChecksHashes(t *testing.T) {
	json := false
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/uv/" && json:
			w.Header().Set("Content-Type", "application/vnd.pypi.simple.v1+json")
			fmt.Fprint(w, `{"files":[{"filename":"other.whl","url":"/no"},{"filename":"uv.whl","url":"../files/uv.whl"}]}`)
		case r.URL.Path == "/uv/":
			fmt.Fprint(w, `<a href="/no/other.whl">other</a> <a href="../files/uv.whl#sha256=00">uv</a>`)
		case r.URL.Path == "/files/uv.whl" || r.URL.Path == "/npm/-/npm-1.0.0.tgz":
			fmt.Fprint(w, "contents")
		default:
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	r := registryAt(server)
	file := filepath.Join(t.TempDir(), "download")
	sum := sha512.Sum512([]byte("contents"))
	good := npmPin{Name: "npm", Version: "1.0.0", Integrity: "sha512-" + base64.StdEncoding.EncodeToString(sum[:])}
	if err := r.fetchNPM(t.Context(), good, file); err != nil {
		t.Error(err)
	}
	bad := good
	bad.Integrity = "sha512-" + base64.StdEncoding.EncodeToString(make([]byte, 64))
	if err := r.fetchNPM(t.Context(), bad, file); err == nil || !strings.Contains(err.Error(), "hash") {
		t.Errorf("a package with another hash: %v", err)
	}
	wheel := pypiPin{Name: "uv", File: "uv.whl", SHA256: "d1b2a59fbea7e20077af9f91b27e95e865061b270be03ff539ab3b73587882e8"}
	for _, json = range []bool{true, false} {
		if err := r.fetchPyPI(t.Context(), wheel, file); err != nil {
			t.Errorf("with a JSON index %v: %v", json, err)
		}
		missing := wheel
		missing.File = "nothing.whl"
		if err := r.fetchPyPI(t.Context(), missing, file); err == nil || !strings.Contains(err.Error(), "does not list") {
			t.Errorf("a file that is not listed: %v", err)
		}
	}
}
