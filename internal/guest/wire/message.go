package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// User is an account in the sandbox.
type User struct {
	Name string `json:"name"`
	UID  int    `json:"uid"`
	GID  int    `json:"gid"`
}

// Setup makes a sandbox ready for its first command.
type Setup struct {
	Version  int    `json:"version"`
	Hostname string `json:"hostname"`
	// User runs what is not asked to run as root. If the image knows the
	// name, the image's ids are used.
	User    User   `json:"user"`
	WorkDir string `json:"workDir"`
	// Env is the environment of every command, below the command's own.
	Env map[string]string `json:"env,omitempty"`
	// Xattrs are extended attributes to set, by the path of the file and by
	// their name.
	Xattrs map[string]map[string][]byte `json:"xattrs,omitempty"`
	// Resolv is the lines of /etc/resolv.conf; none leaves the file alone.
	Resolv []string `json:"resolv,omitempty"`
	// Processes, when positive, bounds the processes and threads that the
	// sandbox has.
	Processes int `json:"processes,omitempty"`
}

// Validate says what is wrong with s, if anything is.
func (s *Setup) Validate() error {
	switch {
	case s.Version != Version:
		return fmt.Errorf("protocol version %d, want %d", s.Version, Version)
	case s.Hostname == "" || len(s.Hostname) > 63 || strings.ContainsAny(s.Hostname, " \t\r\n\x00/"):
		return fmt.Errorf("hostname %q is not a DNS label", s.Hostname)
	case s.User.Name == "" || strings.ContainsAny(s.User.Name, ":\n\x00/ ") || s.User.UID <= 0 || s.User.GID <= 0:
		return fmt.Errorf("user %q %d:%d is not an unprivileged account", s.User.Name, s.User.UID, s.User.GID)
	case !strings.HasPrefix(s.WorkDir, "/") || strings.ContainsRune(s.WorkDir, 0):
		return fmt.Errorf("working directory %q is not absolute", s.WorkDir)
	case s.Processes < 0:
		return fmt.Errorf("a limit of %d processes", s.Processes)
	}
	for _, line := range s.Resolv {
		if strings.ContainsAny(line, "\n\x00") {
			return fmt.Errorf("a resolver line holds a line break")
		}
	}
	return nil
}

// Info is what an agent says of itself when it is set up.
type Info struct {
	Version int `json:"version"`
	PID     int `json:"pid"`
	// User is the default user with the ids that are in force.
	User User `json:"user"`
}

// TTY asks for a pseudo-terminal of that size.
type TTY struct {
	Cols uint16 `json:"cols"`
	Rows uint16 `json:"rows"`
}

// Start asks for a command to be run.
type Start struct {
	// Key is the host's name for the process, unique among those alive.
	Key  string            `json:"key"`
	Name string            `json:"name"`
	Args []string          `json:"args,omitempty"`
	Env  map[string]string `json:"env,omitempty"`
	Cwd  string            `json:"cwd,omitempty"`
	Root bool              `json:"root,omitempty"`
	// TimeoutMillis, when positive, is after how long the process group gets
	// SIGKILL.
	TimeoutMillis int64 `json:"timeout,omitempty"`
	TTY           *TTY  `json:"tty,omitempty"`
	// Stdin asks for a standard input that the host writes; otherwise it is
	// /dev/null. A terminal has one always.
	Stdin bool `json:"stdin,omitempty"`
}

// Validate says what is wrong with s, if anything is.
func (s *Start) Validate() error {
	switch {
	case s.Key == "" || len(s.Key) > 128:
		return fmt.Errorf("key of %d bytes, want 1 to 128", len(s.Key))
	case s.Name == "":
		return fmt.Errorf("command: empty")
	case strings.ContainsRune(s.Name, 0):
		return fmt.Errorf("command: holds a NUL byte")
	case strings.ContainsRune(s.Cwd, 0):
		return fmt.Errorf("cwd: holds a NUL byte")
	case s.TimeoutMillis < 0:
		return fmt.Errorf("timeout: negative")
	}
	for i, a := range s.Args {
		if strings.ContainsRune(a, 0) {
			return fmt.Errorf("args[%d]: holds a NUL byte", i)
		}
	}
	return validateEnv(s.Env)
}

// validateEnv names a variable at fault, never its value.
func validateEnv(env map[string]string) error {
	for name, value := range env {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			return fmt.Errorf("env: %q is not a variable's name", name)
		}
		if strings.ContainsRune(value, 0) {
			return fmt.Errorf("env.%s: holds a NUL byte", name)
		}
	}
	return nil
}

// PathRequest names a file or directory for WriteTar, ReadFile and Mkdir. A
// relative path starts from Cwd, a relative or empty Cwd from the working
// directory.
type PathRequest struct {
	Path string `json:"path"`
	Cwd  string `json:"cwd,omitempty"`
}

