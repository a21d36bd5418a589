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

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
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
		n := m.Node(node{err: err})
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
