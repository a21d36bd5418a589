package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/spf13/pflag"

	"github.com/skerry-dev/skerry/internal/controller"
	"github.com/skerry-dev/skerry/internal/metrics"
	"github.com/skerry-dev/skerry/internal/node"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// warmOptions are the flags for warm sandboxes: those that are started before they are
// needed.
type warmOptions struct {
	count    int
	memoryMB int
}

const defaultWarm = 2

func (o *warmOptions) flags(f *pflag.FlagSet) {
	f.IntVar(&o.count, "warm", defaultWarm, "number of sandboxes of the default image and size to keep started in advance (warm); after bursts of creates the server keeps more of them, and of other images and sizes; 0 keeps none")
	f.IntVar(&o.memoryMB, "warm-memory", 0, "memory that all warm sandboxes together may use, in MiB; 0 is a tenth of --sandbox-memory, or what --warm needs if that is more")
}

// memory is the memory that warm sandboxes may use, of all that sandboxes may use.
func (o *warmOptions) memory(all int64) int64 {
	if o.memoryMB > 0 {
		return int64(o.memoryMB) << 20
	}
	return max(all/10, o.need())
}

// need is the memory that --warm sandboxes use.
func (o *warmOptions) need() int64 { return int64(o.count) * node.WarmMemory }

// check refuses a --warm that needs more than half of the memory that sandboxes may use:
// the sandboxes that are in use need the rest. --warm-memory is only a limit, so it may be
// all of it.
func (o *warmOptions) check(all int64) error {
	if half := all / 2; o.need() > half {
		return fmt.Errorf("--warm %d needs about %d MiB, more than half of the memory that sandboxes may use, %d MiB", o.count, o.need()>>20, all>>20)
	}
	if o.memoryMB > 0 && o.need() > o.memory(all) {
		return fmt.Errorf("--warm %d needs about %d MiB, more than --warm-memory %d MiB", o.count, o.need()>>20, o.memoryMB)
	}
	if int64(o.memoryMB)<<20 > all {
		return fmt.Errorf("--warm-memory %d MiB is more than the memory that sandboxes may use, %d MiB", o.memoryMB, all>>20)
	}
	return nil
}

// config returns the configuration of the node.
func (o *warmOptions) config(state string, all int64, images nodeapi.Images) node.WarmConfig {
	return node.WarmConfig{
		Count: o.count, MemoryBytes: o.memory(all), Dir: filepath.Join(state, "warm"),
		Usual: func(ctx context.Context) (nodeapi.SessionSpec, error) { return controller.UsualSpec(ctx, images) },
	}
}

// addWarm adds the metrics of the sandboxes that are started in advance: warm ones, and
// blank ones.
func addWarm(m *metrics.Metrics, stats func() node.PoolStats) {
	for _, sort := range []struct {
		name, help, starts string
		of                 func(node.PoolStats) node.KindStats
	}{
		{"warm", "Warm sandboxes", "Starts from an image without drives", func(s node.PoolStats) node.KindStats { return s.Warm }},
		{"blank", "Blank sandboxes", "Resumes and forks without drives", func(s node.PoolStats) node.KindStats { return s.Blank }},
	} {
		value := func(of func(node.KindStats) float64) func() map[string]float64 {
			return metrics.Value(func() float64 { return of(sort.of(stats())) })
		}
		m.Add(metrics.Gauge{
			Name: "skerry_" + sort.name + "_ready", Help: sort.help + " that are ready for use.",
			Read: value(func(s node.KindStats) float64 { return float64(s.Ready) }),
		})
		m.Add(metrics.Gauge{
			Name: "skerry_" + sort.name + "_wanted", Help: sort.help + " that should be ready for use.",
			Read: value(func(s node.KindStats) float64 { return float64(s.Wanted) }),
		})
		m.Add(metrics.Gauge{
			Name: "skerry_" + sort.name + "_starts_total", Counts: true, Label: "result",
			Help: sort.starts + ", by whether a " + sort.name + " sandbox was ready (hit) or not (miss).",
			Read: func() map[string]float64 {
				s := sort.of(stats())
				return map[string]float64{"hit": float64(s.Hits), "miss": float64(s.Misses)}
			},
		})
		m.Add(metrics.Gauge{
			Name: "skerry_" + sort.name + "_discarded_total", Counts: true, Help: sort.help + " that ended without being used.",
			Read: value(func(s node.KindStats) float64 { return float64(s.Discarded) }),
		})
	}
}
