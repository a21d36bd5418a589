package image

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
)

// TestSignatureBounds: of the signatures of an image, as many and as large ones
// are looked at as may be, and no others.
func TestSignatureBounds(t *testing.T) {
	s, r := newStore(t), newSignedRegistry(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ours := newSigner(t, key, err)
	key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	theirs := newSigner(t, key, err)
	s.setPolicy(t, fmt.Sprintf(`{"default": {"keys": [%q]}}`, ours.file))
	want := func(repo, why string) {
		t.Helper()
		_, err := s.Pull(t.Context(), r.host+"/"+repo+":v1", PullOptions{Insecure: true}, nil)
		if why == "" && err != nil || why != "" && (skerry.CodeOf(err) != skerry.CodeForbidden || !strings.Contains(err.Error(), why)) {
			t.Errorf("%s: %v, want %q", repo, err, why)
		}
	}
	for repo, others := range map[string]int{"all": maxSignatures - 1, "more": maxSignatures} {
		digest := r.put(repo)
		r.signSimple(repo, digest, digest, append(slices.Repeat([]signer{theirs}, others), ours)...)
	}
	want("all", "")
	want("more", fmt.Sprintf("none of the image's %d signatures", maxSignatures))
	bundles := r.put("bundles")
	for range maxSignatures + 1 {
		r.signBundle("bundles", bundles, theirs)
	}
	want("bundles", fmt.Sprintf("none of the image's %d signatures", maxSignatures))
	for form, why := range []string{"", "the image has no signature"} {
		size := maxSignature + form
		digest := r.put(fmt.Sprint("simple", size))
		payload := payloadFor(digest.String())
		r.signPayload(fmt.Sprint("simple", size), digest, append(payload, strings.Repeat(" ", size-len(payload))...), ours)
		want(fmt.Sprint("simple", size), why)
		digest = r.put(fmt.Sprint("bundle", size))
		r.attest(fmt.Sprint("bundle", size), digest, ours, signPredicate, size)
		want(fmt.Sprint("bundle", size), why)
	}
}

func TestLargeKeys(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ours := newSigner(t, key, err)
	pem, err := os.ReadFile(ours.file)
	if err != nil {
		t.Fatal(err)
	}
	for size, refused := range map[int]bool{maxPolicy: false, maxPolicy + 1: true} {
		if err := os.WriteFile(ours.file, append(pem, strings.Repeat("\n", size-len(pem))...), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := (policyRule{Keys: []string{ours.file}}).readKeys(); (err != nil) != refused {
			t.Errorf("a key of %d bytes: %v", size, err)
		}
	}
}

// TestXattrBounds: as many files with extended attributes, and as large ones, as
// may be.
func TestXattrBounds(t *testing.T) {
	root := t.TempDir()
	set := func(n, size int) {
		t.Helper()
		path := filepath.Join(root, fmt.Sprintf("%04d", n))
		f, err := os.Create(path)
		if err == nil {
			err = errors.Join(f.Close(), unix.Setxattr(path, "user.a", make([]byte, size), 0))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	want := func(what string, code skerry.Code) {
		t.Helper()
		if _, err := readXattrs(root); code == "" && err != nil || code != "" && skerry.CodeOf(err) != code {
			t.Errorf("%s: %v", what, err)
		}
	}
	const each = maxXattrBytes/maxXattrFiles - len("/0000") - len("user.a")
	for n := range maxXattrFiles {
		set(n, each)
	}
	want("all that may be", "")
	set(0, each+1)
	want("a byte more", skerry.CodeImageInvalid)
	set(0, 1)
	set(1, 1)
	want("some bytes less", "")
	set(maxXattrFiles, 1)
	want("a file more", skerry.CodeImageInvalid)
}

// TestPackageBounds: what a registry of packages sends too much of, or nothing of,
// is given up after some tries.
func TestPackageBounds(t *testing.T) {
	const most = 1000
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		switch r.URL.Path {
		case "/all/-/all-1.tgz":
			fmt.Fprint(w, strings.Repeat("x", most))
		case "/more/-/more-1.tgz":
			fmt.Fprint(w, strings.Repeat("x", most+1))
		default:
			<-r.Context().Done()
		}
	}))
	defer server.Close()
	r := registryAt(server)
	r.most = most
	fetch := func(name string) error {
		asked.Store(0)
		size := map[string]int{"all": most, "more": most + 1}[name]
		sum := sha512.Sum512([]byte(strings.Repeat("x", size)))
		pin := npmPin{Name: name, Version: "1", Integrity: "sha512-" + base64.StdEncoding.EncodeToString(sum[:])}
		return r.fetchNPM(t.Context(), pin, filepath.Join(t.TempDir(), name))
	}
	if err := fetch("all"); err != nil {
		t.Error(err)
	}
	if err := fetch("more"); err == nil || !strings.Contains(err.Error(), "larger than") || asked.Load() != downloadTries {
		t.Errorf("one byte more: %v after %d tries", err, asked.Load())
	}
	r.patience = 50 * time.Millisecond
	if err := fetch("silent"); !errors.Is(err, context.DeadlineExceeded) || asked.Load() != downloadTries {
		t.Errorf("a registry that says nothing: %v after %d tries", err, asked.Load())
	}
}

func TestSilentRegistry(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer server.Close()
	s := newStore(t)
	s.opt.headerTime = 50 * time.Millisecond
	_, err := s.Pull(t.Context(), strings.TrimPrefix(server.URL, "http://")+"/team/app:v1", PullOptions{Insecure: true}, nil)
	if skerry.CodeOf(err) != skerry.CodeUnavailable {
		t.Error(err)
	}
}
