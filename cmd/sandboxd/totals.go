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
		{"active_cpu_seconds", "CPU time that sandboxes used, in seconds.",
			func(t node.Totals) float64 { return t.ActiveCPU.Seconds() }},
		{"resident_memory_byte_seconds", "Memory that sandboxes held over time, in bytes times seconds. Its rate is what they hold.",
			func(t node.Totals) float64 { return t.ResidentByteSeconds }},
	} {
		m.Add(metrics.Gauge{
			Name: "skerry_" + of.name + "_total", Help: of.help, Counts: true,
			Read: metrics.Value(func() float64 { return of.value(totals()) }),
		})
	}
}
