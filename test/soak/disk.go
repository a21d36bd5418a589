package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// disk is the filesystem of the state folder: an ext4 in a sparse file, so that it can be
// filled without filling the machine's disk. It is not a tmpfs, because the memory of
// sandboxes would then be charged with what they write to their disks.
type disk struct{ file, dir string }

// newDisk makes and mounts a disk of this size. The mount ends with the mount namespace.
func newDisk(file, dir string, bytes int64) (*disk, error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(bytes), f.Close(), os.Mkdir(dir, 0o700)); err != nil {
		return nil, err
	}
	for _, command := range [][]string{
		{"mkfs.ext4", "-q", "-E", "nodiscard", "-m", "0", file},
		{"mount", "-o", "loop,discard", file, dir},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w: %s", command[0], err, out)
		}
	}
	return &disk{file: file, dir: dir}, nil
}

// usage returns the used and the free bytes.
func (d *disk) usage() (used, free int64, err error) {
	var s unix.Statfs_t
	if err := unix.Statfs(d.dir, &s); err != nil {
		return 0, 0, err
	}
	return int64(s.Blocks-s.Bfree) * s.Bsize, int64(s.Bavail) * s.Bsize, nil
}

func (d *disk) filler() string { return filepath.Join(d.dir, "filler") }

// fill leaves no free byte.
func (d *disk) fill() error {
	f, err := os.OpenFile(d.filler(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	// Ever smaller pieces: others write at the same time.
	var at int64
	for piece := int64(1 << 30); piece >= 4096; {
		err := unix.Fallocate(int(f.Fd()), 0, at, piece)
		switch {
		case err == nil:
			at += piece
		case errors.Is(err, unix.ENOSPC):
			piece /= 2
		case errors.Is(err, unix.EINTR):
		default:
			return fmt.Errorf("fill the disk: %w", err)
		}
	}
	return nil
}

// drain undoes fill.
func (d *disk) drain() error {
	if err := os.Remove(d.filler()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
