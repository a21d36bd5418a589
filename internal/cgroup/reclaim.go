package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// reclaimPasses is how often the kernel is asked for the group's memory. It spares
	// pages that were used since it looked for the last time, so the first passes may
	// give back little. reclaimVain is the number of such passes in a row that are enough.
	reclaimPasses, reclaimVain = 8, 2
	// reclaimSignals is the interval of the signals that end a write whose time is up.
	reclaimSignals = 5 * time.Millisecond
)

// Reclaim has the kernel take back the group's memory: it drops the page cache, and writes
// other pages to swap, as far as it can until ctx ends. The group may swap meanwhile, and
// only then. Reclaim returns by how many bytes less the group then holds. Each page comes
// back when it is used. A group that the kernel takes nothing from is no error; a kernel
// that cannot be asked is (errors.ErrUnsupported). A group has at most as much in swap as it
// holds when it is reclaimed.
func (g *Group) Reclaim(ctx context.Context) (int64, error) {
	freed, err := g.reclaim(ctx)
	if err != nil {
		return freed, fmt.Errorf("reclaim the memory of cgroup %s: %w", g.name, err)
	}
	return freed, nil
}

func (g *Group) reclaim(ctx context.Context) (freed int64, err error) {
	first, err := g.memory()
	if err != nil {
		return 0, err
	}
	if err := g.AllowSwap(first); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, g.AllowSwap(0)) }()
	held := first
	for pass, vain := 0, 0; pass < reclaimPasses && vain < reclaimVain && ctx.Err() == nil; pass++ {
		file, value := g.m.h.reclaim(g.name, held)
		if err := writeUntil(ctx, file, value); err != nil {
			return max(0, first-held), err
		}
		before := held
		if held, err = g.memory(); err != nil {
			return 0, err
		}
		if vain++; before-held >= before/16 {
			vain = 0
		}
	}
	return max(0, first-held), nil
}

// AllowSwap lets the group have so many bytes in swap. What is there stays.
func (g *Group) AllowSwap(bytes int64) error { return g.m.h.allowSwap(g.name, bytes) }

// Swapped returns how many bytes of the group are in swap, 0 if the kernel does not count
// them.
func (g *Group) Swapped() (int64, error) {
	bytes, err := g.m.h.swapped(g.name)
	if err != nil {
		return 0, fmt.Errorf("read what of cgroup %s is in swap: %w", g.name, err)
	}
	return bytes, nil
}

// writeUntil writes a value to a file of the kernel's that takes its time over it. When ctx
// ends, the kernel is interrupted. That is no error, and nor is what it says when it could
// not do all.
func writeUntil(ctx context.Context, file, value string) error {
	if ctx.Err() != nil {
		return nil
	}
	fd, err := unix.Open(file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		if _, serr := os.Stat(filepath.Dir(file)); serr == nil {
			err = errors.ErrUnsupported
		}
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: file, Err: err}
	}
	defer unix.Close(fd)
	// The signal must reach the thread that writes, and no other use of it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	thread, written, quiet := unix.Gettid(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(quiet)
		interrupt(ctx, thread, written)
	}()
	_, err = unix.Write(fd, []byte(value))
	close(written)
	<-quiet
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EBUSY), errors.Is(err, unix.EINTR):
		return nil
	case err != nil:
		return &os.PathError{Op: "write", Path: file, Err: err}
	}
	return nil
}

// interrupt sends a thread signals once ctx has ended, until written is closed: the first
// may come before the thread is in the kernel. The signal is the one that Go's runtime
// takes for spurious.
func interrupt(ctx context.Context, thread int, written <-chan struct{}) {
	select {
	case <-written:
		return
	case <-ctx.Done():
	}
	tick := time.NewTicker(reclaimSignals)
	defer tick.Stop()
	for {
		_ = unix.Tgkill(os.Getpid(), thread, unix.SIGURG)
		select {
		case <-written:
			return
		case <-tick.C:
		}
	}
}

// reclaim of version 1: the value does not matter.
func (h *v1) reclaim(name string, _ int64) (file, value string) {
	return filepath.Join(h.dir("memory", name), "memory.force_empty"), "0"
}

// allowSwap of version 1: the limit of memory and swap together, which is that of the
// memory, keeps a group from swapping on its own, and not from being reclaimed.
func (h *v1) allowSwap(string, int64) error { return nil }

func (h *v1) swapped(name string) (int64, error) {
	both, err := readInt(h.dir("memory", name), "memory.memsw.usage_in_bytes")
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	held, err := readInt(h.dir("memory", name), "memory.usage_in_bytes")
	return max(0, both-held), err
}

func (h *v2) reclaim(name string, bytes int64) (file, value string) {
	return filepath.Join(h.dir(name), "memory.reclaim"), strconv.FormatInt(bytes, 10)
}

// allowSwap of version 2: what is in swap stays there when the limit is lowered.
func (h *v2) allowSwap(name string, bytes int64) error {
	err := write(h.dir(name), "memory.swap.max", strconv.FormatInt(bytes, 10))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil // the kernel does not account swap, or the group has gone
	}
	return err
}

func (h *v2) swapped(name string) (int64, error) {
	bytes, err := readInt(h.dir(name), "memory.swap.current")
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	return bytes, err
}
