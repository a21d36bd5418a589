// Package export decides which spans are recorded, and sends them to a collector of
// OpenTelemetry traces (OTLP over HTTP).
package export

import (
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Sampling configures which spans are recorded.
type Sampling struct {
	// Ratio is the fraction of the traces to export, from 0 to 1.
	Ratio float64
	// Record records all spans, also those of traces that are not exported, because the
	// histograms of phases need them.
	Record bool
}

// NewProvider returns a provider that passes spans to the processors. The caller shuts it
// down.
func NewProvider(s Sampling, res *resource.Resource, processors ...sdk.SpanProcessor) *sdk.TracerProvider {
	opts := []sdk.TracerProviderOption{
		sdk.WithSampler(sampler{root: sdk.TraceIDRatioBased(s.Ratio), record: s.Record}), sdk.WithResource(res),
		// A span has few attributes, all of them short; see Span.
		sdk.WithRawSpanLimits(sdk.SpanLimits{
			AttributeValueLengthLimit: 128, AttributeCountLimit: 16, LinkCountLimit: 1,
		}),
	}
	for _, p := range processors {
		opts = append(opts, sdk.WithSpanProcessor(p))
	}
	return sdk.NewTracerProvider(opts...)
}

// sampler decides once per trace, by the id, which the server has chosen.
type sampler struct {
	root   sdk.Sampler
	record bool
}

// ShouldSample implements sdk.Sampler.
func (s sampler) ShouldSample(p sdk.SamplingParameters) sdk.SamplingResult {
	above := trace.SpanContextFromContext(p.ParentContext)
	result := sdk.SamplingResult{Decision: sdk.Drop, Tracestate: above.TraceState()}
	switch {
	case above.IsValid() && above.IsSampled():
		result.Decision = sdk.RecordAndSample
	case !above.IsValid():
		result.Decision = s.root.ShouldSample(p).Decision
	}
	if result.Decision == sdk.Drop && s.record {
		result.Decision = sdk.RecordOnly
	}
	return result
}

// Description implements sdk.Sampler.
func (s sampler) Description() string { return "Skerry{" + s.root.Description() + "}" }
