package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/usage"
)

// instance is the claim of one server on a state folder: a lock on a file that
// holds the server's process id. The lock goes with the process, and with it
// alone: it is one of those that children do not inherit, not even between
// their fork and the start of their own program.
type instance struct{ file *os.File }

func lockPath(state string) string { return filepath.Join(state, "sandboxd.pid") }

var errRunning = errors.New("another server is already running on this state folder; " + howToReplace)

// howToReplace says how to start a server with other flags.
const howToReplace = `to start one with other flags, stop it first, with "sandboxd stop --keep-sandboxes"`

func claim(state, lock string) (*instance, error) {
	if err := os.MkdirAll(state, 0o711); err != nil {
		return nil, fmt.Errorf("create the state folder: %w", err)
	}
	f, err := os.OpenFile(lock, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for err = errRunning; errors.Is(err, errRunning); {
		holder, herr := lockHolder(f)
		if herr != nil || holder != 0 {
			f.Close()
			return nil, errors.Join(herr, errRunning)
		}
		err = unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			err = errRunning // someone was quicker
		}
	}
	if err == nil {
		err = errors.Join(f.Truncate(0), writeAt(f, strconv.Itoa(os.Getpid())+"\n"))
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("claim %s: %w", f.Name(), err)
	}
	return &instance{f}, nil
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

func (i *instance) release() error { return i.file.Close() }

// runningPID returns the process id of the server on a state folder, 0 if
// none runs.
func runningPID(state string) (int, error) { return holderOf(lockPath(state)) }

// holderOf returns the process that holds a lock, 0 if none does.
func holderOf(lock string) (int, error) {
	f, err := os.OpenFile(lock, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return lockHolder(f)
}

// dyingWait is how long a process that was killed may take to let go of its
// files: it has much memory to give back first.
const dyingWait = 10 * time.Second

// lockHolder returns the process that holds the lock, 0 if none does. One that
// has been killed is waited for.
func lockHolder(f *os.File) (int, error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(dyingWait)
	for {
		lock := unix.Flock_t{Type: unix.F_WRLCK}
		if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock); err != nil {
			return 0, fmt.Errorf("look for the lock of %s: %w", f.Name(), err)
		}
		if lock.Type == unix.F_UNLCK {
			return 0, nil
		}
		pid := int(lock.Pid)
		if !isDying(pid) {
			return pid, nil
		}
		select {
		case <-tick.C:
		case <-deadline:
			return pid, nil
		}
	}
}

// isDying says whether a process has no program any more.
func isDying(pid int) bool {
	_, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return errors.Is(err, os.ErrNotExist)
}

func logPath(state string) string { return filepath.Join(state, "sandboxd.log") }

func newStatus() *cobra.Command {
	var logOnly bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show whether and at which URL the server is running (exit status 1 if it is not, or cannot work)",
		Args:  usage.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			state := stateDir(cmd)
			if logOnly {
				fmt.Fprintln(cmd.OutOrStdout(), logPath(state))
				return nil
			}
			pid, err := runningPID(state)
			if err != nil {
				return err
			}
			if pid == 0 {
				return errors.New("the server is not running")
			}
			var url string
			if ask(cmd.Context(), state, http.MethodGet, "/url", nil, &url) != nil {
				url = "an unknown address" // it is starting or ending, or has another version
			}
			fmt.Fprintf(cmd.OutOrStdout(), "running at %s, process %d, state in %s\n", url, pid, state)
			if err := ask(cmd.Context(), state, http.MethodGet, "/health", nil, nil); err != nil && !errors.Is(err, errNoSocket) {
				return fmt.Errorf("the server cannot work at the moment: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&logOnly, "log", false, "print only the path of the server's log")
	return cmd
}
