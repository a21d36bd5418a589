package blob_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/blob"
	"github.com/skerry-dev/skerry/internal/blob/blobtest"
)

// stores runs a test on each kind of store.
func stores(t *testing.T, test func(t *testing.T, s blob.Store)) {
	t.Run("Dir", func(t *testing.T) {
		s, err := blob.OpenDir(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		test(t, s)
	})
	t.Run("S3", func(t *testing.T) { test(t, openS3(t, blobtest.StartS3(t).Config)) })
	t.Run("S3Prefix", func(t *testing.T) {
		cfg := blobtest.StartS3(t).Config
		outside := openS3(t, cfg)
		if err := outside.Put(t.Context(), "chunk/outside", nil); err != nil {
			t.Fatal(err)
		}
		cfg.Prefix = "some/where"
		test(t, openS3(t, cfg))
		if _, err := outside.Get(t.Context(), "chunk/outside"); err != nil {
			t.Error(err)
		}
	})
}

func openS3(t *testing.T, cfg blob.S3Config) *blob.S3 {
	t.Helper()
	s, err := blob.OpenS3(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func list(t *testing.T, s blob.Store, prefix string) []string {
	t.Helper()
	var keys []string
	for info, err := range s.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, info.Key)
	}
	slices.Sort(keys)
	return keys
}

func TestStore(t *testing.T) {
	stores(t, func(t *testing.T, s blob.Store) {
		t.Run("PutGetDelete", func(t *testing.T) { testPutGetDelete(t, s) })
		t.Run("List", func(t *testing.T) { testList(t, s) })
		t.Run("Keys", func(t *testing.T) { testKeys(t, s) })
		t.Run("Concurrent", func(t *testing.T) { testConcurrent(t, s) })
		t.Run("Cancelled", func(t *testing.T) { testCancelled(t, s) })
	})
}

func testPutGetDelete(t *testing.T, s blob.Store) {
	ctx := t.Context()
	for name, data := range map[string][]byte{
		"empty":     {},
		"one":       {1},
		"zeros":     make([]byte, 100_000),
		"megabytes": bytes.Repeat([]byte("skerry "), 600_000),
	} {
		key := "chunk/" + name
		if _, err := s.Get(ctx, key); !errors.Is(err, blob.ErrNotFound) || !strings.Contains(err.Error(), key) {
			t.Errorf("Get before Put of %s: %v", name, err)
		}
		for range 2 {
			if err := s.Put(ctx, key, data); err != nil {
				t.Fatal(err)
			}
			if got, err := s.Get(ctx, key); err != nil || !bytes.Equal(got, data) {
				t.Errorf("Get of %s: %d bytes of %d, %v", name, len(got), len(data), err)
			}
		}
		for range 2 {
			if err := s.Delete(ctx, key); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Get(ctx, key); !errors.Is(err, blob.ErrNotFound) {
				t.Errorf("Get after Delete of %s: %v", name, err)
			}
		}
	}
	if err := s.Put(ctx, "chunk/large", make([]byte, blob.MaxSize+1)); err == nil {
		t.Error("a blob that is too large was taken")
	}
	if got := list(t, s, "chunk/"); len(got) > 0 && !slices.Equal(got, []string{"chunk/outside"}) {
		t.Errorf("left are %v", got)
	}
}

func testList(t *testing.T, s blob.Store) {
	ctx := t.Context()
	if got := list(t, s, "nothing/"); len(got) > 0 {
		t.Errorf("nothing lists as %v", got)
	}
	keys := []string{"l/ab", "l/abc", "l/b", "l/b-c/d", "l/b.c/de/fgh", "l/deep/er/still", "m/ab", "x"}
	begin := time.Now().Add(-time.Minute)
	for _, key := range keys {
		if err := s.Put(ctx, key, []byte(key)); err != nil {
			t.Fatal(err)
		}
	}
	for prefix, want := range map[string][]string{
		"":        keys,
		"l":       keys[:6],
		"l/":      keys[:6],
		"l/a":     keys[:2],
		"l/abc":   keys[1:2],
		"l/b":     keys[2:5],
		"l/b-c/":  keys[3:4],
		"l/b.c/d": keys[4:5],
		"l/z":     nil,
		"m/":      keys[6:7],
	} {
		if got := list(t, s, prefix); !slices.Equal(got, want) {
			t.Errorf("List(%q) = %v, not %v", prefix, got, want)
		}
	}
	for info, err := range s.List(ctx, "l/") {
		if err != nil || info.Size != int64(len(info.Key)) || info.ModTime.Before(begin) || info.ModTime.After(time.Now().Add(time.Minute)) {
			t.Errorf("%+v, %v", info, err)
		}
		if info.Key == "l/abc" {
			break
		}
	}
	for _, key := range keys {
		if err := s.Delete(ctx, key); err != nil {
			t.Fatal(err)
		}
	}
}

func testKeys(t *testing.T, s blob.Store) {
	ctx := t.Context()
	for _, key := range []string{
		"", "/", "a/", "/a", "a//b", "..", "../a", "a/..", "a/../b", ".a", "a/.b", "-a", "A", "a b", "a_b", "a\\b", "a\x00b", "ä",
		"a/" + strings.Repeat("b", 201), strings.Repeat("a/", 256) + "b",
	} {
		if err := s.Put(ctx, key, nil); err == nil {
			t.Errorf("Put took %q", key)
		}
		if _, err := s.Get(ctx, key); err == nil || errors.Is(err, blob.ErrNotFound) {
			t.Errorf("Get of %q: %v", key, err)
		}
		if err := s.Delete(ctx, key); err == nil {
			t.Errorf("Delete took %q", key)
		}
	}
	for _, prefix := range []string{"/", "../", "a//", "A", "a_"} {
		for _, err := range s.List(ctx, prefix) {
			if err == nil {
				t.Errorf("List took %q", prefix)
			}
		}
	}
	for _, key := range []string{"a", "0", "a.b-c/d--e..f", "b/" + strings.Repeat("c", 200), strings.Repeat("d/", 100) + "e"} {
		if err := errors.Join(s.Put(ctx, key, []byte(key)), s.Delete(ctx, key)); err != nil {
			t.Error(err)
		}
	}
}

// testConcurrent has readers of blobs that others put and delete: they see the
// whole or nothing.
func testConcurrent(t *testing.T, s blob.Store) {
	ctx := t.Context()
	var wg sync.WaitGroup
	for i := range 8 {
		key := fmt.Sprint("c/", i%4)
		data := bytes.Repeat([]byte(key), 50_000)
		wg.Go(func() {
			for range 5 {
				if err := s.Put(ctx, key, data); err != nil {
					t.Error(err)
				}
				if i < 4 {
					if err := s.Delete(ctx, key); err != nil {
						t.Error(err)
					}
				}
			}
		})
		wg.Go(func() {
			for range 20 {
				got, err := s.Get(ctx, key)
				if err != nil && !errors.Is(err, blob.ErrNotFound) || err == nil && !bytes.Equal(got, data) {
					t.Errorf("Get: %d bytes of %d, %v", len(got), len(data), err)
				}
				for _, err := range s.List(ctx, "c/") {
					if err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}

func testCancelled(t *testing.T, s blob.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, getErr := s.Get(ctx, "k")
	var listErr error
	for _, listErr = range s.List(ctx, "") {
	}
	for what, err := range map[string]error{
		"Put": s.Put(ctx, "k", nil), "Get": getErr, "Delete": s.Delete(ctx, "k"), "List": listErr,
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestDirReopened(t *testing.T) {
	path := t.TempDir()
	s, err := blob.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "chunk/kept", []byte("kept")); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(path, "tmp", "put-123")
	foreign := filepath.Join(path, "blobs", "chunk", "README")
	for _, file := range []string{left, foreign} {
		if err := os.WriteFile(file, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if s, err = blob.OpenDir(path); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what a crash left is still there: %v", err)
	}
	if got := list(t, s, ""); !slices.Equal(got, []string{"chunk/kept"}) {
		t.Errorf("blobs are %v", got)
	}
}

func TestDirFailures(t *testing.T) {
	path := t.TempDir()
	s, err := blob.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	// A folder in the way of the blob makes the rename fail.
	if err := os.MkdirAll(filepath.Join(path, "blobs", "chunk", "ab_", "abc"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "chunk/abc", nil); err == nil || !strings.Contains(err.Error(), "chunk/abc") {
		t.Errorf("Put: %v", err)
	}
	if left, err := os.ReadDir(filepath.Join(path, "tmp")); err != nil || len(left) > 0 {
		t.Errorf("left in tmp: %v, %v", left, err)
	}
	large := filepath.Join(path, "blobs", "chunk", "ab_", "abd")
	if err := os.WriteFile(large, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(large, blob.MaxSize+1); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "chunk/abd"); err == nil || !strings.Contains(err.Error(), "chunk/abd") {
		t.Errorf("Get of a blob too large: %v", err)
	}
}

// TestS3GoneAndBack has the storage go away and come back.
func TestS3GoneAndBack(t *testing.T) {
	server := blobtest.StartS3(t)
	cfg := server.Config
	cfg.Tries = 1
	s := openS3(t, cfg)
	if err := s.Put(t.Context(), "chunk/a", []byte("a")); err != nil {
		t.Fatal(err)
	}
	server.Stop()
	_, getErr := s.Get(t.Context(), "chunk/a")
	var listErr error
	for _, listErr = range s.List(t.Context(), "") {
	}
	for what, err := range map[string]error{
		"Put": s.Put(t.Context(), "chunk/b", nil), "Get": getErr, "Delete": s.Delete(t.Context(), "chunk/a"), "List": listErr,
	} {
		if skerry.CodeOf(err) != skerry.CodeUnavailable || errors.Is(err, blob.ErrNotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
	server.Start(t)
	if got, err := s.Get(t.Context(), "chunk/a"); err != nil || string(got) != "a" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestS3Silent has storage that takes calls and says nothing, or begins an answer
// and does not go on.
func TestS3Silent(t *testing.T) {
	goOn := make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			w.Header().Set("Content-Length", "1000")
			w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
		}
		select {
		case <-r.Context().Done():
		case <-goOn:
		}
	}))
	defer silent.Close()
	defer close(goOn)
	s := openS3(t, blob.S3Config{Endpoint: silent.URL, Bucket: "bucket", AccessKey: "someone", SecretKey: "secret", Timeout: 200 * time.Millisecond})
	_, err := s.Get(t.Context(), "chunk/a")
	for what, err := range map[string]error{"Get": err, "Put": s.Put(t.Context(), "chunk/a", []byte("a"))} {
		if skerry.CodeOf(err) != skerry.CodeUnavailable {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestS3Conflict has the storage say a few times that a call met another, and
// then say nothing else.
func TestS3Conflict(t *testing.T) {
	server := blobtest.StartS3(t)
	storage, err := url.Parse(server.Config.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	var refuse atomic.Int32
	// The signature covers the name of the host, so it is kept.
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(storage); r.Out.Host = r.In.Host }}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && refuse.Add(-1) >= 0 {
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(http.StatusConflict)
			io.WriteString(w, "<Error><Code>OperationAborted</Code><Message>in the way</Message></Error>")
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	defer front.Close()
	cfg := server.Config
	cfg.Endpoint, cfg.Tries = front.URL, 3
	s := openS3(t, cfg)
	refuse.Store(2)
	if err := s.Put(t.Context(), "chunk/a", []byte("a")); err != nil {
		t.Error(err)
	}
	if got, err := s.Get(t.Context(), "chunk/a"); err != nil || string(got) != "a" {
		t.Errorf("%q, %v", got, err)
	}
	refuse.Store(3)
	if err := s.Put(t.Context(), "chunk/b", nil); err == nil || !strings.Contains(err.Error(), "in the way") {
		t.Errorf("after as many tries as there are: %v", err)
	}
	refuse.Store(2)
	if err := s.Delete(t.Context(), "chunk/a"); err != nil {
		t.Error(err)
	}
}

func TestS3Refused(t *testing.T) {
	server := blobtest.StartS3(t)
	for name, change := range map[string]func(*blob.S3Config){
		"secret": func(c *blob.S3Config) { c.SecretKey = "wrong-secret" },
		"user":   func(c *blob.S3Config) { c.AccessKey = "nobody" },
		"bucket": func(c *blob.S3Config) { c.Bucket = "not-there" },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := server.Config
			change(&cfg)
			s := openS3(t, cfg)
			_, err := s.Get(t.Context(), "chunk/a")
			for _, err := range []error{err, s.Put(t.Context(), "chunk/a", nil)} {
				if err == nil || errors.Is(err, blob.ErrNotFound) || strings.Contains(err.Error(), string(cfg.SecretKey)) {
					t.Errorf("%v", err)
				}
			}
		})
	}
}

func TestS3Config(t *testing.T) {
	for _, cfg := range []blob.S3Config{
		{Bucket: "bucket"},
		{Bucket: "bucket", Endpoint: "s3.example.com"},
		{Bucket: "bucket", Endpoint: "ftp://s3.example.com"},
		{Bucket: "bucket", Endpoint: "https://user:password@s3.example.com"},
		{Bucket: "bucket", Endpoint: "https://s3.example.com/path"},
		{Bucket: "bucket", Endpoint: "https://s3.example.com", Prefix: "../up"},
		{Bucket: "", Endpoint: "https://s3.example.com"},
	} {
		if _, err := blob.OpenS3(cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
}

// TestSecret prints a configuration in every way a log might.
func TestSecret(t *testing.T) {
	cfg := blob.S3Config{Endpoint: "https://s3.example.com", AccessKey: "a", SecretKey: "hush", SessionToken: "hush"}
	var out bytes.Buffer
	for _, verb := range []string{"v", "+v", "#v", "s", "q", "x", "d"} {
		fmt.Fprintf(&out, "%"+verb+"\n", cfg)
		fmt.Fprintf(&out, "%"+verb+"\n", cfg.SecretKey)
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("", "cfg", cfg, "key", cfg.SecretKey)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("", "cfg", cfg, "key", cfg.SecretKey)
	json.NewEncoder(&out).Encode(cfg)
	if strings.Contains(out.String(), "hush") || strings.Contains(out.String(), fmt.Sprintf("%x", "hush")) {
		t.Errorf("a secret was printed: %s", &out)
	}
}
