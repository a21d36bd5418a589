package agent

import (
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// openTerminal returns both ends of a new pseudo-terminal that c owns. The master is
// non-blocking.
func openTerminal(c *credentials, size wire.TTY) (master int, slave *os.File, err error) {
	master, err = openRetry(unix.AT_FDCWD, "/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, nil, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	slave, err = openSlave(master, c)
	if err == nil {
		err = resizeTerminal(master, size)
	}
	if err != nil {
		unix.Close(master)
		if slave != nil {
			slave.Close()
		}
		return -1, nil, err
	}
	return master, slave, nil
}

func openSlave(master int, c *credentials) (*os.File, error) {
	n, err := unix.IoctlGetUint32(master, unix.TIOCGPTN)
	if err != nil {
		return nil, fmt.Errorf("get the name of a terminal: %w", err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return nil, fmt.Errorf("unlock a terminal: %w", err)
	}
	name := "/dev/pts/" + strconv.FormatUint(uint64(n), 10)
	slave, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open a terminal: %w", err)
	}
	// Programs that open their terminal by name must own it. If devpts cannot change
	// owners, they still have the descriptor.
	_ = slave.Chown(c.uid, -1)
	return slave, nil
}

func resizeTerminal(fd int, size wire.TTY) error {
	ws := unix.Winsize{Col: size.Cols, Row: size.Rows}
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCSWINSZ, uintptr(unsafe.Pointer(&ws)))
	if e != 0 {
		return fmt.Errorf("resize a terminal: %w", e)
	}
	return nil
}
