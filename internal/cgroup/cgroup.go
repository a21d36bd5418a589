// Package cgroup limits and meters groups of processes with the kernel's
// control groups, of version 2 or of version 1 (whichever the machine has the
// controllers mounted in).
//
// All groups of one installation stand under one parent, so that what a crash
// leaves can be found and removed.
//
// github.com/containerd/cgroups (v3.1.3) was weighed against this package. It
// does not:
//
//   - hand out a group's directory for CLONE_INTO_CGROUP, so a process would
//     run outside its limits first;
//   - read a limit back, leave a limit alone that the group exceeds already, or
//     list the groups below a parent, which Bound and Groups need;
//   - kill and wait until the group is empty and removed. On version 1, and on
//     version 2 before Linux 5.14, it signals processes by number, which may be
//     another process by then, and waits for them itself: that takes the exit
//     status away from the gVisor library, which waits for its sentries;
//   - free the root group of a container of its processes, so that its children
//     can have controllers;
//   - read single numbers on version 1. The node reads the memory of each machine
//     several times a second. Its Stat takes 50 KB and 395 allocations; see
//     BenchmarkMemory for what reading one file takes.
//
// It would add logrus, protobuf, and the D-Bus client of systemd.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Limits bounds a group. A zero field is no limit.
type Limits struct {
	// CPUs is how many CPUs' worth of time the group gets.
	CPUs int
	// MemoryBytes bounds memory, page cache included. No swap is given, but by Reclaim.
	MemoryBytes int64
	// Processes bounds the number of processes and threads.
	Processes int
	// Weight is the group's share of the CPU, in relation to that of its
	// siblings, when there is not enough: 1 to 10,000; 100 is the kernel's
	// default.
	Weight int
}

// Usage is what a group has used so far.
type Usage struct {
	CPU time.Duration
	// MemoryBytes is what the group holds now, PeakBytes the most that it ever
	// held (0 where the kernel does not keep it).
	MemoryBytes, PeakBytes int64
	// OOMKills counts the processes that the kernel killed for want of memory.
	OOMKills int64
}

// hierarchy is one version of the kernel's interface.
type hierarchy interface {
	create(name string, l Limits) error
	// bound limits the parent group.
	bound(l Limits) error
	usage(name string) (Usage, error)
	// memory returns the bytes that the group holds, memoryLimit those that it may
	// hold, 0 for no limit.
	memory(name string) (int64, error)
	// memoryFile is the file that memory reads.
	memoryFile(name string) string
	memoryLimit(name string) (int64, error)
	limitMemory(name string, bytes int64) error
	weigh(name string, weight int) error
	// reclaimable returns those of them that the kernel can drop or write back.
	reclaimable(name string) (int64, error)
	// reclaim returns the file, and what is written to it, that has the kernel take back
	// so many bytes of the group's memory. allowSwap says how much of it may be in swap.
	reclaim(name string, bytes int64) (file, value string)
	allowSwap(name string, bytes int64) error
	// swapped returns what of the group is in swap.
	swapped(name string) (int64, error)
	// dirs returns the directories that make up the group.
	dirs(name string) []string
	// openForClone returns the directory to hand to clone(2), nil when the
	// version has none.
	openForClone(name string) (*os.File, error)
}

// Manager creates groups under one parent group.
type Manager struct {
	parent string
	h      hierarchy
	// all is the parent group.
	all *Group
}

func newManager(parent string, h hierarchy) *Manager {
	m := &Manager{parent: parent, h: h}
	m.all = m.Open("")
	return m
}

// cpuPeriod is the kernel's default bandwidth period.
const cpuPeriod = 100 * time.Millisecond

