// Package room divides the free space of the server's disk among those who are
// about to write much to it, so that no two count on the same space.
package room

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
)

// Disk is a filesystem of which some space is to stay free. A nil Disk has room
// for everything.
type Disk struct {
	dir  string
	keep int64

	mu sync.Mutex
	// promised are the bytes that reservations may still write.
	promised int64
}

// New returns the filesystem of a folder, of which keep bytes are to stay free: the
// server's own records need space, and what runs does. With 0 everything has room.
func New(dir string, keep int64) *Disk { return &Disk{dir: dir, keep: keep} }

// Check returns CodeDiskFull if the free space, without what is reserved, is less
// than is to stay free.
func (d *Disk) Check() error {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fits(0, d.keep)
}

// Reserve reserves space for something new. It returns CodeDiskFull if, beside the
// other reservations, this may leave less than is to stay free. The reservation
// counts with its full size until release is called, once.
func (d *Disk) Reserve(size int64) (release func(), err error) {
	if d == nil {
		return func() {}, nil
	}
	return d.reserve(size, d.keep)
}

// ReserveSave reserves space for the save of something that exists, and may use half
// of what is to stay free for others.
func (d *Disk) ReserveSave(size int64) (release func(), err error) {
	if d == nil {
		return func() {}, nil
	}
	return d.reserve(size, d.keep/2)
}

func (d *Disk) reserve(size, keep int64) (release func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.fits(size, keep); err != nil {
		return nil, err
	}
	d.promised += size
	return sync.OnceFunc(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.promised -= size
	}), nil
}

// fits is called with d.mu held.
func (d *Disk) fits(size, keep int64) error {
	if keep <= 0 {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir, &st); err != nil {
		return fmt.Errorf("look for room on the disk: %w", err)
	}
	free := int64(st.Bavail)*st.Bsize - d.promised
	if free-size >= keep {
		return nil
	}
	needed := ""
	if size > 0 {
		needed = fmt.Sprintf("this needs about %d MiB, ", size>>20)
	}
	return skerry.Errorf(skerry.CodeDiskFull, "the server's disk is full: %s%d MiB are free, and %d MiB are reserved for running sandboxes; "+
		"delete snapshots or sandboxes, or try again later", needed, max(0, free)>>20, keep>>20)
}
