package e2e

import (
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

// hibernates waits until the server has taken a session off the machine. Everybody sees
// that it runs.
func (s *server) hibernates(sb *client.Sandbox) {
	s.t.Helper()
	s.waitFor("sandbox "+sb.Name()+" to hibernate", func() bool {
		now := s.get(sb.Name())
		if now.Session().Status != skerry.StatusRunning || !now.Session().PausedAt.IsZero() {
			s.t.Fatalf("sandbox %s is %+v", sb.Name(), now.Session())
		}
		return now.Session().IdleState == skerry.IdleHibernated
	})
	if machine := s.machine(sb.Session().ID); machine != "" {
		s.t.Errorf("sandbox %s hibernates, and has the machine %s", sb.Name(), machine)
	}
}

// TestHibernation: a session that stays unused is taken off the machine, with the programs
// in it. Every use has it come back as it was, and nothing is lost.
func TestHibernation(t *testing.T) {
	metrics := freeAddress(t)
	s := newServer(t, "--idle-pause", "1s", "--idle-hibernate", "1s", "--idle", "hibernate", "--metrics-listen", metrics)
	// What a timer is to wake, seen at the end.
	timed := s.create(client.CreateOptions{VCPUs: 1})
	due := time.Now().Add(75 * time.Second)
	s.detach(timed, "sleep 75; date +%s >done")
	s.hibernates(timed)

	sb := s.create(client.CreateOptions{VCPUs: 1, Ports: []int{8000}})
	id := sb.Session().ID
	s.output(sb, "sh", "-c", "echo kept >file; echo hello >index.html")
	lines := s.detach(sb, `mkfifo words; while read word; do echo "$word"; [ "$word" != last ] || exit 7; done <>words`)
	s.detach(sb, `exec python3 -u -c '
import http.server, time
heap = bytearray(range(256)) * (64 << 12)
count = 0
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global count
        count += 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{count} {sum(heap[::4097])} {int(time.time())}".encode())
http.server.HTTPServer(("", 8000), Handler).serve_forever()
'`)
	at, err := sb.Domain(8000)
	if err != nil {
		t.Fatal(err)
	}
	s.waitFor("the server in it", func() bool { return fetch(t, at).status == http.StatusOK })
	first := strings.Fields(fetch(t, at).body)
	count, err := strconv.Atoi(first[0])
	if err != nil {
		t.Fatal(err)
	}
	answers := func() {
		t.Helper()
		count++
		before := time.Now().Unix()
		got := strings.Fields(fetch(t, at).body)
		if len(got) != 3 || got[0] != strconv.Itoa(count) || got[1] != first[1] {
			t.Fatalf("it answers %q, want %d %s", got, count, first[1])
		}
		if clock, err := strconv.ParseInt(got[2], 10, 64); err != nil || clock < before || clock > time.Now().Unix() {
			t.Errorf("its clock is at %s, and was not before %d", got[2], before)
		}
	}
	for step := range 3 {
		s.hibernates(sb)
		if out := s.cli("ls"); !strings.Contains(out, "hibernated") {
			t.Errorf("sandbox ls prints %q", out)
		}
		s.assertOwned(5)
		answers()
		s.hibernates(sb)
		s.output(sb, "sh", "-c", "echo "+strconv.Itoa(step)+" >words")
	}
	s.hibernates(sb)
	if err := sb.SetNetworkPolicy(t.Context(), client.NetworkPolicy{Mode: "deny-all"}); err != nil {
		t.Error(err)
	}
	if err := sb.ExtendTimeout(t.Context(), time.Minute); err != nil {
		t.Error(err)
	}
	s.hibernates(sb)
	for _, live := range []bool{false, true} {
		fork, err := sb.Fork(t.Context(), client.ForkOptions{Memory: !live, Live: live})
		if err != nil {
			t.Fatal(err)
		}
		if got := s.output(fork, "cat", "file"); got != "kept" {
			t.Errorf("the file of a fork has %q", got)
		}
		s.delete(fork)
		s.hibernates(s.get(sb.Name()))
	}

	// A new process of the server has it come back, with its commands.
	s.kill()
	s.start()
	sb = s.get(sb.Name())
	if sb.Session().ID != id {
		t.Error("it is another session")
	}
	s.waitFor("the server in it", func() bool { return fetch(t, at).status == http.StatusOK })
	count++
	answers()
	s.hibernates(sb)
	s.output(sb, "sh", "-c", "echo last >words")
	again, err := sb.FindCommand(t.Context(), lines.ID())
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Wait(); err == nil || again.Info().ExitCode == nil || *again.Info().ExitCode != 7 {
		t.Errorf("a command has ended with %v", err)
	}
	var said strings.Builder
	for log, err := range again.Logs(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		said.Write(log.Data)
	}
	if said.String() != "0\n1\n2\nlast\n" {
		t.Errorf("a command has said %q", said.String())
	}
	_, body := get(t, "http://"+metrics+"/metrics")
	for _, series := range []string{`skerry_step_duration_seconds_count{result="ok",step="wake_hibernated"}`, `skerry_step_duration_seconds_count{result="ok",step="hibernate"}`, `skerry_sessions{state="hibernated"}`} {
		if !strings.Contains(body, series) {
			t.Errorf("there is no metric %s", series)
		}
	}

	// What hibernates is saved when it is stopped.
	s.hibernates(sb)
	s.stopSaved(sb)
	if got := s.output(s.get(sb.Name()), "cat", "file"); got != "kept" {
		t.Errorf("after the stop the file has %q", got)
	}
	s.delete(sb)

	// If this use woke it, it would be late.
	s.waitFor("the time of a timer", func() bool { return time.Since(due) > 15*time.Second })
	done := s.output(timed, "cat", "done")
	if at, err := strconv.ParseInt(done, 10, 64); err != nil || at < due.Unix()-2 || at > due.Unix()+10 {
		t.Errorf("what waited for %d has ended at %s", due.Unix(), done)
	}
	s.delete(timed)
	s.assertOwned(5)
}
