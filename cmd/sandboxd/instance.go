package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// instance is the claim of one server on a state folder: a lock on a file
// that holds the server's process id. The lock goes with the process.
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
	if err := lock(f, unix.LOCK_EX); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errRunning
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	pid := strconv.Itoa(os.Getpid()) + "\n"
	if err := errors.Join(f.Truncate(0), writeAt(f, pid)); err != nil {
		f.Close()
		return nil, err
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
	f, err := os.Open(lockPath(state))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	err = lock(f, unix.LOCK_SH)
	if err == nil {
		return 0, nil
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return 0, err
	}
	return holder(f)
}

// holder returns the process id in a lock file.
func holder(f *os.File) (int, error) {
	b := make([]byte, 32)
	n, _ := f.ReadAt(b, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil {
		return 0, fmt.Errorf("%s holds no process id", f.Name())
	}
	return pid, nil
}

// dyingWait is how long a killed server is given to go. Its last thread may be
// in the kernel still, copying a drive for example.
const dyingWait = 30 * time.Second

// lock locks a server's file, unless a server that lives has it.
func lock(f *os.File, how int) error {
	err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return err
	}
	pid, perr := holder(f)
	if perr != nil {
		return err
	}
	if _, rerr := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); rerr == nil {
		return err
	}
	if fd, perr := unix.PidfdOpen(pid, 0); perr == nil {
		defer unix.Close(fd)
		// An interrupted wait ends in the same error as one that was too short.
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(dyingWait.Milliseconds()))
	}
	return unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
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
