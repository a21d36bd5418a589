package remote

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/nodeapi/processnode"
)

// BenchmarkExec runs a command and reads its output to the end, directly and
// through the socket in turn, and reports the ratio of the two.
func BenchmarkExec(b *testing.B) {
	n := processnode.New(b.TempDir())
	c := serve(b, ServerConfig{Node: n})
	session := skerry.NewID(skerry.PrefixSession)
	if err := n.Start(b.Context(), nodeapi.SessionSpec{ID: session}); err != nil {
		b.Fatal(err)
	}
	defer n.Stop(b.Context(), session)
	run := func(n nodeapi.Node) time.Duration {
		start := time.Now()
		id := skerry.NewID(skerry.PrefixCommand)
		r, err := n.Exec(b.Context(), session, nodeapi.CommandSpec{ID: id, CommandParams: skerry.CommandParams{Name: "true"}}, true)
		if err != nil {
			b.Fatal(err)
		}
		for err == nil {
			_, err = r.Next()
		}
		if !errors.Is(err, io.EOF) {
			b.Fatal(err)
		}
		return time.Since(start)
	}
	run(c)
	var direct, through time.Duration
	for b.Loop() {
		direct += run(n)
		through += run(c)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(direct.Microseconds())/float64(b.N), "direct-µs")
	b.ReportMetric(float64(through.Microseconds())/float64(b.N), "through-µs")
	b.ReportMetric(float64(through)/float64(direct), "ratio")
}

// BenchmarkCall is the cost of a call that does nothing.
func BenchmarkCall(b *testing.B) {
	c := serve(b, ServerConfig{})
	for b.Loop() {
		if _, err := c.Hello(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
