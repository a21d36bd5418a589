package main

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// keepInherited keeps to this process the files that its starter left open
// beyond the standard ones. A sentry must not hold a file of the host that is
// not its sandbox's, a server in the background must not hold its starter's
// pipes open, and mmdebstrap breaks when its own files get numbers of two
// digits.
func keepInherited() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("look for inherited files: %w", err)
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= unix.Stderr {
			continue
		}
		// The folder's own descriptor is among them and is closed by now; this
		// is a process that does nothing else yet, so no other has its number.
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil && err != unix.EBADF {
			return fmt.Errorf("keep inherited file %d: %w", fd, err)
		}
	}
	return nil
}
