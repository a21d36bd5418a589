package metrics

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"

	"github.com/skerry-dev/skerry/internal/tracing"
)

// Phases returns a processor that counts the spans of phases. It may be called once.
func (m *Metrics) Phases() sdk.SpanProcessor {
	vec := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "skerry_phase_duration_seconds", Buckets: buckets,
		Help: "Duration of a phase of the server's work, such as start.network, by phase and result (ok or error).",
	}, []string{"phase", "result"})
	m.registry.MustRegister(vec)
	p := phases{}
	for _, name := range tracing.Phases {
		p[name] = phase{ok: vec.WithLabelValues(name, "ok"), failed: vec.WithLabelValues(name, "error")}
	}
	return p
}

// phases counts the spans with these names.
type phases map[string]phase

type phase struct{ ok, failed prometheus.Observer }

// OnStart implements sdk.SpanProcessor.
func (phases) OnStart(context.Context, sdk.ReadWriteSpan) {}

// OnEnd implements sdk.SpanProcessor.
func (p phases) OnEnd(s sdk.ReadOnlySpan) {
	counted, is := p[s.Name()]
	if !is {
		return
	}
	observer := counted.ok
	if s.Status().Code == codes.Error {
		observer = counted.failed
	}
	observer.Observe(s.EndTime().Sub(s.StartTime()).Seconds())
}

// Shutdown implements sdk.SpanProcessor.
func (phases) Shutdown(context.Context) error { return nil }

// ForceFlush implements sdk.SpanProcessor.
func (phases) ForceFlush(context.Context) error { return nil }
