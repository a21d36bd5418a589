//go:build gvisor_patched

package gvisor

import "gvisor.dev/gvisor/runsc/sandbox"

// Patched reports whether this program is built with the patches to gVisor
// (package patches). scripts/gvisor sets the build tag.
const Patched = true

// runAs has a sentry run as a user of the host.
func runAs(args *sandbox.Args, user int) { args.HostID = user }
