package export

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"golang.org/x/time/rate"
)

// Exporter sends spans to a collector. A batch that the collector does not accept is
// dropped.
type Exporter struct {
	client *Client
	spans  *otlptrace.Exporter
	log    *slog.Logger
	// complaints limits the log lines about a collector that does not answer.
	complaints rate.Sometimes

	sent, lost atomic.Int64
}

// complainEvery is the minimum time between log lines about lost spans.
const complainEvery = time.Minute

// New returns an exporter for a configuration.
func New(cfg Config, log *slog.Logger) *Exporter {
	c := NewClient(cfg)
	return &Exporter{
		client: c, spans: otlptrace.NewUnstarted(traces{c}), log: log,
		complaints: rate.Sometimes{Interval: complainEvery},
	}
}

// Processor returns a processor that sends spans in batches. It queues at most maxQueue
// spans, and drops others.
func (e *Exporter) Processor() sdk.SpanProcessor {
	return sdk.NewBatchSpanProcessor(e, sdk.WithMaxQueueSize(maxQueue), sdk.WithExportTimeout(e.client.cfg.Timeout))
}

// maxQueue is how many spans wait to be sent; a span takes about a kilobyte.
const maxQueue = 4096

// Counts returns how many spans the collector accepted, and how many it did not.
func (e *Exporter) Counts() (sent, lost int64) { return e.sent.Load(), e.lost.Load() }

// ExportSpans implements sdk.SpanExporter. That a collector does not answer is no error
// of the server's.
func (e *Exporter) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	if err := e.spans.ExportSpans(ctx, spans); err != nil {
		e.lost.Add(int64(len(spans)))
		e.complaints.Do(func() {
			e.log.Warn("the collector of traces does not accept spans; they are dropped", "endpoint", e.client.cfg.Endpoint, "lost", e.lost.Load(), "error", err)
		})
		return nil
	}
	e.sent.Add(int64(len(spans)))
	return nil
}

// Shutdown implements sdk.SpanExporter.
func (e *Exporter) Shutdown(ctx context.Context) error {
	e.client.Close()
	return nil
}

// traces posts spans. It replaces otlptracehttp, which links all of gRPC: 6 MB in every
// sandbox's kernel too, because that is the same program.
type traces struct{ *Client }

// Start implements otlptrace.Client.
func (traces) Start(context.Context) error { return nil }

// Stop implements otlptrace.Client.
func (traces) Stop(context.Context) error { return nil }

// UploadTraces implements otlptrace.Client.
func (t traces) UploadTraces(ctx context.Context, spans []*tracepb.ResourceSpans) error {
	// It has the same encoding as the request of the protocol, ExportTraceServiceRequest.
	return t.Post(ctx, &tracepb.TracesData{ResourceSpans: spans})
}
