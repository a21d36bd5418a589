package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/driver/fake"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/room"
)

// smallDisk returns the folder of a filesystem of 8 MiB.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "full")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestStartFillsTheDisk: a session whose start fails because the disk has become full is
// answered with disk_full, whatever the machine's end looked like.
func TestStartFillsTheDisk(t *testing.T) {
	full := smallDisk(t)
	h := newHouse(t)
	n := h.node(t, 0, func(c *Config) { c.Disk = room.New(full, 4<<20) })
	other := errors.New("the machine's kernel ended")
	for _, tt := range []struct {
		name string
		fill bool
		err  error
		want skerry.Code
	}{
		{"the disk has room", false, other, skerry.CodeInternal},
		{"the machine could not write", false, fmt.Errorf("write: %w", syscall.ENOSPC), skerry.CodeDiskFull},
		{"the host has no more processes", false, fmt.Errorf("fork: %w", syscall.EAGAIN), skerry.CodeUnavailable},
		{"the host has no more files", false, &os.PathError{Op: "open", Err: syscall.EMFILE}, skerry.CodeUnavailable},
		{"the disk has become full", true, other, skerry.CodeDiskFull},
	} {
		refuse := func(op, _ string) error {
			if op != "start" {
				return nil
			}
			if tt.fill {
				if err := os.WriteFile(filepath.Join(full, "filler"), make([]byte, 6<<20), 0o600); err != nil {
					t.Error(err)
				}
			}
			return tt.err
		}
		h.refuse.Store(&refuse)
		spec := usual
		spec.ID, spec.Hostname = skerry.NewID(skerry.PrefixSession), "full"
		if err := n.Start(t.Context(), spec); skerry.CodeOf(err) != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
		}
	}
}

// TestStartWithoutItsFiles has the disk become full before the agent writes the files that a
// sandbox needs. The session fails, unless it is the sandbox alone that is full.
func TestStartWithoutItsFiles(t *testing.T) {
	for _, tt := range []struct {
		name  string
		watch bool // whether the node's disk is the one that is full
		want  skerry.Code
	}{{"the server's disk is full", true, skerry.CodeDiskFull}, {"the sandbox is full", false, ""}} {
		t.Run(tt.name, func(t *testing.T) {
			full := smallDisk(t)
			d, err := fake.New(fake.Config{Dir: filepath.Join(full, "machines"), Before: func(op, _ string) error {
				if op != "attach" {
					return nil
				}
				f, err := os.Create(filepath.Join(full, "filler"))
				if err != nil {
					return err
				}
				for err == nil { // to the last byte
					_, err = f.Write(make([]byte, 512))
				}
				if !errors.Is(err, syscall.ENOSPC) {
					t.Error(err)
				}
				return f.Close()
			}})
			if err != nil {
				t.Fatal(err)
			}
			h := newHouse(t)
			n := h.node(t, 0, func(c *Config) {
				c.Driver = d
				if tt.watch {
					c.Disk = room.New(full, 1<<20)
				}
			})
			spec := usual
			spec.ID, spec.Hostname = skerry.NewID(skerry.PrefixSession), "full"
			err = n.Start(t.Context(), spec)
			if skerry.CodeOf(err) != tt.want {
				t.Errorf("the start: %v, want %q", err, tt.want)
			}
			if err := errors.Join(n.Forget(t.Context(), spec.ID), os.Remove(filepath.Join(full, "filler"))); err != nil {
				t.Error(err)
			}
		})
	}
}

// said is a log that tells when a message was written.
type said struct {
	slog.Handler
	message string
	once    *sync.Once
	then    func()
}

func (h said) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == h.message {
		h.once.Do(h.then)
	}
	return h.Handler.Handle(ctx, r)
}

// TestOutputWaitsForRoom: a command that prints while the disk is full waits, and its
// reader gets all of its output.
func TestOutputWaitsForRoom(t *testing.T) {
	full := smallDisk(t)
	filler := filepath.Join(full, "filler")
	waits := false
	drain := func() {
		waits = true
		if err := os.Remove(filler); err != nil {
			t.Error(err)
		}
	}
	n := fakeNodeWith(t, fakeDriver(t, fake.Config{}), func(c *Config) {
		c.Dir = filepath.Join(full, "sessions")
		c.Log = slog.New(said{c.Log.Handler(), "a command waits for room on the disk for its output", &sync.Once{}, drain})
	})
	id := startOn(t, n, nodeapi.SessionSpec{})
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(f, rand.Reader)
	if err = errors.Join(err, f.Close()); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk cannot be filled: %v", err)
	}
	var want strings.Builder
	for i := range 100_000 {
		fmt.Fprintln(&want, i+1)
	}
	if got := runOn(t, n, id, "seq 1 100000"); got != want.String() {
		t.Errorf("there are %d bytes of output instead of %d", len(got), want.Len())
	}
	if !waits {
		t.Error("the command did not wait: nothing was tested")
	}
}
