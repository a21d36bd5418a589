// Package drive stores drives: filesystems of a limited size that outlive the
// sandboxes that mount them.
//
// A drive is an ext4 filesystem in a sparse image file. The filesystem itself enforces
// the size limit, and the image takes only as much disk space as there is data. A
// drive is mounted through a loop device, as a detached mount (fsmount(2)). A driver
// attaches the mount in the mount namespace of the one process that may access it.
// When that process and the Mount are gone, the kernel unmounts the filesystem and
// frees the loop device. So a crash leaves nothing behind: no mount, no loop device,
// no state to clean up.
//
// The loop device holds the open image file, and with it the lock on the file
// (flock(2)). So a drive is locked exactly as long as the kernel may write to it, even
// if the process that attached it is dead, and it cannot be mounted twice.
//
// A frozen copy is a copy of the image in an unlinked file. The kernel deletes it with
// its last mount. On a filesystem that can share blocks (XFS, Btrfs) a copy takes no
// time and no space.
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
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/atomicfile"
)

// Options configures a Store.
type Options struct {
	// Dir has one image file for each drive, ID.img. Frozen copies take space on
	// its filesystem too.
	Dir string
	// Reserve, if set, reserves disk space in Dir for a copy of a drive.
	Reserve func(size int64) (release func(), err error)
	Log     *slog.Logger
}

// Store is a folder of drives. It is safe for concurrent use.
type Store struct {
	dir     string
	reserve func(size int64) (release func(), err error)
	log     *slog.Logger
	// pause is maxPause, except in tests.
	pause time.Duration

	mu     sync.Mutex
	drives map[string]*drive
}

// drive is the state of a drive in this process. It is dropped when it has no users
// and no copy.
type drive struct {
	users int // of this struct; guarded by Store.mu
	// op is the lock of the drive, and holds a token while it is taken. Operations
	// on the drive take turns.
	op chan struct{}
	// copy is the last frozen copy. It is nil if the drive may have changed since,
	// or if the copy has no users.
	copy *frozen
}

const (
	imageSuffix = ".img"
	newSuffix   = ".new"
)

// Open opens a folder of drives. It creates the folder if necessary.
func Open(o Options) (*Store, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the folder for drives: %w", err)
	}
	// loopOf compares paths with those of the kernel, which are free of links.
	dir, err := filepath.Abs(o.Dir)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return nil, err
	}
	if o.Reserve == nil {
		o.Reserve = func(int64) (func(), error) { return func() {}, nil }
	}
	return &Store{dir: dir, reserve: o.Reserve, log: o.Log, pause: maxPause, drives: map[string]*drive{}}, nil
}

func (s *Store) path(id string) string { return filepath.Join(s.dir, id+imageSuffix) }

// lock locks a drive until unlock is called. It waits for other operations on the
// drive, such as a copy, until ctx ends.
func (s *Store) lock(ctx context.Context, id string) (d *drive, unlock func(), err error) {
	s.mu.Lock()
	d = s.drives[id]
	if d == nil {
		d = &drive{op: make(chan struct{}, 1)}
		s.drives[id] = d
	}
	d.users++
	s.mu.Unlock()
	leave := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		d.users--
		if d.users == 0 && d.copy == nil {
			delete(s.drives, id)
		}
	}
	select {
	case d.op <- struct{}{}:
		return d, func() {
			<-d.op
			leave()
		}, nil
	case <-ctx.Done():
		leave()
		return nil, nil, fmt.Errorf("wait for drive %s: %w", id, ctx.Err())
	}
}

