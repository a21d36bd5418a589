package otlp_test

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/proto"

	"github.com/skerry-dev/skerry/internal/audit"
	"github.com/skerry-dev/skerry/internal/audit/otlp"
	"github.com/skerry-dev/skerry/internal/tracing/export"
)

// collector keeps what is sent to it.
type collector struct {
	t       *testing.T
	url     string
	mu      sync.Mutex
	status  int // of its answers, if not 200
	records []*logspb.LogRecord
	about   []*commonpb.KeyValue
	header  http.Header
	asked   chan struct{}
}

func start(t *testing.T) *collector {
	c := &collector{t: t, asked: make(chan struct{}, 1000)}
	s := httptest.NewServer(c)
	t.Cleanup(s.Close)
	c.url = s.URL
	return c
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked <- struct{}{}
	if c.status != 0 {
		w.WriteHeader(c.status)
		return
	}
	body, err := io.ReadAll(r.Body)
	var data logspb.LogsData
	if err == nil {
		err = proto.Unmarshal(body, &data)
	}
	if err != nil || r.URL.Path != "/v1/logs" || r.Header.Get("Content-Type") != "application/x-protobuf" {
		c.t.Errorf("%s of type %q: %v", r.URL.Path, r.Header.Get("Content-Type"), err)
	}
	c.header = r.Header
	for _, of := range data.ResourceLogs {
		c.about = of.Resource.GetAttributes()
		for _, scope := range of.ScopeLogs {
			c.records = append(c.records, scope.LogRecords...)
		}
	}
}

func (c *collector) answer(status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status = status
}

func values(attributes []*commonpb.KeyValue) map[string]any {
	all := map[string]any{}
	for _, a := range attributes {
		switch v := a.Value.Value.(type) {
		case *commonpb.AnyValue_StringValue:
			all[a.Key] = v.StringValue
		case *commonpb.AnyValue_IntValue:
			all[a.Key] = v.IntValue
		}
	}
	return all
}

// TestSink has a collector get every record once, although it refuses some requests.
func TestSink(t *testing.T) {
	c := start(t)
	env := map[string]string{"OTEL_EXPORTER_OTLP_HEADERS": "a=all", "OTEL_EXPORTER_OTLP_LOGS_HEADERS": "key=hush"}
	cfg, err := export.ConfigureLogs("audit-otlp", c.url, func(name string) string { return env[name] })
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	l, err := audit.Open(audit.Options{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	c.answer(http.StatusUnauthorized) // which the operator can mend
	going := audit.StartCopy(l, "otlp", otlp.New(cfg, map[string]string{"service.name": "skerry"}))
	e := audit.Event{
		Time: time.UnixMilli(1764572400123), Operation: "forkSandbox", RequestID: "req_1", Actor: audit.Actor{Kind: audit.ActorToken, ID: "tok_1"}, Team: "team_1", Project: "prj_1",
		Targets: []audit.Target{{Kind: audit.TargetSandbox, Name: "a"}, {Kind: audit.TargetSandbox, Name: "b"}, {Kind: audit.TargetSession, ID: "sbx_1"}},
		Remote:  "192.0.2.1", UserAgent: "ua", Status: 403, Code: "forbidden",
	}
	if err := l.Record(e, true); err != nil {
		t.Fatal(err)
	}
	<-c.asked
	c.answer(0)
	going.Wake()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := going.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.records) != 3 || c.header.Get("Key") != "hush" || c.header.Get("A") != "" || values(c.about)["service.name"] != "skerry" {
		t.Fatalf("%d records, header %v, of %v", len(c.records), c.header, c.about)
	}
	r := c.records[1]
	got := values(r.Attributes)
	for name, want := range map[string]any{
		"skerry.audit.seq": int64(2), "skerry.audit.operation": "forkSandbox", "skerry.request.id": "req_1", "skerry.actor.kind": "token", "skerry.actor.id": "tok_1",
		"skerry.team.id": "team_1", "skerry.project.id": "prj_1", "skerry.sandbox.name": "a", "skerry.session.id": "sbx_1", "client.address": "192.0.2.1",
		"user_agent.original": "ua", "http.response.status_code": int64(403), "error.type": "forbidden",
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	if len(got) != 13 || len(r.Attributes) != len(got) {
		t.Errorf("%d attributes: %v", len(r.Attributes), got)
	}
	if r.TimeUnixNano != 1764572400123e6 || r.SeverityText != "WARN" {
		t.Errorf("time %d, severity %s", r.TimeUnixNano, r.SeverityText)
	}
	var line audit.Record
	if err := json.Unmarshal([]byte(r.Body.GetStringValue()), &line); err != nil || line.Seq != 2 || line.Hash == "" {
		t.Errorf("the body is %s, %v", r.Body.GetStringValue(), err)
	}
	if _, err := audit.Check(audit.Line{Bytes: []byte(r.Body.GetStringValue())}); err != nil {
		t.Errorf("the body cannot be verified: %v", err)
	}
}

// TestRefused has a request that a collector finds wrong not be repeated.
func TestRefused(t *testing.T) {
	c := start(t)
	for status, refused := range map[int]bool{400: true, 413: true, 401: false, 404: false, 429: false, 503: false} {
		c.answer(status)
		s := otlp.New(export.Config{Endpoint: c.url + "/v1/logs", Timeout: time.Minute}, nil)
		err := s.Deliver(t.Context(), [][]byte{[]byte(`{}`)})
		if got := errors.Is(err, audit.ErrRefused); got != refused || err == nil {
			t.Errorf("%d: %v", status, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
