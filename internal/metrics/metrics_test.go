package metrics

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/tracing"
)

// scrape returns the metrics as Prometheus gets them, by their names and labels.
func scrape(t *testing.T, m *Metrics) map[string]string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	body, err := io.ReadAll(w.Result().Body)
	if err != nil || w.Code != http.StatusOK {
		t.Fatal(w.Code, err)
	}
	values := map[string]string{}
	for line := range strings.Lines(string(body)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && !strings.HasPrefix(line, "#") {
			values[name] = value
		}
	}
	return values
}

func expect(t *testing.T, m *Metrics, want map[string]string) {
	t.Helper()
	got := scrape(t, m)
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s is %q, want %q", name, got[name], value)
		}
	}
}

func TestRequestsAndSteps(t *testing.T) {
	m := New("1.2.3")
	m.Request("createSandbox", 200, "", 30*time.Millisecond)
	m.Request("createSandbox", 200, "", 3*time.Second)
	m.Request("createSandbox", 429, skerry.CodeRateLimited, time.Millisecond)
	m.Step("save", time.Second, nil)
	m.Step("save", time.Second, errors.New("the disk is full"))
	m.Add(Gauge{Name: "skerry_test", Help: "A test.", Label: "state", Read: func() map[string]float64 { return map[string]float64{"running": 3, "paused": 0} }})
	m.Add(Gauge{Name: "skerry_plain", Help: "A test.", Read: Value(func() float64 { return 7 })})
	expect(t, m, map[string]string{
		`skerry_info{version="1.2.3"}`: "1",
		`skerry_api_request_duration_seconds_count{operation="createSandbox",status="200"}`: "2",
		`skerry_api_request_duration_seconds_sum{operation="createSandbox",status="200"}`:   "3.03",
		`skerry_api_request_duration_seconds_count{operation="createSandbox",status="429"}`: "1",
		`skerry_api_errors_total{code="rate_limited"}`:                                      "1",
		`skerry_step_duration_seconds_count{result="ok",step="save"}`:                       "1",
		`skerry_step_duration_seconds_count{result="error",step="save"}`:                    "1",
		`skerry_test{state="running"}`:                                                      "3",
		`skerry_test{state="paused"}`:                                                       "0",
		`skerry_plain`:                                                                      "7",
	})
}

// node is a nodeapi.Node that answers with an error, or with what was saved.
type node struct {
	nodeapi.Node
	err error
}

func (n node) Start(context.Context, nodeapi.SessionSpec) error              { return n.err }
func (n node) Stop(context.Context, string) (nodeapi.Usage, error)           { return nodeapi.Usage{}, n.err }
func (n node) Pause(context.Context, string) error                           { return n.err }
func (n node) Resume(context.Context, string) error                          { return n.err }
func (n node) Forget(context.Context, string) error                          { return n.err }
func (n node) SetNetwork(context.Context, string, nodeapi.NetworkSpec) error { return n.err }
func (n node) Exec(context.Context, string, nodeapi.CommandSpec, bool) (skerry.OutputReader, error) {
	return nil, n.err
}

func (n node) Snapshot(context.Context, string, nodeapi.Saving) (nodeapi.SavedFiles, error) {
	return nodeapi.SavedFiles{Manifest: "m", Size: 100, Added: 10}, n.err
}

func (n node) Keep(context.Context, string, string) (nodeapi.SavedFiles, error) {
	return nodeapi.SavedFiles{Manifest: "m", Size: 7, Added: 7}, n.err
}

// TestNodeIsTimed has each call be a step, with its result, and pass on what the node
// answers.
func TestNodeIsTimed(t *testing.T) {
	m := New("")
	fault := errors.New("a fault")
	for _, err := range []error{nil, fault} {
		n := m.Node(node{err: err}, nil)
		ctx := t.Context()
		saved, serr := n.Snapshot(ctx, "", nodeapi.Saving{})
		_, merr := n.Snapshot(ctx, "", nodeapi.Saving{Memory: true})
		_, kerr := n.Keep(ctx, "", "")
		_, perr := n.Stop(ctx, "")
		_, eerr := n.Exec(ctx, "", nodeapi.CommandSpec{}, false)
		for what, got := range map[string]error{
			"start": n.Start(ctx, nodeapi.SessionSpec{}), "start of a snapshot": n.Start(ctx, nodeapi.SessionSpec{Snapshot: "s"}),
			"start of memory": n.Start(ctx, nodeapi.SessionSpec{Snapshot: "s", Memory: true}), "start of a fork": n.Start(ctx, nodeapi.SessionSpec{ForkOf: "f"}),
			"stop": perr, "pause": n.Pause(ctx, ""), "resume": n.Resume(ctx, ""), "exec": eerr, "save": serr, "save of memory": merr, "keep": kerr,
			"network": n.SetNetwork(ctx, "", nodeapi.NetworkSpec{}), "what is not timed": n.Forget(ctx, ""),
		} {
			if !errors.Is(got, err) {
				t.Errorf("%s: %v, want %v", what, got, err)
			}
		}
		if saved.Manifest != "m" {
			t.Errorf("saved as %+v", saved)
		}
	}
	want := map[string]string{
		`skerry_snapshot_bytes_total{of="files"}`: "207", `skerry_snapshot_bytes_total{of="stored"}`: "27",
	}
	for _, step := range []string{"start_image", "start_snapshot", "start_memory", "start_fork", "stop", "pause", "resume", "exec", "save", "save_memory", "keep", "set_network"} {
		for _, result := range []string{"ok", "error"} {
			want[`skerry_step_duration_seconds_count{result="`+result+`",step="`+step+`"}`] = "1"
		}
	}
	expect(t, m, want)
	// Every step is there before it happens, and there is none besides.
	fresh, before, after := New(""), 0, 0
	for name := range scrape(t, fresh) {
		if strings.HasPrefix(name, "skerry_step_duration_seconds_count") {
			before++
		}
	}
	for name := range scrape(t, m) {
		if strings.HasPrefix(name, "skerry_step_duration_seconds_count") {
			after++
		}
	}
	if before != 2*len(steps) || after != before {
		t.Errorf("%d series of steps at first, %d after each step, for %d steps", before, after, len(steps))
	}
}

