// Package atomicfile writes files that are whole or not there. A reader sees the
// old content or the new one, never a part, and so does a later process if the
// writer is killed.
//
// The functions named Durable also return only when the result survives a loss
// of power: they sync the file before it gets its name, and its folder after.
// That is why this is not github.com/google/renameio: it never syncs the folder,
// and does not build on Windows, where the client runs.
package atomicfile

import (
	"errors"
	"os"
	"path/filepath"
)

// Write writes a file of mode 0600 in place of what is at path.
func Write(path string, data []byte) error {
	temp, err := writeTemp(filepath.Dir(path), path, data, false)
	if err != nil {
		return err
	}
	return place(os.Rename, temp, path)
}

// WriteDurable is like Write, and survives a loss of power. If the writer is
// killed, a file whose name begins with a dot may remain in tempDir. It must be
// on path's file system, and "" is the folder of path.
func WriteDurable(tempDir, path string, data []byte) error {
	return writeDurable(os.Rename, tempDir, path, data)
}

// CreateDurable is like WriteDurable, but returns an error that is fs.ErrExist if
// there is something at path. Of several concurrent calls one succeeds.
func CreateDurable(path string, data []byte) error { return writeDurable(os.Link, "", path, data) }

// RenameDurable renames a file whose bytes may not be on disk yet. If it fails,
// the file is removed.
func RenameDurable(from, to string) error {
	if err := Sync(from); err != nil {
		return errors.Join(err, os.Remove(from))
	}
	if err := place(os.Rename, from, to); err != nil {
		return err
	}
	return Sync(filepath.Dir(to))
}

// Sync writes a file or a folder to disk. For a folder that is which names are
// in it.
func Sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func writeDurable(name func(from, to string) error, tempDir, path string, data []byte) error {
	dir := filepath.Dir(path)
	if tempDir == "" {
		tempDir = dir
	}
	temp, err := writeTemp(tempDir, path, data, true)
	if err != nil {
		return err
	}
	if err := place(name, temp, path); err != nil {
		return err
	}
	return Sync(dir)
}

// writeTemp writes a new file and returns its path. If that fails there is none.
func writeTemp(dir, path string, data []byte, sync bool) (temp string, err error) {
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	if err == nil && sync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

// place gives a file its name. Its earlier name does not remain.
func place(name func(from, to string) error, from, to string) error {
	err := name(from, to)
	if rerr := os.Remove(from); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}
