package firewall

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/egress"
)

// TestLogOfASessionIsBounded writes more than is kept: the newest are, in order.
func TestLogOfASessionIsBounded(t *testing.T) {
	dir := t.TempDir()
	r := newRecorder(dir, slog.New(slog.DiscardHandler))
	r.close() // what follows is written by the test
	f := &Firewall{events: r}
	id := skerry.NewID(skerry.PrefixSession)
	if err := os.Mkdir(filepath.Join(dir, id), 0o700); err != nil {
		t.Fatal(err)
	}
	const batches = 40
	biggest := 0
	for batch := range batches {
		lines := map[string]*bytes.Buffer{}
		for i := range atOnce {
			encode(lines, egress.Event{Sandbox: id, Protocol: "dns", Reason: "domain", Domain: fmt.Sprintf("%s%d.example", strings.Repeat("a", 100), batch*atOnce+i)})
		}
		biggest = max(biggest, lines[id].Len())
		if err := r.append(id, lines[id].Bytes()); err != nil {
			t.Fatal(err)
		}
	}
	files, err := os.ReadDir(filepath.Join(dir, id))
	if err != nil || len(files) != 2 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, e := range files {
		info, err := e.Info()
		if err != nil || info.Size() > int64(maxLogBytes+biggest) || info.Mode() != 0o600 {
			t.Errorf("%s: %d bytes, %v, %v", e.Name(), info.Size(), info.Mode(), err)
		}
	}
	// A crash may cut a line short: it is left out.
	log, err := os.OpenFile(filepath.Join(dir, id, logFile), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := log.WriteString(`{"time":1,"allo`); err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	for _, limit := range []int{1, 1000, 5000} {
		events, err := f.Events(t.Context(), id, limit)
		if err != nil || len(events) != limit {
			t.Fatalf("%d of %d events, %v", len(events), limit, err)
		}
		for i, e := range events {
			if want := fmt.Sprintf("a%d.example", batches*atOnce-limit+i); !strings.HasSuffix(e.Domain, want) {
				t.Fatalf("event %d of %d is of %s, want %s", i, limit, e.Domain, want)
			}
		}
	}
}

// TestEventsThatWait: an event is never waited for, whatever writes them does.
func TestEventsThatWait(t *testing.T) {
	r := &recorder{queue: make(chan egress.Event, waiting)} // which nobody writes
	for range waiting + 3 {
		r.add(egress.Event{})
	}
	if n := r.dropped.Load(); n != 3 || len(r.queue) != waiting {
		t.Errorf("%d wait, %d are dropped", len(r.queue), n)
	}
	var log counter
	r.log, r.dir = slog.New(&log), t.TempDir()
	r.done.Go(r.write)
	r.close()
	if log.infos.Load() == 0 {
		t.Error("the log tells of none that were dropped")
	}
}

// TestEventsOfTheForgotten: a session's end may overtake its last events, and an
// id is no path.
func TestEventsOfTheForgotten(t *testing.T) {
	dir := t.TempDir()
	var log counter
	r := newRecorder(dir, slog.New(&log))
	id := skerry.NewID(skerry.PrefixSession)
	r.add(egress.Event{Sandbox: id})
	r.close()
	r.add(egress.Event{Sandbox: id})
	r.close()
	if log.infos.Load() != 0 || log.errors.Load() != 0 {
		t.Error("the log tells of a session that was forgotten")
	}
	f := &Firewall{events: r}
	if events, err := f.Events(t.Context(), id, 10); err != nil || len(events) != 0 {
		t.Errorf("%v, %v", events, err)
	}
	for _, bad := range []string{"", "..", "../" + id, id + "/x"} {
		if _, err := f.Events(t.Context(), bad, 10); err == nil {
			t.Errorf("%q is read", bad)
		}
		if err := r.append(bad, []byte("x\n")); err == nil {
			t.Errorf("%q is written", bad)
		}
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}
