// Package tracing records what the server does for a request as spans: nested steps and
// their durations. Traces, for an operator's tracing system, and histograms of phases, for
// Prometheus, are both made from them.
//
// Start makes a child of the context's span. Without one it does almost nothing, so callers
// need not know whether tracing is on. A Tracer starts root spans.
//
// The attributes of a span are a closed set: there is a method for each, and none for text
// from a client or a sandbox. So environments, arguments, headers, paths, names and error
// messages cannot get into a trace. A failure is recorded as its error code.
package tracing

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/skerry-dev/skerry"
)

// scope is the name of the instrumentation.
const scope = "github.com/skerry-dev/skerry"

// Span is a step. Its zero value records nothing.
type Span struct{ s trace.Span }

// Start starts a child of the span of ctx. If ctx has none, it does nothing.
func Start(ctx context.Context, name string) (context.Context, Span) {
	above := trace.SpanFromContext(ctx)
	// A span that has ended no longer records, but can still have children.
	if !above.IsRecording() && !above.SpanContext().IsSampled() {
		return ctx, Span{}
	}
	ctx, s := above.TracerProvider().Tracer(scope).Start(ctx, name)
	return ctx, Span{s}
}

// Carry returns to with the span of from, for work that belongs to a call and continues
// after it has returned. from may be nil.
func Carry(to, from context.Context) context.Context {
	if from == nil {
		return to
	}
	s := trace.SpanFromContext(from)
	if !s.SpanContext().IsValid() {
		return to
	}
	return trace.ContextWithSpan(to, s)
}

// End ends the span. err says whether the step failed.
func (s Span) End(err error) {
	if s.s == nil {
		return
	}
	if err != nil {
		s.Failed(skerry.CodeOf(err))
	}
	s.s.End()
}

// Done is End for a defer statement.
func (s Span) Done(err *error) {
	if s.s != nil {
		s.End(*err)
	}
}

// Failed records that the step failed, and the error code.
func (s Span) Failed(code skerry.Code) {
	if s.s == nil {
		return
	}
	s.s.SetStatus(codes.Error, string(code))
	s.s.SetAttributes(attribute.String("error.type", string(code)))
}

func (s Span) set(key, value string) {
	if s.s != nil && value != "" {
		s.s.SetAttributes(attribute.String(key, value))
	}
}

// Session records the session of the step.
func (s Span) Session(id string) { s.set("skerry.session.id", id) }

// Command records the command of the step.
func (s Span) Command(id string) { s.set("skerry.command.id", id) }

// Project records the project of a request.
func (s Span) Project(id string) { s.set("skerry.project.id", id) }

// Request records the API request of the span: its id, method, and the pattern of its
// route.
func (s Span) Request(id, method, route string) {
	if s.s != nil {
		s.s.SetAttributes(attribute.String("skerry.request.id", id),
			attribute.String("http.request.method", method), attribute.String("http.route", route))
	}
}

// Status records the HTTP status of the response.
func (s Span) Status(status int) {
	if s.s != nil {
		s.s.SetAttributes(attribute.Int("http.response.status_code", status))
	}
}

// Tracer starts root spans. A nil Tracer starts none.
type Tracer struct{ tracer trace.Tracer }

// NewTracer returns a Tracer of a provider.
func NewTracer(p trace.TracerProvider) *Tracer { return &Tracer{p.Tracer(scope)} }

// Request starts the root span of a client's request. traceparent is the value of that
// header (W3C Trace Context), "" for none. The span gets a link to the client's trace. It
// uses neither its id nor its sampling flag, because any client can send them.
func (t *Tracer) Request(ctx context.Context, name, traceparent string) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	opts := []trace.SpanStartOption{trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindServer)}
	if theirs := parse(traceparent); theirs.IsValid() {
		opts = append(opts, trace.WithLinks(trace.Link{SpanContext: theirs}))
	}
	ctx, s := t.tracer.Start(ctx, name, opts...)
	return ctx, Span{s}
}

// Call starts the span of a call from another process of this installation, as a child of
// the span in traceparent.
func (t *Tracer) Call(ctx context.Context, name, traceparent string) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	above := parse(traceparent)
	if !above.IsValid() {
		return ctx, Span{}
	}
	ctx, s := t.tracer.Start(trace.ContextWithRemoteSpanContext(ctx, above), name, trace.WithSpanKind(trace.SpanKindServer))
	return ctx, Span{s}
}

// Work starts a child of the span of ctx or, for work that the server starts by itself, a
// root span.
func (t *Tracer) Work(ctx context.Context, name string) (context.Context, Span) {
	if t == nil || trace.SpanContextFromContext(ctx).IsValid() {
		return Start(ctx, name)
	}
	ctx, s := t.tracer.Start(ctx, name)
	return ctx, Span{s}
}

// Header is the name of the header that carries a span to another process.
const Header = "Traceparent"

// maxHeader is the maximum length of such a header; in version 00 it has 55 bytes.
const maxHeader = 256

// Traceparent returns the value of Header for the span of ctx, "" without one.
func Traceparent(ctx context.Context) string {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return ""
	}
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier["traceparent"]
}

func parse(traceparent string) trace.SpanContext {
	if traceparent == "" || len(traceparent) > maxHeader {
		return trace.SpanContext{}
	}
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": traceparent})
	return trace.SpanContextFromContext(ctx)
}
