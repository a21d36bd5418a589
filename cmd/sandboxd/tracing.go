package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"

	"github.com/skerry-dev/skerry/internal/metrics"
	"github.com/skerry-dev/skerry/internal/tracing"
	"github.com/skerry-dev/skerry/internal/tracing/export"
	"github.com/skerry-dev/skerry/internal/usage"
	"github.com/skerry-dev/skerry/internal/version"
)

// traces reads where traces are sent, and removes the credentials from the environment, so
// that no child process inherits them.
func (o *observeOptions) traces() (export.Config, error) {
	cfg, err := export.Configure(o.otlp, os.Getenv)
	for _, name := range export.HeadersEnv {
		os.Unsetenv(name)
	}
	return cfg, err
}

// flushTime is how long a server that ends waits for the collector to accept its last
// spans.
const flushTime = 2 * time.Second

// trace starts recording spans: for a collector of traces, if one is configured, and for
// counted, which is nil if no metrics are served. Without either the tracer is nil. close
// sends the spans that are still queued.
func trace(cfg export.Config, counted *metrics.Metrics, instance, process string, log *slog.Logger) (_ *tracing.Tracer, close func() error, err error) {
	var processors []sdk.SpanProcessor
	if counted != nil {
		processors = append(processors, counted.Phases())
	}
	if cfg.Endpoint != "" {
		exporter := export.New(cfg, log)
		processors = append(processors, exporter.Processor())
		if counted != nil {
			addSpanCounts(counted, exporter)
		}
		log.Info("sending traces", "endpoint", cfg.Endpoint, "ratio", cfg.Ratio)
	}
	if len(processors) == 0 {
		return nil, func() error { return nil }, nil
	}
	res, err := resource.New(context.Background(),
		resource.WithTelemetrySDK(),
		resource.WithAttributes(
			attribute.String("service.name", "skerry"), attribute.String("service.version", version.Version),
			attribute.String("service.instance.id", instance+"/"+process),
		),
		resource.WithFromEnv(), // last, so that the operator's values take precedence
	)
	if err != nil {
		return nil, nil, usage.Error{Err: fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)}
	}
	provider := export.NewProvider(export.Sampling{Ratio: cfg.Ratio, Record: counted != nil}, res, processors...)
	return tracing.NewTracer(provider), func() error {
		ctx, cancel := context.WithTimeout(context.Background(), flushTime)
		defer cancel()
		if err := provider.Shutdown(ctx); err != nil {
			log.Warn("the last spans were not sent", "error", err)
		}
		return nil
	}, nil
}

func addSpanCounts(counted *metrics.Metrics, exporter *export.Exporter) {
	counted.Add(metrics.Gauge{
		Name: "skerry_trace_spans_total", Help: "Spans that the collector of traces accepted (sent), and those that it did not (lost).",
		Label: "result", Counts: true,
		Read: func() map[string]float64 {
			sent, lost := exporter.Counts()
			return map[string]float64{"sent": float64(sent), "lost": float64(lost)}
		},
	})
}
