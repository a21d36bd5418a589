package tracing_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/tracing"
	"github.com/skerry-dev/skerry/internal/tracing/export"
)

// recorder returns a tracer, and what it has recorded.
func recorder(t *testing.T, s export.Sampling) (*tracing.Tracer, *tracetest.SpanRecorder) {
	t.Helper()
	r := tracetest.NewSpanRecorder()
	p := export.NewProvider(s, nil, r)
	t.Cleanup(func() {
		if err := p.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return tracing.NewTracer(p), r
}

func all() export.Sampling { return export.Sampling{Ratio: 1} }

const (
	theirTrace = "4bf92f3577b34da6a3ce929d0e0e4736"
	theirs     = "00-" + theirTrace + "-00f067aa0ba902b7-01"
)

// TestNothingIsRecordedUnasked has a step below no span cost no memory.
func TestNothingIsRecordedUnasked(t *testing.T) {
	ctx := context.WithValue(t.Context(), t, "something")
	var none *tracing.Tracer
	fault := errors.New("a fault")
	step := func() {
		inner, span := tracing.Start(ctx, tracing.StartNetwork)
		span.Session("sbx_1")
		span.Command("cmd_1")
		span.End(fault)
		_, own := none.Work(inner, "work")
		own.Done(&fault)
		_, request := none.Request(inner, "request", theirs)
		request.Request("req_1", "GET", "/")
		request.Status(200)
		request.Failed(skerry.CodeInternal)
		_, call := none.Call(inner, "call", theirs)
		call.End(nil)
		if inner != ctx || tracing.Carry(ctx, inner) != ctx || tracing.Carry(ctx, nil) != ctx || tracing.Traceparent(inner) != "" {
			t.Error("a context is another")
		}
	}
	if n := testing.AllocsPerRun(100, step); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestClientsTraces has the trace of a client's own be linked, however it asks to be
// sampled, and what is not one be ignored.
func TestClientsTraces(t *testing.T) {
	tracer, recorded := recorder(t, all())
	for _, header := range []string{theirs, "", "01", "00-" + strings.Repeat("0", 32) + "-00f067aa0ba902b7-01", theirs + strings.Repeat("x", 1000)} {
		_, span := tracer.Request(t.Context(), "request", header)
		span.End(nil)
	}
	for i, s := range recorded.Ended() {
		linked := len(s.Links()) == 1 && s.Links()[0].SpanContext.TraceID().String() == theirTrace
		if linked != (i == 0) || s.Parent().IsValid() || s.SpanContext().TraceID().String() == theirTrace {
			t.Errorf("%d: links %v, above it %v, trace %s", i, s.Links(), s.Parent(), s.SpanContext().TraceID())
		}
	}
	none, unrecorded := recorder(t, export.Sampling{Ratio: 0})
	_, span := none.Request(t.Context(), "request", theirs)
	span.End(nil)
	if n := len(unrecorded.Started()); n != 0 {
		t.Errorf("a client had %d spans sampled", n)
	}
}

// TestSpansBelow has spans be below those of their contexts, also across a socket and
// after the one above has ended.
func TestSpansBelow(t *testing.T) {
	tracer, recorded := recorder(t, all())
	above, request := tracer.Request(t.Context(), "request", "")
	inner, step := tracing.Start(above, "step")
	far, call := tracer.Call(context.Background(), "call", tracing.Traceparent(inner))
	call.End(nil)
	step.End(&skerry.Error{Code: skerry.CodeNotFound, Message: "no sandbox hush"})
	request.End(nil)
	_, late := tracing.Start(tracing.Carry(context.Background(), far), "late")
	late.End(errors.New("a fault with a /path"))
	_, own := tracer.Work(context.Background(), "own")
	own.End(nil)
	_, lost := tracer.Call(context.Background(), "lost", "not a span")
	lost.End(nil)

	spans := map[string]sdk.ReadOnlySpan{}
	for _, s := range recorded.Ended() {
		spans[s.Name()] = s
	}
	if len(spans) != 5 {
		t.Fatalf("%d spans: %v", len(spans), spans)
	}
	for name, above := range map[string]string{"step": "request", "call": "step", "late": "call"} {
		if s := spans[name]; s.Parent().SpanID() != spans[above].SpanContext().SpanID() || s.SpanContext().TraceID() != spans["request"].SpanContext().TraceID() {
			t.Errorf("%s is below %s", name, s.Parent().SpanID())
		}
	}
	if spans["own"].Parent().IsValid() {
		t.Error("work that nobody asked for is below something")
	}
	for name, want := range map[string]string{"step": "not_found", "late": "internal_error", "request": ""} {
		if s := spans[name].Status(); s.Description != want {
			t.Errorf("%s failed with %q, want %q", name, s.Description, want)
		}
	}
}

// TestRecordedOnly has spans of traces that are not exported be recorded for the metrics.
func TestRecordedOnly(t *testing.T) {
	tracer, recorded := recorder(t, export.Sampling{Ratio: 0, Record: true})
	ctx, span := tracer.Request(t.Context(), "request", theirs)
	_, below := tracing.Start(ctx, "below")
	below.End(nil)
	span.End(nil)
	if len(recorded.Ended()) != 2 || recorded.Ended()[0].SpanContext().IsSampled() || recorded.Ended()[1].SpanContext().IsSampled() {
		t.Errorf("recorded %v", recorded.Ended())
	}
}

// BenchmarkStart is what a step costs: with nobody who wants to know of it, with the
// metrics alone, and with traces.
func BenchmarkStart(b *testing.B) {
	step := func(b *testing.B, ctx context.Context) {
		b.ReportAllocs()
		for b.Loop() {
			_, span := tracing.Start(ctx, tracing.StartNetwork)
			span.Session("sbx_hr796kz4ww2n6m59qc7ya5s1")
			span.End(nil)
		}
	}
	b.Run("off", func(b *testing.B) { step(b, context.WithValue(b.Context(), b, 1)) })
	for name, s := range map[string]export.Sampling{"recorded": {Record: true}, "sampled": {Ratio: 1}} {
		b.Run(name, func(b *testing.B) {
			ctx, span := tracing.NewTracer(export.NewProvider(s, nil)).Request(b.Context(), "request", "")
			defer span.End(nil)
			step(b, ctx)
		})
	}
}
