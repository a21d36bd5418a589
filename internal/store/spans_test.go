package store

import (
	"context"
	"testing"

	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/tracing"
)

// TestSpansOfTheDatabase has a span of a query fail if the database does, and not if its
// answer is that there is nothing.
func TestSpansOfTheDatabase(t *testing.T) {
	s, err := Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	recorded := tracetest.NewSpanRecorder()
	tracer := tracing.NewTracer(sdk.NewTracerProvider(sdk.WithSpanProcessor(recorded)))
	ctx, request := tracer.Request(t.Context(), "request", "")
	defer request.End(nil)
	find := func(ctx context.Context) error { _, err := s.Sandbox(ctx, "sb_none"); return err }
	change := func(ctx context.Context) error { return s.DeleteCommands(ctx, []string{"cmd_none"}) }
	if err := find(ctx); skerry.CodeOf(err) != skerry.CodeNotFound {
		t.Fatal(err)
	}
	if err := change(ctx); err != nil {
		t.Fatal(err)
	}
	if trouble(skerry.Errorf(skerry.CodeConflict, "the name is taken")) != nil {
		t.Error("what a transaction decides is trouble")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if find(ctx) == nil || change(ctx) == nil {
		t.Fatal("a closed database answers")
	}
	for i, want := range []struct {
		name string
		code codes.Code
	}{{"store.read", codes.Unset}, {"store.write", codes.Unset}, {"store.read", codes.Error}, {"store.write", codes.Error}} {
		if got := recorded.Ended()[i]; got.Name() != want.name || got.Status().Code != want.code {
			t.Errorf("%d: %s ended with %+v, want %+v", i, got.Name(), got.Status(), want)
		}
	}
}
