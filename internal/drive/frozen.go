package drive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
)

// frozen is a copy of a drive's image.
type frozen struct {
	file  *os.File
	users int
}

// Freeze mounts a copy of the drive as it is at this moment, to be read alone.
// Whoever writes to the drive waits while it is copied, which takes long only
// where the host's filesystem cannot share blocks. Copies between which nothing
// was written are one.
func (s *Store) Freeze(ctx context.Context, id string) (*Mount, error) {
	d, unlock := s.lock(id)
	defer unlock()
	m, err := s.freeze(ctx, id, d)
	if err != nil {
		return nil, fmt.Errorf("freeze drive %s: %w", id, err)
	}
	return m, nil
}

func (s *Store) freeze(ctx context.Context, id string, d *drive) (*Mount, error) {
	c := d.copy
	if c == nil {
		file, attached, err := s.copyOf(ctx, id, func() (*os.File, error) { return nameless(s.dir) })
		if err != nil {
			return nil, err
		}
		c = &frozen{file: file}
		if !attached {
			d.copy = c
		}
	}
	c.users++
	m := &Mount{ReadOnly: true, release: func() {
		_, unlock := s.lock(id)
		defer unlock()
		s.leaveCopy(d, c)
	}}
	dev, err := newLoop(c.file, true)
	if err == nil {
		defer dev.Close()
		m.Tree, err = mountDevice(dev, true)
	}
	if err != nil {
		s.leaveCopy(d, c)
		return nil, err
	}
	return m, nil
}

// leaveCopy is called for each user of a copy, with the drive's op held.
func (s *Store) leaveCopy(d *drive, c *frozen) {
	c.users--
	if c.users > 0 {
		return
	}
	if d.copy == c {
		d.copy = nil
	}
	c.file.Close()
}

// dropCopy sees to it that nobody else is given the last copy.
func (s *Store) dropCopy(d *drive) { d.copy = nil }

// copyOf copies a drive's image into the file that create makes, and reports
// whether someone has the drive attached.
func (s *Store) copyOf(ctx context.Context, id string, create func() (*os.File, error)) (_ *os.File, attached bool, err error) {
	tree, attached, err := s.mounted(ctx, id)
	if err != nil {
		return nil, false, err
	}
	defer func() {
		err = errors.Join(err, tree.Close())
		if err == nil && !attached {
			err = s.Settle(ctx, id)
		}
	}()
	root, err := openRoot(tree)
	if err != nil {
		return nil, false, err
	}
	defer root.Close()
	// Most of what is in memory only is written while the writer can go on.
	if err := unix.Syncfs(int(root.Fd())); err != nil {
		return nil, false, fmt.Errorf("write the drive's files: %w", err)
	}
	image, err := s.open(id)
	if err != nil {
		return nil, false, err
	}
	defer image.Close()
	file, err := create()
	if err != nil {
		return nil, false, err
	}
	if err := whileFrozen(root, func() error { return copyImage(ctx, file, image) }); err != nil {
		return nil, false, errors.Join(err, file.Close())
	}
	return file, attached, nil
}

// mounted returns a mount of the drive beside the one that is there, or one of
// its own.
func (s *Store) mounted(ctx context.Context, id string) (_ *os.File, attached bool, err error) {
	dev, err := s.loopOf(id)
	if err != nil {
		return nil, false, err
	}
	if dev == nil {
		// Or it is about to be freed, which attach waits for.
		tree, err := s.attach(ctx, id)
		return tree, false, err
	}
	defer dev.Close()
	tree, err := mountDevice(dev, false)
	return tree, true, err
}

// openRoot opens the root directory of a detached mount.
func openRoot(tree *os.File) (*os.File, error) {
	fd, err := unix.Openat(int(tree.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the drive: %w", err)
	}
	return os.NewFile(uintptr(fd), "drive"), nil
}

// FIFREEZE and FITHAW are _IOWR('X', 119, int) and 120.
const (
	fifreeze = 0xc0045877
	fithaw   = 0xc0045878
)

// whileFrozen calls fn while nothing is written to a filesystem, and what was
// written before is on its device.
func whileFrozen(root *os.File, fn func() error) error {
	if err := unix.IoctlSetInt(int(root.Fd()), fifreeze, 0); err != nil {
		return fmt.Errorf("freeze the drive's filesystem: %w", err)
	}
	err := fn()
	if terr := unix.IoctlSetInt(int(root.Fd()), fithaw, 0); terr != nil {
		err = errors.Join(err, fmt.Errorf("thaw the drive's filesystem: %w", terr))
	}
	return err
}

// Recover lets filesystems go on that a process which died had frozen. It is
// called once, before anything else.
func (s *Store) Recover(ctx context.Context) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("list drives: %w", err)
	}
	var errs []error
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), imageSuffix)
		if !ok || !skerry.ValidID(skerry.PrefixDrive, id) {
			continue
		}
		if err := s.thaw(ctx, id); err != nil {
			errs = append(errs, fmt.Errorf("recover drive %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

func (s *Store) thaw(ctx context.Context, id string) error {
	dev, err := s.loopOf(id)
	if dev == nil {
		return err
	}
	defer dev.Close()
	tree, err := mountDevice(dev, false)
	if err != nil {
		return err
	}
	defer tree.Close()
	root, err := openRoot(tree)
	if err != nil {
		return err
	}
	defer root.Close()
	err = unix.IoctlSetInt(int(root.Fd()), fithaw, 0)
	if errors.Is(err, unix.EINVAL) { // it is not frozen
		return nil
	}
	s.log.Warn("a drive was frozen when the last server died; it goes on", "drive", id, "error", err)
	return err
}

// nameless creates a file without a name: it is gone with its last user.
func nameless(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), "copy"), nil
	}
	// Not every filesystem has O_TMPFILE.
	f, err := os.CreateTemp(dir, "copy-*"+newSuffix)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// copyStep is how much is copied between two looks at the context.
const copyStep = 64 << 20

// copyImage makes to a copy of from, with the same holes.
func copyImage(ctx context.Context, to, from *os.File) error {
	if err := unix.IoctlFileClone(int(to.Fd()), int(from.Fd())); err == nil {
		return nil
	}
	size, err := from.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if err := to.Truncate(size); err != nil {
		return err
	}
	for at := int64(0); at < size; {
		data, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // a hole up to the end
		}
		if err != nil {
			return fmt.Errorf("copy the drive: %w", err)
		}
		hole, err := unix.Seek(int(from.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("copy the drive: %w", err)
		}
		if err := copyRange(ctx, to, from, data, hole); err != nil {
			return fmt.Errorf("copy the drive: %w", err)
		}
		at = hole
	}
	return nil
}

func copyRange(ctx context.Context, to, from *os.File, start, end int64) error {
	for start < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		in, out := start, start
		n, err := unix.CopyFileRange(int(from.Fd()), &in, int(to.Fd()), &out, int(min(end-start, copyStep)), 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		start += int64(n)
	}
	return nil
}
