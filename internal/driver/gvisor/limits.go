package gvisor

import (
	runsccgroup "gvisor.dev/gvisor/runsc/cgroup"
)

// visible tells runsc what a machine shall see of CPUs and memory. runsc asks
// the cgroup it believes to be in for that; the true limits are set by this
// driver, and the memory limit is a little higher than what is shown, for the
// sentry's own needs.
type visible struct {
	// Cgroup is nil: runsc only reads the figures below at start.
	runsccgroup.Cgroup
	vcpus  int
	memory int64
}

func (v visible) NumCPU() (int, error)         { return v.vcpus, nil }
func (v visible) MemoryLimit() (uint64, error) { return uint64(v.memory), nil }

// CPUQuota and CPUPeriod are unlimited, so that runsc takes NumCPU as it is.
func (v visible) CPUQuota() (int64, error)  { return 0, nil }
func (v visible) CPUPeriod() (int64, error) { return 0, nil }