// Validate says what is wrong with r, if anything is.
func (r *PathRequest) Validate() error {
	const pathMax = 4096 // of Linux
	switch {
	case r.Path == "":
		return fmt.Errorf("path: empty")
	case len(r.Path) >= pathMax:
		return fmt.Errorf("path: longer than %d bytes", pathMax-1)
	case len(r.Cwd) >= pathMax:
		return fmt.Errorf("cwd: longer than %d bytes", pathMax-1)
	case strings.ContainsRune(r.Path, 0):
		return fmt.Errorf("path: holds a NUL byte")
	case strings.ContainsRune(r.Cwd, 0):
		return fmt.Errorf("cwd: holds a NUL byte")
	}
	return nil
}

// Resume names what the host has of each process that it knows.
type Resume struct {
	Version int           `json:"version"`
	Points  []ResumePoint `json:"points,omitempty"`
}

// ResumePoint is how much of a process's output the host has stored.
type ResumePoint struct {
	Key    string `json:"key"`
	Stdout int64  `json:"stdout"`
	Stderr int64  `json:"stderr"`
}

// Shutdown ends all processes: SIGTERM first, SIGKILL when the grace is over.
type Shutdown struct {
	GraceMillis int64 `json:"grace"`
}

// ProcessState is one process in a listing.
type ProcessState struct {
	ID    uint32 `json:"id"`
	Key   string `json:"key"`
	PID   int    `json:"pid,omitempty"`
	TTY   bool   `json:"tty,omitempty"`
	Ended bool   `json:"ended,omitempty"`
	// Stdout and Stderr are the offsets that the next Data goes on from.
	Stdout int64 `json:"stdout"`
	Stderr int64 `json:"stderr"`
}

// ProcessStates is what a listing lists, MaxProcesses at the most.
type ProcessStates []ProcessState

// UnmarshalJSON implements json.Unmarshaler. It stops at the bound: decoded,
// the shortest elements take thirty times the bytes of the frame.
func (l *ProcessStates) UnmarshalJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if open, err := d.Token(); err != nil || open != json.Delim('[') {
		return fmt.Errorf("%w: processes are no list", errFrame)
	}
	var list []ProcessState
	for d.More() {
		if len(list) == MaxProcesses {
			return fmt.Errorf("%w: more than %d processes", errFrame, MaxProcesses)
		}
		var s ProcessState
		if err := d.Decode(&s); err != nil {
			return err
		}
		list = append(list, s)
	}
	*l = list
	return nil
}

// Exit is how a command ended.
type Exit struct {
	// Code is the exit code, 128 plus the number of the signal that ended it.
	Code   int `json:"code"`
	Signal int `json:"signal,omitempty"`
	// TimedOut says that the signal was the timeout's.
	TimedOut bool `json:"timedOut,omitempty"`
	// Stdout and Stderr are the bytes written in all.
	Stdout         int64 `json:"stdout"`
	Stderr         int64 `json:"stderr"`
	DurationMicros int64 `json:"us"`
}

// Reply answers a request. What a request's Reply holds besides Failure is
// told by the fields' comments.
type Reply struct {
	Failure *Failure `json:"failure,omitempty"`
	// Info answers Setup.
	Info *Info `json:"info,omitempty"`
	// PID answers Start; 0 when the command could not be executed.
	PID int `json:"pid,omitempty"`
	// Size answers ReadFile; -1 when only the file's end will tell.
	Size int64 `json:"size,omitempty"`
	// Processes answers Resume and List; LastID is the highest id in use.
	Processes ProcessStates `json:"processes,omitempty"`
	LastID    uint32        `json:"lastId,omitempty"`
}

// FailureCode names a kind of failure of a request.
type FailureCode string

// The kinds of failures.
const (
	FailInvalid       FailureCode = "invalid"
	FailNotFound      FailureCode = "not_found"
	FailParentMissing FailureCode = "parent_missing"
	FailExists        FailureCode = "exists"
	FailPermission    FailureCode = "permission"
	FailIsDirectory   FailureCode = "is_directory"
	FailNotDirectory  FailureCode = "not_directory"
	FailNotRegular    FailureCode = "not_regular"
	FailUnsafe        FailureCode = "unsafe_entry"
	FailDiskFull      FailureCode = "disk_full"
	FailBusy          FailureCode = "busy"
	FailCancelled     FailureCode = "cancelled"
	FailInternal      FailureCode = "internal"
)

// Failure is why a request did not work. The message is for the client.
type Failure struct {
	Code    FailureCode `json:"code"`
	Message string      `json:"message"`
}

func (f *Failure) Error() string { return string(f.Code) + ": " + f.Message }

// Failf returns a Failure with a formatted message.
func Failf(code FailureCode, format string, args ...any) *Failure {
	return &Failure{Code: code, Message: fmt.Sprintf(format, args...)}
}
