package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// v1Controllers are the controllers that limits and metering need, each in a
// hierarchy of its own (or sharing one, as cpu and cpuacct often do).
var v1Controllers = []string{"cpu", "cpuacct", "memory", "pids"}

type v1 struct {
	parent string
	// mounts maps a controller to where it is mounted.
	mounts map[string]string
}

func newV1(mounts map[string]string, parent string) (*v1, error) {
	h := &v1{parent: parent, mounts: map[string]string{}}
	for _, c := range v1Controllers {
		dir, ok := mounts[c]
		if !ok {
			return nil, fmt.Errorf("the %s controller is not mounted", c)
		}
		h.mounts[c] = dir
		if err := os.MkdirAll(filepath.Join(dir, parent), 0o755); err != nil {
			return nil, err
		}
	}
	// Charge a child's memory to its parent too, so that the total can be
	// read; kernels since 5.11 always do and refuse the write.
	_ = write(h.dir("memory", ""), "memory.use_hierarchy", "1")
	return h, nil
}

func (h *v1) dir(controller, name string) string {
	return filepath.Join(h.mounts[controller], h.parent, name)
}

func (h *v1) dirs(name string) []string {
	seen := map[string]bool{}
	var dirs []string
	for _, c := range v1Controllers {
		if d := h.dir(c, name); !seen[d] {
			seen[d] = true
			dirs = append(dirs, d)
		}
	}
	return dirs
}

func (h *v1) create(name string, l Limits) error {
	for _, d := range h.dirs(name) {
		if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if l.CPUs > 0 {
		dir := h.dir("cpu", name)
		if err := write(dir, "cpu.cfs_period_us", strconv.FormatInt(cpuPeriod.Microseconds(), 10)); err != nil {
			return err
		}
		if err := write(dir, "cpu.cfs_quota_us", strconv.FormatInt(int64(l.CPUs)*cpuPeriod.Microseconds(), 10)); err != nil {
			return err
		}
	}
	if err := h.weigh(name, l.Weight); err != nil {
		return err
	}
	if l.MemoryBytes > 0 {
		limit := strconv.FormatInt(l.MemoryBytes, 10)
		dir := h.dir("memory", name)
		if err := write(dir, "memory.limit_in_bytes", limit); err != nil {
			return err
		}
		// Absent where the kernel does not account swap.
		if err := write(dir, "memory.memsw.limit_in_bytes", limit); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if l.Processes > 0 {
		return write(h.dir("pids", name), "pids.max", strconv.Itoa(l.Processes))
	}
	return nil
}

// weigh writes a weight as version 1 has it: 1,024 is the default.
func (h *v1) weigh(name string, weight int) error {
	if weight == 0 {
		return nil
	}
	return write(h.dir("cpu", name), "cpu.shares", strconv.Itoa(weight*1024/100))
}

func (h *v1) bound(l Limits) error {
	if l.MemoryBytes > 0 {
		if err := h.limitMemory("", l.MemoryBytes); err != nil {
			return err
		}
	}
	if l.Processes > 0 {
		if err := write(h.dir("pids", ""), "pids.max", strconv.Itoa(l.Processes)); err != nil {
			return err
		}
	}
	return h.weigh("", l.Weight)
}

func (h *v1) usage(name string) (Usage, error) {
	cpu, err := readInt(h.dir("cpuacct", name), "cpuacct.usage")
	if err != nil {
		return Usage{}, err
	}
	mem, err := h.memory(name)
	if err != nil {
		return Usage{}, err
	}
	peak, err := readInt(h.dir("memory", name), "memory.max_usage_in_bytes")
	if err != nil {
		return Usage{}, err
	}
	kills, err := readField(h.dir("memory", name), "memory.oom_control", "oom_kill")
	if err != nil {
		return Usage{}, err
	}
	return Usage{CPU: time.Duration(cpu), MemoryBytes: mem, PeakBytes: peak, OOMKills: kills}, nil
}

func (h *v1) memory(name string) (int64, error) {
	return readInt(h.dir("memory", name), "memory.usage_in_bytes")
}

func (h *v1) memoryFile(name string) string {
	return filepath.Join(h.dir("memory", name), "memory.usage_in_bytes")
}

// noLimit is less than what version 1 shows for no limit, which is the largest
// number of whole pages.
const noLimit = 1 << 62

func (h *v1) memoryLimit(name string) (int64, error) {
	limit, err := readInt(h.dir("memory", name), "memory.limit_in_bytes")
	if limit >= noLimit {
		return 0, err
	}
	return limit, err
}

func (h *v1) limitMemory(name string, bytes int64) error {
	return write(h.dir("memory", name), "memory.limit_in_bytes", strconv.FormatInt(bytes, 10))
}

func (h *v1) reclaimable(name string) (int64, error) {
	return sumFields(h.dir("memory", name), "memory.stat", "total_active_file", "total_inactive_file")
}

func (h *v1) openForClone(string) (*os.File, error) { return nil, nil }
