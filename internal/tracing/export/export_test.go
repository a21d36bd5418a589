package export_test

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skerry-dev/skerry/internal/tracing"
	"github.com/skerry-dev/skerry/internal/tracing/export"
	"github.com/skerry-dev/skerry/internal/tracing/tracetest"
)

func env(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

const (
	forAll    = "OTEL_EXPORTER_OTLP_"
	forTraces = "OTEL_EXPORTER_OTLP_TRACES_"
)

func TestConfigure(t *testing.T) {
	for _, c := range []struct {
		what, flag string
		env        []string
		want       export.Config
	}{
		{what: "nothing"},
		{what: "credentials alone", env: []string{forAll + "HEADERS", "a=b"}},
		{what: "a flag", flag: "http://c:4318", want: export.Config{Endpoint: "http://c:4318/v1/traces"}},
		{what: "a flag with a path", flag: "https://c/otlp/", want: export.Config{Endpoint: "https://c/otlp/v1/traces"}},
		{what: "a variable", env: []string{forAll + "ENDPOINT", "http://c:4318"}, want: export.Config{Endpoint: "http://c:4318/v1/traces"}},
		{what: "the one for traces", env: []string{forAll + "ENDPOINT", "http://c:4318", forTraces + "ENDPOINT", "http://t/x"}, want: export.Config{Endpoint: "http://t/x"}},
		{what: "a flag before a variable", flag: "http://f", env: []string{forTraces + "ENDPOINT", "http://t/x"}, want: export.Config{Endpoint: "http://f/v1/traces"}},
		{what: "disabled", env: []string{forAll + "ENDPOINT", "http://c", "OTEL_SDK_DISABLED", "true"}},
		{what: "no exporter", env: []string{forAll + "ENDPOINT", "http://c", "OTEL_TRACES_EXPORTER", "none"}},
		{what: "headers", flag: "http://c", env: []string{forAll + "HEADERS", "a=%20b%3D, c = d"}, want: export.Config{Endpoint: "http://c/v1/traces", Headers: map[string]string{"a": " b=", "c": "d"}}},
		{what: "gzip", flag: "http://c", env: []string{forTraces + "COMPRESSION", "gzip"}, want: export.Config{Endpoint: "http://c/v1/traces", Gzip: true}},
		{what: "a timeout", flag: "http://c", env: []string{forAll + "TIMEOUT", "500"}, want: export.Config{Endpoint: "http://c/v1/traces", Timeout: 500 * time.Millisecond}},
		{what: "a sampler", flag: "http://c", env: []string{"OTEL_TRACES_SAMPLER", "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG", "0.25"}, want: export.Config{Endpoint: "http://c/v1/traces", Ratio: 0.25}},
		{what: "none of the traces", flag: "http://c", env: []string{"OTEL_TRACES_SAMPLER", "always_off"}, want: export.Config{Endpoint: "http://c/v1/traces", Ratio: -1}},
	} {
		if c.want.Endpoint != "" { // with the defaults
			if c.want.Timeout == 0 {
				c.want.Timeout = 10 * time.Second
			}
			if c.want.Ratio == 0 {
				c.want.Ratio = 1
			}
			c.want.Ratio = max(c.want.Ratio, 0)
		}
		got, err := export.Configure(c.flag, env(c.env...))
		if err != nil || got.Endpoint != c.want.Endpoint || got.Gzip != c.want.Gzip || got.Timeout != c.want.Timeout || got.Ratio != c.want.Ratio ||
			len(got.Headers) != len(c.want.Headers) || got.Headers["a"] != c.want.Headers["a"] || got.Headers["c"] != c.want.Headers["c"] {
			t.Errorf("%s: %+v, %v, want %+v", c.what, got, err, c.want)
		}
	}
}

func TestConfigureRefuses(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		flag string
		env  []string
		want string
	}{
		{flag: "collector:4318", want: "--otlp-endpoint: not a URL such as http://127.0.0.1:4318"},
		{flag: "http://c?x", want: "--otlp-endpoint: not a URL such as http://127.0.0.1:4318"},
		{flag: "http://user:hush@c", want: "--otlp-endpoint: a URL with a password; put credentials into OTEL_EXPORTER_OTLP_HEADERS"},
		{env: []string{forAll + "ENDPOINT", "grpc://c"}, want: "OTEL_EXPORTER_OTLP_ENDPOINT: not a URL such as http://127.0.0.1:4318"},
		{flag: "http://c", env: []string{forAll + "PROTOCOL", "grpc"}, want: `OTEL_EXPORTER_OTLP_PROTOCOL is "grpc"; the server speaks http/protobuf`},
		{flag: "http://c", env: []string{forTraces + "COMPRESSION", "zstd"}, want: `OTEL_EXPORTER_OTLP_TRACES_COMPRESSION is "zstd", must be gzip or none`},
		{flag: "http://c", env: []string{forAll + "TIMEOUT", "10s"}, want: `OTEL_EXPORTER_OTLP_TIMEOUT is "10s", must be 1 to 60000 milliseconds`},
		{flag: "http://c", env: []string{forAll + "HEADERS", "a=b,hush"}, want: "OTEL_EXPORTER_OTLP_HEADERS: header 2 is not of the form name=value"},
		{flag: "http://c", env: []string{forAll + "HEADERS", "a=hush%0Ax"}, want: "OTEL_EXPORTER_OTLP_HEADERS: header 1 is not of the form name=value"},
		{flag: "http://c", env: []string{forAll + "CERTIFICATE", empty}, want: "OTEL_EXPORTER_OTLP_CERTIFICATE: " + empty + " has no certificate"},
		{flag: "http://c", env: []string{forAll + "CLIENT_KEY", empty}, want: "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY need each other"},
		{flag: "http://c", env: []string{"OTEL_TRACES_SAMPLER", "jaeger_remote"}, want: `OTEL_TRACES_SAMPLER is "jaeger_remote", must be always_on, always_off or traceidratio`},
		{flag: "http://c", env: []string{"OTEL_TRACES_SAMPLER", "traceidratio", "OTEL_TRACES_SAMPLER_ARG", "NaN"}, want: `OTEL_TRACES_SAMPLER_ARG is "NaN", must be 0 to 1`},
	} {
		if _, err := export.Configure(c.flag, env(c.env...)); err == nil || err.Error() != c.want {
			t.Errorf("%s %q: %v, want %s", c.flag, c.env, err, c.want)
		}
	}
}

