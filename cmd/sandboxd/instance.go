package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// instance is the claim of one server on a state folder: a lock on a file that
// holds the server's process id. The lock goes with the process, and with it
// alone: it is one of those that children do not inherit, not even between
// their fork and the start of their own program.
type instance struct{ file *os.File }

func lockPath(state string) string { return filepath.Join(state, "sandboxd.pid") }

var errRunning = errors.New("a server runs on this state folder already")

func claim(state string) (*instance, error) {
	if err := os.MkdirAll(state, 0o711); err != nil {
		return nil, fmt.Errorf("create the state folder: %w", err)
	}
	f, err := os.OpenFile(lockPath(state), os.O_RDWR|os.O_CREATE, 0o644)
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
func runningPID(state string) (int, error) {
	f, err := os.OpenFile(lockPath(state), os.O_RDWR, 0)
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
		Short: "Say whether the server runs (exit status 1 if not)",
		Args:  cobra.NoArgs,
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
				return errors.New("the server does not run")
			}
			fmt.Fprintf(cmd.OutOrStdout(), "running, process %d, state in %s\n", pid, state)
			return nil
		},
	}
	cmd.Flags().BoolVar(&logOnly, "log", false, "print the path of the server's log and nothing else")
	return cmd
}

func newStop() *cobra.Command {
	var keep bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "stop",
		Short: "Stop the server and its sandboxes",
		Long: "Stop the server and its sandboxes. With --keep-sandboxes they run on,\n" +
			"and the next server on the same state folder takes them over.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			sig := unix.SIGINT
			if keep {
				sig = unix.SIGTERM
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), wait)
			defer cancel()
			return stopServer(ctx, stateDir(cmd), sig)
		},
	}
	cmd.Flags().BoolVar(&keep, "keep-sandboxes", false, "leave the sandboxes running")
	cmd.Flags().DurationVar(&wait, "timeout", time.Minute, "how long to wait for the end")
	return cmd
}

// stopServer signals the server of a state folder and waits until it has let
// go of it.
func stopServer(ctx context.Context, state string, sig unix.Signal) error {
	pid, err := runningPID(state)
	if err != nil || pid == 0 {
		return err
	}
	if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal the server, process %d: %w", pid, err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for the server, process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	for ctx.Err() == nil {
		// Cut into pieces so that ctx is looked at.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 200)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			return nil
		}
	}
	return fmt.Errorf("the server, process %d, has not stopped: %w", pid, ctx.Err())
}
