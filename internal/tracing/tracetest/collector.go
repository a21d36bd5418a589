// Package tracetest starts a collector of traces for tests.
package tracetest

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Collector is a server that takes spans (OTLP over HTTP) and keeps them.
type Collector struct {
	// URL is its endpoint for all kinds of data.
	URL string

	mu      sync.Mutex
	spans   []Span
	headers []http.Header
	raw     []byte
	changed chan struct{}
}

// Span is a span with what its resource says.
type Span struct {
	*tracepb.Span
	Resource map[string]string
}

// maxBody bounds what the collector reads of a request.
const maxBody = 64 << 20

// Start starts a collector that ends with the test.
func Start(t testing.TB) *Collector {
	t.Helper()
	c := &Collector{changed: make(chan struct{})}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := c.take(r); err != nil {
			t.Errorf("the collector got a request that it does not understand: %v", err)
			w.WriteHeader(http.StatusBadRequest)
		}
	}))
	t.Cleanup(s.Close)
	c.URL = s.URL
	return c
}

func (c *Collector) take(r *http.Request) error {
	if r.Method != http.MethodPost || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
		return fmt.Errorf("%s %s of type %q", r.Method, r.URL.Path, r.Header.Get("Content-Type"))
	}
	var body io.Reader = http.MaxBytesReader(nil, r.Body, maxBody)
	if r.Header.Get("Content-Encoding") == "gzip" {
		unpacked, err := gzip.NewReader(body)
		if err != nil {
			return err
		}
		body = io.LimitReader(unpacked, maxBody)
	}
	b, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	var data tracepb.TracesData
	if err := proto.Unmarshal(b, &data); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raw = append(c.raw, b...)
	c.headers = append(c.headers, r.Header)
	for _, of := range data.ResourceSpans {
		about := values(of.Resource.GetAttributes())
		for _, scope := range of.ScopeSpans {
			for _, s := range scope.Spans {
				c.spans = append(c.spans, Span{s, about})
			}
		}
	}
	close(c.changed)
	c.changed = make(chan struct{})
	return nil
}

func values(attributes []*commonpb.KeyValue) map[string]string {
	all := map[string]string{}
	for _, a := range attributes {
		v := a.Value.GetStringValue()
		if _, is := a.Value.GetValue().(*commonpb.AnyValue_StringValue); !is {
			v = a.Value.String()
		}
		all[a.Key] = v
	}
	return all
}

// Spans returns what has come so far.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans)
}

// Raw returns all bytes that have come, uncompressed.
func (c *Collector) Raw() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.raw)
}

// Headers returns those of the requests so far.
func (c *Collector) Headers() []http.Header {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.headers)
}

// Await waits until enough says that the spans are those that the test waits for.
func (c *Collector) Await(t testing.TB, enough func([]Span) bool) []Span {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		c.mu.Lock()
		spans, changed := slices.Clone(c.spans), c.changed
		c.mu.Unlock()
		if enough(spans) {
			return spans
		}
		select {
		case <-changed:
		case <-ctx.Done():
			var names []string
			for _, s := range spans {
				names = append(names, s.Name)
			}
			t.Fatalf("the spans that the test waits for have not come; there are %q", names)
		}
	}
}

// Attributes are those of a span.
func (s Span) Attributes() map[string]string { return values(s.Span.Attributes) }

// Duration is how long the step took.
func (s Span) Duration() time.Duration {
	return time.Duration(s.EndTimeUnixNano - s.StartTimeUnixNano)
}

// Named returns the first span of a name, nil without one.
func Named(spans []Span, name string) *Span {
	for i := range spans {
		if spans[i].Name == name {
			return &spans[i]
		}
	}
	return nil
}

// Path returns the names of the spans above a span and its own, the topmost first.
func Path(spans []Span, s *Span) []string {
	path := []string{s.Name}
	for above := s; len(above.ParentSpanId) > 0; {
		i := slices.IndexFunc(spans, func(other Span) bool { return string(other.SpanId) == string(above.ParentSpanId) })
		if i < 0 {
			return append([]string{"?"}, path...)
		}
		above = &spans[i]
		path = append([]string{above.Name}, path...)
	}
	return path
}
