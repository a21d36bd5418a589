package processnode

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/nodeapi/eventlog"
)

var _ interface {
	nodeapi.Node
	nodeapi.Collector
} = (*Node)(nil)

// started returns a node and a session that runs in it.
func started(t *testing.T, spec nodeapi.SessionSpec) (*Node, string) {
	t.Helper()
	n := New(t.TempDir())
	t.Cleanup(func() {
		if err := n.Retain(context.Background(), nil); err != nil {
			t.Error(err)
		}
	})
	return n, start(t, n, spec)
}

func start(t *testing.T, n *Node, spec nodeapi.SessionSpec) string {
	t.Helper()
	spec.ID = skerry.NewID(skerry.PrefixSession)
	if err := n.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	return spec.ID
}

func shell(script string) skerry.CommandParams {
	return skerry.CommandParams{Name: "sh", Args: []string{"-c", script}}
}

// execute starts a command and returns its id and its output.
func execute(t *testing.T, n *Node, session string, p skerry.CommandParams) (string, skerry.OutputReader) {
	t.Helper()
	id := skerry.NewID(skerry.PrefixCommand)
	out, err := n.Exec(t.Context(), session, nodeapi.CommandSpec{ID: id, CommandParams: p}, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close() })
	return id, out
}

// all returns what a reader has yet, a stream at a time.
func all(t *testing.T, r skerry.OutputReader) map[skerry.Stream]string {
	t.Helper()
	got := map[skerry.Stream]string{}
	for {
		o, err := r.Next()
		if errors.Is(err, io.EOF) {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		if int(o.Offset) != len(got[o.Stream]) {
			t.Errorf("%s goes on at %d after %d bytes", o.Stream, o.Offset, len(got[o.Stream]))
		}
		got[o.Stream] += string(o.Data)
	}
}

func run(t *testing.T, n *Node, session, script string) string {
	t.Helper()
	_, out := execute(t, n, session, shell(script))
	return all(t, out)[skerry.Stdout]
}

func wantCode(t *testing.T, what string, err error, code skerry.Code) {
	t.Helper()
	if got := skerry.CodeOf(err); got != code {
		t.Errorf("%s: %v, want %s", what, err, code)
	}
}

func TestCommands(t *testing.T) {
	n, s := started(t, nodeapi.SessionSpec{Env: map[string]string{"A": "1", "B": "1"}})
	p := shell("echo $A$B; echo bad >&2; exit 3")
	p.Env = map[string]string{"B": "2"}
	id, out := execute(t, n, s, p)
	if got := all(t, out); got["stdout"] != "12\n" || got["stderr"] != "bad\n" {
		t.Errorf("printed %q", got)
	}
	exit, err := eventlog.AwaitExit(t.Context(), n, s, id)
	if err != nil || exit.Code != 3 {
		t.Errorf("ended with %+v, %v", exit, err)
	}
	_, err = n.Exec(t.Context(), s, nodeapi.CommandSpec{ID: "cmd_x", CommandParams: skerry.CommandParams{Name: "no-such-program"}}, true)
	wantCode(t, "an unknown program", err, skerry.CodeExecutableNotFound)
	_, err = n.Exec(t.Context(), s, nodeapi.CommandSpec{ID: "cmd_x", CommandParams: skerry.CommandParams{Name: "true", Cwd: "gone"}}, true)
	wantCode(t, "an unknown directory", err, skerry.CodeBadRequest)
	run(t, n, s, "echo > plain")
	id, out = execute(t, n, s, skerry.CommandParams{Name: "./plain"})
	if got := all(t, out); got["stderr"] != "./plain: permission denied\n" {
		t.Errorf("a file that is no program: %q", got)
	}
	if exit, err := eventlog.AwaitExit(t.Context(), n, s, id); err != nil || exit.Code != 126 {
		t.Errorf("a file that is no program ended with %+v, %v", exit, err)
	}

	// A command outlives neither its time nor its session, and what it printed
	// stays until the session is forgotten.
	p = shell("echo here; exec sleep 100")
	p.Timeout = skerry.Duration(1e6)
	id, _ = execute(t, n, s, p)
	if exit, err := eventlog.AwaitExit(t.Context(), n, s, id); err != nil || exit.Code != 137 {
		t.Errorf("at its timeout a command ended with %+v, %v", exit, err)
	}
	id, out = execute(t, n, s, shell("echo here; sleep 100"))
	if o, err := out.Next(); err != nil || string(o.Data) != "here\n" {
		t.Errorf("printed %q, %v", o.Data, err)
	}
	if _, err := n.Stop(t.Context(), s); err != nil {
		t.Error(err)
	}
	again, err := n.Output(t.Context(), s, id)
	if err != nil {
		t.Fatal(err)
	}
	if got := all(t, again); got["stdout"] != "here\n" {
		t.Errorf("after the end of the session its output is %q", got)
	}
	again.Close()
	err = n.Signal(t.Context(), s, id, 9)
	wantCode(t, "a command of a session that has stopped", err, skerry.CodeSandboxStopped)
	if err := n.Forget(t.Context(), s); err != nil {
		t.Error(err)
	}
	err = n.Signal(t.Context(), s, id, 9)
	wantCode(t, "a command of a session that is forgotten", err, skerry.CodeNotFound)
}

func TestStdin(t *testing.T) {
	n, s := started(t, nodeapi.SessionSpec{})
	p := shell("cat")
	p.Stdin = true
	id, out := execute(t, n, s, p)
	zero := int64(0)
	for range 2 { // the second call repeats the first
		if sent, err := n.WriteStdin(t.Context(), s, id, skerry.StdinParams{Data: []byte("abc"), Offset: &zero}); err != nil || sent != 3 {
			t.Errorf("%d, %v", sent, err)
		}
	}
	if sent, err := n.WriteStdin(t.Context(), s, id, skerry.StdinParams{Data: []byte("d"), Close: true}); err != nil || sent != 4 {
		t.Errorf("%d, %v", sent, err)
	}
	if got := all(t, out); got["stdout"] != "abcd" {
		t.Errorf("it read %q", got)
	}
	_, err := n.WriteStdin(t.Context(), s, id, skerry.StdinParams{Data: []byte("e")})
	wantCode(t, "a closed input", err, skerry.CodeStdinUnavailable)

	deaf := shell("sleep 100")
	deaf.Stdin = true
	id, _ = execute(t, n, s, deaf)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = n.WriteStdin(ctx, s, id, skerry.StdinParams{Data: make([]byte, 1<<20)})
	wantCode(t, "an input that is not read", err, skerry.CodeStdinTimeout)
	id, _ = execute(t, n, s, shell("sleep 100"))
	_, err = n.WriteStdin(t.Context(), s, id, skerry.StdinParams{Data: []byte("e")})
	wantCode(t, "no input", err, skerry.CodeStdinUnavailable)
}

func TestTerminal(t *testing.T) {
	n, s := started(t, nodeapi.SessionSpec{})
	open := func(script string) skerry.Terminal {
		tty, err := n.Terminal(t.Context(), s, skerry.TerminalParams{Name: "sh", Args: []string{"-c", script}, Env: []string{"X=1"}, Cols: 81, Rows: 25})
		if err != nil {
			t.Fatal(err)
		}
		return tty
	}
	tty := open("stty size; echo $X; read line; echo got $line; exit 4")
	if _, err := tty.Write([]byte("word\n")); err != nil {
		t.Error(err)
	}
	got, err := io.ReadAll(tty)
	if err != nil || !strings.Contains(string(got), "25 81\r\n") || !strings.Contains(string(got), "1\r\n") || !strings.Contains(string(got), "got word\r\n") {
		t.Errorf("%q, %v", got, err)
	}
	if code, err := tty.Wait(); err != nil || code != 4 {
		t.Errorf("ended with %d, %v", code, err)
	}
	tty.Close()

	hung := open("exec sleep 100")
	if err := hung.Close(); err != nil {
		t.Error(err)
	}
	if code, err := hung.Wait(); err != nil || code != 129 {
		t.Errorf("hung up, it ended with %d, %v", code, err)
	}
	left := open("exec sleep 100")
	if _, err := n.Stop(t.Context(), s); err != nil {
		t.Error(err)
	}
	_, err = left.Read(make([]byte, 1))
	wantCode(t, "reading in a session that has stopped", err, skerry.CodeSandboxStopped)
	_, err = left.Wait()
	wantCode(t, "the end in a session that has stopped", err, skerry.CodeSandboxStopped)
	left.Close()
}

func TestFiles(t *testing.T) {
	n, s := started(t, nodeapi.SessionSpec{})
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o500},
		{Name: "d/file", Typeflag: tar.TypeReg, Mode: 0o640, Size: 4},
		{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "d/file"},
		{Name: "hard", Typeflag: tar.TypeLink, Linkname: "d/file"},
		{Name: "fifo", Typeflag: tar.TypeFifo, Mode: 0o600},
	} {
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			io.WriteString(tw, "text")
		}
	}
	tw.Close()
	if err := n.WriteFiles(t.Context(), s, "sub", &b); err != nil {
		t.Fatal(err)
	}
	if got := run(t, n, s, "cd sub; stat -c '%F %a %h' d d/file link fifo"); got != "directory 500 2\nregular file 640 2\nsymbolic link 777 1\nfifo 600 1\n" {
		t.Errorf("%s", got)
	}
	for _, name := range []string{"link", "/vercel/sandbox/sub/hard", "../sub/d/file"} {
		r, err := n.ReadFile(t.Context(), s, "sub", name)
		if err != nil {
			t.Error(err)
			continue
		}
		got, err := io.ReadAll(r)
		if string(got) != "text" || err != nil || r.(interface{ Size() int64 }).Size() != 4 {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		r.Close()
	}
	for name, code := range map[string]skerry.Code{"gone": skerry.CodeNotFound, "sub": skerry.CodeBadRequest, "sub/fifo": skerry.CodeBadRequest} {
		_, err := n.ReadFile(t.Context(), s, "", name)
		wantCode(t, name, err, code)
	}
	wantCode(t, "a directory that is there", n.MakeDir(t.Context(), s, "", "sub", false), skerry.CodeConflict)
	wantCode(t, "a directory without a parent", n.MakeDir(t.Context(), s, "", "a/b", false), skerry.CodeNotFound)
	if err := n.MakeDir(t.Context(), s, "", "a/b", true); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"/abs", "../out", ""} {
		b.Reset()
		tw := tar.NewWriter(&b)
		if err := tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600}); err != nil {
			t.Fatal(err)
		}
		wantCode(t, name, n.WriteFiles(t.Context(), s, "", &b), skerry.CodeBadRequest)
	}
	wantCode(t, "no archive", n.WriteFiles(t.Context(), s, "", bytes.NewReader(make([]byte, 100))), skerry.CodeBadRequest)
}

