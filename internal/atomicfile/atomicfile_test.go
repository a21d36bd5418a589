package atomicfile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// TestWrite replaces files, and leaves nothing behind where it cannot.
func TestWrite(t *testing.T) {
	for name, write := range map[string]func(path string, data []byte) error{
		"Write":        Write,
		"WriteDurable": func(path string, data []byte) error { return WriteDurable("", path, data) },
		"RenameDurable": func(path string, data []byte) error {
			from := path + ".new"
			if err := os.WriteFile(from, data, 0o600); err != nil {
				return err
			}
			return RenameDurable(from, path)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "file")
			for _, content := range []string{"old", "new and longer", ""} {
				if err := write(path, []byte(content)); err != nil {
					t.Fatal(err)
				}
				if got, err := os.ReadFile(path); err != nil || string(got) != content {
					t.Errorf("the file has %q, %v, want %q", got, err, content)
				}
			}
			if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
				t.Errorf("the file is %v, %v", info.Mode(), err)
			}
			// A folder cannot be replaced by a file.
			folder := filepath.Join(dir, "folder")
			if err := os.MkdirAll(filepath.Join(folder, "sub"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := write(folder, []byte("x")); err == nil {
				t.Error("a folder was replaced")
			}
			only(t, dir, "file", "folder")
		})
	}
}

// TestWriteDurableElsewhere makes its temporary file in another folder.
func TestWriteDurableElsewhere(t *testing.T) {
	dir, temp := t.TempDir(), t.TempDir()
	path := filepath.Join(dir, "file")
	if err := WriteDurable(temp, path, []byte("x")); err != nil {
		t.Fatal(err)
	}
	only(t, dir, "file")
	only(t, temp)
	if err := WriteDurable(filepath.Join(temp, "missing"), path, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a folder for its temporary file: %v", err)
	}
}

// TestCreateDurable has many create one file: one succeeds, and its content is
// the file's.
func TestCreateDurable(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	var mu sync.Mutex
	var winners [][]byte
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			content := bytes.Repeat([]byte{byte(i)}, 1<<10)
			switch err := CreateDurable(path, content); {
			case err == nil:
				mu.Lock()
				winners = append(winners, content)
				mu.Unlock()
			case !errors.Is(err, fs.ErrExist):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got, err := os.ReadFile(path); err != nil || len(winners) != 1 || !bytes.Equal(got, winners[0]) {
		t.Errorf("%d created the file, which has %d bytes, %v", len(winners), len(got), err)
	}
	only(t, dir, "file")
}

// only fails unless a folder has exactly these entries.
func only(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != len(names) {
		t.Errorf("%s has %v, want %q", dir, entries, names)
		return
	}
	for i, e := range entries {
		if e.Name() != names[i] {
			t.Errorf("%s has %v, want %q", dir, entries, names)
		}
	}
}
