package export

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"
)

// Exporter sends spans to a collector. A batch that the collector does not accept is
// dropped.
type Exporter struct {
	client *client
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
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxConnsPerHost = 2
	if cfg.TLS != nil {
		transport.TLSClientConfig = cfg.TLS
	}
	c := &client{cfg: cfg, transport: transport, http: &http.Client{
		Transport: transport, Timeout: cfg.Timeout,
		// The headers are for the one collector.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	return &Exporter{
		client: c, spans: otlptrace.NewUnstarted(c), log: log,
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
	e.client.transport.CloseIdleConnections()
	return nil
}

// client posts spans. It replaces otlptracehttp, which links all of gRPC: 6 MB in every
// sandbox's kernel too, because that is the same program.
type client struct {
	cfg       Config
	transport *http.Transport
	http      *http.Client
}

// Start implements otlptrace.Client.
func (c *client) Start(context.Context) error { return nil }

// Stop implements otlptrace.Client.
func (c *client) Stop(context.Context) error { return nil }

// maxAnswer is the maximum number of bytes read of a collector's answer.
const maxAnswer = 64 << 10

// UploadTraces implements otlptrace.Client.
func (c *client) UploadTraces(ctx context.Context, spans []*tracepb.ResourceSpans) error {
	// It has the same encoding as the request of the protocol, ExportTraceServiceRequest.
	body, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: spans})
	if err != nil {
		return err
	}
	if c.cfg.Gzip {
		var packed bytes.Buffer
		w := gzip.NewWriter(&packed)
		if _, err := w.Write(body); err != nil {
			return err
		}
		if err := w.Close(); err != nil {
			return err
		}
		body = packed.Bytes()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.cfg.Endpoint, bytes.NewReader(body))
	if err != nil {
		return err
	}
	for name, value := range c.cfg.Headers {
		req.Header.Set(name, value)
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	if c.cfg.Gzip {
		req.Header.Set("Content-Encoding", "gzip")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // the log has the URL already
		}
		return err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, maxAnswer) // so that the connection can be used again
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("it answers %d", resp.StatusCode)
	}
	return nil
}
