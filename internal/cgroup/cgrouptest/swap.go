// Package cgrouptest has what tests of memory need of the machine.
package cgrouptest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Swap gives the machine a swap file of so many bytes for the time of the test.
func Swap(t testing.TB, bytes int64) {
	t.Helper()
	dir := t.TempDir()
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Type == unix.TMPFS_MAGIC { // which is memory itself
		var err error
		if dir, err = os.MkdirTemp("/var/tmp", "skerry-swap-"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		})
	}
	file := filepath.Join(dir, "swap")
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// The kernel takes no file with holes.
	if err := unix.Fallocate(int(f.Fd()), 0, 0, bytes); err != nil {
		t.Fatal(err)
	}
	run := func(name string) {
		t.Helper()
		if out, err := exec.Command(name, file).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
	}
	run("mkswap")
	run("swapon")
	t.Cleanup(func() { run("swapoff") })
}
