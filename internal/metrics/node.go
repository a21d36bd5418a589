package metrics

import (
	"context"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// Node returns a node whose calls are timed as steps.
func (m *Metrics) Node(n nodeapi.Node) nodeapi.Node { return &timedNode{Node: n, metrics: m} }

// Collector returns a collector whose collections are timed, and whose freed bytes are
// counted.
func (m *Metrics) Collector(c nodeapi.Collector) nodeapi.Collector { return &timedCollector{c, m} }

// timedNode times the calls that take a node's time. The others are passed on.
type timedNode struct {
	nodeapi.Node
	metrics *Metrics
}

// timed counts a step; it is deferred.
func (n *timedNode) timed(step string, began time.Time, err *error) {
	n.metrics.Step(step, time.Since(began), *err)
}

// Start implements nodeapi.Node.
func (n *timedNode) Start(ctx context.Context, spec nodeapi.SessionSpec) (err error) {
	defer n.timed(kindOfStart(spec), time.Now(), &err)
	return n.Node.Start(ctx, spec)
}

// kindOfStart is the step of a start.
func kindOfStart(spec nodeapi.SessionSpec) string {
	switch {
	case spec.ForkOf != "":
		return "start_fork"
	case spec.Memory:
		return "start_memory"
	case spec.Snapshot != "":
		return "start_snapshot"
	}
	return "start_image"
}

// Stop implements nodeapi.Node.
func (n *timedNode) Stop(ctx context.Context, id string) (_ nodeapi.Usage, err error) {
	defer n.timed("stop", time.Now(), &err)
	return n.Node.Stop(ctx, id)
}

// Pause implements nodeapi.Node.
func (n *timedNode) Pause(ctx context.Context, id string) (err error) {
	defer n.timed("pause", time.Now(), &err)
	return n.Node.Pause(ctx, id)
}

// Resume implements nodeapi.Node.
func (n *timedNode) Resume(ctx context.Context, id string) (err error) {
	defer n.timed("resume", time.Now(), &err)
	return n.Node.Resume(ctx, id)
}

// Exec implements nodeapi.Node.
func (n *timedNode) Exec(ctx context.Context, id string, spec nodeapi.CommandSpec, attach bool) (_ skerry.OutputReader, err error) {
	defer n.timed("exec", time.Now(), &err)
	return n.Node.Exec(ctx, id, spec, attach)
}

// SetNetwork implements nodeapi.Node.
func (n *timedNode) SetNetwork(ctx context.Context, id string, network nodeapi.NetworkSpec) (err error) {
	defer n.timed("set_network", time.Now(), &err)
	return n.Node.SetNetwork(ctx, id, network)
}

// Snapshot implements nodeapi.Node.
func (n *timedNode) Snapshot(ctx context.Context, id string, how nodeapi.Saving) (saved nodeapi.SavedFiles, err error) {
	step := "save"
	if how.Memory {
		step = "save_memory"
	}
	defer n.timed(step, time.Now(), &err)
	saved, err = n.Node.Snapshot(ctx, id, how)
	n.count(saved, err)
	return saved, err
}

// Keep implements nodeapi.Node.
func (n *timedNode) Keep(ctx context.Context, captureID, lease string) (saved nodeapi.SavedFiles, err error) {
	defer n.timed("keep", time.Now(), &err)
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