// New finds the machine's cgroup hierarchy and makes the parent group in it.
// The parent is a relative path such as "skerry".
func New(parent string) (*Manager, error) {
	if parent == "" || strings.Contains(parent, "..") || filepath.IsAbs(parent) {
		return nil, fmt.Errorf("cgroup parent %q is not a relative path", parent)
	}
	mounts, err := readMounts("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	if mounts.v2 != "" {
		h, err := newV2(mounts.v2, parent)
		if err == nil {
			return newManager(parent, h), nil
		}
		if !errors.Is(err, errNoControllers) {
			return nil, fmt.Errorf("set up cgroup v2: %w", err)
		}
	}
	h, err := newV1(mounts.v1, parent)
	if err != nil {
		return nil, fmt.Errorf("set up cgroup v1: %w", err)
	}
	return newManager(parent, h), nil
}

// Bound holds all groups together to limits; their CPUs are not bounded. If they
// hold more memory than that already, its bound stays as it is: the kernel would
// kill for it.
func (m *Manager) Bound(l Limits) error {
	if l.MemoryBytes > 0 {
		held, err := m.h.memory("")
		if err == nil && held > l.MemoryBytes {
			err = fmt.Errorf("they hold %d bytes, more than %d", held, l.MemoryBytes)
		}
		if err != nil {
			return fmt.Errorf("bound the memory of all groups: %w", err)
		}
	}
	if err := m.h.bound(l); err != nil {
		return fmt.Errorf("bound all groups: %w", err)
	}
	return nil
}

// MemoryLimit returns what all groups together may hold, 0 for no limit.
func (m *Manager) MemoryLimit() (int64, error) { return m.h.memoryLimit("") }

// PinnedMemory returns what Group.PinnedMemory does, of all groups together.
func (m *Manager) PinnedMemory(enough int64) (int64, error) {
	return m.all.PinnedMemory(enough)
}

// Version is 1 or 2.
func (m *Manager) Version() int {
	if _, ok := m.h.(*v2); ok {
		return 2
	}
	return 1
}

// Group is one limited group of processes.
type Group struct {
	m    *Manager
	name string

	mu sync.Mutex
	// held is memoryFile, open since its first reading; gone says that the group was
	// removed.
	held *os.File
	gone bool
}

// Create makes a group. An empty one of the same name, as a crash leaves it,
// is replaced.
func (m *Manager) Create(name string, l Limits) (*Group, error) {
	if !validName(name) {
		return nil, fmt.Errorf("cgroup name %q is not a plain file name", name)
	}
	g := m.Open(name)
	if err := m.h.create(name, l); err != nil {
		g.Remove(context.Background())
		return nil, fmt.Errorf("create cgroup %s: %w", name, err)
	}
	return g, nil
}

// Open returns the group of that name, which need not exist.
func (m *Manager) Open(name string) *Group { return &Group{m: m, name: name} }

// Groups lists the names of the groups that exist.
func (m *Manager) Groups() ([]string, error) {
	seen := map[string]bool{}
	var names []string
	for _, dir := range m.h.dirs("") {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if e.IsDir() && !seen[e.Name()] {
				seen[e.Name()] = true
				names = append(names, e.Name())
			}
		}
	}
	return names, nil
}

// Close removes the parent group. It fails while groups remain.
func (m *Manager) Close() error {
	m.all.close()
	return removeDirs(m.h.dirs(""))
}

// OpenForClone returns the group's directory for CLONE_INTO_CGROUP, or nil on
// cgroup v1, where processes are added once they run.
func (g *Group) OpenForClone() (*os.File, error) { return g.m.h.openForClone(g.name) }