func TestSavedFilesAndDrives(t *testing.T) {
	n := New(t.TempDir())
	t.Cleanup(func() { n.Retain(context.Background(), nil) })
	if err := n.CreateDrive(t.Context(), "drv_1", 1<<30); err != nil {
		t.Fatal(err)
	}
	mounts := []nodeapi.DriveMount{{Path: "/vercel/sandbox/data", DriveID: "drv_1"}}
	s := start(t, n, nodeapi.SessionSpec{Mounts: mounts})
	run(t, n, s, "echo saved > file; ln -s file link; echo kept > data/file")
	saved, err := n.Snapshot(t.Context(), s, nodeapi.Saving{Lease: "lease"})
	if err != nil || saved.Size != 6 {
		t.Fatalf("%+v, %v", saved, err)
	}
	run(t, n, s, "echo later > data/file")
	mounts[0].Frozen = true
	again := start(t, n, nodeapi.SessionSpec{Snapshot: saved.Manifest, Mounts: mounts})
	run(t, n, s, "echo last > data/file")
	if got := run(t, n, again, "cat link data/file; readlink link"); got != "saved\nlater\nfile\n" {
		t.Errorf("a session from saved files has %q", got)
	}
	if c, err := n.Collect(t.Context(), nodeapi.Records{Active: []string{"lease"}}); err != nil || c.Freed != 0 {
		t.Errorf("%d collected under a lease, %v", c.Freed, err)
	}
	if c, err := n.Collect(t.Context(), nodeapi.Records{Ended: []string{"lease"}}); err != nil || c.Freed != 1 || len(n.SavedFiles()) != 0 {
		t.Errorf("%d collected after the end of the lease, %v", c.Freed, err)
	}
	fork := start(t, n, nodeapi.SessionSpec{ForkOf: s, Capture: "m_capture"})
	if got := run(t, n, fork, "cat file"); got != "saved\n" {
		t.Errorf("a fork has %q", got)
	}
	if err := n.Discard(t.Context(), "m_capture"); err != nil || len(n.SavedFiles()) != 0 {
		t.Errorf("the capture is still there: %v", err)
	}
	if err := n.RetainDrives(t.Context(), nil); err != nil || len(n.DriveIDs()) != 0 {
		t.Errorf("drives are left: %v, %v", n.DriveIDs(), err)
	}
}

