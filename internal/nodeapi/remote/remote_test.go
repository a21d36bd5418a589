package remote

import (
	"log/slog"
	"net"
	"path/filepath"
	"testing"

	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/nodeapi/nodetest"
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

var _ interface {
	nodeapi.Node
	nodeapi.Images
	nodeapi.Collector
} = (*Client)(nil)
