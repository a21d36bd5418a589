package servertest

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller/controllertest"
)

// call makes a request and returns its status and its body.
func (s *Server) call(t *testing.T, method, path, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.Token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
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

// TestMaskedAnswersAreTheSame has two servers answer the same.
func TestMaskedAnswersAreTheSame(t *testing.T) {
	answers := func() (all []string) {
		s := New(t)
		for _, c := range [][3]string{
			{"POST", "/v3/sandboxes", `{}`},
			{"POST", "/v3/sandboxes", `{"name":"box","timeout":3600000}`},
			{"GET", "/v2/sandboxes?limit=1", ""},
			{"GET", "/v2/sandboxes/sessions", ""},
			{"POST", "/v2/sandboxes/drives/data", `{}`},
			{"GET", "/v2/sandboxes/none", ""},
		} {
			_, body := s.call(t, c[0], c[1], c[2])
			all = append(all, s.Mask(t, body))
		}
		return all
	}
	first, second := answers(), answers()
	for i := range first {
		if first[i] != second[i] {
			t.Errorf("answers differ:\n%s\n%s", first[i], second[i])
		}
	}
	if all := strings.Join(first, "\n"); !strings.Contains(all, `"made-up-1"`) || !strings.Contains(all, `"box"`) || !strings.Contains(all, `"next":"CURSOR"`) {
		t.Errorf("masked as\n%s", all)
	}
}

func TestRequestsAreRecorded(t *testing.T) {
	s := New(t)
	s.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodDelete {
			return false
		}
		Refuse(w, http.StatusTeapot, skerry.CodeConflict, "no")
		return true
	}
	s.Add(t, "box")
	if status, body := s.call(t, "PATCH", "/v2/sandboxes/box", `{"timeout":60000}`); status != http.StatusOK {
		t.Errorf("a request that is passed on: %d %s", status, body)
	}
	if got := s.LastBody("PATCH /v2/sandboxes/box"); got != `{"timeout":60000}` {
		t.Errorf("recorded %q", got)
	}
	if status, body := s.call(t, "DELETE", "/v2/sandboxes/box", ""); status != http.StatusTeapot || !strings.Contains(body, `"conflict"`) {
		t.Errorf("a request that is intercepted: %d %s", status, body)
	}
	if _, err := s.GetSandbox(t.Context(), controllertest.Scope, "box", false); err != nil || len(s.Requests("DELETE")) != 1 {
		t.Errorf("after it: %v, %q", err, s.Requests(""))
	}
}

// TestCreatedOneAfterTheOther: no two sandboxes have the same time.
func TestCreatedOneAfterTheOther(t *testing.T) {
	s := New(t)
	var last skerry.Time
	for range 50 {
		run := s.Create(t, skerry.CreateParams{Persistent: new(bool)})
		if !run.Sandbox.CreatedAt.After(last.Time) {
			t.Fatalf("created at %v after %v", run.Sandbox.CreatedAt, last)
		}
		last = run.Sandbox.CreatedAt
	}
}

// TestStop ends a server with a stream and a command that would go on for ever.
func TestStop(t *testing.T) {
	s, stop, err := Start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	session := s.Add(t, "box").Session.ID
	req, err := http.NewRequestWithContext(context.Background(), "POST", s.URL+"/v2/sandboxes/sessions/"+session+"/cmd",
		strings.NewReader(`{"command":"sh","args":["-c","echo up; exec sleep 1000"],"wait":true,"logs":true}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.Token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("the stream ended as if it were whole")
	}
	if n := s.Node.Running(); n != 0 {
		t.Errorf("%d sessions run on", n)
	}
}
