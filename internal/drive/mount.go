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

// Mount is a drive's filesystem, or a frozen copy's, mounted nowhere.
type Mount struct {
	// Tree is the detached mount, to be attached in the namespace of who uses
	// it with move_mount(2).
	Tree     *os.File
	ReadOnly bool

	once    sync.Once
	release func()
}

// Detach closes the Tree. A filesystem that was attached nowhere is unmounted
// then, otherwise it stays with who uses it.
func (m *Mount) Detach() error {
	if err := m.Tree.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Release is called when the user of the mount has ended.
func (m *Mount) Release() {
	_ = m.Detach()
	m.once.Do(func() {
		if m.release != nil {
			m.release()
		}
	})
}

// mountFlags hold on the host's side. Programs must be executable: the sentry
// maps them for the sandbox. Nothing of the host executes any.
const mountFlags = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

// Attach mounts a drive to be read and written. It waits while the kernel has
// not let go of it, until ctx ends.
func (s *Store) Attach(ctx context.Context, id string) (*Mount, error) {
	d, unlock := s.lock(id)
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
	defer image.Close() // the loop device has it from then on
	dev, err := newLoop(image, false)
	if err != nil {
		return nil, err
	}
	defer dev.Close()
	return mountDevice(dev, false)
}

// mountDevice mounts the filesystem on a device nowhere. That of a device that
// is mounted already is the same filesystem.
func mountDevice(dev *os.File, readOnly bool) (_ *os.File, err error) {
	fd, err := unix.Fsopen("ext4", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open ext4: %w", err)
	}
	fsctx := os.NewFile(uintptr(fd), "ext4")
	defer fsctx.Close()
	flags := []string{
		// What is deleted in the drive gives room back on the host.
		"discard",
		// The tables of a sparse image need no zeros written to them.
		"noinit_itable",
	}
	attrs := mountFlags
	if readOnly {
		// A frozen copy has a clean journal, and is written by nobody.
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

// complaints is what the kernel says about why a mount failed.
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

// loopTries is how often another process may be quicker to take a free loop
// device.
const loopTries = 64

// newLoop sets up a loop device on an image. It is freed with its last user.
func newLoop(image *os.File, readOnly bool) (*os.File, error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("loop devices: %w", err)
	}
	defer ctl.Close()
	config := unix.LoopConfig{Fd: uint32(image.Fd())}
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
	if readOnly {
		config.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	} else {
		// Past the host's cache: the filesystem in the image has its own.
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
	return nil, errors.New("set up a loop device: others are always quicker")
}

// loopOf returns the loop device that has a drive's image, nil if none does.
func (s *Store) loopOf(id string) (*os.File, error) {
	found, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	for _, file := range found {
		if b, err := os.ReadFile(file); err != nil || strings.TrimSuffix(string(b), "\n") != s.path(id) {
			continue // freed meanwhile, or another's
		}
		name := filepath.Base(filepath.Dir(filepath.Dir(file)))
		dev, err := os.OpenFile("/dev/"+name, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		// While it is open it cannot come to have another file.
		if b, err := os.ReadFile(file); err == nil && strings.TrimSuffix(string(b), "\n") == s.path(id) {
			return dev, nil
		}
		dev.Close()
	}
	return nil, nil
}
