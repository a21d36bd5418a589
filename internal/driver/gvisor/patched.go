//go:build gvisor_patched

package gvisor

import (
	"os"
	"time"

	"gvisor.dev/gvisor/runsc/sandbox"

	"github.com/skerry-dev/skerry/internal/driver"
)

// Patched reports whether this program is built with the patches to gVisor
// (package patches). scripts/gvisor sets the build tag.
const Patched = true

// runAs has a sentry run as a user of the host.
func runAs(args *sandbox.Args, user int) { args.HostID = user }

// tellProgress has a checkpoint write a byte to a file, which it takes, when all but the
// pages is written and the machine goes on.
func tellProgress(how *sandbox.CheckpointOpts, f *os.File) { how.Progress = f }

// awaitPages has a machine that is loaded wait for a byte from gate, which it takes, before
// it reads pages.
func awaitPages(box *sandbox.Sandbox, gate *os.File) { box.Gate = gate }

// useNetNS has a machine that is loaded use the interface in a namespace, which need not
// be its sentry's own.
func useNetNS(box *sandbox.Sandbox, netns string) { box.NetNS = netns }

// timers lists the timers of the machine's processes.
func (m *machine) timers() ([]driver.Timer, error) {
	list, err := m.box.PendingTimers(driver.MaxTimers)
	var timers []driver.Timer
	for _, t := range list[:min(len(list), driver.MaxTimers)] {
		timers = append(timers, driver.Timer{ID: t.At, Left: time.Duration(max(t.Left, 0))})
	}
	return timers, err
}

// setSource tells a sentry that waits what its root starts from.
func (m *machine) setSource(spec driver.Spec) error {
	rootfs, err := os.Open(spec.RootFS)
	if err != nil {
		return err
	}
	defer rootfs.Close()
	agent, err := os.Open(spec.Agent)
	if err != nil {
		return err
	}
	defer agent.Close()
	// In the order in which sandboxArgs has them.
	return m.box.SetRootSource(m.oci, []*os.File{rootfs, agent}, spec.Source.Files)
}
