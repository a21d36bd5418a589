package fake

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest"
)

func newDriver(t *testing.T, dir string) *Driver {
	t.Helper()
	d, err := New(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// start starts a machine, and stops it at the end.
func start(t *testing.T, d *Driver, spec driver.Spec) (*Machine, *guest.Client) {
	t.Helper()
	started, err := d.Start(deadline(t), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := started.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		if pids, err := marked(d.dir(spec.ID)); err != nil || len(pids) > 0 {
			t.Errorf("processes %v are left: %v", pids, err)
		}
	})
	conn, err := started.Attach(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	client, info, err := guest.Connect(deadline(t), conn, guest.Setup{Hostname: "fake"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if len(info.Warnings) > 0 {
		t.Errorf("warnings: %q", info.Warnings)
	}
	return started.(*Machine), client
}

func output(t *testing.T, c *guest.Client, script string) string {
	t.Helper()
	ctx := deadline(t)
	p, err := c.Start(ctx, guest.StartSpec{ID: "cmd_" + t.Name(), Name: "sh", Args: []string{"-c", script}})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for {
		chunk, err := p.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		out.Write(chunk.Data)
		if err := p.Ack(chunk.Stream, chunk.End()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if err := p.Forget(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestCommandsAndFiles(t *testing.T) {
	m, c := start(t, newDriver(t, t.TempDir()), driver.Spec{ID: "m1"})
	if got := output(t, c, "echo hello > /dev/stdout; pwd; echo $HOME"); got != "hello\n"+m.Root()+"/vercel/sandbox\n"+m.Root()+"/home/vercel-sandbox\n" {
		t.Errorf("%q", got)
	}
	if err := c.Mkdir(deadline(t), "", "/tmp/made"); err != nil {
		t.Error(err)
	}
	if st, err := os.Stat(m.Root() + "/tmp/made"); err != nil || !st.IsDir() {
		t.Error(err)
	}
	if got := output(t, c, "true"); got != "" {
		t.Errorf("%q", got)
	}
}

// TestSnapshotRecoverPause: the files of a machine are saved, and it is found
// again by another driver, with a command that goes on.
func TestSnapshotRecoverPause(t *testing.T) {
	dir := t.TempDir()
	m, c := start(t, newDriver(t, dir), driver.Spec{ID: "m2"})
	output(t, c, "echo kept > file; setsid sleep 1000 >/dev/null 2>&1 &")
	saved := t.TempDir()
	if err := m.Save(deadline(t), saved, driver.Saving{}); err != nil {
		t.Fatal(err)
	}
	_, c2 := start(t, newDriver(t, t.TempDir()), driver.Spec{ID: "m3", Source: driver.Source{Files: saved}})
	if got := output(t, c2, "cat file"); got != "kept\n" {
		t.Errorf("%q", got)
	}
	if err := m.Pause(deadline(t)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	found, err := newDriver(t, dir).Recover(deadline(t))
	if err != nil || len(found) != 1 || found[0].ID() != "m2" {
		t.Fatalf("%v, %v", found, err)
	}
	conn, err := found[0].Attach(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	c, _, err = guest.Reconnect(deadline(t), conn, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := output(t, c, "cat file"); got != "kept\n" {
		t.Errorf("%q", got)
	}
	if err := m.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-found[0].Done()
	if err := found[0].Stop(deadline(t)); err != nil {
		t.Error(err)
	}
}

// TestFailedStart leaves nothing.
func TestFailedStart(t *testing.T) {
	d := newDriver(t, t.TempDir())
	for _, spec := range []driver.Spec{{ID: "m4", Source: driver.Source{Files: "/nowhere"}}, {ID: "m4", Volumes: []driver.Volume{{Path: "/x", Source: os.NewFile(1<<20, "none")}}}} {
		if _, err := d.Start(deadline(t), spec); err == nil {
			t.Errorf("%+v has started", spec)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Start(ctx, driver.Spec{ID: "m4"}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if left, err := filepath.Glob(d.cfg.Dir + "/*"); err != nil || len(left) > 0 || d.Machine("m4") != nil {
		t.Errorf("left: %v, %v", left, err)
	}
}
