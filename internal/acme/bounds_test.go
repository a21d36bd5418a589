package acme

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/skerry-dev/skerry/internal/acme/acmetest"
)

// TestHTTPProof proves a name over plain HTTP alone: the authority finds
// nobody at its port for TLS.
func TestHTTPProof(t *testing.T) {
	ln, _ := listen(t)
	plain, port := listen(t)
	ca := acmetest.Start(t, acmetest.Options{HTTPPort: port})
	c := open(t, Config{Dir: t.TempDir(), CA: ca.URL, Roots: ca.APIRoots(t), Listener: ln.Addr(), HTTPListener: plain.Addr()})
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !c.Answer(w, r) {
			http.NotFound(w, r)
		}
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(plain) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	serve(t, ln, c)
	c.Start(func(string) bool { return true })
	await(t, ln, "aaaa.sandboxes.example.com", ca.Roots, anyOf)
}

func TestExternalAccount(t *testing.T) {
	const key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	binding, err := ReadBinding("kid-1", file)
	if err != nil {
		t.Fatal(err)
	}
	ln, port := listen(t)
	ca := acmetest.Start(t, acmetest.Options{TLSPort: port, BindingID: "kid-1", BindingKey: key})
	unbound := open(t, Config{Dir: t.TempDir(), CA: ca.URL, Roots: ca.APIRoots(t), Listener: ln.Addr()})
	if err := unbound.attempt("aaaa.sandboxes.example.com", nil); err == nil {
		t.Error("an account that is not bound is taken")
	}
	unbound.Close()
	c := open(t, Config{Dir: t.TempDir(), CA: ca.URL, Roots: ca.APIRoots(t), Listener: ln.Addr(), Binding: binding})
	serve(t, ln, c)
	c.Start(func(string) bool { return true })
	await(t, ln, "aaaa.sandboxes.example.com", ca.Roots, anyOf)
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadBinding("kid-1", file); err == nil || strings.Contains(err.Error(), key) {
		t.Errorf("a key that others may read: %v", err)
	}
	for size, refused := range map[int]bool{maxSecret: false, maxSecret + 1: true} {
		err := os.WriteFile(file, []byte(key+strings.Repeat("\n", size-len(key))), 0o600)
		if err == nil {
			err = os.Chmod(file, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ReadBinding("kid-1", file); (err != nil) != refused {
			t.Errorf("a file of %d bytes: %v", size, err)
		}
	}
}

func TestLimit(t *testing.T) {
	ln, port := listen(t)
	ca := acmetest.Start(t, acmetest.Options{TLSPort: port})
	c := open(t, Config{Dir: t.TempDir(), CA: ca.URL, Roots: ca.APIRoots(t), Listener: ln.Addr()})
	serve(t, ln, c)
	var releases []func()
	for range ordersAtOnce {
		release, err := c.limit()
		if err != nil {
			t.Fatal(err)
		}
		releases = append(releases, release)
	}
	if _, err := c.limit(); !errors.Is(err, errTooMany) {
		t.Errorf("one more at once: %v", err)
	}
	for _, release := range releases {
		release()
	}
	for range orderBurst - ordersAtOnce {
		release, err := c.limit()
		if err != nil {
			t.Fatal(err)
		}
		release()
	}
	if _, err := c.limit(); !errors.Is(err, errTooMany) || len(c.slots) != 0 {
		t.Errorf("one more than the burst: %v, %d slots are taken", err, len(c.slots))
	}
	for n := range 1000 { // strangers' names leave nothing behind
		if _, err := c.begin(fmt.Sprintf("x%d.sandboxes.example.com", n)); err == nil {
			t.Fatal("a name is ordered before there are routes")
		}
	}
	if len(c.orders)+len(c.rests)+len(c.names) != 0 {
		t.Errorf("%d orders, %d rests, %d names are kept", len(c.orders), len(c.rests), len(c.names))
	}
	c.Start(func(string) bool { return true })
	if _, err := shake(ln, "aaaa.sandboxes.example.com", ca.Roots); err == nil || ca.Orders() != 0 {
		t.Errorf("a handshake that needs one more: %v, %d orders", err, ca.Orders())
	}
	const each = time.Hour / 100
	if soon := time.Now().Add(each - time.Second); c.pace.AllowN(soon, 1) || !c.pace.AllowN(soon.Add(2*time.Second), 1) {
		t.Error("there are not 100 orders an hour")
	}
}

// TestHandshakeWaits: a handshake does not wait long for its certificate, but the
// order goes on.
func TestHandshakeWaits(t *testing.T) {
	const name = "aaaa.sandboxes.example.com"
	ln, port := listen(t)
	ca := acmetest.Start(t, acmetest.Options{TLSPort: port})
	c := open(t, Config{Dir: t.TempDir(), CA: ca.URL, Roots: ca.APIRoots(t), Listener: ln.Addr(), wait: 100 * time.Millisecond})
	serve(t, ln, c)
	c.Start(func(string) bool { return true })
	release := ca.Hold()
	if _, err := shake(ln, name, ca.Roots); err == nil {
		t.Error("a handshake without a certificate")
	}
	c.mu.Lock()
	if c.orders[name] == nil {
		t.Error("the order has ended with the handshake")
	}
	c.mu.Unlock()
	release()
	await(t, ln, name, ca.Roots, anyOf)
}

// TestSlowAuthority: an order does not wait for its authority for ever.
func TestSlowAuthority(t *testing.T) {
	ln, _ := listen(t)
	ca := acmetest.Start(t, acmetest.Options{})
	c := open(t, Config{Dir: t.TempDir(), CA: ca.URL, Roots: ca.APIRoots(t), Listener: ln.Addr(), patience: 100 * time.Millisecond})
	serve(t, ln, c)
	c.Start(func(string) bool { return true })
	defer ca.Hold()()
	o, err := c.begin("aaaa.sandboxes.example.com")
	if err != nil {
		t.Fatal(err)
	}
	if <-o.done; o.err == nil || !strings.Contains(o.err.Error(), "no certificate within 100ms") {
		t.Error(o.err)
	}
}

// TestFailedOrdersRest: an authority that fails is left alone, for longer each
// time.
func TestFailedOrdersRest(t *testing.T) {
	const name = "aaaa.sandboxes.example.com"
	ln, _ := listen(t)
	c := open(t, Config{Dir: t.TempDir(), CA: "https://127.0.0.1:1/", Listener: ln.Addr()})
	serve(t, ln, c)
	c.Start(func(string) bool { return true })
	for before, want := range map[time.Duration]time.Duration{0: firstRetry, firstRetry: 2 * firstRetry, lastRetry/2 + 1: lastRetry, lastRetry: lastRetry} {
		c.mu.Lock()
		c.rests[name] = rest{wait: before, until: time.Now()}
		c.mu.Unlock()
		if _, err := shake(ln, name, nil); err == nil {
			t.Fatal("a handshake without a certificate")
		}
		c.mu.Lock()
		last := c.rests[name]
		c.mu.Unlock()
		if last.wait != want || time.Until(last.until) > want {
			t.Errorf("after %v the rest is %v, for %v more, want %v", before, last.wait, time.Until(last.until), want)
		}
		if _, err := c.begin(name); !errors.Is(err, last.err) {
			t.Errorf("within the rest: %v", err)
		}
	}
}

func TestHookIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nhead -c 1000000 /dev/zero | tr '\\0' x\necho end\nexec sleep 1000\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	var logged strings.Builder
	hook, err := NewHook(path, slog.New(slog.NewTextHandler(&logged, nil)))
	if err != nil {
		t.Fatal(err)
	}
	slow := errors.New("too slow")
	hook.timeout = func(ctx context.Context) (context.Context, context.CancelFunc) {
		return context.WithTimeoutCause(ctx, time.Second, slow)
	}
	if err := hook.run(t.Context(), "present", "a.", "b"); !errors.Is(err, slow) {
		t.Error(err)
	}
	if n := logged.Len(); n == 0 || n > hookOutput+1024 {
		t.Errorf("%d bytes are logged", n)
	}
}

func TestLogHasNoSecrets(t *testing.T) {
	var logged strings.Builder
	log := zapLogger(slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug})))
	log.With(zap.String("token", "s3cret")).Warn(strings.Repeat("m", 5000), zap.Any("account", map[string]string{"key": "s3cret"}),
		zap.Any("challenge", struct{ KeyAuthorization string }{"s3cret"}), zap.String("identifier", strings.Repeat("i", 5000)),
		zap.Error(errors.New(strings.Repeat("e", 5000))))
	if s := logged.String(); strings.Contains(s, "s3cret") || !strings.Contains(s, "identifier=i") || len(s) > 4*maxLogged {
		t.Errorf("%d bytes: %s", len(s), s)
	}
}
