// Package drive keeps drives: file trees of a bounded size that outlive the
// sandboxes they are mounted in.
//
// A drive is an ext4 filesystem in a sparse file, so its size limit is the
// filesystem's own, and what a sandbox writes to it takes as much room on the
// host as there is data. To be used it is mounted through a loop device, but
// nowhere: a Mount is a detached mount (fsmount(2)) that a driver attaches in
// the mount namespace of the one process that may look into it. When that
// process and the Mount are gone the kernel unmounts the filesystem and frees
// the loop device. So nothing can be left behind: no mount, no loop device, no
// state to clean up after a crash.
//
// The image file is locked (flock(2)) by the loop device itself, which holds
// the open file. So a drive is in use exactly as long as the kernel may still
// write to it, whatever became of the process that attached it, and cannot be
// mounted a second time in that time.
//
// A frozen copy is a copy of the image in a file without a name, which goes
// with its last mount in the same way. On a filesystem that can share blocks
// (XFS, Btrfs) it takes no time and no room.
package drive

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
)

// Options configures a Store.
type Options struct {
	// Dir holds an image file for each drive, ID.img. The copies that are in
	// use take room on its filesystem too.
	Dir string
	Log *slog.Logger
}

// Store keeps drives. Its methods may be called concurrently.
type Store struct {
	dir string
	log *slog.Logger

	mu     sync.Mutex
	drives map[string]*drive
}

// drive is what this process knows of a drive. It is forgotten when nobody
// uses it.
type drive struct {
	users int // of this struct
	// op is held while the drive is attached, copied or deleted.
	op sync.Mutex
	// copy is the last frozen copy, if nothing can have changed since and
	// somebody still uses it.
	copy *frozen
}

const (
	imageSuffix = ".img"
	newSuffix   = ".new"
)

// Open opens the drives in a folder.
func Open(o Options) (*Store, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the drives' folder: %w", err)
	}
	// The kernel knows images by their real paths.
	dir, err := filepath.Abs(o.Dir)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return nil, err
	}
	return &Store{dir: dir, log: o.Log, drives: map[string]*drive{}}, nil
}

func (s *Store) path(id string) string { return filepath.Join(s.dir, id+imageSuffix) }

// lock holds a drive's op until unlock is called.
func (s *Store) lock(id string) (d *drive, unlock func()) {
	s.mu.Lock()
	d = s.drives[id]
	if d == nil {
		d = &drive{}
		s.drives[id] = d
	}
	d.users++
	s.mu.Unlock()
	d.op.Lock()
	return d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		d.op.Unlock()
		d.users--
		if d.users == 0 && d.copy == nil {
			delete(s.drives, id)
		}
	}
}

