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

// boundProcesses keeps a quarter of the processes and threads that the machine
// may have out of all sandboxes' reach, and returns how many one sandbox may have
// of the others: a third. A sandbox's kernel needs several of the host's processes
// and threads for each of its own, and keeps some for later, so its own limit is
// not enough.
func boundProcesses(groups *cgroup.Manager, log *slog.Logger) (each int, err error) {
	ids, err := kernelLimit("pid_max")
	if err != nil {
		return 0, err
	}
	threads, err := kernelLimit("threads-max")
	if err != nil {
		return 0, err
	}
	if ids < smallPIDMax {
		log.Warn("kernel.pid_max is low, so sandboxes with many processes may fail; consider sysctl kernel.pid_max=4194304", "pid_max", ids)
	}
	all, each := processShares(ids, threads)
	return each, groups.Bound(cgroup.Limits{Processes: all, Weight: sandboxesWeight})
}

// processShares returns how many of the host's processes and threads all
// sandboxes together may have, and one of them. The kernel starts none without
// an id, and none beyond kernel.threads-max, which a machine with little memory
// reaches first.
func processShares(ids, threads int) (all, each int) {
	all = min(ids, threads) / 4 * 3
	return all, all / 3
}

// kernelLimit reads a number from /proc/sys/kernel.
func kernelLimit(name string) (int, error) {
	b, err := os.ReadFile("/proc/sys/kernel/" + name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("kernel.%s: %w", name, err)
	}
	return n, nil
}

// sandboxesWeight is the share of the CPU that all sandboxes together have in
// relation to the machine's other services, which have 100 each: the server among
// them must answer while every sandbox computes.
const sandboxesWeight = 100
