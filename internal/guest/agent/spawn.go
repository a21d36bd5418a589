package agent

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// nameMax is the longest name of a file on Linux.
const nameMax = 255

// defaultPath is the PATH of a command to which nobody gave one.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// The exit codes of a command that could not be executed, as shells have them.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

// execError is why a command could not be executed, in the words that its
// standard error gets.
type execError struct {
	code int
	text string
}

func (e *execError) Error() string { return e.text }

// launch is all that a fork needs.
type launch struct {
	name  string
	args  []string
	env   map[string]string
	cwd   string // absolute
	creds credentials
	files [3]uintptr
	tty   bool
}

// environ builds the environment: what is sensible for the user, then the
// sandbox's, then the command's.
func environ(c *credentials, root bool, sandbox, command map[string]string) map[string]string {
	env := map[string]string{
		"PATH": defaultPath,
		"LANG": "C.UTF-8",
	}
	identity := map[string]string{
		"HOME":    c.home,
		"USER":    c.name,
		"LOGNAME": c.name,
		"SHELL":   c.shell,
	}
	for k, v := range identity {
		env[k] = v
	}
	for k, v := range sandbox {
		env[k] = v
	}
	if root {
		// The sandbox's environment is the default user's; who root is, it
		// cannot know.
		for k, v := range identity {
			env[k] = v
		}
	}
	for k, v := range command {
		env[k] = v
	}
	return env
}

// fork starts the command. An *execError says that it cannot be executed; any
// other error that the sandbox has no room for it.
func (l *launch) fork() (int, error) {
	argv := append([]string{l.name}, l.args...)
	envv := make([]string, 0, len(l.env))
	for k, v := range l.env {
		envv = append(envv, k+"="+v)
	}
	last := error(unix.ENOENT)
	for _, file := range l.candidates() {
		pid, err := l.exec(file, argv, envv)
		if err == nil {
			return pid, nil
		}
		if errors.Is(err, unix.ENOEXEC) {
			// A script without a "#!" line: /bin/sh runs it, as execvp has it.
			if pid, err = l.exec("/bin/sh", append([]string{"/bin/sh", file}, l.args...), envv); err == nil {
				return pid, nil
			}
		}
		last = err
		if !errors.Is(err, unix.EACCES) {
			break // as execvp: only a file that may not be run lets the search go on
		}
	}
	return 0, l.explain(last)
}

// exec forks and executes one file.
func (l *launch) exec(file string, argv, envv []string) (int, error) {
	attr := &syscall.ProcAttr{
		Dir:   l.cwd,
		Env:   envv,
		Files: l.files[:],
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: l.tty},
	}
	if unix.Geteuid() == 0 {
		groups := make([]uint32, len(l.creds.groups))
		for i, g := range l.creds.groups {
			groups[i] = uint32(g)
		}
		attr.Sys.Credential = &syscall.Credential{Uid: uint32(l.creds.uid), Gid: uint32(l.creds.gid), Groups: groups}
	}
	return syscall.ForkExec(file, argv, attr)
}

// candidates returns the files that the command's name may mean, in the order
// of its PATH.
func (l *launch) candidates() []string {
	if strings.Contains(l.name, "/") {
		return []string{l.absolute(l.name)}
	}
	var files []string
	for dir := range strings.SplitSeq(l.env["PATH"], ":") {
		file := path.Join(l.absolute(dir), l.name)
		var st unix.Stat_t
		if unix.Stat(file, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
			files = append(files, file)
		}
	}
	return files
}

func (l *launch) absolute(p string) string {
	if path.IsAbs(p) {
		return p
	}
	return path.Join(l.cwd, p)
}

// explain turns the error of a fork into the words of a shell.
func (l *launch) explain(err error) error {
	if e := l.checkCwd(); e != nil {
		return e
	}
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		if strings.Contains(l.name, "/") {
			return &execError{exitNotFound, l.name + ": no such file or directory"}
		}
		return &execError{exitNotFound, l.name + ": command not found"}
	case errors.Is(err, unix.EACCES):
		var st unix.Stat_t
		if unix.Stat(l.absolute(l.name), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return &execError{exitNotExecutable, l.name + ": is a directory"}
		}
		return &execError{exitNotExecutable, l.name + ": permission denied"}
	case errors.Is(err, unix.E2BIG), errors.Is(err, unix.ENAMETOOLONG) && len(l.name) < nameMax:
		// gVisor has the second for one argument that is too long.
		return &execError{exitNotExecutable, l.name + ": argument list too long"}
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return fmt.Errorf("starting %s: %w", l.name, err)
	default:
		return &execError{exitNotExecutable, fmt.Sprintf("%s: cannot execute: %v", l.name, err)}
	}
}

// checkCwd says whether the working directory was what stopped the command. It
// is looked at only after a failure: a good one costs nothing.
func (l *launch) checkCwd() error {
	err := asUser(l.creds, func() error {
		fd, err := openRetry(unix.AT_FDCWD, l.cwd, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Faccessat(fd, ".", unix.X_OK, 0)
	})
	if err == nil {
		return nil
	}
	return &execError{exitNotExecutable, fmt.Sprintf("cannot enter working directory %s: %v", l.cwd, err)}
}
