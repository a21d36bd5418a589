package e2e

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry/client"
)

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// TestMetrics has a sandbox created, used, saved, resumed and deleted, and looks for all
// of that in the metrics.
func TestMetrics(t *testing.T) {
	addr, profiles := freeAddress(t), freeAddress(t)
	s := newServer(t, "--warm", "0", "--metrics-listen", addr, "--pprof-listen", profiles)
	series := func() map[string]float64 {
		t.Helper()
		status, body := get(t, "http://"+addr+"/metrics")
		if status != http.StatusOK {
			t.Fatalf("/metrics answers %d", status)
		}
		values := map[string]float64{}
		for line := range strings.Lines(body) {
			name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
			if !ok || strings.HasPrefix(line, "#") {
				continue
			}
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Errorf("the line %q: %v", line, err)
			}
			values[name] = v
		}
		return values
	}
	sb := s.create(client.CreateOptions{Name: "measured", VCPUs: 2})
	if code, _ := s.shell(sb, "echo kept > file"); code != 0 {
		t.Fatal(code)
	}
	if got := series(); got[`skerry_sessions{state="running"}`] != 1 || got["skerry_vcpus_promised"] != 2 || got["skerry_memory_promised_bytes"] != 4<<30 {
		t.Errorf("with a running sandbox: %v sessions, %v vCPUs, %v bytes",
			got[`skerry_sessions{state="running"}`], got["skerry_vcpus_promised"], got["skerry_memory_promised_bytes"])
	}
	if _, err := sb.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code, _ := s.shell(sb, "grep -q kept file"); code != 0 {
		t.Error("the file is lost")
	}
	if _, err := s.GetSandbox(t.Context(), "nobody", client.GetOptions{}); err == nil {
		t.Error("a sandbox that does not exist was found")
	}
	s.deleteAll()
	got := series()
	for _, name := range []string{
		`skerry_step_duration_seconds_count{result="ok",step="start_image"}`, `skerry_step_duration_seconds_count{result="ok",step="start_snapshot"}`,
		`skerry_step_duration_seconds_count{result="ok",step="save"}`, `skerry_step_duration_seconds_count{result="ok",step="exec"}`,
		`skerry_step_duration_seconds_count{result="ok",step="stop"}`, `skerry_snapshot_bytes_total{of="files"}`, `skerry_api_errors_total{code="not_found"}`,
		`skerry_phase_duration_seconds_count{phase="start.queue",result="ok"}`, `skerry_phase_duration_seconds_count{phase="store.write",result="ok"}`,
		`skerry_api_request_duration_seconds_count{operation="createSandbox",status="200"}`, "process_resident_memory_bytes", "go_goroutines",
	} {
		if got[name] < 1 {
			t.Errorf("%s is %v", name, got[name])
		}
	}
	for _, phase := range []string{
		"start.network", "start.source", "start.machine", "start.agent", "machine.group", "machine.kernel", "machine.boot",
		"agent.exec", "save.machine", "save.store",
	} {
		// Of a node in another process, that one knows.
		if n := got[`skerry_phase_duration_seconds_count{phase="`+phase+`",result="ok"}`]; (n < 1) != s.split {
			t.Errorf("the phase %s was counted %v times", phase, n)
		}
	}
	if n := got[`skerry_sessions{state="running"}`]; n != 0 {
		t.Errorf("%v sessions run", n)
	}
	for name := range got {
		if strings.Contains(name, "measured") || strings.Contains(name, "sbx_") || strings.Contains(name, "prj_") {
			t.Errorf("%s names a sandbox or a session", name)
		}
	}
	isReady := "database: ok\ndisk: ok\nnode: ok\n"
	if s.split {
		isReady = "database: ok\nnode: ok\n" // the disk is the other process's
	}
	for path, want := range map[string]string{"/healthz": "ok\n", "/readyz": isReady} {
		if status, body := get(t, "http://"+addr+path); status != http.StatusOK || body != want {
			t.Errorf("%s answers %d, %q", path, status, body)
		}
	}
	if status, body := get(t, "http://"+profiles+"/debug/pprof/goroutine?debug=1"); status != http.StatusOK || !strings.Contains(body, "goroutine profile") {
		t.Errorf("the profile of goroutines: %d, %.100s", status, body)
	}
	for _, url := range []string{"http://" + addr + "/debug/pprof/", s.config().URL + "/metrics", s.config().URL + "/debug/pprof/", s.config().URL + "/readyz"} {
		if status, _ := get(t, url); status != http.StatusNotFound {
			t.Errorf("%s answers %d", url, status)
		}
	}
}
