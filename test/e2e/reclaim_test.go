package e2e

import (
	"net/http"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/cgroup/cgrouptest"
)

// largeServer answers requests with a sum over 300 MiB.
const largeServer = `exec python3 -u -c '
import http.server
heap = bytearray(range(256)) * (300 << 12)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(sum(heap[::4097])).encode())
http.server.HTTPServer(("", 8000), Handler).serve_forever()
'`

// TestReclaim: while memory is short, the memory of a sandbox that is idle is written to
// the host's swap, and the sandbox goes on as it was.
func TestReclaim(t *testing.T) {
	cgrouptest.Swap(t, 1<<30)
	addr := freeAddress(t)
	s := newServer(t, "--warm", "0", "--sandbox-memory", "1", "--idle-pause", "1s", "--metrics-listen", addr)
	idle := s.create(client.CreateOptions{VCPUs: 1, Ports: []int{8000}, Idle: skerry.IdlePause})
	s.detach(idle, largeServer)
	at, err := idle.Domain(8000)
	if err != nil {
		t.Fatal(err)
	}
	s.waitFor("the server in it", func() bool { return fetch(t, at).status == http.StatusOK })
	want := fetch(t, at).body
	s.waitFor("the sandbox to be paused", func() bool { return s.get(idle.Name()).Session().IdleState == skerry.IdlePaused })
	if got := metric(t, addr, "skerry_reclaimed_bytes_total"); got != 0 {
		t.Errorf("%v bytes were given back while there was memory", got)
	}

	busy := s.create(client.CreateOptions{VCPUs: 1, Idle: skerry.IdleNever})
	s.detach(busy, "exec python3 -c 'kept = bytearray(range(256)) * (400 << 12); import time; time.sleep(1000)'")
	var given float64
	defer func() { t.Logf("%v MiB were given back", given/(1<<20)) }()
	s.waitFor("the memory of the idle sandbox", func() bool {
		given = metric(t, addr, "skerry_reclaimed_bytes_total")
		return given > 100<<20
	})
	if state := s.get(idle.Name()).Session().IdleState; state != skerry.IdlePaused {
		t.Errorf("the sandbox is %q", state)
	}
	s.assertAlive(busy)
	s.delete(busy)
	if got := fetch(t, at); got.status != http.StatusOK || got.body != want {
		t.Errorf("it answers %d %q, and before %q", got.status, got.body, want)
	}
	s.delete(idle)
}
