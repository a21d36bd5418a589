package main

import (
	"bytes"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry/internal/metrics"
	"github.com/skerry-dev/skerry/internal/tracing/export"
	"github.com/skerry-dev/skerry/internal/tracing/tracetest"
)

func TestNoTracesUnlessAskedFor(t *testing.T) {
	tracer, stop, err := trace(export.Config{}, nil, "i", "server", slog.New(slog.DiscardHandler))
	if tracer != nil || err != nil {
		t.Fatalf("a tracer %v, %v", tracer, err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestServerEndsWithoutItsCollector has the end of a server wait for a collector that
// does not answer no longer than it may.
func TestServerEndsWithoutItsCollector(t *testing.T) {
	end := make(chan struct{})
	hung := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-end }))
	defer hung.Close()
	defer close(end)
	var log bytes.Buffer
	cfg := export.Config{Endpoint: hung.URL, Timeout: time.Hour, Ratio: 1}
	tracer, stop, err := trace(cfg, metrics.New(""), "i", "server", slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	_, span := tracer.Request(t.Context(), "request", "")
	span.End(nil)
	if err := stop(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "the last spans were not sent") {
		t.Errorf("the log says\n%s", &log)
	}
}

// TestTracesAreOfThisServer has the resource say which server it is, unless the operator
// says something else; and the server forget the credentials of the collector.
func TestTracesAreOfThisServer(t *testing.T) {
	c := tracetest.Start(t)
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "a=hush")
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
	o := observeOptions{otlp: c.URL}
	cfg, err := o.traces()
	if err != nil || cfg.Headers["a"] != "hush" || os.Getenv("OTEL_EXPORTER_OTLP_HEADERS") != "" {
		t.Fatalf("configured %v, %v; the environment still has %q", cfg, err, os.Getenv("OTEL_EXPORTER_OTLP_HEADERS"))
	}
	tracer, stop, err := trace(cfg, nil, "skerry-1", "node", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	_, span := tracer.Request(t.Context(), "request", "")
	span.End(errors.New("a fault"))
	if err := stop(); err != nil {
		t.Error(err)
	}
	spans := c.Spans()
	if len(spans) != 1 {
		t.Fatalf("%d spans", len(spans))
	}
	for name, want := range map[string]string{"service.name": "skerry", "service.instance.id": "skerry-1/node", "deployment.environment.name": "test"} {
		if got := spans[0].Resource[name]; got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}
