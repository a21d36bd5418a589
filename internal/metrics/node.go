package metrics

import (
	"context"
	"strings"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/tracing"
)

// Node returns a node whose calls are timed as steps and recorded as spans.
func (m *Metrics) Node(n nodeapi.Node, tracer *tracing.Tracer) nodeapi.Node {
	return &timedNode{Node: n, metrics: m, tracer: tracer}
}

// Collector returns a collector whose collections are timed, and whose freed bytes are
// counted.
func (m *Metrics) Collector(c nodeapi.Collector) nodeapi.Collector { return &timedCollector{c, m} }

// timedNode times the calls that take a node's time. The others are passed on.
type timedNode struct {
	nodeapi.Node
	metrics *Metrics
	tracer  *tracing.Tracer
}

// timed starts a step of a session, and a span with that name. The returned function ends
// both.
func (n *timedNode) timed(ctx context.Context, name, id string) (context.Context, func(*error)) {
	began := time.Now()
	ctx, span := n.tracer.Work(ctx, name)
	span.Session(id)
	return ctx, func(err *error) {
		span.End(*err)
		n.metrics.Step(strings.TrimPrefix(name, "node."), time.Since(began), *err)
	}
}

// Start implements nodeapi.Node.
func (n *timedNode) Start(ctx context.Context, spec nodeapi.SessionSpec) (err error) {
	ctx, done := n.timed(ctx, kindOfStart(spec), spec.ID)
	defer done(&err)
	return n.Node.Start(ctx, spec)
}

// kindOfStart is the name of a start.
func kindOfStart(spec nodeapi.SessionSpec) string {
	switch {
	case spec.ForkOf != "":
		return "node.start_fork"
	case spec.Memory:
		return "node.start_memory"
	case spec.Snapshot != "":
		return "node.start_snapshot"
	}
	return "node.start_image"
}

// Stop implements nodeapi.Node.
func (n *timedNode) Stop(ctx context.Context, id string) (_ nodeapi.Usage, err error) {
	ctx, done := n.timed(ctx, "node.stop", id)
	defer done(&err)
	return n.Node.Stop(ctx, id)
}

// Pause implements nodeapi.Node.
func (n *timedNode) Pause(ctx context.Context, id string) (err error) {
	ctx, done := n.timed(ctx, "node.pause", id)
	defer done(&err)
	return n.Node.Pause(ctx, id)
}

// Resume implements nodeapi.Node.
func (n *timedNode) Resume(ctx context.Context, id string) (err error) {
	ctx, done := n.timed(ctx, "node.resume", id)
	defer done(&err)
	return n.Node.Resume(ctx, id)
}

// Events implements nodeapi.Node. The node resumes idle sessions by itself; its events have
// the durations.
func (n *timedNode) Events(ctx context.Context, after nodeapi.Cursor) (nodeapi.Batch, error) {
	batch, err := n.Node.Events(ctx, after)
	for _, e := range batch.Events {
		switch {
		case e.Took == 0:
		case e.Kind == nodeapi.SessionAsleep && e.Hibernated:
			n.metrics.Step("hibernate", e.Took, nil)
		case e.Kind == nodeapi.SessionAwake && e.Hibernated:
			n.metrics.Step("wake_hibernated", e.Took, nil)
		case e.Kind == nodeapi.SessionAwake:
			n.metrics.Step("wake", e.Took, nil)
		}
	}
	return batch, err
}

// Exec implements nodeapi.Node.
func (n *timedNode) Exec(ctx context.Context, id string, spec nodeapi.CommandSpec, attach bool) (_ skerry.OutputReader, err error) {
	ctx, done := n.timed(ctx, "node.exec", id)
	defer done(&err)
	return n.Node.Exec(ctx, id, spec, attach)
}

// SetNetwork implements nodeapi.Node.
func (n *timedNode) SetNetwork(ctx context.Context, id string, network nodeapi.NetworkSpec) (err error) {
	ctx, done := n.timed(ctx, "node.set_network", id)
	defer done(&err)
	return n.Node.SetNetwork(ctx, id, network)
}

// Snapshot implements nodeapi.Node.
func (n *timedNode) Snapshot(ctx context.Context, id string, how nodeapi.Saving) (saved nodeapi.SavedFiles, err error) {
	step := "node.save"
	if how.Memory {
		step = "node.save_memory"
	}
	ctx, done := n.timed(ctx, step, id)
	defer done(&err)
	saved, err = n.Node.Snapshot(ctx, id, how)
	n.count(saved, err)
	return saved, err
}

// Keep implements nodeapi.Node.
func (n *timedNode) Keep(ctx context.Context, captureID, lease string) (saved nodeapi.SavedFiles, err error) {
	ctx, done := n.timed(ctx, "node.keep", "")
	defer done(&err)
	saved, err = n.Node.Keep(ctx, captureID, lease)
	n.count(saved, err)
	return saved, err
}

func (n *timedNode) count(saved nodeapi.SavedFiles, err error) {
	if err == nil {
		n.metrics.saved.WithLabelValues("files").Add(float64(saved.Size))
		n.metrics.saved.WithLabelValues("stored").Add(float64(saved.Added))
	}
}

// timedCollector times collections.
type timedCollector struct {
	nodeapi.Collector
	metrics *Metrics
}

// Collect implements nodeapi.Collector.
func (c *timedCollector) Collect(ctx context.Context, known nodeapi.Records) (found nodeapi.Collected, err error) {
	began := time.Now()
	found, err = c.Collector.Collect(ctx, known)
	c.metrics.Step("collect", time.Since(began), err)
	c.metrics.freed.Add(float64(found.Freed))
	return found, err
}
