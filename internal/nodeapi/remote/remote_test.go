package remote

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"testing"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/nodeapi/nodetest"
	"github.com/skerry-dev/skerry/internal/tracing"
)

// serve serves a node over a socket, and returns a client of it. Both end with the
// test.
func serve(t testing.TB, cfg ServerConfig) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "node.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Log = slog.New(slog.DiscardHandler)
	server := NewServer(cfg)
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	client := NewClient(ClientConfig{Dial: DialUnix(path)})
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return client
}

// TestConformance runs the suite through the socket.
func TestConformance(t *testing.T) {
	nodetest.Run(t, func(t *testing.T) nodetest.Fixture {
		f := nodetest.Processes(t)
		c := serve(t, ServerConfig{Node: f.Node, Collector: f.Collector})
		f.Node, f.Collector = c, c
		return f
	})
}

// spanned is a node that says which span a call is below.
type spanned struct {
	nodeapi.Node
	pause chan string
}

func (n spanned) Pause(ctx context.Context, _ string) error {
	n.pause <- tracing.Traceparent(ctx)
	return nil
}

// TestTracesCross has a call be below its caller's span on the other side, and one
// without a span, or whose server makes no traces, as it is.
func TestTracesCross(t *testing.T) {
	recorded := tracetest.NewSpanRecorder()
	provider := sdk.NewTracerProvider(sdk.WithSpanProcessor(recorded))
	tracer := tracing.NewTracer(provider)
	node := spanned{pause: make(chan string, 1)}
	traced, plain := serve(t, ServerConfig{Node: node, Tracer: tracer}), serve(t, ServerConfig{Node: node})
	ctx, span := tracer.Request(t.Context(), "caller", "")
	for _, c := range []struct {
		what   string
		ctx    context.Context
		client *Client
		below  bool
	}{{"traced", ctx, traced, true}, {"without a span", t.Context(), traced, false}, {"no tracer", ctx, plain, false}} {
		if err := c.client.Pause(c.ctx, "sbx_1"); err != nil {
			t.Fatal(err)
		}
		if at := <-node.pause; (at != "") != c.below {
			t.Errorf("%s: the call is at %q", c.what, at)
		}
	}
	span.End(nil)
	if ended := recorded.Ended(); len(ended) != 2 || ended[0].Name() != "remote.pause" || ended[0].Parent().SpanID() != ended[1].SpanContext().SpanID() || !ended[0].Parent().IsRemote() {
		t.Errorf("recorded %v", ended)
	}
}

var _ interface {
	nodeapi.Node
	nodeapi.Images
	nodeapi.Collector
} = (*Client)(nil)
