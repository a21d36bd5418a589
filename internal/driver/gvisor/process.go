package gvisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// process is a sentry or a gofer, held by a pidfd so that its number cannot come to mean
// another process.
type process struct {
	pid int
	// start is the kernel's start time of the process, in clock ticks since
	// boot; with the pid it names a process across restarts of this one.
	start uint64
	file  *os.File
}

func openProcess(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	p := &process{pid: pid, file: os.NewFile(uintptr(fd), "pidfd")}
	p.start, err = startTime(pid)
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *process) close() { p.file.Close() }

// wait returns when the process has ended, and its wait status if it was a
// child of this process.
func (p *process) wait() (unix.WaitStatus, bool, error) {
	conn, err := p.file.SyscallConn()
	if err != nil {
		return 0, false, err
	}
	// A pidfd is readable once its process has ended: the runtime's poller
	// waits, and no thread is spent.
	err = conn.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
	})
	if err != nil {
		return 0, false, fmt.Errorf("wait for process %d: %w", p.pid, err)
	}
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(p.pid, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ECHILD):
			return 0, false, nil
		default:
			return ws, err == nil, err
		}
	}
}

// signal kills the process; one that has ended is no error.
func (p *process) signal() error { return p.send(unix.SIGKILL) }

// kill kills the process and returns when it has gone.
func (p *process) kill(ctx context.Context) error {
	if err := p.signal(); err != nil {
		return fmt.Errorf("kill process %d: %w", p.pid, err)
	}
	done := make(chan error, 1)
	go func() {
		_, _, err := p.wait()
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		// Closing the pidfd ends the wait.
		p.close()
		<-done
		return ctx.Err()
	}
}

// startTime reads field 22 of /proc/PID/stat.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name in field 2 may hold anything; the last ")" ends it.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat is malformed", pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// threads returns the folders of a process's threads in /proc, none if the process has
// gone. It does not use Glob, which would list the files of every thread.
func threads(pid int) ([]string, error) {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	f, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
		return nil, err
	}
	for i, tid := range names {
		names[i] = filepath.Join(dir, tid)
	}
	return names, nil
}

// descendants lists the processes below pid. A process that ends meanwhile is
// left out.
func descendants(pid int) []int {
	var all []int
	dirs, _ := threads(pid)
	for _, dir := range dirs {
		b, err := os.ReadFile(filepath.Join(dir, "children"))
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(b)) {
			if child, err := strconv.Atoi(f); err == nil {
				all = append(all, child)
				all = append(all, descendants(child)...)
			}
		}
	}
	return all
}

// found is what runs of a machine; 0 is a process that does not.
type found struct{ sentry, gofer int }

// running finds the processes of the machines under dir, by machine. They are
// recognised by their arguments, which carry the machine's folder: that finds
// those too whose starter died before it could write anything down.
func running(dir string) (map[string]found, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	all := map[string]found{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue
		}
		args := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
		// A helper may share its sentry's arguments; the sentry is the first
		// process of its PID namespace, and so is a gofer.
		id, role := machineOf(args, dir)
		if id == "" || !isNamespaceInit(pid) {
			continue
		}
		f := all[id]
		if role == roleSentry {
			f.sentry = pid
		} else {
			f.gofer = pid
		}
		all[id] = f
	}
	return all, nil
}

// What runsc calls the two kinds of a machine's processes.
const (
	roleSentry = "boot"
	roleGofer  = "gofer"
)

// machineOf returns the machine under dir that a command line belongs to and
// as what, "" if to none.
func machineOf(args []string, dir string) (id, role string) {
	for _, a := range args {
		if root, ok := strings.CutPrefix(a, "--root="); ok && filepath.Dir(root) == dir {
			id = filepath.Base(root)
		}
		if a == roleSentry || a == roleGofer {
			role = a
		}
	}
	if role == "" || args[len(args)-1] != id {
		return "", ""
	}
	return id, role
}

func isNamespaceInit(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "NSpid:"); ok {
			ids := strings.Fields(v)
			return len(ids) > 1 && ids[len(ids)-1] == "1"
		}
	}
	return false
}
