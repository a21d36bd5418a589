package e2e

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/tracing/tracetest"
)

// servers runs a test with a server in one process and with one in two.
func servers(t *testing.T, test func(t *testing.T, s *server)) {
	for name, split := range map[string]bool{"one process": false, "two processes": true} {
		t.Run(name, func(t *testing.T) {
			s := prepareServer(t)
			s.split = split
			test(t, s)
		})
	}
}

// TestTraces follows a create, a command and a stop from the API to the guest agent, in
// the traces that the server sends to a collector. Nothing that a client has sent is in
// them.
func TestTraces(t *testing.T) {
	servers(t, func(t *testing.T, s *server) {
		collector := tracetest.Start(t)
		s.flags = []string{"--otlp-endpoint", collector.URL, "--warm", "0"}
		s.env = append(s.env, "OTEL_BSP_SCHEDULE_DELAY=50", "OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20hush-header")
		s.start()
		began := time.Now()
		sb := s.create(client.CreateOptions{Name: "hush-name", Env: map[string]string{"HUSH": "hush-env"}, Tags: map[string]string{"hush-tag": "hush-value"}})
		if err := sb.WriteFile(t.Context(), "hush-folder/hush-file", []byte("hush-content"), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, _ := s.shell(sb, "cat hush-folder/hush-file; : hush-argument"); code != 0 {
			t.Fatal(code)
		}
		if _, err := s.GetSandbox(t.Context(), "hush-nobody", client.GetOptions{}); err == nil {
			t.Error("a sandbox that does not exist was found")
		}
		session := sb.Session().ID
		if _, err := sb.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		theirs := "4bf92f3577b34da6a3ce929d0e0e4736"
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.config().URL+"/v2/sandboxes?project="+s.config().Project, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+s.config().Token)
		req.Header.Set("Traceparent", "00-"+theirs+"-00f067aa0ba902b7-01")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		under := func(path ...string) []string { return path }
		crossing := func(call string, rest ...string) []string {
			if s.split {
				return append([]string{"remote." + call}, rest...)
			}
			return rest
		}
		paths := map[string][]string{
			"start.queue":    under("createSandbox", "session.start", "start.queue"),
			"start.network":  append(under("createSandbox", "session.start", "node.start_image"), crossing("start", "start.network")...),
			"start.source":   append(under("createSandbox", "session.start", "node.start_image"), crossing("start", "start.source")...),
			"start.agent":    append(under("createSandbox", "session.start", "node.start_image"), crossing("start", "start.agent")...),
			"machine.group":  append(under("createSandbox", "session.start", "node.start_image"), crossing("start", "start.machine", "machine.group")...),
			"machine.kernel": append(under("createSandbox", "session.start", "node.start_image"), crossing("start", "start.machine", "machine.kernel")...),
			"machine.boot":   append(under("createSandbox", "session.start", "node.start_image"), crossing("start", "start.machine", "machine.boot")...),
			"save.machine":   append(under("stopSession", "session.end", "node.save"), crossing("snapshot", "save.machine")...),
			"save.store":     append(under("stopSession", "session.end", "node.save"), crossing("snapshot", "save.store")...),
			"node.stop":      under("stopSession", "session.end", "node.stop"),
			"command.start":  under("runCommand", "command.start"),
		}
		expected := append(slices.Collect(maps.Keys(paths)), "createSandbox", "writeFiles", "runCommand", "getSandbox", "stopSession", "listSandboxes", "agent.exec")
		spans := collector.Await(t, func(spans []tracetest.Span) bool {
			return !slices.ContainsFunc(expected, func(name string) bool { return tracetest.Named(spans, name) == nil })
		})
		for name, want := range paths {
			if got := tracetest.Path(spans, tracetest.Named(spans, name)); !slices.Equal(got, want) {
				t.Errorf("%s is at %q, want %q", name, got, want)
			}
		}
		// A command is followed, so its call may be a stream.
		if path := tracetest.Path(spans, tracetest.Named(spans, "agent.exec")); path[0] != "runCommand" || !slices.Contains(path, "node.exec") {
			t.Errorf("agent.exec is at %q", path)
		}
		within(t, spans, took)
		create := tracetest.Named(spans, "createSandbox")
		if a := create.Attributes(); a["http.route"] == "" || a["http.request.method"] != "POST" || !strings.HasPrefix(a["skerry.request.id"], "req_") || !strings.Contains(a["http.response.status_code"], "200") {
			t.Errorf("the create is told as %v", a)
		}
		if a := tracetest.Named(spans, "session.start").Attributes(); a["skerry.session.id"] != session {
			t.Errorf("the start is told as %v, want session %s", a, session)
		}
		if a := create.Resource; a["service.name"] != "skerry" || a["service.version"] == "" || a["service.instance.id"] == "" {
			t.Errorf("the server is told as %v", a)
		}
		if failed := tracetest.Named(spans, "getSandbox"); failed.Attributes()["error.type"] != "not_found" {
			t.Errorf("a sandbox that is not there is told as %v", failed)
		}
		// A client's trace is linked, and does not become the server's.
		list := tracetest.Named(spans, "listSandboxes")
		if len(list.Links) != 1 || fmt.Sprintf("%x", list.Links[0].TraceId) != theirs || fmt.Sprintf("%x", list.TraceId) == theirs {
			t.Errorf("the list is in trace %x, with links %v", list.TraceId, list.Links)
		}
		raw := collector.Raw()
		for _, secret := range []string{"hush", s.config().Token, s.dir, "/vercel"} {
			if bytes.Contains(raw, []byte(secret)) {
				t.Errorf("the traces have %q", secret)
			}
		}
		if h := collector.Headers()[0]; h.Get("Authorization") != "Bearer hush-header" {
			t.Errorf("the collector got the credentials %q", h.Get("Authorization"))
		}
	})
}