// Create makes a drive of the given size, all that the filesystem needs for
// itself included. A drive that is there already stays as it is. When it
// returns, the drive survives a loss of power.
func (s *Store) Create(ctx context.Context, id string, size int64) error {
	if !skerry.ValidID(skerry.PrefixDrive, id) {
		return fmt.Errorf("create drive: %q is not a drive's id", id)
	}
	_, unlock := s.lock(id)
	defer unlock()
	if _, err := os.Stat(s.path(id)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.create(ctx, id, size); err != nil {
		return fmt.Errorf("create drive %s: %w", id, err)
	}
	return nil
}

func (s *Store) create(ctx context.Context, id string, size int64) error {
	return s.place(id, func(tmp string) error { return makeImage(ctx, tmp, size) })
}

// Fork creates a drive with what another has at this moment, and of its size.
// Whoever writes to that waits while it is copied, as for Freeze. A drive that
// is there already stays as it is.
func (s *Store) Fork(ctx context.Context, id, from string) error {
	if !skerry.ValidID(skerry.PrefixDrive, id) || !skerry.ValidID(skerry.PrefixDrive, from) || id == from {
		return fmt.Errorf("fork drive: %q of %q are not two drives' ids", id, from)
	}
	_, unlock := s.lock(id)
	defer unlock()
	if _, err := os.Stat(s.path(id)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.fork(ctx, id, from); err != nil {
		return fmt.Errorf("fork drive %s: %w", from, err)
	}
	return nil
}

// fork is called with the new drive's lock held. Nobody else knows of that drive,
// so no two forks wait for each other.
func (s *Store) fork(ctx context.Context, id, from string) error {
	_, unlock := s.lock(from)
	defer unlock()
	return s.place(id, func(tmp string) error {
		copied, _, err := s.copyOf(ctx, from, func() (*os.File, error) {
			return os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
		})
		if err != nil {
			return err
		}
		return errors.Join(copied.Sync(), copied.Close())
	})
}

// place puts the image that fill writes where a drive's is, whole or not at all.
func (s *Store) place(id string, fill func(tmp string) error) error {
	tmp := s.path(id) + newSuffix
	err := fill(tmp)
	if err == nil {
		err = os.Rename(tmp, s.path(id))
	}
	if err != nil {
		if rerr := os.Remove(tmp); !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
		return err
	}
	return syncPath(s.dir)
}

// features are ext4's of today, said here so that no file of the host's
// decides.
const features = "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

func makeImage(ctx context.Context, path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	// No blocks are set aside for root. The tables are not written: a sparse
	// file reads as zeros. The root belongs to the sandboxes' user.
	options := fmt.Sprintf("lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=%d:%d", skerry.DefaultUID, skerry.DefaultGID)
	args := []string{"-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-O", features, "-E", options}
	if size >= bigDrive {
		args = append(args, "-J", "size="+strconv.Itoa(bigJournal))
	}
	if err := tool(ctx, "mke2fs", append(args, path)...); err != nil {
		return err
	}
	// A new drive is empty.
	if err := tool(ctx, "debugfs", "-w", "-R", "rmdir lost+found", path); err != nil {
		return err
	}
	return syncPath(path)
}

// A drive of bigDrive bytes or more has a journal of bigJournal MiB; mke2fs
// would give a large one up to 1 GiB of its space.
const (
	bigDrive   = 1 << 30
	bigJournal = 64
)

// tool runs one of e2fsprogs.
func tool(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	// The host's configuration decides nothing.
	cmd.Env = append(os.Environ(), "MKE2FS_CONFIG=/dev/null", "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Delete removes a drive; one that is not there is no error. It waits for a
// use that is about to end. Frozen copies stay for who has them.
func (s *Store) Delete(ctx context.Context, id string) error {
	if !skerry.ValidID(skerry.PrefixDrive, id) {
		return fmt.Errorf("delete drive: %q is not a drive's id", id)
	}
	d, unlock := s.lock(id)
	defer unlock()
	image, err := s.acquire(ctx, id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete drive %s: %w", id, err)
	}
	defer image.Close()
	s.dropCopy(d)
	if err := os.Remove(s.path(id)); err != nil {
		return fmt.Errorf("delete drive: %w", err)
	}
	return syncPath(s.dir)
}

// Retain removes every drive that is not in ids, and what an unfinished Create
// left. It is called before anything is created.
func (s *Store) Retain(ctx context.Context, ids []string) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("list drives: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), newSuffix) {
			errs = append(errs, os.Remove(filepath.Join(s.dir, e.Name())))
			continue
		}
		id, ok := strings.CutSuffix(e.Name(), imageSuffix)
		if ok && skerry.ValidID(skerry.PrefixDrive, id) && !slices.Contains(ids, id) {
			s.log.Info("removing a drive that nothing knows of", "drive", id)
			errs = append(errs, s.Delete(ctx, id))
		}
	}
	return errors.Join(errs...)
}

// acquire opens a drive's image and locks it, once the kernel has let go of it.
func (s *Store) acquire(ctx context.Context, id string) (*os.File, error) {
	image, err := s.open(id)
	if err != nil {
		return nil, err
	}
	locked := make(chan error, 1)
	go func() {
		for {
			err := unix.Flock(int(image.Fd()), unix.LOCK_EX)
			if !errors.Is(err, unix.EINTR) {
				locked <- err
				return
			}
		}
	}()
	select {
	case err = <-locked:
		if err == nil {
			return image, nil
		}
		return nil, errors.Join(fmt.Errorf("lock the drive: %w", err), image.Close())
	case <-ctx.Done():
		go func() {
			<-locked
			image.Close()
		}()
		return nil, fmt.Errorf("the drive is in use: %w", ctx.Err())
	}
}

func (s *Store) open(id string) (*os.File, error) {
	if !skerry.ValidID(skerry.PrefixDrive, id) {
		return nil, fmt.Errorf("%q is not a drive's id", id)
	}
	fd, err := unix.Open(s.path(id), unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: s.path(id), Err: err}
	}
	return os.NewFile(uintptr(fd), s.path(id)), nil
}

// Settle returns when the kernel has let go of a drive, all that was written
// to it is in its image, and it can be attached again. It is called after the
// process that used the drive has ended.
func (s *Store) Settle(ctx context.Context, id string) error {
	image, err := s.acquire(ctx, id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("settle drive %s: %w", id, err)
	}
	return image.Close()
}
