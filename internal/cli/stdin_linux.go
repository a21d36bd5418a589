package cli

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// givenInput reports whether somebody means this process to read in: it is a
// pipe, a socket or a file that has data, and not what its parent reads too. A
// shell loop hands its own input to all that it runs ("while read x; do sandbox
// exec …; done"), and does not mean it for them. dash looks like such a loop
// when it redirects a single command.
func givenInput(in *os.File) bool {
	if in == nil {
		return false
	}
	var mine, parents syscall.Stat_t
	fd := int(in.Fd())
	if syscall.Fstat(fd, &mine) != nil {
		return false
	}
	switch mine.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		at, err := in.Seek(0, 1)
		if err != nil || at >= mine.Size {
			return false
		}
	case syscall.S_IFIFO, syscall.S_IFSOCK:
		if n, err := unix.IoctlGetInt(fd, unix.TIOCINQ); err != nil || n == 0 {
			return false
		}
	default:
		return false
	}
	err := syscall.Stat(fmt.Sprintf("/proc/%d/fd/0", os.Getppid()), &parents)
	if errors.Is(err, syscall.ENOENT) {
		return true // it has none
	}
	return err == nil && (mine.Dev != parents.Dev || mine.Ino != parents.Ino)
}
