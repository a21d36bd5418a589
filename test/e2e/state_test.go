package e2e

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

//go:embed testdata/tree.py
var treeScript []byte

// asRoot runs a command as root that must succeed.
func (s *server) asRoot(sb *client.Sandbox, name string, args ...string) string {
	s.t.Helper()
	cmd := sb.Command(s.t.Context(), name, args...)
	cmd.Sudo = true
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// stopSaved stops a sandbox and returns the snapshot that this took.
func (s *server) stopSaved(sb *client.Sandbox) *client.Snapshot {
	s.t.Helper()
	stopped, err := sb.Stop(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	if stopped.Snapshot == nil {
		s.t.Fatal("the stop took no snapshot")
	}
	return stopped.Snapshot
}

func (s *server) from(snap *client.Snapshot) *client.Sandbox {
	s.t.Helper()
	return s.create(client.CreateOptions{Source: snap.Source()})
}

// firstDifference is for listings that are too long to be shown.
func firstDifference(before, after string) string {
	a, b := strings.Split(before, "\n"), strings.Split(after, "\n")
	for i := range max(len(a), len(b)) {
		var x, y string
		if i < len(a) {
			x = a[i]
		}
		if i < len(b) {
			y = b[i]
		}
		if x != y {
			return fmt.Sprintf("line %d:\n  was %.400s\n  is  %.400s", i, x, y)
		}
	}
	return "none"
}

// TestHardTree: every kind of file, owner, mode, time, attribute and change to
// the image's files comes back as it was, through a stop, a fork and a second
// generation.
func TestHardTree(t *testing.T) {
	s := newServer(t)
	sb := s.create(client.CreateOptions{Name: "hard"})
	if err := sb.WriteFile(t.Context(), "tree.py", treeScript, 0o644); err != nil {
		t.Fatal(err)
	}
	s.asRoot(sb, "python3", "tree.py", "make")
	// /etc has files that each start writes anew.
	s.asRoot(sb, "sh", "-c", "mkdir /opt/etc && mv /etc/protocols /etc/services /etc/issue /opt/etc/")
	list := func(sb *client.Sandbox) string {
		return s.asRoot(sb, "python3", "-X", "utf8", "tree.py", "list", "/opt", "/vercel/sandbox", "/usr/share/zoneinfo", "/var", "/home")
	}
	before := list(sb)
	if n := strings.Count(before, "\n"); n < 5000 {
		t.Fatalf("only %d files are listed", n)
	}
	s.stopSaved(sb)
	after := list(sb) // resumes
	if after != before {
		t.Errorf("after a stop the files differ, first in %s", firstDifference(before, after))
	}
	s.asRoot(sb, "test", "!", "-e", "/etc/debian_version")
	// Once more, without a change: the second snapshot of the same files.
	s.stopSaved(sb)
	fork, err := sb.Fork(t.Context(), client.ForkOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if again := list(fork); again != before {
		t.Errorf("in a fork the files differ, first in %s", firstDifference(before, again))
	}
}

// TestGenerations: each snapshot of a long chain has the files of its moment.
func TestGenerations(t *testing.T) {
	const generations = 12
	s := newServer(t)
	sb := s.create(client.CreateOptions{Name: "chain"})
	s.output(sb, "sh", "-c", "head -c 5000000 /dev/urandom > base")
	sum := s.output(sb, "sha256sum", "base")
	var snaps []*client.Snapshot
	for i := range generations {
		s.output(sb, "sh", "-c", fmt.Sprintf("echo %d >> log; echo %d > file-%d; rm -f file-%d", i, i, i, i-1))
		snaps = append(snaps, s.stopSaved(sb))
	}
	for i, snap := range snaps {
		if parent := snap.Info().ParentID; i > 0 && parent != snaps[i-1].ID() {
			t.Errorf("the parent of snapshot %d is %q", i, parent)
		}
	}
	for _, i := range []int{0, 1, generations / 2, generations - 1} {
		one := s.from(snaps[i])
		want := fmt.Sprintf("%d base file-%d log", i+1, i)
		if got := s.output(one, "sh", "-c", "echo $(wc -l < log) *"); got != want {
			t.Errorf("generation %d has %q, want %q", i, got, want)
		}
		if got := s.output(one, "sha256sum", "base"); got != sum {
			t.Errorf("generation %d has a base of %s", i, got)
		}
		s.delete(one)
	}
}

// TestForksAtOnce: many sandboxes from one snapshot, each with its own files.
func TestForksAtOnce(t *testing.T) {
	s := newServer(t)
	sb := s.create(client.CreateOptions{Name: "source"})
	s.output(sb, "sh", "-c", "echo common > file")
	s.stopSaved(sb)
	var forks sync.WaitGroup
	for i := range 10 {
		forks.Go(func() {
			fork, err := sb.Fork(t.Context(), client.ForkOptions{Name: fmt.Sprintf("fork-%d", i)})
			if err != nil {
				t.Error(err)
				return
			}
			out, err := fork.Command(t.Context(), "sh", "-c", fmt.Sprintf("echo %d >> file; cat file", i)).Output()
			if want := fmt.Sprintf("common\n%d\n", i); err != nil || string(out) != want {
				t.Errorf("fork %d: %q, %v", i, out, err)
			}
		})
	}
	forks.Wait()
	if got := s.output(sb, "cat", "file"); got != "common" {
		t.Errorf("the source has %q", got)
	}
}

// TestNoRoomForASnapshot: the sandbox goes on, the error is clear, and once
// there is room the files are saved.
func TestNoRoomForASnapshot(t *testing.T) {
	s := prepareServer(t)
	dir := s.path("state/snapshots")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	mount := func(options string) {
		t.Helper()
		if out, err := exec.Command("mount", "-t", "tmpfs", "-o", options, "small", dir).CombinedOutput(); err != nil {
			t.Fatalf("mount: %v: %s", err, out)
		}
	}
	mount("size=40m")
	t.Cleanup(func() { exec.Command("umount", "-l", dir).Run() })
	s.start()
	sb := s.create(client.CreateOptions{Name: "large"})
	counting := s.detach(sb, "i=0; while :; do i=$((i+1)); echo $i > count; sleep 0.01; done")
	s.output(sb, "sh", "-c", "head -c 60000000 /dev/urandom > data")
	sum := s.output(sb, "sha256sum", "data")
	session := sb.Session().ID
	for range 3 {
		if _, err := sb.Stop(t.Context()); client.CodeOf(err) != skerry.CodeDiskFull {
			t.Fatalf("a stop without room: %v", err)
		}
	}
	s.assertAlive(sb)
	if sb.Session().ID != session || counting.Info().ExitCode != nil {
		t.Error("the sandbox did not go on as it was")
	}
	mount("remount,size=400m")
	s.stopSaved(sb)
	if got := s.output(sb, "sha256sum", "data"); got != sum {
		t.Errorf("the data came back as %s", got)
	}
	s.delete(sb)
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
}

// TestBlobsGoneAndBack: a snapshot whose bytes are missing or damaged starts
// nothing, and says so; when they are back it starts.
func TestBlobsGoneAndBack(t *testing.T) {
	s := newServer(t)
	sb := s.create(client.CreateOptions{Name: "lost"})
	s.output(sb, "sh", "-c", "head -c 3000000 /dev/urandom > data")
	sum := s.output(sb, "sha256sum", "data")
	s.stopSaved(sb)
	blobs := s.path("state/snapshots/blobs/blobs")
	restart := func() {
		t.Helper()
		if err := s.stop(); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(s.path("state/snapshots/cache")); err != nil {
			t.Fatal(err)
		}
		s.start()
	}
	restart()
	if err := os.Rename(filepath.Join(blobs, "sealed-chunk"), s.path("away")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GetSandbox(t.Context(), "lost", client.GetOptions{Resume: true}); err == nil {
		t.Error("a sandbox started without its bytes")
	}
	if err := os.Rename(s.path("away"), filepath.Join(blobs, "sealed-chunk")); err != nil {
		t.Fatal(err)
	}
	back := s.get("lost")
	if got := s.output(back, "sha256sum", "data"); got != sum {
		t.Errorf("the data came back as %s", got)
	}
	s.stopSaved(back)

	restart()
	largest := largestFile(t, filepath.Join(blobs, "sealed-chunk"))
	b, err := os.ReadFile(largest)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(largest, b, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = s.GetSandbox(t.Context(), "lost", client.GetOptions{Resume: true})
	if err == nil || !strings.Contains(err.Error(), filepath.Base(largest)[:16]) {
		t.Errorf("a sandbox with a damaged blob: %v, want an error that names %s", err, filepath.Base(largest))
	}
	if now := s.get("lost"); now.Session().Status == skerry.StatusRunning {
		t.Error("a sandbox runs with a damaged blob")
	}
	s.assertOwned(5)
}

func largestFile(t *testing.T, dir string) string {
	t.Helper()
	var path string
	var size int64
	err := filepath.Walk(dir, func(p string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() && info.Size() > size {
			path, size = p, info.Size()
		}
		return err
	})
	if err != nil || path == "" {
		t.Fatalf("no file in %s: %v", dir, err)
	}
	return path
}
