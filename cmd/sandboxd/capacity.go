package main

import (
	"fmt"
	"log/slog"
	"runtime"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/cgroup"
)

// capacityOptions say how much of the machine sandboxes get.
type capacityOptions struct {
	// overCPU and overMemory are how many times of what the machine has all
	// running sandboxes may have been promised together.
	overCPU, overMemory float64
	// memoryGB is what they may hold at once; 0 is all but a reserve.
	memoryGB int
	// diskReserveMB is what is left free on the state folder's disk.
	diskReserveMB int
}

// The defaults. What a sandbox is promised is a limit, of which most use little:
// an idle one costs 50 MB and no CPU. What they hold together stays below the
// machine's memory.
const (
	defaultOverCPU     = 128
	defaultOverMemory  = 32
	defaultDiskReserve = 2048
)

func (o *capacityOptions) flags(f *pflag.FlagSet) {
	f.Float64Var(&o.overCPU, "overcommit-cpu", defaultOverCPU, "maximum number of vCPUs of all running sandboxes, for each CPU of the machine; 0 is unlimited")
	f.Float64Var(&o.overMemory, "overcommit-memory", defaultOverMemory, "maximum sum of the memory limits of all running sandboxes, as a multiple of --sandbox-memory; 0 is unlimited")
	f.IntVar(&o.memoryGB, "sandbox-memory", 0, "memory that all sandboxes together may use, in GiB; 0 is all memory except a tenth, at least 1 GiB, for the host")
	f.IntVar(&o.diskReserveMB, "disk-reserve", defaultDiskReserve, "free space to keep on the state folder's disk, in MiB; below it no sandbox starts, and no save may leave less than half of it")
}

// machineMemory is what the machine has, in bytes.
func machineMemory() (int64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("read the machine's memory: %w", err)
	}
	return int64(info.Totalram) * int64(info.Unit), nil
}

// sandboxMemory is what all sandboxes together may hold of it.
func (o *capacityOptions) sandboxMemory(machine int64) int64 {
	if o.memoryGB > 0 {
		return min(int64(o.memoryGB)<<30, machine)
	}
	return machine - max(machine/10, min(1<<30, machine/2))
}

// machineSize is what a machine has.
type machineSize struct {
	cpus int
	// memory is in bytes.
	memory int64
}

func thisMachine() (machineSize, error) {
	memory, err := machineMemory()
	return machineSize{cpus: runtime.NumCPU(), memory: memory}, err
}

// promised is what sandboxes may be promised together, and the most that one may.
func (o *capacityOptions) promised(machine machineSize) (vcpus, memoryMB, each int) {
	most := o.sandboxMemory(machine.memory)
	vcpus = times(o.overCPU, float64(machine.cpus))
	memoryMB = times(o.overMemory, float64(most>>20))
	return vcpus, memoryMB, int(machine.memory >> 20)
}

// times is at least 1, as 0 is no bound, unless that is what was asked for.
func times(factor, of float64) int {
	if factor == 0 {
		return 0
	}
	return max(1, int(factor*of))
}

// boundMemory keeps sandboxes from taking the machine's last memory. The node
// relieves one of them before they meet this bound, and otherwise the kernel kills
// in them, and not the server.
func (o *capacityOptions) boundMemory(groups *cgroup.Manager, log *slog.Logger) error {
	machine, err := machineMemory()
	if err != nil {
		return err
	}
	most := o.sandboxMemory(machine)
	if err := groups.Bound(cgroup.Limits{MemoryBytes: most}); err != nil {
		log.Warn("the memory of all sandboxes together is not bounded", "bytes", most, "error", err)
	}
	return nil
}
