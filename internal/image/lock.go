package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// errLocked says that someone else holds a lock.
var errLocked = errors.New("locked by another process")

// lockPoll is how often a held lock is looked at. flock cannot be waited for
// with a context, and the holders are builds that take seconds.
const lockPoll = 100 * time.Millisecond

// lock waits for the exclusive lock of a file, which it makes if need be. The
// lock ends when every descriptor of the returned file is closed, so a crash
// releases it.
func lock(ctx context.Context, path string) (*os.File, error) {
	f, err := tryLock(path)
	if !errors.Is(err, errLocked) {
		return f, err
	}
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
		if f, err = tryLock(path); !errors.Is(err, errLocked) {
			return f, err
		}
	}
}

// tryLock takes the exclusive lock of a file, or fails with errLocked.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errLocked
		}
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	// A lock's holder removes its file before it lets go. A lock of a file
	// that is no longer there locks nothing.
	opened, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	if current, err := os.Stat(path); err != nil || !os.SameFile(opened, current) {
		f.Close()
		return nil, errLocked
	}
	return f, nil
}
