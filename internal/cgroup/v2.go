package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// errNoControllers says that a cgroup2 mount exists but that the controllers
// are elsewhere: a machine on cgroup v1 (or "hybrid").
var errNoControllers = errors.New("the controllers are not in cgroup v2")

var v2Controllers = []string{"cpu", "memory", "pids"}

type v2 struct {
	// base is the parent group's directory.
	base string
}

func newV2(mount, parent string) (*v2, error) {
	b, err := os.ReadFile(filepath.Join(mount, "cgroup.controllers"))
	if err != nil {
		return nil, err
	}
	have := strings.Fields(string(b))
	for _, c := range v2Controllers {
		if !slices.Contains(have, c) {
			return nil, fmt.Errorf("%w: %s is missing", errNoControllers, c)
		}
	}
	h := &v2{base: filepath.Join(mount, parent)}
	if err := os.MkdirAll(h.base, 0o755); err != nil {
		return nil, err
	}
	// Controllers are enabled for the children of every group on the way down.
	dir := mount
	for _, part := range append(strings.Split(parent, "/"), "") {
		if err := enableControllers(dir); err != nil {
			return nil, err
		}
		dir = filepath.Join(dir, part)
	}
	return h, nil
}

// enableControllers gives the children of dir the controllers. A container's
// root group holds the processes of the container, which the kernel does not
// allow beside controlled children; they are moved into a leaf of their own.
func enableControllers(dir string) error {
	want := "+" + strings.Join(v2Controllers, " +")
	err := write(dir, "cgroup.subtree_control", want)
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	leaf := filepath.Join(dir, "init")
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return err
	}
	for _, pid := range strings.Fields(string(b)) {
		// Kernel threads and processes that end meanwhile cannot be moved.
		_ = write(leaf, "cgroup.procs", pid)
	}
	return write(dir, "cgroup.subtree_control", want)
}

func (h *v2) dir(name string) string { return filepath.Join(h.base, name) }

func (h *v2) dirs(name string) []string { return []string{h.dir(name)} }

func (h *v2) create(name string, l Limits) error {
	dir := h.dir(name)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if l.CPUs > 0 {
		period := cpuPeriod.Microseconds()
		if err := write(dir, "cpu.max", fmt.Sprintf("%d %d", int64(l.CPUs)*period, period)); err != nil {
			return err
		}
	}
	if err := h.weigh(name, l.Weight); err != nil {
		return err
	}
	if l.MemoryBytes > 0 {
		if err := h.limitMemory(name, l.MemoryBytes); err != nil {
			return err
		}
		// Absent where the kernel has no swap accounting.
		if err := write(dir, "memory.swap.max", "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if l.Processes > 0 {
		return write(dir, "pids.max", strconv.Itoa(l.Processes))
	}
	return nil
}

func (h *v2) weigh(name string, weight int) error {
	if weight == 0 {
		return nil
	}
	return write(h.dir(name), "cpu.weight", strconv.Itoa(weight))
}

func (h *v2) bound(l Limits) error {
	if l.MemoryBytes > 0 {
		if err := h.limitMemory("", l.MemoryBytes); err != nil {
			return err
		}
	}
	if l.Processes > 0 {
		if err := write(h.base, "pids.max", strconv.Itoa(l.Processes)); err != nil {
			return err
		}
	}
	return h.weigh("", l.Weight)
}

func (h *v2) usage(name string) (Usage, error) {
	dir := h.dir(name)
	cpu, err := readField(dir, "cpu.stat", "usage_usec")
	if err != nil {
		return Usage{}, err
	}
	mem, err := h.memory(name)
	if err != nil {
		return Usage{}, err
	}
	peak, err := readInt(dir, "memory.peak")
	if err != nil && !errors.Is(err, os.ErrNotExist) { // Linux 5.19 has it
		return Usage{}, err
	}
	kills, err := readField(dir, "memory.events", "oom_kill")
	if err != nil {
		return Usage{}, err
	}
	return Usage{CPU: time.Duration(cpu) * time.Microsecond, MemoryBytes: mem, PeakBytes: peak, OOMKills: kills}, nil
}

func (h *v2) memory(name string) (int64, error) { return readInt(h.dir(name), "memory.current") }

func (h *v2) memoryFile(name string) string { return filepath.Join(h.dir(name), "memory.current") }

func (h *v2) memoryLimit(name string) (int64, error) {
	b, err := os.ReadFile(filepath.Join(h.dir(name), "memory.max"))
	if err != nil || strings.TrimSpace(string(b)) == "max" {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}

func (h *v2) limitMemory(name string, bytes int64) error {
	return write(h.dir(name), "memory.max", strconv.FormatInt(bytes, 10))
}

func (h *v2) reclaimable(name string) (int64, error) {
	return sumFields(h.dir(name), "memory.stat", "active_file", "inactive_file")
}

func (h *v2) openForClone(name string) (*os.File, error) {
	fd, err := unix.Open(h.dir(name), unix.O_DIRECTORY|unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: h.dir(name), Err: err}
	}
	return os.NewFile(uintptr(fd), h.dir(name)), nil
}
