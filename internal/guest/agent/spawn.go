package agent

import (
	"errors"
	"fmt"
	"iter"
	"path"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// nameMax is the maximum length of a file name on Linux.
const nameMax = 255

// defaultPath is the default PATH of a command.
const defaultPath = "/vercel/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// The exit codes of a command that could not be executed, as in shells.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

// execError is why a command could not be executed. Its text goes to the command's
// standard error.
type execError struct {
	code int
	text string
}

func (e *execError) Error() string { return e.text }

// launch is the parameters of a fork.
type launch struct {
	platform Platform
	root     string

	name  string
	args  []string
	env   map[string]string
	cwd   string // absolute, in the sandbox
	creds credentials
	files [3]uintptr
	tty   bool
}

// environ builds the environment of a command: defaults for the user, then the
// variables of the sandbox, then those of the command. For root it names the default
// user in SUDO_USER, SUDO_UID and SUDO_GID, as sudo does. So git accepts the files of
// that user as the caller's own.
func environ(c *credentials, root bool, user account, sandbox, command map[string]string) map[string]string {
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
		// The variables of the sandbox are for the default user. They must not
		// change the identity of root.
		for k, v := range identity {
			env[k] = v
		}
		env["SUDO_USER"], env["SUDO_UID"], env["SUDO_GID"] = user.name, strconv.Itoa(user.uid), strconv.Itoa(user.gid)
	}
	for k, v := range command {
		env[k] = v
	}
	return env
}

// fork starts the command. An *execError means that the command cannot be executed. Any
// other error means that the sandbox has not enough resources.
func (l *launch) fork() (int, error) {
	argv := append([]string{l.name}, l.args...)
	envv := make([]string, 0, len(l.env))
	for k, v := range l.env {
		envv = append(envv, k+"="+v)
	}
	last := error(unix.ENOENT)
	for file := range l.candidates() {
		pid, err := l.exec(file, argv, envv)
		if err == nil {
			return pid, nil
		}
		if errors.Is(err, unix.ENOEXEC) {
			// A script without a "#!" line: /bin/sh runs it, as with execvp.
			if pid, err = l.exec("/bin/sh", append([]string{"/bin/sh", file}, l.args...), envv); err == nil {
				return pid, nil
			}
		}
		last = err
		if !errors.Is(err, unix.EACCES) {
			break // as with execvp, the search continues only after "permission denied"
		}
	}
	return 0, l.explain(last)
}

// exec forks and executes one file.
func (l *launch) exec(file string, argv, envv []string) (int, error) {
	attr := &syscall.ProcAttr{
		Dir:   l.root + l.cwd,
		Env:   envv,
		Files: l.files[:],
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: l.tty},
	}
	attr.Sys.Credential = l.platform.Credential(l.creds)
	if l.platform.Alone() {
		pid, err := vforkExec(file, argv, attr)
		if !errors.Is(err, errNoVfork) {
			return pid, err
		}
	}
	return syscall.ForkExec(file, argv, attr)
}

// candidates returns the files that the name of the command can mean, in the order of
// PATH. The next one is looked for only if the last could not be executed.
func (l *launch) candidates() iter.Seq[string] {
	return func(yield func(string) bool) {
		if strings.Contains(l.name, "/") {
			yield(l.absolute(l.name))
			return
		}
		for dir := range strings.SplitSeq(l.env["PATH"], ":") {
			file := path.Join(l.absolute(dir), l.name)
			var st unix.Stat_t
			if unix.Stat(file, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && !yield(file) {
				return
			}
		}
	}
}

// absolute returns the path of a name in the sandbox. With a platform that has a root, a
// program that is not there is the host's; see Folder.
func (l *launch) absolute(p string) string {
	if !path.IsAbs(p) {
		return path.Join(l.root, l.cwd, p)
	}
	if l.root != "" {
		var st unix.Stat_t
		if own := path.Join(l.root, p); unix.Lstat(own, &st) == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return own
		}
	}
	return p
}

// explain turns the error of a fork into the message of a shell.
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
		// gVisor returns ENAMETOOLONG for a single argument that is too long.
		return &execError{exitNotExecutable, l.name + ": argument list too long"}
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return fmt.Errorf("start %s: %w", l.name, err)
	default:
		return &execError{exitNotExecutable, fmt.Sprintf("%s: cannot execute: %v", l.name, err)}
	}
}

// checkCwd returns an error if the command failed because of its working directory. The
// check is only after a failure, so it costs nothing otherwise.
func (l *launch) checkCwd() error {
	err := l.platform.As(l.creds, func() error {
		fd, err := openRetry(unix.AT_FDCWD, l.root+l.cwd, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
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
