package firewall

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/egress"
	"github.com/skerry-dev/skerry/internal/issuer"
)

// counter is a log that counts.
type counter struct{ errors, infos atomic.Int64 }

func (c *counter) Enabled(context.Context, slog.Level) bool { return true }
func (c *counter) WithAttrs([]slog.Attr) slog.Handler       { return c }
func (c *counter) WithGroup(string) slog.Handler            { return c }
func (c *counter) Handle(_ context.Context, r slog.Record) error {
	if r.Level == slog.LevelError {
		c.errors.Add(1)
	} else {
		c.infos.Add(1)
	}
	return nil
}

func eventually(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !happened(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// tally reads lines: the events, and how many others were dropped. Lines that
// were cut are skipped.
func tally(t *testing.T, b []byte) (events []map[string]any, dropped int) {
	t.Helper()
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		var m map[string]any
		if json.Unmarshal(lines.Bytes(), &m) != nil {
			continue
		}
		if n, ok := m["dropped"].(float64); ok {
			dropped += int(n)
			continue
		}
		events = append(events, m)
	}
	return events, dropped
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestExportedLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "network.log")
	x, err := newExporter(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	claims := issuer.Sandbox{TeamID: "team_1", ProjectID: "prj_1", SessionID: "sess_1", SandboxName: "one"}
	at := time.Date(2026, 1, 2, 3, 4, 5, 6_700_000, time.UTC)
	x.add(egress.Event{Time: at, Sandbox: "sess_1", Box: "sb_1", Claims: claims, Protocol: "tls", Reason: "domain", Domain: "a\n\x1b\x00é\".example",
		Destination: netip.MustParseAddrPort("192.0.2.1:443"), Suppressed: 3})
	x.add(egress.Event{Time: at, Sandbox: "sess_1", Box: "sb_1", Claims: claims, Allowed: true, End: true, Protocol: "tls", Reason: "domain",
		Upstream: netip.MustParseAddrPort("192.0.2.2:443"), BytesIn: 7, Duration: 1500 * time.Millisecond})
	if err := x.close(); err != nil {
		t.Fatal(err)
	}
	x.add(egress.Event{}) // too late, and no harm
	const who = `"sandboxId":"sb_1","sandboxName":"one","sessionId":"sess_1","teamId":"team_1","projectId":"prj_1",`
	want := `{"time":"2026-01-02T03:04:05.006Z",` + who + `"decision":"denied","reason":"domain","protocol":"tls","domain":"a\n\u001b\u0000é\".example","destination":"192.0.2.1:443","suppressed":3}
{"time":"2026-01-02T03:04:05.006Z",` + who + `"decision":"allowed","reason":"domain","protocol":"tls","upstream":"192.0.2.2:443","end":true,"bytesIn":7,"bytesOut":0,"durationMs":1500}
`
	if got := string(readFile(t, path)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestExportGoesToANewFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "network.log")
	if err := os.WriteFile(path, []byte("before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var log counter
	x, err := newExporter(path, slog.New(&log))
	if err != nil {
		t.Fatal(err)
	}
	tell := func(session string) {
		x.add(egress.Event{Sandbox: session})
		eventually(t, session, func() bool {
			b, err := os.ReadFile(path)
			return err == nil && strings.Contains(string(b), session)
		})
	}
	tell("first")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	tell("second")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	tell("third")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	// As "copytruncate" of logrotate does.
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	tell("fourth")
	if err := x.close(); err != nil {
		t.Fatal(err)
	}
	if b := string(readFile(t, path+".1")); !strings.HasPrefix(b, "before\n") || !strings.Contains(b, "first") || strings.Count(b, "\n") != 2 {
		t.Errorf("the older file has %q", b)
	}
	if b := string(readFile(t, path)); strings.Contains(b, "third") || strings.Count(b, "\n") != 1 {
		t.Errorf("the file has %q", b)
	}
	if log.errors.Load() != 0 {
		t.Error("a move is no error")
	}
}

func TestExportRefusesWhatIsNoFile(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pipe, t.TempDir(), "/dev/full", filepath.Join(t.TempDir(), "none", "file")} {
		if x, err := newExporter(path, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s was opened: %v", path, x.close())
		}
	}
}

// TestExportToASlowReader fills a pipe that nobody reads, as standard output
// may be.
func TestExportToASlowReader(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	x := exportTo("", w, slog.New(slog.DiscardHandler))
	const told = 3 * waiting
	for range told {
		x.add(egress.Event{Sandbox: "sess_1"})
	}
	if n := len(x.queue); n > waiting {
		t.Errorf("%d events wait", n)
	}
	if x.dropped.Load() == 0 {
		t.Error("nothing was dropped")
	}
	all := make(chan []byte)
	go func() {
		var b bytes.Buffer
		b.ReadFrom(r)
		all <- b.Bytes()
	}()
	if err := x.close(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	events, dropped := tally(t, <-all)
	if len(events)+dropped != told || dropped == 0 {
		t.Errorf("%d written, %d dropped, of %d", len(events), dropped, told)
	}
}

// TestExportToNoReader: a pipe that nobody reads does not hold up the end.
func TestExportToNoReader(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	x := exportTo("", w, slog.New(slog.DiscardHandler))
	x.patience = 50 * time.Millisecond
	for range waiting {
		x.add(egress.Event{Sandbox: "sess_1"})
	}
	if err := x.close(); err == nil || !strings.Contains(err.Error(), "not written") {
		t.Errorf("the end of what nobody reads: %v", err)
	}
	r.Close() // ends the write
	<-x.ended
	w.Close()
}

func TestExportToAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	path := filepath.Join(dir, "network.log")
	var log counter
	x, err := newExporter(path, slog.New(&log))
	if err != nil {
		t.Fatal(err)
	}
	const told = 2000
	for range told {
		x.add(egress.Event{Sandbox: "sess_1", Reason: "domain", Protocol: "dns", Domain: "a.example"})
	}
	eventually(t, "the disk to be full and all events to be taken", func() bool { return log.errors.Load() > 0 && len(x.queue) == 0 })
	before, dropped := tally(t, readFile(t, path))
	if len(before) == 0 || dropped != 0 {
		t.Errorf("%d written before, %d dropped", len(before), dropped)
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the line about what was dropped", func() bool { return bytes.Contains(readFile(t, path), []byte(`"dropped"`)) })
	if err := x.close(); err != nil {
		t.Fatal(err)
	}
	after, dropped := tally(t, readFile(t, path))
	if len(before)+len(after)+dropped != told {
		t.Errorf("%d written before, %d after, %d dropped, of %d", len(before), len(after), dropped, told)
	}
	if log.errors.Load() != 1 || log.infos.Load() != 1 {
		t.Errorf("the log has %d errors and %d others", log.errors.Load(), log.infos.Load())
	}
}
