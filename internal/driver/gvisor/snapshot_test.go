package gvisor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry/internal/driver"
)

// snapshot takes one of m; the guest is asked about files with attrs.
func snapshot(t *testing.T, m driver.Machine, attrs driver.AttrReader) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "snapshot")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := m.Snapshot(t.Context(), dir, attrs); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestSnapshot(t *testing.T) {
	l := newLab(t)
	spec := l.spec("before")
	m, g := l.start(t, spec)
	if got := g.ask("write /data 10"); got != "ok" {
		t.Fatal(got)
	}
	sum := g.ask("sum /data")
	size, nanos, _ := strings.Cut(g.ask("size /data"), " ")
	var asked []string
	dir := snapshot(t, m, func(_ context.Context, paths []string) ([]driver.Attrs, error) {
		asked = append(asked, paths...)
		attrs := make([]driver.Attrs, len(paths))
		for i, p := range paths {
			attrs[i].Missing = true
			if p == "/data" {
				ns, err := time.ParseDuration(nanos + "ns")
				if err != nil {
					return nil, err
				}
				attrs[i] = driver.Attrs{ModTime: time.Unix(0, int64(ns)), Xattrs: map[string]string{"user.binary": "\xff\x00"}}
			}
		}
		return attrs, nil
	})
	if !strings.Contains(strings.Join(asked, " "), "/data") {
		t.Errorf("the guest was asked about %q", asked)
	}
	// The machine goes on, and what it writes now is not in the snapshot.
	if got := g.ask("write /data 1"); got != "ok" {
		t.Fatal(got)
	}
	spec = l.spec("after")
	spec.Snapshot = dir
	_, after := l.start(t, spec)
	if got := after.ask("sum /data"); got != sum {
		t.Errorf("the file is %s, was %s", got, sum)
	}
	if got := after.ask("size /data"); got != size+" "+nanos {
		t.Errorf("size and time are %s, were %s %s", got, size, nanos)
	}
}

func TestDamagedSnapshotEndsTheMachine(t *testing.T) {
	l := newLab(t)
	m, g := l.start(t, l.spec("before"))
	if got := g.ask("write /data 10"); got != "ok" {
		t.Fatal(got)
	}
	none := func(_ context.Context, paths []string) ([]driver.Attrs, error) {
		return make([]driver.Attrs, len(paths)), nil
	}
	dir := snapshot(t, m, none)
	if err := os.Truncate(filepath.Join(dir, "pages.img"), 1<<20); err != nil {
		t.Fatal(err)
	}
	spec := l.spec("after")
	spec.Snapshot = dir
	after, conn, err := l.Start(t.Context(), spec)
	if err != nil {
		l.assertNothingLeft(t, spec.ID)
		return // refused at once is as good
	}
	defer conn.Close()
	select {
	case <-after.Done():
		if !strings.Contains(after.Reason(), "snapshot") {
			t.Errorf("Reason() = %q", after.Reason())
		}
	case <-time.After(30 * time.Second):
		t.Error("the machine runs on without its files")
	}
	if err := after.Stop(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestPause(t *testing.T) {
	l := newLab(t)
	m, g := l.start(t, l.spec("paused"))
	g.ask("cpus")
	if err := m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	before, err := m.Usage()
	if err != nil {
		t.Fatal(err)
	}
	answer := make(chan string)
	go func() { answer <- g.ask("cpus") }()
	select {
	case got := <-answer:
		t.Errorf("a paused machine answered %q", got)
	case <-time.After(200 * time.Millisecond):
	}
	// The kernel itself has timers, and no more.
	if after, err := m.Usage(); err != nil || after.CPU-before.CPU > 20*time.Millisecond {
		t.Errorf("a machine used %v in 200 ms of its pause, %v", after.CPU-before.CPU, err)
	}
	if err := m.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := <-answer; got != "2" {
		t.Errorf("after its pause the machine says %q", got)
	}
	// A paused machine can be stopped: the test's end does.
	if err := m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestRecoverResumes: a process that takes over finds a machine paused, or on
// the way there, and lets it go on.
func TestRecoverResumes(t *testing.T) {
	for how, leave := range map[string]func(*machine) error{
		"paused":      func(m *machine) error { return m.Pause(context.Background()) },
		"about to be": func(m *machine) error { return os.WriteFile(m.pausingPath(), nil, 0o600) },
		"half paused": func(m *machine) error {
			return errors.Join(os.WriteFile(m.pausingPath(), nil, 0o600), m.box.Pause(m.id))
		},
	} {
		t.Run(how, func(t *testing.T) {
			l := newLab(t)
			m, g := l.start(t, l.spec("taken-over"))
			g.ask("cpus")
			if err := leave(m.(*machine)); err != nil {
				t.Fatal(err)
			}
			found, err := l.Recover(t.Context())
			if err != nil || len(found) != 1 {
				t.Fatalf("Recover() = %v, %v", found, err)
			}
			if got := g.ask("cpus"); got != "2" {
				t.Errorf("the machine answers %q", got)
			}
			if _, err := os.Stat(m.(*machine).pausingPath()); !os.IsNotExist(err) {
				t.Errorf("the mark of a pause is still there: %v", err)
			}
			// Pausing works as ever.
			if err := found[0].Pause(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := found[0].Resume(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := g.ask("cpus"); got != "2" {
				t.Errorf("after a pause the machine answers %q", got)
			}
			if err := found[0].Stop(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
}