func (n node) Events(context.Context, nodeapi.Cursor) (nodeapi.Batch, error) {
	return nodeapi.Batch{Events: []nodeapi.Event{
		{Kind: nodeapi.SessionAsleep}, {Kind: nodeapi.SessionAwake, Took: 3 * time.Millisecond},
		{Kind: nodeapi.SessionAwake}, // its client has paused it
	}}, n.err
}

// TestWakesAreTimed by the node, which tells how long they took.
func TestWakesAreTimed(t *testing.T) {
	m := New("")
	if b, err := m.Node(node{}, nil).Events(t.Context(), ""); err != nil || len(b.Events) != 3 {
		t.Errorf("%+v, %v", b, err)
	}
	expect(t, m, map[string]string{
		`skerry_step_duration_seconds_count{result="ok",step="wake"}`: "1",
		`skerry_step_duration_seconds_sum{result="ok",step="wake"}`:   "0.003",
	})
}

// collector is a nodeapi.Collector.
type collector struct{ err error }

func (c collector) Collect(context.Context, nodeapi.Records) (nodeapi.Collected, error) {
	return nodeapi.Collected{Round: "r", Freed: 5}, c.err
}

func TestCollectionsAreCounted(t *testing.T) {
	m := New("")
	for _, err := range []error{nil, errors.New("a fault")} {
		c, got := m.Collector(collector{err}).Collect(t.Context(), nodeapi.Records{})
		if c.Round != "r" || !errors.Is(got, err) {
			t.Errorf("collected %+v, %v", c, got)
		}
	}
	expect(t, m, map[string]string{
		"skerry_snapshot_freed_bytes_total":                              "10",
		`skerry_step_duration_seconds_count{result="ok",step="collect"}`: "1",
	})
}

// TestPhasesAreCounted has the spans that are phases be counted, whether or not their
// traces are exported, and no others.
func TestPhasesAreCounted(t *testing.T) {
	m := New("")
	provider := sdk.NewTracerProvider(sdk.WithSpanProcessor(m.Phases()))
	ctx, request := tracing.NewTracer(provider).Request(t.Context(), "request", "")
	for _, err := range []error{nil, nil, errors.New("a fault")} {
		_, span := tracing.Start(ctx, tracing.StartNetwork)
		span.End(err)
		_, other := tracing.Start(ctx, "other")
		other.End(err)
	}
	request.End(nil)
	m.Add(Gauge{Name: "skerry_counted_total", Help: "A test.", Counts: true, Read: Value(func() float64 { return 3 })})
	expect(t, m, map[string]string{
		`skerry_phase_duration_seconds_count{phase="start.network",result="ok"}`:    "2",
		`skerry_phase_duration_seconds_count{phase="start.network",result="error"}`: "1",
		`skerry_phase_duration_seconds_count{phase="start.machine",result="ok"}`:    "0",
		`skerry_counted_total`: "3",
	})
	for name := range scrape(t, m) {
		if strings.Contains(name, `phase="other"`) || strings.Contains(name, `phase="request"`) {
			t.Errorf("%s is counted", name)
		}
	}
}

// TestSpansOfTheNode has each call of a node be a span, below that of who calls or, of
// work that nobody asked for, on its own.
func TestSpansOfTheNode(t *testing.T) {
	recorded := tracetest.NewSpanRecorder()
	tracer := tracing.NewTracer(sdk.NewTracerProvider(sdk.WithSpanProcessor(recorded)))
	n := New("").Node(node{err: &skerry.Error{Code: skerry.CodeSandboxStopped}}, tracer)
	ctx, request := tracer.Request(t.Context(), "request", "")
	_ = n.Pause(ctx, "sbx_1")
	request.End(nil)
	_ = n.Pause(t.Context(), "sbx_2")
	ended := recorded.Ended()
	if len(ended) != 3 || ended[0].Name() != "node.pause" || ended[2].Name() != "node.pause" || ended[0].Parent().SpanID() != ended[1].SpanContext().SpanID() || ended[2].Parent().IsValid() {
		t.Fatalf("recorded %v", ended)
	}
	if s := ended[0].Status(); s.Description != string(skerry.CodeSandboxStopped) {
		t.Errorf("the pause ended with %+v", s)
	}
}
