// Package metrics counts and times what a server does, in the format of Prometheus.
//
// Every label has a fixed set of values: the names of API operations, of steps, of
// states and of error codes. Nothing that a client chooses becomes a label, so the
// number of series does not grow with clients, sandboxes or projects.
package metrics

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/skerry-dev/skerry"
)

// Metrics are those of one server.
type Metrics struct {
	registry *prometheus.Registry
	requests *prometheus.HistogramVec
	errors   *prometheus.CounterVec
	steps    *prometheus.HistogramVec
	saved    *prometheus.CounterVec
	freed    prometheus.Counter
}

// buckets are the upper bounds of the histograms in seconds: from half a millisecond to
// two minutes, each about 1.7 times the one before.
var buckets = prometheus.ExponentialBucketsRange(0.0005, 120, 24)

// alarming are the error codes of server faults. Their counters start at 0.
var alarming = []skerry.Code{skerry.CodeInternal, skerry.CodeUnavailable, skerry.CodeDiskFull}

// steps are the names of all steps.
var steps = []string{
	"start_image", "start_snapshot", "start_memory", "start_fork", "stop", "pause", "resume", "wake", "hibernate", "wake_hibernated", "exec", "set_network",
	"save", "save_memory", "keep", "collect",
}

// New returns metrics of a server of a version.
func New(version string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "skerry_api_request_duration_seconds", Buckets: buckets,
			Help: "Time from a request of the API to the end of its response, by operation and HTTP status.",
		}, []string{"operation", "status"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "skerry_api_errors_total", Help: "Requests of the API that failed, by error code.",
		}, []string{"code"}),
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "skerry_step_duration_seconds", Buckets: buckets,
			Help: "Duration of what the node does for a session, by step and result (ok or error).",
		}, []string{"step", "result"}),
		saved: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "skerry_snapshot_bytes_total", Help: "Bytes of snapshots taken: of their files (files), and of the part that was new and had to be stored (stored).",
		}, []string{"of"}),
		freed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "skerry_snapshot_freed_bytes_total", Help: "Bytes freed by removing the files of deleted snapshots.",
		}),
	}
	// Prometheus sees no increase in a series that starts at its first failure.
	for _, code := range alarming {
		m.errors.WithLabelValues(string(code))
	}
	for _, step := range steps {
		m.steps.WithLabelValues(step, "ok")
		m.steps.WithLabelValues(step, "error")
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "skerry_info", Help: "Always 1; the label has the version of the server.", ConstLabels: prometheus.Labels{"version": version},
	})
	info.Set(1)
	m.registry.MustRegister(m.requests, m.errors, m.steps, m.saved, m.freed, info,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Request counts a request of the API. code is that of its error, "" without one.
func (m *Metrics) Request(operation string, status int, code skerry.Code, took time.Duration) {
	m.requests.WithLabelValues(operation, strconv.Itoa(status)).Observe(took.Seconds())
	if code != "" {
		m.errors.WithLabelValues(string(code)).Inc()
	}
}

// Step counts a step.
func (m *Metrics) Step(step string, took time.Duration, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.steps.WithLabelValues(step, result).Observe(took.Seconds())
}

// Gauge is a value that is read when it is asked for.
type Gauge struct {
	Name, Help string
	// Counts makes it a counter: its value never decreases.
	Counts bool
	// Label, if set, is the name of the label that Read's keys are the values of.
	// Otherwise Read has the key "".
	Label string
	Read  func() map[string]float64
}

// Value returns what a Gauge without a label reads.
func Value(read func() float64) func() map[string]float64 {
	return func() map[string]float64 { return map[string]float64{"": read()} }
}

// Add registers a gauge.
func (m *Metrics) Add(g Gauge) {
	var labels []string
	if g.Label != "" {
		labels = []string{g.Label}
	}
	m.registry.MustRegister(&gauge{Gauge: g, desc: prometheus.NewDesc(g.Name, g.Help, labels, nil)})
}

// gauge is a prometheus.Collector.
type gauge struct {
	Gauge
	desc *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (g *gauge) Describe(to chan<- *prometheus.Desc) { to <- g.desc }

// Collect implements prometheus.Collector.
func (g *gauge) Collect(to chan<- prometheus.Metric) {
	kind := prometheus.GaugeValue
	if g.Counts {
		kind = prometheus.CounterValue
	}
	for value, v := range g.Read() {
		var labels []string
		if g.Label != "" {
			labels = []string{value}
		}
		to <- prometheus.MustNewConstMetric(g.desc, kind, v, labels...)
	}
}

// Handler serves the metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry, MaxRequestsInFlight: 4})
}