// within checks that spans took time, no more than the test, and no more than the
// spans above them.
func within(t *testing.T, spans []tracetest.Span, took time.Duration) {
	t.Helper()
	byID := map[string]tracetest.Span{}
	for _, s := range spans {
		byID[string(s.SpanId)] = s
	}
	for _, s := range spans {
		if s.Duration() <= 0 || s.Duration() > took {
			t.Errorf("%s took %s, the test %s", s.Name, s.Duration(), took)
		}
		above, ok := byID[string(s.ParentSpanId)]
		if len(s.ParentSpanId) == 0 || !ok {
			continue
		}
		if !bytes.Equal(above.TraceId, s.TraceId) {
			t.Errorf("%s is in another trace than %s", s.Name, above.Name)
		}
		if s.StartTimeUnixNano < above.StartTimeUnixNano || s.StartTimeUnixNano > above.EndTimeUnixNano {
			t.Errorf("%s began outside of %s", s.Name, above.Name)
		}
	}
}

// TestTracesOfSandboxesStartedAhead has a create that takes such a sandbox be told as
// that.
func TestTracesOfSandboxesStartedAhead(t *testing.T) {
	collector := tracetest.Start(t)
	s := prepareServer(t, "--otlp-endpoint", collector.URL, "--warm", "1")
	s.split = false
	s.env = append(s.env, "OTEL_BSP_SCHEDULE_DELAY=50")
	s.start()
	s.awaitReady(1)
	s.create(client.CreateOptions{Name: "ahead"})
	spans := collector.Await(t, func(spans []tracetest.Span) bool { return tracetest.Named(spans, "createSandbox") != nil })
	claim := tracetest.Named(spans, "start.claim")
	if claim == nil {
		t.Fatal("there is no span start.claim")
	}
	for _, name := range []string{"start.network", "start.agent"} {
		if got, want := tracetest.Path(spans, tracetest.Named(spans, name)), []string{"createSandbox", "session.start", "node.start_image", "start.claim", name}; !slices.Equal(got, want) {
			t.Errorf("%s is at %q, want %q", name, got, want)
		}
	}
}
