package cli

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/term"
)

// endingSignals are those by which a person or the system ends the tool.
var endingSignals = []os.Signal{os.Interrupt, syscall.SIGTERM}

func ignoreBrokenPipes() {}

func isBrokenPipe(err error) bool {
	return errors.Is(err, windows.ERROR_BROKEN_PIPE) || errors.Is(err, windows.ERROR_NO_DATA)
}

// resizePoll is how often the size of the window is looked at: a console tells
// nobody.
const resizePoll = 250 * time.Millisecond

// onResize calls fn whenever the size of the terminal has changed, until ctx
// ends.
func onResize(ctx context.Context, out *os.File, fn func()) {
	tick := time.NewTicker(resizePoll)
	defer tick.Stop()
	cols, rows, _ := term.GetSize(int(out.Fd()))
	for {
		select {
		case <-tick.C:
			c, r, err := term.GetSize(int(out.Fd()))
			if err == nil && (c != cols || r != rows) {
				cols, rows = c, r
				fn()
			}
		case <-ctx.Done():
			return
		}
	}
}

// waitInput waits until f can be read or ctx ends. A console handle is
// signalled when there is input; so is a pipe's at once, whose read ends when
// the other side does.
func waitInput(ctx context.Context, f *os.File) error {
	for ctx.Err() == nil {
		const slice = 100 // milliseconds
		event, err := windows.WaitForSingleObject(windows.Handle(f.Fd()), slice)
		if err != nil {
			return os.NewSyscallError("WaitForSingleObject", err)
		}
		if event == windows.WAIT_OBJECT_0 {
			return nil
		}
	}
	return ctx.Err()
}
