package gvisor

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/driver"
)

const (
	// sparseFactor is how many times a machine's memory its sentry's memory
	// file may be large. The file has holes: memory is taken from it in pieces of
	// 2 MiB, of which a program may touch a page each. Beyond it the sandbox is
	// told that there is no memory.
	sparseFactor = 64
	// diskSlack is how much more than --disk the file of a writable layer may
	// be large, and take up: gVisor extends it by 1 GiB, and gives back what was
	// deleted a little later.
	diskSlack = 2 << 30
	// maxSentryFiles is how many of the host's files a sentry, and a gofer, may
	// have open: for each that a sandbox has open on its drives the sentry has
	// one and the gofer two, and either has a few of its own.
	maxSentryFiles = 1 << 16
	// maxReserve is how many of a machine's host processes are kept for the
	// sentry's own threads; see reserve.
	maxReserve = 256
)

// reserve returns how many of a machine's host processes only its sentry may
// start. Its Go runtime ends the process when it gets no thread that it needs, so
// the helper processes of sandboxed code must meet a limit earlier: a program that
// starts too many is then refused by the sentry, and the sandbox lives on.
func reserve(processes int) int {
	return min(processes/4, maxReserve)
}

// limitProcesses limits the machine's processes before they run sandboxed code.
func (m *machine) limitProcesses(spec driver.Spec) error {
	helpers := descendants(m.proc.pid)
	for _, pid := range helpers {
		// The kernel counts by user, and each sentry has its own; see runAs.
		if err := limit(pid, unix.RLIMIT_NPROC, uint64(spec.Processes-reserve(spec.Processes))); err != nil {
			return err
		}
	}
	pids := append(helpers, m.proc.pid)
	if m.gofer != nil {
		pids = append(pids, m.gofer.pid)
	}
	for _, pid := range pids {
		if err := limitProcess(pid, maxFileSize(spec)); err != nil {
			return err
		}
	}
	return nil
}

// maxFileSize is how large a machine's files on the host may be: its memory or
// its writable layer. A file on a drive may have holes of any size, and takes up
// what the drive holds at the most.
func maxFileSize(spec driver.Spec) uint64 {
	for _, m := range spec.Volumes {
		if !m.ReadOnly {
			return unix.RLIM_INFINITY
		}
	}
	return uint64(max(spec.MemoryBytes*sparseFactor, spec.DiskBytes+diskSlack))
}

// limitProcess bounds what a process could do to the host that was taken over by
// what it runs.
func limitProcess(pid int, size uint64) error {
	for _, l := range []struct {
		resource int
		most     uint64
	}{
		{unix.RLIMIT_FSIZE, size},
		{unix.RLIMIT_NOFILE, maxSentryFiles},
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_MSGQUEUE, 0},
		{unix.RLIMIT_RTPRIO, 0},
	} {
		if err := limit(pid, l.resource, l.most); err != nil {
			return err
		}
	}
	return nil
}

// limit lowers a limit of a process to most. A process that has ended needs none.
func limit(pid, resource int, most uint64) error {
	var now unix.Rlimit
	err := unix.Prlimit(pid, resource, nil, &now)
	if err == nil {
		now.Max = min(now.Max, most)
		now.Cur = min(now.Cur, now.Max)
		err = unix.Prlimit(pid, resource, &now, nil)
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("limit the machine's processes: %w", err)
	}
	return nil
}

// limitChildren limits how many processes p's user may have when one of those that
// p starts from now on starts another. Until the returned function is called this
// holds for p itself.
func (p *process) limitChildren(most int) (undo func() error, err error) {
	var own unix.Rlimit
	if err := unix.Prlimit(p.pid, unix.RLIMIT_NPROC, nil, &own); err != nil {
		return nil, fmt.Errorf("limit the machine's processes: %w", err)
	}
	set := func(l unix.Rlimit) error {
		if err := unix.Prlimit(p.pid, unix.RLIMIT_NPROC, &l, nil); err != nil {
			return fmt.Errorf("limit the machine's processes: %w", err)
		}
		return nil
	}
	return func() error { return set(own) }, set(unix.Rlimit{Cur: min(own.Cur, uint64(most)), Max: own.Max})
}