func eventually(t *testing.T, what string, happened func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !happened() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestPause(t *testing.T) {
	n, s := started(t, nodeapi.SessionSpec{})
	id, out := execute(t, n, s, shell("echo $$; exec sleep 100"))
	o, err := out.Next()
	if err != nil {
		t.Fatal(err)
	}
	pid := strings.TrimSpace(string(o.Data))
	if err := n.Pause(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	state := func() string {
		b, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		return rest[:1]
	}
	eventually(t, "the command to stop", func() bool { return state() == "T" })
	if err := n.Resume(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the command to go on", func() bool { return state() != "T" })
	if err := n.Signal(t.Context(), s, id, 15); err != nil {
		t.Error(err)
	}
	if exit, err := eventlog.AwaitExit(t.Context(), n, s, id); err != nil || exit.Code == 0 {
		t.Errorf("ended with %+v, %v", exit, err)
	}
}

func TestPorts(t *testing.T) {
	n, s := started(t, nodeapi.SessionSpec{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	c, err := n.Dial(t.Context(), s, port, netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Stop(t.Context(), s); err != nil {
		t.Error(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection goes on after the session")
	}
	c.Close()
	ln.Close()
	s = start(t, n, nodeapi.SessionSpec{})
	_, err = n.Dial(t.Context(), s, port, netip.Addr{})
	wantCode(t, "a port where nothing listens", err, skerry.CodeUnavailable)
}

func TestHooks(t *testing.T) {
	n, s := started(t, nodeapi.SessionSpec{})
	boom := errors.New("boom")
	calls := map[Point]func() error{
		Start: func() error { return n.Start(t.Context(), nodeapi.SessionSpec{ID: "sbx_other"}) },
		Exec:  func() error { _, err := n.Exec(t.Context(), s, nodeapi.CommandSpec{}, false); return err },
		Save:  func() error { _, err := n.Snapshot(t.Context(), s, nodeapi.Saving{Lease: "lease"}); return err },
		Saved: func() error { _, err := n.Snapshot(t.Context(), s, nodeapi.Saving{Lease: "lease"}); return err },
		Keep:  func() error { _, err := n.Keep(t.Context(), "m_x", "lease"); return err },
		Stop:  func() error { _, err := n.Stop(t.Context(), s); return err },
	}
	for p, call := range calls {
		n.On(p, func(context.Context, string) error { return fmt.Errorf("at %s: %w", p, boom) })
		if err := call(); !errors.Is(err, boom) || !strings.Contains(err.Error(), string(p)) {
			t.Errorf("%s: %v", p, err)
		}
		n.On(p, nil)
	}
	if n.Running() != 1 || n.Knows("sbx_other") {
		t.Errorf("%d sessions run", n.Running())
	}
	n.OnSetNetwork(func(nodeapi.NetworkSpec) error { return boom })
	if err := n.SetNetwork(t.Context(), s, nodeapi.NetworkSpec{}); !errors.Is(err, boom) {
		t.Errorf("a network that is refused: %v", err)
	}
}

func TestLosses(t *testing.T) {
	n, s := started(t, nodeapi.SessionSpec{})
	n.LoseAgent(s, "its agent was lost")
	if loss, err := eventlog.AwaitLoss(t.Context(), n, s); err != nil || loss != (nodeapi.Loss{Reason: "its agent was lost", Savable: true}) {
		t.Errorf("%+v, %v", loss, err)
	}
	if _, err := n.Snapshot(t.Context(), s, nodeapi.Saving{Lease: "lease"}); err != nil {
		t.Error(err)
	}
	s = start(t, n, nodeapi.SessionSpec{})
	n.Lose(s, "the power went out")
	if loss, err := eventlog.AwaitLoss(t.Context(), n, s); err != nil || loss != (nodeapi.Loss{Reason: "the power went out"}) {
		t.Errorf("%+v, %v", loss, err)
	}
	wantCode(t, "a session that was lost", n.Pause(t.Context(), s), skerry.CodeSandboxStopped)
	if _, err := n.Stop(t.Context(), s); err != nil {
		t.Errorf("stopping what is lost: %v", err)
	}
}
