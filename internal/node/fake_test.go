package node

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/blob"
	"github.com/skerry-dev/skerry/internal/drive"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/driver/fake"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/nodeapi/eventlog"
	"github.com/skerry-dev/skerry/internal/output"
	"github.com/skerry-dev/skerry/internal/snapshot"
)

// otherFormat is a driver whose files have another format.
type otherFormat struct {
	*fake.Driver
	changed atomic.Bool
}

func (d *otherFormat) Format(memory bool) driver.Format {
	f := d.Driver.Format(memory)
	if d.changed.Load() {
		f.Version = "2"
	}
	return f
}

func fakeDriver(t *testing.T, cfg fake.Config) *fake.Driver {
	t.Helper()
	cfg.Dir = t.TempDir()
	d, err := fake.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// fakeNode returns a node that runs processes, with a real storage of snapshots.
func fakeNode(t *testing.T, d driver.Driver) *Node {
	t.Helper()
	return fakeNodeWith(t, d, func(*Config) {})
}

// fakeNodeWith is fakeNode with another configuration.
func fakeNodeWith(t *testing.T, d driver.Driver, change func(*Config)) *Node {
	t.Helper()
	dir := t.TempDir()
	blobs, err := blob.OpenDir(filepath.Join(dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	snapshots, err := snapshot.Open(snapshot.Options{
		Blobs: blobs, Key: make([]byte, snapshot.KeySize), CacheDir: filepath.Join(dir, "cache"), CacheBytes: 1 << 30, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	drives, err := drive.Open(drive.Options{Dir: filepath.Join(dir, "drives"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Dir: filepath.Join(dir, "sessions"), SnapshotWork: filepath.Join(dir, "work"), Driver: d, Networks: noNetworks{}, Images: anyImage{},
		Snapshots: snapshots, Drives: drives, Agent: "agent", Output: output.Config{}, Log: log,
	}
	change(&cfg)
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := n.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	return n
}

func startOn(t *testing.T, n *Node, spec nodeapi.SessionSpec) string {
	t.Helper()
	spec.ID, spec.Hostname = skerry.NewID(skerry.PrefixSession), "one"
	if err := n.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Forget(context.Background(), spec.ID); err != nil {
			t.Error(err)
		}
	})
	return spec.ID
}

// runOn returns what a script prints.
func runOn(t *testing.T, n *Node, session, script string) string {
	t.Helper()
	spec := nodeapi.CommandSpec{ID: skerry.NewID(skerry.PrefixCommand), CommandParams: skerry.CommandParams{Name: "sh", Args: []string{"-c", script}}}
	r, err := n.Exec(t.Context(), session, spec, true)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var said strings.Builder
	for {
		out, err := r.Next()
		if errors.Is(err, io.EOF) {
			return said.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		said.Write(out.Data)
	}
}

// TestSnapshotsOfOtherDrivers: a session starts from what its driver has saved, in
// its present format or before formats were written down, and from nothing else.
func TestSnapshotsOfOtherDrivers(t *testing.T) {
	d := &otherFormat{Driver: fakeDriver(t, fake.Config{})}
	n := fakeNode(t, d)
	first := startOn(t, n, nodeapi.SessionSpec{})
	runOn(t, n, first, "echo kept >file")
	saved, err := n.Snapshot(t.Context(), first, nodeapi.Saving{Lease: "lease"})
	if err != nil {
		t.Fatal(err)
	}
	second := startOn(t, n, nodeapi.SessionSpec{Snapshot: saved.Manifest})
	if got := runOn(t, n, second, "cat file"); got != "kept\n" {
		t.Errorf("%q", got)
	}
	d.changed.Store(true)
	spec := nodeapi.SessionSpec{ID: skerry.NewID(skerry.PrefixSession), Snapshot: saved.Manifest}
	if err := n.Start(t.Context(), spec); skerry.CodeOf(err) != skerry.CodeSnapshotIncompatible || !strings.Contains(err.Error(), "fake files 1") {
		t.Errorf("a snapshot of another format: %v", err)
	}
	if d.Machine(spec.ID) != nil {
		t.Error("a machine was started")
	}
}

// TestCapabilities: what the driver cannot do is refused, and the session goes on.
func TestCapabilities(t *testing.T) {
	n := fakeNode(t, fakeDriver(t, fake.Config{}))
	id := startOn(t, n, nodeapi.SessionSpec{})
	refused := func(what string, err error) {
		t.Helper()
		if skerry.CodeOf(err) != skerry.CodeNotImplemented {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := n.Snapshot(t.Context(), id, nodeapi.Saving{Memory: true, Lease: "lease"})
	refused("saving memory", err)
	spec := nodeapi.SessionSpec{ID: skerry.NewID(skerry.PrefixSession), ForkOf: id, Capture: "capture"}
	refused("a fork", n.Start(t.Context(), spec))
	refused("a capture", n.Capture(t.Context(), id, "capture"))
	spec.ForkOf, spec.Memory, spec.Snapshot = "", true, "m"
	refused("a start from memory", n.Start(t.Context(), spec))
	if got := runOn(t, n, id, "echo on"); got != "on\n" {
		t.Errorf("%q", got)
	}
}

// TestHeldSession is paused once it is saved.
func TestHeldSession(t *testing.T) {
	n := fakeNode(t, fakeDriver(t, fake.Config{}))
	id := startOn(t, n, nodeapi.SessionSpec{})
	for range 2 { // a paused session can be saved, too
		if _, err := n.Snapshot(t.Context(), id, nodeapi.Saving{Hold: true, Lease: "lease"}); err != nil {
			t.Fatal(err)
		}
		if s, err := n.running(id); err != nil || !s.frozen {
			t.Errorf("not paused: %v", err)
		}
	}
	if err := n.Resume(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if got := runOn(t, n, id, "echo on"); got != "on\n" {
		t.Errorf("%q", got)
	}
}

// TestHungAgent has an agent hang, with the kernel that it runs on: every call of
// the session returns, although its caller has no deadline, and the session is lost.
// It can be saved and stopped.
func TestHungAgent(t *testing.T) {
	n := fakeNode(t, fakeDriver(t, fake.Config{}))
	n.beat = 500 * time.Millisecond
	id := startOn(t, n, nodeapi.SessionSpec{})
	reader := nodeapi.CommandSpec{ID: skerry.NewID(skerry.PrefixCommand), CommandParams: skerry.CommandParams{Name: "cat", Stdin: true}}
	follow, err := n.Exec(t.Context(), id, reader, true)
	if err != nil {
		t.Fatal(err)
	}
	defer follow.Close()
	if err := n.cfg.Driver.(*fake.Driver).Machine(id).Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	command := nodeapi.CommandSpec{ID: skerry.NewID(skerry.PrefixCommand), CommandParams: skerry.CommandParams{Name: "true"}}
	ctx := context.Background()
	var wg sync.WaitGroup
	for name, call := range map[string]func() error{
		"Exec": func() error { _, err := n.Exec(ctx, id, command, false); return err },
		"Output": func() (err error) {
			for err == nil { // it tells why the session was lost
				_, err = follow.Next()
			}
			return err
		},
		"WriteStdin": func() error {
			_, err := n.WriteStdin(ctx, id, reader.ID, skerry.StdinParams{Data: make([]byte, 4<<10)})
			if err == nil {
				err = errors.New("it was taken before the agent hung")
			}
			return err
		},
		"Terminal": func() error {
			_, err := n.Terminal(ctx, id, skerry.TerminalParams{Name: "cat", Cols: 80, Rows: 24})
			return err
		},
		"WriteFiles": func() error { return n.WriteFiles(ctx, id, "/tmp", strings.NewReader("no archive")) },
		"ReadFile":   func() error { _, err := n.ReadFile(ctx, id, "", "file"); return err },
		"MakeDir":    func() error { return n.MakeDir(ctx, id, "", "dir", true) },
	} {
		wg.Go(func() {
			if err := call(); err == nil {
				t.Errorf("%s of a session whose agent hangs succeeds", name)
			} else {
				t.Logf("%s: %v", name, err)
			}
		})
	}
	wg.Wait()
	if loss, err := eventlog.AwaitLoss(ctx, n, id); err != nil || !loss.Savable {
		t.Errorf("lost as %+v, %v", loss, err)
	}
	if _, err := n.Snapshot(ctx, id, nodeapi.Saving{Lease: "lease"}); err != nil {
		t.Error(err)
	}
}

// TestKilledMachine: the session is lost, and its commands have ended.
func TestKilledMachine(t *testing.T) {
	n := fakeNode(t, fakeDriver(t, fake.Config{}))
	id := startOn(t, n, nodeapi.SessionSpec{})
	command := nodeapi.CommandSpec{ID: skerry.NewID(skerry.PrefixCommand), CommandParams: skerry.CommandParams{Name: "sleep", Args: []string{"1000"}}}
	if _, err := n.Exec(t.Context(), id, command, false); err != nil {
		t.Fatal(err)
	}
	if err := n.cfg.Driver.(*fake.Driver).Machine(id).Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	loss, err := eventlog.AwaitLoss(t.Context(), n, id)
	if err != nil || loss.Savable || loss.Reason == "" {
		t.Errorf("lost as %+v, %v", loss, err)
	}
	if _, err := n.Snapshot(t.Context(), id, nodeapi.Saving{Lease: "lease"}); skerry.CodeOf(err) != skerry.CodeSandboxStopped {
		t.Errorf("Snapshot() = %v", err)
	}
}

// TestFailedStartOnDriver fails a start in the driver: nothing is left of it.
func TestFailedStartOnDriver(t *testing.T) {
	for _, step := range []string{"start", "attach"} {
		d := fakeDriver(t, fake.Config{Before: func(op, _ string) error {
			if op == step {
				return errors.New("a step failed")
			}
			return nil
		}})
		n := fakeNode(t, d)
		id := skerry.NewID(skerry.PrefixSession)
		if err := n.Start(t.Context(), nodeapi.SessionSpec{ID: id, Hostname: "one"}); err == nil {
			t.Errorf("%s: it has started", step)
		}
		if d.Machine(id) != nil {
			t.Errorf("%s: the machine runs on", step)
		}
		if _, err := os.Stat(n.dir(id)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the session's folder: %v", step, err)
		}
	}
}
