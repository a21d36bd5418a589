// Command sentry is what the driver's tests start as the sentry: the test's
// own program cannot be it, since the race detector needs libc and the
// sentry's root is empty.
package main

import "github.com/skerry-dev/skerry/internal/driver/gvisor"

func main() { gvisor.Main() }