// exporting makes a tracer that exports, and what sends all that waits.
func exporting(t *testing.T, cfg export.Config) (e *export.Exporter, tracer *tracing.Tracer, flush func(), log *bytes.Buffer) {
	t.Helper()
	cfg.Timeout, cfg.Ratio = 10*time.Second, 1
	log = new(bytes.Buffer)
	e = export.New(cfg, slog.New(slog.NewTextHandler(log, nil)))
	p := export.NewProvider(export.Sampling{Ratio: 1}, nil, e.Processor())
	t.Cleanup(func() {
		if err := p.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return e, tracing.NewTracer(p), func() {
		if err := p.ForceFlush(t.Context()); err != nil {
			t.Error(err)
		}
	}, log
}

func TestSpansAreSent(t *testing.T) {
	for _, packed := range []bool{false, true} {
		c := tracetest.Start(t)
		e, tracer, flush, _ := exporting(t, export.Config{Endpoint: c.URL + "/v1/traces", Gzip: packed, Headers: map[string]string{"Authorization": "Bearer hush"}})
		ctx, above := tracer.Request(t.Context(), "above", "")
		_, below := tracing.Start(ctx, "below")
		below.Session("sbx_1")
		below.End(nil)
		above.End(nil)
		flush()
		spans := c.Spans()
		if len(spans) != 2 || spans[0].Name != "below" || spans[0].Attributes()["skerry.session.id"] != "sbx_1" || !bytes.Equal(spans[0].ParentSpanId, spans[1].SpanId) {
			t.Errorf("gzip %v: the collector got %v", packed, spans)
		}
		if h := c.Headers(); len(h) != 1 || h[0].Get("Authorization") != "Bearer hush" || (h[0].Get("Content-Encoding") == "gzip") != packed {
			t.Errorf("gzip %v: the collector got the headers %v", packed, h)
		}
		if sent, lost := e.Counts(); sent != 2 || lost != 0 {
			t.Errorf("%d sent, %d lost", sent, lost)
		}
	}
}

// TestCollectorsThatFail has spans be dropped, with one line in the log, and the
// credentials go to nobody else.
func TestCollectorsThatFail(t *testing.T) {
	var strayed atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { strayed.Add(1) }))
	defer elsewhere.Close()
	closed := httptest.NewServer(nil)
	closed.Close()
	for what, url := range map[string]string{
		"refuses": handler(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }),
		"redirects": handler(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}),
		"is down": closed.URL,
	} {
		e, tracer, flush, log := exporting(t, export.Config{Endpoint: url, Headers: map[string]string{"Authorization": "Bearer hush"}})
		for range 3 {
			_, span := tracer.Request(t.Context(), "request", "")
			span.End(nil)
			flush()
		}
		if sent, lost := e.Counts(); sent != 0 || lost != 3 {
			t.Errorf("a collector that %s: %d sent, %d lost", what, sent, lost)
		}
		if said := log.String(); strings.Count(said, "\n") != 1 || !strings.Contains(said, "dropped") || strings.Contains(said, "hush") {
			t.Errorf("a collector that %s: the log says\n%s", what, said)
		}
	}
	if strayed.Load() > 0 {
		t.Error("spans followed a redirect")
	}
}

