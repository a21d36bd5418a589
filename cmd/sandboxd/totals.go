package main

import (
	"github.com/skerry-dev/skerry/internal/metrics"
	"github.com/skerry-dev/skerry/internal/node"
)

// addTotals adds what all sessions of the node have used, or saved, since it began.
func addTotals(m *metrics.Metrics, totals func() node.Totals) {
	for _, of := range []struct {
		name, help string
		value      func(node.Totals) float64
	}{
		{"reclaimed_bytes", "Bytes of memory that idle sandboxes gave back while memory was short; they were written to swap.",
			func(t node.Totals) float64 { return float64(t.Reclaimed) }},
	} {
		m.Add(metrics.Gauge{
			Name: "skerry_" + of.name + "_total", Help: of.help, Counts: true,
			Read: metrics.Value(func() float64 { return of.value(totals()) }),
		})
	}
}
