package drive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
)

// frozen is a copy of a drive's image.
type frozen struct {
	file  *os.File
	users int // guarded by the op of the drive
}

// Freeze copies the drive and mounts the copy read-only. Writers to the drive wait
// during the copy, which takes long only if the host's filesystem cannot share
// blocks. Mounts share a copy that is still in use if the drive was not attached in
// the meantime.
func (s *Store) Freeze(ctx context.Context, id string) (*Mount, error) {
	d, unlock, err := s.lock(ctx, id)
	if err != nil {
		return nil, err
	}
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
		// lock fails only if its context ends.
		_, unlock, _ := s.lock(context.Background(), id)
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

// leaveCopy is called when a user of a copy ends, with the drive locked.
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

// dropCopy makes the next Freeze take a new copy.
func (s *Store) dropCopy(d *drive) { d.copy = nil }

// maxPause limits how long a copy may block the writers to a drive. Their programs
// hang during the copy, and after a longer time they take the disk for broken.
const maxPause = time.Minute

var errPaused = &skerry.Error{
	Code: skerry.CodeConflict, Message: "the drive is in use, and a copy would block its sandbox for too long; stop that sandbox first",
}

// copyOf copies the image of a drive to the file that create makes. It also reports
// whether the drive is mounted by a sandbox.
func (s *Store) copyOf(ctx context.Context, id string, create func() (*os.File, error)) (file *os.File, attached bool, err error) {
	tree, attached, err := s.mounted(ctx, id)
	if err != nil {
		return nil, false, err
	}
	defer func() {
		err = errors.Join(err, tree.Close())
		if err == nil && !attached {
			err = s.Settle(ctx, id)
		}
		if err != nil && file != nil {
			err = errors.Join(err, file.Close())
			file = nil
		}
	}()
	root, err := openRoot(tree)
	if err != nil {
		return nil, false, err
	}
	defer root.Close()
	// Write most of the dirty pages now, while writers are not blocked yet.
	if err := unix.Syncfs(int(root.Fd())); err != nil {
		return nil, false, fmt.Errorf("sync the drive: %w", err)
	}
	image, err := s.open(id)
	if err != nil {
		return nil, false, err
	}
	defer image.Close()
	if file, err = create(); err != nil {
		return nil, false, err
	}
	if attached {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, s.pause, errPaused)
		defer cancel()
	}
	err = whileFrozen(root, func() error { return s.copyImage(ctx, file, image) })
	return file, attached, err
}

// mounted returns a mount of the drive. If the drive is already attached, both mounts
// share the filesystem.
func (s *Store) mounted(ctx context.Context, id string) (_ *os.File, attached bool, err error) {
	dev, err := s.loopOf(id)
	if err != nil {
		return nil, false, err
	}
	if dev == nil {
		// The loop device may still be on its way out. attach waits for that.
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

// whileFrozen calls fn while the filesystem is frozen: writers are blocked, and all
// earlier writes are on the device.
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

// Recover thaws the filesystems that an earlier process froze before it died. It must
// be called once, before all other methods.
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
	if errors.Is(err, unix.EINVAL) { // not frozen
		return nil
	}
	s.log.Warn("thawing a drive that the last server left frozen", "drive", id, "error", err)
	return err
}

// nameless creates an unlinked file. The kernel deletes it with its last user.
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

// copyStep is how many bytes are copied between two checks of the context.
const copyStep = 64 << 20

// copyImage copies from to to, including the holes.
func (s *Store) copyImage(ctx context.Context, to, from *os.File) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := unix.IoctlFileClone(int(to.Fd()), int(from.Fd())); err == nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return err
	}
	release, err := s.reserve(st.Blocks * 512)
	if err != nil {
		return err
	}
	defer release()
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
		if err := context.Cause(ctx); err != nil {
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
