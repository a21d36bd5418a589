package keyfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func make1(b string) func() ([]byte, error) { return func() ([]byte, error) { return []byte(b), nil } }

func mustNotMake(t *testing.T) func() ([]byte, error) {
	return func() ([]byte, error) {
		t.Error("a key is made though there is one")
		return nil, nil
	}
}

// only fails if there is anything but a file with this name in a folder.
func only(t *testing.T, dir, name string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if e.Name() != name {
			t.Errorf("%s is left", e.Name())
		}
	}
}

func TestMadeOnce(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	if b, err := Open(path, make1("first")); err != nil || string(b) != "first" {
		t.Fatalf("%q, %v", b, err)
	}
	if b, err := Open(path, mustNotMake(t)); err != nil || string(b) != "first" {
		t.Errorf("%q, %v", b, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	only(t, dir, "key")
}

// TestQuickerOneWins: many goroutines create the same file at once, and all get the same
// key.
func TestQuickerOneWins(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	const opens = 32
	got := make([]string, opens)
	var all, ready sync.WaitGroup
	ready.Add(opens)
	for i := range opens {
		all.Go(func() {
			b, err := Open(path, func() ([]byte, error) {
				ready.Done()
				ready.Wait() // none is there before all have looked
				return fmt.Appendf(nil, "key of %d", i), nil
			})
			if err != nil {
				t.Error(err)
			}
			got[i] = string(b)
		})
	}
	all.Wait()
	for _, b := range got {
		if b != got[0] || b == "" {
			t.Fatalf("%q beside %q", b, got[0])
		}
	}
	only(t, dir, "key")
}

func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		make func(path string) error
		says string
	}{
		"read by the group": {func(p string) error { return os.WriteFile(p, []byte("s3cret"), 0o640) }, "mode 0600"},
		"read by others":    {func(p string) error { return os.WriteFile(p, []byte("s3cret"), 0o604) }, "mode 0600"},
		"written by others": {func(p string) error { return errors.Join(os.WriteFile(p, []byte("s3cret"), 0o600), os.Chmod(p, 0o602)) }, "mode 0600"},
		"a folder":          {func(p string) error { return os.Mkdir(p, 0o700) }, "must be a regular file"},
		"too long":          {func(p string) error { return os.WriteFile(p, make([]byte, MaxBytes+1), 0o600) }, "longer than 65536 bytes"},
	} {
		path := filepath.Join(t.TempDir(), "key")
		if err := c.make(path); err != nil {
			t.Fatal(err)
		}
		b, err := Open(path, mustNotMake(t))
		if err == nil || b != nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}

func TestFailureLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	fault := errors.New("no randomness")
	if _, err := Open(filepath.Join(dir, "key"), func() ([]byte, error) { return nil, fault }); !errors.Is(err, fault) {
		t.Error(err)
	}
	only(t, dir, "")
	if _, err := Open(filepath.Join(dir, "none", "key"), make1("x")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	only(t, dir, "")
}
