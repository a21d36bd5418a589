// Package keyfile keeps keys that are made once.
package keyfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// MaxBytes is how long a file may be.
const MaxBytes = 64 << 10

// Open returns what is in the file at path. If there is none, it is made with
// what create returns: it appears whole, with mode 0600, and never in the place
// of another. A file that others than its owner may read is refused.
func Open(path string, create func() ([]byte, error)) ([]byte, error) {
	b, err := read(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return b, err
	}
	if b, err = create(); err != nil {
		return nil, err
	}
	if err := write(path, b); err != nil {
		return nil, err
	}
	return read(path) // another process may have been quicker
}

func read(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: must be a file that nobody but its owner may read (mode 0600), not %v", path, info.Mode())
	}
	if info.Size() > MaxBytes {
		return nil, fmt.Errorf("%s: longer than %d bytes", path, MaxBytes)
	}
	return os.ReadFile(path)
}

func write(path string, b []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