// Create creates a drive. Its size includes the filesystem's own metadata. If the
// drive exists, Create does nothing. After Create returns, the drive survives a power
// loss.
func (s *Store) Create(ctx context.Context, id string, size int64) error {
	if !skerry.ValidID(skerry.PrefixDrive, id) {
		return fmt.Errorf("create drive: %q is not the id of a drive", id)
	}
	_, unlock, err := s.lock(ctx, id)
	if err != nil {
		return err
	}
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

// Fork creates a drive as a copy of another. Writers to the source wait during the
// copy, as with Freeze. If the new drive exists, Fork does nothing.
func (s *Store) Fork(ctx context.Context, id, from string) error {
	if !skerry.ValidID(skerry.PrefixDrive, id) || !skerry.ValidID(skerry.PrefixDrive, from) || id == from {
		return fmt.Errorf("fork drive: %q and %q are not the ids of two drives", id, from)
	}
	_, unlock, err := s.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(s.path(id)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.fork(ctx, id, from); err != nil {
		return fmt.Errorf("fork drive %s: %w", from, err)
	}
	return nil
}

// fork is called with the new drive locked, and locks the source. Nobody else knows
// the new drive yet, so two forks cannot deadlock.
func (s *Store) fork(ctx context.Context, id, from string) error {
	_, unlock, err := s.lock(ctx, from)
	if err != nil {
		return err
	}
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

// place creates the image of a drive atomically, with the content that fill writes.
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
	return atomicfile.Sync(s.dir)
}

// features are the features of a current ext4. They are listed here so that they do
// not depend on the host's configuration.
const features = "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

func makeImage(ctx context.Context, path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	// No blocks are reserved for root (-m 0). The inode tables and the journal are not
	// written, because a sparse file reads as zeros. The default user of sandboxes
	// owns the root directory.
	options := fmt.Sprintf("lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=%d:%d", skerry.DefaultUID, skerry.DefaultGID)
	args := []string{"-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-O", features, "-E", options}
	if size >= bigDrive {
		args = append(args, "-J", "size="+strconv.Itoa(bigJournal))
	}
	if err := tool(ctx, "mke2fs", append(args, path)...); err != nil {
		return err
	}
	// Users expect a new drive to be empty.
	if err := tool(ctx, "debugfs", "-w", "-R", "rmdir lost+found", path); err != nil {
		return err
	}
	return atomicfile.Sync(path)
}

// A drive of bigDrive bytes or more has a journal of bigJournal MiB. By default mke2fs
// makes the journal of a large filesystem up to 1 GiB.
const (
	bigDrive   = 1 << 30
	bigJournal = 64
)

// tool runs a program of e2fsprogs.
func tool(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	// The result must not depend on the host's configuration.
	cmd.Env = append(os.Environ(), "MKE2FS_CONFIG=/dev/null", "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Delete deletes a drive. A drive that does not exist is not an error. Delete waits
// until the drive is no longer mounted. Frozen copies stay usable.
func (s *Store) Delete(ctx context.Context, id string) error {
	if !skerry.ValidID(skerry.PrefixDrive, id) {
		return fmt.Errorf("delete drive: %q is not the id of a drive", id)
	}
	d, unlock, err := s.lock(ctx, id)
	if err != nil {
		return err
	}
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
	return atomicfile.Sync(s.dir)
}

// Retain moves every drive that is not in ids to the folder lost, and removes the
// remains of unfinished creations. It must be called before the first Create.
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
			s.log.Error("drive is not in the database: moving it away", "drive", id, "to", filepath.Join(s.dir, lostDir), "kept", keepLost)
			errs = append(errs, s.setAside(ctx, id))
		}
	}
	return errors.Join(append(errs, s.purge(time.Now().Add(-keepLost)))...)
}

// lostDir holds drives that were not in the database, for keepLost. A crash may have
// interrupted their deletion. But they can also be newer than a database that was
// restored from a backup, so they are not deleted at once.
const (
	lostDir  = "lost"
	keepLost = 30 * 24 * time.Hour
)

// setAside moves the image of a drive to lostDir. It waits until the drive is no
// longer mounted.
func (s *Store) setAside(ctx context.Context, id string) error {
	d, unlock, err := s.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	image, err := s.acquire(ctx, id)
	if err != nil {
		return fmt.Errorf("move drive %s away: %w", id, err)
	}
	defer image.Close()
	s.dropCopy(d)
	lost := filepath.Join(s.dir, lostDir)
	to := filepath.Join(lost, filepath.Base(s.path(id)))
	now := time.Now()
	err = os.MkdirAll(lost, 0o700)
	if err == nil {
		err = os.Rename(s.path(id), to)
	}
	if err == nil {
		err = os.Chtimes(to, now, now) // purge counts from here
	}
	if err != nil {
		return fmt.Errorf("move drive %s away: %w", id, err)
	}
	return errors.Join(atomicfile.Sync(lost), atomicfile.Sync(s.dir))
}

// purge deletes the drives that came to lostDir before the given time.
func (s *Store) purge(before time.Time) error {
	lost := filepath.Join(s.dir, lostDir)
	entries, err := os.ReadDir(lost)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && info.ModTime().Before(before) {
			err = os.Remove(filepath.Join(lost, e.Name()))
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// acquire opens the image of a drive and locks it. It waits until no loop device has
// the image.
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
		return nil, fmt.Errorf("%q is not the id of a drive", id)
	}
	fd, err := unix.Open(s.path(id), unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: s.path(id), Err: err}
	}
	return os.NewFile(uintptr(fd), s.path(id)), nil
}

// Settle waits until the kernel has unmounted a drive: all written data is in the
// image, and the drive can be attached again. Call it after the process that used the
// drive has ended.
func (s *Store) Settle(ctx context.Context, id string) error {
	image, err := s.acquire(ctx, id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait until drive %s is unmounted: %w", id, err)
	}
	return image.Close()
}
