package drive

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Mount is a detached mount of a drive or of a frozen copy.
type Mount struct {
	// Tree is the detached mount. Its user attaches it in its own mount namespace
	// with move_mount(2).
	Tree     *os.File
	ReadOnly bool

	once    sync.Once
	release func()
}

// Detach closes Tree. If the mount was not attached, this unmounts the filesystem.
// Otherwise the filesystem stays mounted in the namespace of its user.
func (m *Mount) Detach() error {
	if err := m.Tree.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Release frees the mount after its user has ended.
func (m *Mount) Release() {
	_ = m.Detach()
	m.once.Do(func() {
		if m.release != nil {
			m.release()
		}
	})
}

// mountFlags are the flags of the mount on the host. They do not include noexec,
// because the sentry maps the sandbox's programs from the drive. The host executes
// nothing from it.
const mountFlags = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

// Attach mounts a drive read-write. It waits until the drive's last mount is gone, or
// until ctx ends.
func (s *Store) Attach(ctx context.Context, id string) (*Mount, error) {
	d, unlock, err := s.lock(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	tree, err := s.attach(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("attach drive %s: %w", id, err)
	}
	s.dropCopy(d)
	return &Mount{Tree: tree}, nil
}

func (s *Store) attach(ctx context.Context, id string) (*os.File, error) {
	image, err := s.acquire(ctx, id)
	if err != nil {
		return nil, err
	}
	defer image.Close() // the loop device holds the open file itself
	dev, err := newLoop(image, false)
	if err != nil {
		return nil, err
	}
	defer dev.Close()
	return mountDevice(dev, false)
}

// mountDevice returns a detached mount of the filesystem on a device. If the device
// is already mounted, the new mount shares the filesystem.
func mountDevice(dev *os.File, readOnly bool) (_ *os.File, err error) {
	fd, err := unix.Fsopen("ext4", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open ext4: %w", err)
	}
	fsctx := os.NewFile(uintptr(fd), "ext4")
	defer fsctx.Close()
	flags := []string{
		// A file deleted in the drive frees space on the host.
		"discard",
		// The inode tables of a sparse image are zeros already.
		"noinit_itable",
	}
	attrs := mountFlags
	if readOnly {
		// A frozen copy has a clean journal, and must not be written to.
		flags = []string{"ro", "noload"}
		attrs |= unix.MOUNT_ATTR_RDONLY
	}
	err = unix.FsconfigSetString(fd, "source", dev.Name())
	for _, flag := range flags {
		if err == nil {
			err = unix.FsconfigSetFlag(fd, flag)
		}
	}
	if err == nil {
		err = unix.FsconfigSetString(fd, "errors", "remount-ro")
	}
	if err == nil {
		err = unix.FsconfigCreate(fd)
	}
	if err != nil {
		return nil, fmt.Errorf("mount the drive: %w%s", err, complaints(fd))
	}
	tree, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return nil, fmt.Errorf("mount the drive: %w", err)
	}
	return os.NewFile(uintptr(tree), "drive"), nil
}

// complaints returns the kernel's messages about a failed mount.
func complaints(fsctx int) string {
	var all strings.Builder
	b := make([]byte, 1<<10)
	for range 16 {
		n, err := unix.Read(fsctx, b)
		if err != nil || n <= 0 {
			break
		}
		all.WriteString(": " + strings.TrimSpace(string(b[:n])))
	}
	return all.String()
}

// loopTries limits the attempts to get a free loop device. Another process may take
// the device between the two calls.
const loopTries = 64

// newLoop sets up a loop device for an image. The kernel frees it with its last user.
func newLoop(image *os.File, readOnly bool) (*os.File, error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open the control device of loop devices: %w", err)
	}
	defer ctl.Close()
	config := unix.LoopConfig{Fd: uint32(image.Fd())}
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
	if readOnly {
		config.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	} else {
		// The filesystem in the image has a page cache. A second one on the host
		// would only cost memory.
		config.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
	}
	for range loopTries {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("open a loop device: %w", err)
		}
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &config)
		if err == nil {
			return dev, nil
		}
		dev.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("set up a loop device: %w", err)
		}
	}
	return nil, fmt.Errorf("set up a loop device: other processes took the free device %d times", loopTries)
}

// loopOf returns the loop device that holds the image of a drive, or nil.
func (s *Store) loopOf(id string) (*os.File, error) {
	found, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	for _, file := range found {
		if b, err := os.ReadFile(file); err != nil || strings.TrimSuffix(string(b), "\n") != s.path(id) {
			continue // just freed, or not ours
		}
		name := filepath.Base(filepath.Dir(filepath.Dir(file)))
		dev, err := os.OpenFile("/dev/"+name, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		// An open device keeps its image. But it may have been freed and set up again
		// before the open, so look again.
		if b, err := os.ReadFile(file); err == nil && strings.TrimSuffix(string(b), "\n") == s.path(id) {
			return dev, nil
		}
		dev.Close()
	}
	return nil, nil
}
