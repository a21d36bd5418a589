package nodetest

import (
	"context"
	"net"
	"testing"

	"github.com/skerry-dev/skerry/internal/nodeapi/processnode"
)

// Processes is the fixture of a node of plain processes. It ends with the test.
func Processes(t *testing.T) Fixture {
	n := processnode.New(t.TempDir())
	t.Cleanup(func() {
		if err := n.Retain(context.Background(), nil); err != nil {
			t.Error(err)
		}
	})
	points := map[Point]processnode.Point{Start: processnode.Start, Stop: processnode.Stop, Save: processnode.Save}
	return Fixture{
		Node: n, Collector: n,
		Step: func(p Point, f func(string) error) {
			if f == nil {
				n.On(points[p], nil)
				return
			}
			n.On(points[p], func(_ context.Context, id string) error { return f(id) })
		},
		Lose:   func(id string) { n.Lose(id, "it was lost") },
		Listen: Loopback,
	}
}

// Loopback is Fixture.Listen for sessions whose ports are this machine's.
func Loopback(t *testing.T, _ string) (net.Listener, int) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln, ln.Addr().(*net.TCPAddr).Port
}
