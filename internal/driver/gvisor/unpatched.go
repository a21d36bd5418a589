//go:build !gvisor_patched

package gvisor

import (
	"os"

	"gvisor.dev/gvisor/runsc/sandbox"

	"github.com/skerry-dev/skerry/internal/driver"
)

// Patched reports whether this program is built with the patches to gVisor
// (package patches). scripts/gvisor sets the build tag.
const Patched = false

// runAs does nothing: without the patch all sentries run as nobody.
func runAs(*sandbox.Args, int) {}

// tellProgress does nothing: without the patch a machine stands still until all is written.
func tellProgress(_ *sandbox.CheckpointOpts, f *os.File) { f.Close() }

// awaitPages does nothing: without the patch all pages are written when it is called.
func awaitPages(_ *sandbox.Sandbox, gate *os.File) {
	if gate != nil {
		gate.Close()
	}
}

// useNetNS does nothing: without the patch a machine uses the interface in its sentry's
// own namespace.
func useNetNS(*sandbox.Sandbox, string) {}

// timers returns none: without the patch the sentry does not tell.
func (*machine) timers() ([]driver.Timer, error) { return nil, nil }

// setSource fails: without the patch a sentry knows what its root starts from when its
// process starts.
func (*machine) setSource(driver.Spec) error { return errUnpatched }
