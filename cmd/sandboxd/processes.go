package main

import (
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"github.com/skerry-dev/skerry/internal/cgroup"
)

// smallPIDMax is less than what systemd sets on every 64-bit machine: the
// kernel's default for a few processors.
const smallPIDMax = 1 << 17

// boundProcesses keeps a quarter of the machine's process ids out of all
// sandboxes' reach, and returns how many one sandbox may have of the others:
// a third. A sandbox's kernel needs several of the host's processes and threads
// for each of its own, and keeps some for later, so its own limit is not enough.
func boundProcesses(groups *cgroup.Manager, log *slog.Logger) (each int, err error) {
	b, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		return 0, err
	}
	most, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("kernel.pid_max: %w", err)
	}
	if most < smallPIDMax {
		log.Warn("kernel.pid_max is small: sandboxes with many processes may be ended; consider sysctl kernel.pid_max=4194304", "pid_max", most)
	}
	all := most / 4 * 3
	return all / 3, groups.Bound(all)
}
