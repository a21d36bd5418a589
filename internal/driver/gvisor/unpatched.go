//go:build !gvisor_patched

package gvisor

import "gvisor.dev/gvisor/runsc/sandbox"

// Patched reports whether this program is built with the patches to gVisor
// (package patches). scripts/gvisor sets the build tag.
const Patched = false

// runAs does nothing: without the patch all sentries run as nobody.
func runAs(*sandbox.Args, int) {}