// Add moves processes, all their threads with them, into the group.
func (g *Group) Add(pids ...int) error {
	for _, dir := range g.m.h.dirs(g.name) {
		for _, pid := range pids {
			err := write(dir, "cgroup.procs", strconv.Itoa(pid))
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return nil
}

// Processes lists the processes in the group.
func (g *Group) Processes() ([]int, error) {
	dirs := g.m.h.dirs(g.name)
	b, err := os.ReadFile(filepath.Join(dirs[0], "cgroup.procs"))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, f := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("cgroup.procs of %s: %w", g.name, err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// Usage reads what the group has used.
func (g *Group) Usage() (Usage, error) { return g.m.h.usage(g.name) }

// PinnedMemory returns the bytes that the group holds and that the kernel
// cannot take from it when it meets its limit: all but the page cache of files.
// What is no more than enough is returned as it is: telling the page cache apart
// costs more than reading the sum.
func (g *Group) PinnedMemory(enough int64) (int64, error) {
	bytes, err := g.memory()
	if err != nil || bytes <= enough {
		return bytes, err
	}
	cache, err := g.m.h.reclaimable(g.name)
	return max(0, bytes-cache), err
}

// memory reads what the group holds. It is read so often that the file stays open: to
// open and close it takes ten times as long as to read it.
func (g *Group) memory() (int64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gone {
		return 0, fmt.Errorf("cgroup %s: %w", g.name, os.ErrNotExist)
	}
	if g.held == nil {
		f, err := os.Open(g.m.h.memoryFile(g.name))
		if err != nil {
			return 0, err
		}
		g.held = f
	}
	var buf [32]byte
	n, err := g.held.ReadAt(buf[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(buf[:n])), 10, 64)
}

// close closes what the group has open.
func (g *Group) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gone = true
	if g.held != nil {
		g.held.Close()
		g.held = nil
	}
}

// Weigh changes the group's share of the CPU; see Limits.Weight.
func (g *Group) Weigh(weight int) error { return g.m.h.weigh(g.name, weight) }

// LimitMemory changes the limit of the group's memory. If the group holds more than
// that, it may stay as it was, or the kernel kills for it.
func (g *Group) LimitMemory(bytes int64) error {
	return g.m.h.limitMemory(g.name, bytes)
}

// Kill kills every process in the group and waits until none is left.
func (g *Group) Kill(ctx context.Context) error {
	for {
		pids, err := g.Processes()
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			if err := killAndWait(ctx, pid); err != nil {
				return err
			}
		}
	}
}

// killAndWait kills one process and returns when it has gone. A zombie counts
// as gone: reaping it is its parent's work.
func killAndWait(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	for ctx.Err() == nil {
		// The poll is cut into pieces so that ctx is looked at.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", pid, err)
		}
		if n > 0 {
			return nil
		}
	}
	return ctx.Err()
}

// removeWait is how long a group may stay busy after its last process has
// been reaped: the kernel takes it apart in the background.
const removeWait = 5 * time.Second

// Remove kills what is in the group and removes it. Removing a group that is
// not there is not an error.
func (g *Group) Remove(ctx context.Context) error {
	g.close()
	ctx, cancel := context.WithTimeout(ctx, removeWait)
	defer cancel()
	if err := g.Kill(ctx); err != nil {
		return fmt.Errorf("empty cgroup %s: %w", g.name, err)
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := removeDirs(g.m.h.dirs(g.name))
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup %s: %w", g.name, err)
		}
	}
}

func removeDirs(dirs []string) error {
	var errs []error
	for _, dir := range dirs {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, &os.PathError{Op: "rmdir", Path: dir, Err: err})
		}
	}
	return errors.Join(errs...)
}

func validName(name string) bool {
	return name != "" && name != "." && name != ".." && !strings.ContainsAny(name, "/\x00")
}

func write(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

func readInt(dir, file string) (int64, error) {
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}

// readField returns the number behind key in a file of "key number" lines.
func readField(dir, file, key string) (int64, error) {
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, key+" "); ok {
			return strconv.ParseInt(strings.TrimSpace(v), 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %q", filepath.Join(dir, file), key)
}

// sumFields adds up the numbers behind keys in a file of "key number" lines.
func sumFields(dir, file string, keys ...string) (sum int64, err error) {
	for _, key := range keys {
		n, err := readField(dir, file, key)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}