func handler(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// TestQueueIsBounded has a collector that does not answer delay nobody, and most of what
// it does not take be dropped.
func TestQueueIsBounded(t *testing.T) {
	const more = 20_000
	var arrived atomic.Int64
	hung := make(chan struct{})
	url := handler(t, func(_ http.ResponseWriter, r *http.Request) {
		arrived.Add(1)
		select {
		case <-hung:
		case <-r.Context().Done():
		}
	})
	e, tracer, flush, _ := exporting(t, export.Config{Endpoint: url})
	for range more {
		_, span := tracer.Request(t.Context(), "request", "")
		span.End(nil)
	}
	close(hung)
	flush()
	if sent, lost := e.Counts(); sent+lost == 0 || sent+lost > more/2 || arrived.Load() == 0 {
		t.Errorf("%d of %d spans were kept for a collector that does not answer", sent+lost, more)
	}
}

// TestConfigureLogs has only the flag say where logs go, and the variables how.
func TestConfigureLogs(t *testing.T) {
	all := []string{forAll + "ENDPOINT", "http://c", forAll + "LOGS_ENDPOINT", "http://c", forAll + "HEADERS", "a=b", forAll + "LOGS_TIMEOUT", "500", forAll + "TRACES_TIMEOUT", "600"}
	if got, err := export.ConfigureLogs("x", "", env(all...)); err != nil || got.Endpoint != "" {
		t.Errorf("without the flag: %+v, %v", got, err)
	}
	got, err := export.ConfigureLogs("x", "https://c/otlp", env(all...))
	if err != nil || got.Endpoint != "https://c/otlp/v1/logs" || got.Headers["a"] != "b" || got.Timeout != 500*time.Millisecond {
		t.Errorf("%+v, %v", got, err)
	}
	for _, c := range []struct {
		flag string
		env  []string
		want string
	}{
		{flag: "c:4318", want: "--x: not a URL such as http://127.0.0.1:4318"},
		{flag: "http://u:hush@c", want: "--x: a URL with a password; put credentials into OTEL_EXPORTER_OTLP_HEADERS"},
		{flag: "http://c", env: []string{forAll + "LOGS_PROTOCOL", "grpc"}, want: `OTEL_EXPORTER_OTLP_LOGS_PROTOCOL is "grpc"; the server speaks http/protobuf`},
	} {
		if _, err := export.ConfigureLogs("x", c.flag, env(c.env...)); err == nil || err.Error() != c.want {
			t.Errorf("%s %q: %v, want %s", c.flag, c.env, err, c.want)
		}
	}
}
