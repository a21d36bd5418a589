package api

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/audit"
)

func BenchmarkEscaper(b *testing.B) {
	line := "2026-01-01T00:00:00Z  INFO  compiled 42 modules in 1.23s (cache hit, /vercel/sandbox/src)\n"
	for name, text := range map[string]string{
		"logs":    strings.Repeat(line, 64<<10/len(line)),
		"zeros":   strings.Repeat("0", 64<<10),
		"unicode": strings.Repeat("grün € 😀 ", 64<<10/20),
		"binary":  strings.Repeat("\x00\xff\x7f\x80ELF\x01", 64<<10/8),
	} {
		b.Run(name, func(b *testing.B) {
			var dst []byte
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				dst = appendEscaped(dst[:0], []byte(text))
			}
		})
	}
}

// BenchmarkStream measures command output from a reader to a client over
// loopback.
func BenchmarkStream(b *testing.B) {
	line := "2026-01-01T00:00:00Z  INFO  compiled 42 modules in 1.23s (cache hit, /vercel/sandbox/src)\n"
	block := []byte(strings.Repeat(line, 64<<10/len(line)))
	n := 0
	svc := running(func(context.Context) skerry.OutputReader { return &repeated{block: block, n: n} }, finished())
	srv := quietServer(b, svc)
	ctx, cancel := context.WithCancel(b.Context())
	ln, err := ListenConfig{Addr: "127.0.0.1:0"}.Listen(ctx)
	if err != nil {
		b.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx, ln, nil) }()
	b.SetBytes(int64(len(block)))
	b.ResetTimer()
	n = b.N
	req, err := http.NewRequest("POST", "http://"+ln.Addr().String()+"/v2/sandboxes/sessions/s/cmd", strings.NewReader(runWithLogs))
	if err != nil {
		b.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+testToken)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := io.CopyBuffer(io.Discard, resp.Body, make([]byte, 256<<10)); err != nil {
		b.Fatal(err)
	}
	resp.Body.Close()
	b.StopTimer()
	cancel()
	if err := <-served; err != nil {
		b.Fatal(err)
	}
}

type repeated struct {
	block []byte
	n     int
	at    int64
}

func (r *repeated) Next() (skerry.Output, error) {
	if r.n == 0 {
		return skerry.Output{}, io.EOF
	}
	r.n--
	piece := skerry.Output{Stream: skerry.Stdout, Offset: r.at, Data: r.block}
	r.at += int64(len(r.block))
	return piece, nil
}

func (r *repeated) Close() error { return nil }

// BenchmarkAudit is a change without an audit log and with one.
func BenchmarkAudit(b *testing.B) {
	for _, with := range []bool{false, true} {
		b.Run(map[bool]string{false: "without", true: "with"}[with], func(b *testing.B) {
			o := Options{Service: &stub{}, Accounts: oneAccount{}, Log: slog.New(slog.DiscardHandler)}
			if with {
				l, err := audit.Open(audit.Options{Dir: b.TempDir(), Log: o.Log})
				if err != nil {
					b.Fatal(err)
				}
				defer l.Close()
				o.Audit = l
			}
			srv, err := New(o)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				req := httptest.NewRequest("POST", "/v2/sandboxes/sessions/s/fs/mkdir", strings.NewReader(`{"path":"a"}`))
				req.Header.Set("Authorization", "Bearer "+testToken)
				req.Header.Set("User-Agent", "vercel/sandbox/1.0")
				w := httptest.NewRecorder()
				if srv.ServeHTTP(w, req); w.Code != http.StatusOK {
					b.Fatal(w.Code)
				}
			}
		})
	}
}
