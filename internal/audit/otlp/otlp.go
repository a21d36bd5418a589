// Package otlp copies the audit log to a collector of OpenTelemetry logs (OTLP over HTTP).
//
// It does not use OpenTelemetry's SDK for logs. That is not stable yet (v0), keeps what
// waits to be sent in memory, where the log is on disk already, and its exporter links all
// of gRPC. The messages of the protocol are stable.
package otlp

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"

	"github.com/skerry-dev/skerry/internal/audit"
	"github.com/skerry-dev/skerry/internal/tracing/export"
)

// scope is the name of what makes the records.
const scope = "github.com/skerry-dev/skerry/internal/audit"

// Sink sends records to a collector. It implements audit.Sink.
type Sink struct {
	client   *export.Client
	resource *resourcepb.Resource
}

// New returns a sink for a configuration. The resource's attributes say which server it
// is.
func New(cfg export.Config, resource map[string]string) *Sink {
	s := &Sink{client: export.NewClient(cfg), resource: &resourcepb.Resource{}}
	for name, value := range resource {
		s.resource.Attributes = append(s.resource.Attributes, text(name, value))
	}
	return s
}

// Deliver implements audit.Sink.
func (s *Sink) Deliver(ctx context.Context, lines [][]byte) error {
	now := uint64(time.Now().UnixNano())
	records := make([]*logspb.LogRecord, 0, len(lines))
	for _, line := range lines {
		r, err := audit.Parse(line)
		if err != nil {
			return fmt.Errorf("%w: %w", audit.ErrRefused, err)
		}
		records = append(records, logRecord(r, line, now))
	}
	// It has the same encoding as the request of the protocol, ExportLogsServiceRequest.
	err := s.client.Post(ctx, &logspb.LogsData{ResourceLogs: []*logspb.ResourceLogs{{
		Resource: s.resource,
		ScopeLogs: []*logspb.ScopeLogs{{
			Scope: &commonpb.InstrumentationScope{Name: scope}, LogRecords: records,
		}},
	}}})
	// The operator can mend other refusals, such as that of credentials. The records wait.
	if status, is := errors.AsType[export.StatusError](err); is {
		switch status {
		case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
			return fmt.Errorf("%w: %w", audit.ErrRefused, err)
		}
	}
	return err
}

// Idle implements audit.Sink.
func (s *Sink) Idle() error { return nil }

// Close implements audit.Sink.
func (s *Sink) Close() error {
	s.client.Close()
	return nil
}

// logRecord returns a record whose body is the line, so that its hash can be verified, and
// whose attributes are what one searches for.
func logRecord(r *audit.Record, line []byte, now uint64) *logspb.LogRecord {
	out := &logspb.LogRecord{
		ObservedTimeUnixNano: now, SeverityNumber: logspb.SeverityNumber_SEVERITY_NUMBER_INFO, SeverityText: "INFO",
		EventName: "skerry.audit", Body: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: string(line)}},
	}
	if t, err := time.Parse(time.RFC3339, r.Time); err == nil {
		out.TimeUnixNano = uint64(t.UnixNano())
	}
	if r.Status == http.StatusUnauthorized || r.Status == http.StatusForbidden {
		out.SeverityNumber, out.SeverityText = logspb.SeverityNumber_SEVERITY_NUMBER_WARN, "WARN"
	}
	add := func(name, value string) {
		// Of two targets of a kind, the first is an attribute: keys are unique.
		if value != "" && !slices.ContainsFunc(out.Attributes, func(kv *commonpb.KeyValue) bool { return kv.Key == name }) {
			out.Attributes = append(out.Attributes, text(name, value))
		}
	}
	number := func(name string, value int64) {
		if value != 0 {
			out.Attributes = append(out.Attributes, &commonpb.KeyValue{Key: name, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: value}}})
		}
	}
	number("skerry.audit.seq", r.Seq)
	add("skerry.audit.operation", r.Operation)
	add("skerry.audit.phase", r.Phase)
	add("skerry.request.id", r.RequestID)
	if r.Actor != nil {
		add("skerry.actor.kind", r.Actor.Kind)
		add("skerry.actor.id", r.Actor.ID)
	}
	add("skerry.team.id", r.Team)
	add("skerry.project.id", r.Project)
	for _, t := range r.Targets {
		if t.ID != "" {
			add("skerry."+t.Kind+".id", t.ID)
		}
		if t.Name != "" {
			add("skerry."+t.Kind+".name", t.Name)
		}
	}
	add("client.address", r.Remote)
	add("user_agent.original", r.UserAgent)
	number("http.response.status_code", int64(r.Status))
	add("error.type", r.Code)
	return out
}

func text(name, value string) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: name, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: value}}}
}
