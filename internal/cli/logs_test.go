package cli

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry/internal/servertest"
)

func TestNetworkLog(t *testing.T) {
	s := servertest.New(t)
	home(t)
	s.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/network-events") {
			return false
		}
		if r.URL.Query().Get("limit") != "5" {
			t.Errorf("asked for %s", r.URL)
		}
		io.WriteString(w, `{"events":[
			{"time":1767323045000,"allowed":true,"end":true,"protocol":"tls","reason":"domain","domain":"a.example","destination":"192.0.2.1:443","bytesIn":2048,"bytesOut":10,"durationMs":5},
			{"time":1767323046000,"allowed":false,"protocol":"dns","reason":"domain not allowed","domain":"evil\u001b[31m.example"}]}`)
		return true
	}
	i := invocation{server: s}
	if got := i.run(t, "create", "--name", "demo"); got.code != 0 {
		t.Fatalf("%+v", got)
	}
	got := i.run(t, "logs", "--network", "demo", "--limit", "5")
	lines := strings.Split(strings.TrimSpace(got.out), "\n")
	if got.code != 0 || len(lines) != 3 || !strings.HasPrefix(lines[1], "2026-01-02T03:04:05Z\tended\ttls\ta.example\t192.0.2.1:443\tdomain\t10") ||
		!strings.HasPrefix(lines[2], "2026-01-02T03:04:06Z\tdenied\tdns\tevil") || strings.Contains(got.out, "\x1b") {
		t.Errorf("%+v", got)
	}
	if got := i.run(t, "logs", "--network", "demo", "--limit", "5", "--json"); got.code != 0 || strings.Count(got.out, "\n") != 2 || !strings.Contains(got.out, `"bytesIn":2048`) {
		t.Errorf("%+v", got)
	}
	if got := i.run(t, "logs", "demo"); got.code == 0 || !strings.Contains(got.err, "--network") {
		t.Errorf("%+v", got)
	}
}
