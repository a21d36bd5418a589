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

// Setup prepares a sandbox for its first command.
type Setup struct {
	Version  int    `json:"version"`
	Hostname string `json:"hostname"`
	// User runs the commands that do not run as root. If the image has an account of
	// that name, its ids are used.
	User    User   `json:"user"`
	WorkDir string `json:"workDir"`
	// Env is the environment of every command. A command's own variables override it.
	Env map[string]string `json:"env,omitempty"`
	// Xattrs are extended attributes to set, by path and name.
	Xattrs Xattrs `json:"xattrs,omitempty"`
	// Authorities are certificate authorities for the sandbox to trust.
	Authorities []Authority `json:"authorities,omitempty"`
	// Resolv has the lines of /etc/resolv.conf. If it is empty, the file is not changed.
	Resolv []string `json:"resolv,omitempty"`
	// Processes, if positive, limits the processes and threads in the sandbox.
	Processes int `json:"processes,omitempty"`
	// Token is written to TokenFile. If it is "", there is no such file.
	Token string `json:"token,omitempty"`
}

// TokenFile has the workload token of the sandbox: what its programs show to a service
// outside. Only the default user and root can read it.
const TokenFile = "/run/skerry/oidc-token"

// Token replaces the content of TokenFile. It fails if the agent has had one with a higher number
// since its last Setup or Renew: what was sent to a sandbox that was paused may come late.
type Token struct {
	Token  string `json:"token"`
	Number int64  `json:"number"`
}

// Validate reports what is wrong with t, without saying what it is.
func (t *Token) Validate() error {
	if strings.ContainsAny(t.Token, " \t\r\n\x00") {
		return fmt.Errorf("the token contains a space, a line break or a NUL byte")
	}
	return nil
}

// Xattrs are extended attributes by the absolute path of the file in the sandbox, and
// by the name of the attribute.
type Xattrs = map[string]map[string][]byte

// AuthoritiesFile is a file in the sandbox with only the authorities of Setup.
const AuthoritiesFile = "/usr/local/share/skerry/authorities.crt"

// Authority is a certificate authority.
type Authority struct {
	// Name is a file name without an extension.
	Name string `json:"name"`
	// PEM is the certificate. It ends with a line break.
	PEM string `json:"pem"`
	// Hash is the file name under which OpenSSL looks it up, without ".0".
	Hash string `json:"hash"`
}

func (a *Authority) valid() bool {
	return a.Name != "" && !strings.ContainsAny(a.Name+a.Hash, "/\x00") && a.Hash != "" && strings.HasSuffix(a.PEM, "\n")
}

// Identity is the part of a Setup that differs between sandboxes of the same image.
type Identity struct {
	Hostname string            `json:"hostname"`
	Env      map[string]string `json:"env,omitempty"`
	// Resolv has the lines of /etc/resolv.conf. If it is empty, the file is not changed.
	Resolv []string `json:"resolv,omitempty"`
	// Token is as in Setup.
	Token string `json:"token,omitempty"`
}

// Validate reports what is wrong with i.
func (i *Identity) Validate() error {
	if i.Hostname == "" || len(i.Hostname) > 63 || strings.ContainsAny(i.Hostname, " \t\r\n\x00/") {
		return fmt.Errorf("hostname %q is not a DNS label", i.Hostname)
	}
	for _, line := range i.Resolv {
		if strings.ContainsAny(line, "\n\x00") {
			return fmt.Errorf("resolv.conf line %q contains a line break or a NUL byte", line)
		}
	}
	return (&Token{Token: i.Token}).Validate()
}

// Validate reports what is wrong with s.
func (s *Setup) Validate() error {
	identity := Identity{Hostname: s.Hostname, Resolv: s.Resolv, Token: s.Token}
	if err := identity.Validate(); err != nil {
		return err
	}
	switch {
	case s.Version != Version:
		return fmt.Errorf("protocol version %d, want %d", s.Version, Version)
	case s.User.Name == "" || strings.ContainsAny(s.User.Name, ":\n\x00/ ") || s.User.UID <= 0 || s.User.GID <= 0:
		return fmt.Errorf("user %q %d:%d is not an unprivileged account", s.User.Name, s.User.UID, s.User.GID)
	case !strings.HasPrefix(s.WorkDir, "/") || strings.ContainsRune(s.WorkDir, 0):
		return fmt.Errorf("working directory %q is not absolute", s.WorkDir)
	case s.Processes < 0:
		return fmt.Errorf("limit of processes %d is negative", s.Processes)
	}
	for _, a := range s.Authorities {
		if !a.valid() {
			return fmt.Errorf("authority %q is malformed", a.Name)
		}
	}
	return nil
}

// SudoEnvironment returns the sudo configuration that preserves the environment for a
// user.
func SudoEnvironment(name string, uid int) string {
	return fmt.Sprintf("Defaults:%s,#%d !env_reset, always_set_home, !secure_path\n", name, uid)
}

// Info describes an agent after Setup.
type Info struct {
	Version int `json:"version"`
	PID     int `json:"pid"`
	// User is the default user, with the ids that are in use.
	User User `json:"user"`
	// Tokens says that the agent knows Token. One of an earlier version, in a memory
	// snapshot, does not.
	Tokens bool `json:"tokens,omitempty"`
	// Warnings tell what could not be set up in the sandbox's files.
	Warnings []string `json:"warnings,omitempty"`
}

// TTY asks for a pseudo-terminal of this size.
type TTY struct {
	Cols uint16 `json:"cols"`
	Rows uint16 `json:"rows"`
}

// MaxKey is the maximum length of Start.Key.
const MaxKey = 128

// Start runs a command.
type Start struct {
	// Key is the host's name for the process. It must be unique among the processes
	// of the agent.
	Key  string            `json:"key"`
	Name string            `json:"name"`
	Args []string          `json:"args,omitempty"`
	Env  map[string]string `json:"env,omitempty"`
	Cwd  string            `json:"cwd,omitempty"`
	Root bool              `json:"root,omitempty"`
	// TimeoutMillis, if positive, is the time after which the process group gets
	// SIGKILL.
	TimeoutMillis int64 `json:"timeout,omitempty"`
	TTY           *TTY  `json:"tty,omitempty"`
	// Stdin gives the command a standard input that the host writes to. Otherwise it
	// is /dev/null. A command on a terminal always has one.
	Stdin bool `json:"stdin,omitempty"`
}

// Validate reports what is wrong with s. The rules for clients are stricter, and are in
// package skerry, which the agent does not link. They do not apply here, because the
// environment of an image may have names that clients may not use.
func (s *Start) Validate() error {
	switch {
	case s.Key == "" || len(s.Key) > MaxKey:
		return fmt.Errorf("key of %d bytes, want 1 to %d", len(s.Key), MaxKey)
	case s.Name == "":
		return fmt.Errorf("command: empty")
	case strings.ContainsRune(s.Name, 0):
		return fmt.Errorf("command: contains a NUL byte")
	case strings.ContainsRune(s.Cwd, 0):
		return fmt.Errorf("cwd: contains a NUL byte")
	case s.TimeoutMillis < 0:
		return fmt.Errorf("timeout: negative")
	}
	for i, a := range s.Args {
		if strings.ContainsRune(a, 0) {
			return fmt.Errorf("args[%d]: contains a NUL byte", i)
		}
	}
	return validateEnv(s.Env)
}

// validateEnv never puts the value of a variable into the error.
func validateEnv(env map[string]string) error {
	for name, value := range env {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			return fmt.Errorf("env: %q is not a valid name of a variable", name)
		}
		if strings.ContainsRune(value, 0) {
			return fmt.Errorf("env.%s: contains a NUL byte", name)
		}
	}
	return nil
}

// PathRequest names a file or directory for WriteTar, ReadFile and Mkdir. A relative
// Path is relative to Cwd. A relative or empty Cwd is relative to the working directory.
type PathRequest struct {
	Path string `json:"path"`
	Cwd  string `json:"cwd,omitempty"`
}

// Validate reports what is wrong with r.
func (r *PathRequest) Validate() error {
	const pathMax = 4096 // PATH_MAX of Linux, with the final NUL
	switch {
	case r.Path == "":
		return fmt.Errorf("path: empty")
	case len(r.Path) >= pathMax:
		return fmt.Errorf("path: longer than %d bytes", pathMax-1)
	case len(r.Cwd) >= pathMax:
		return fmt.Errorf("cwd: longer than %d bytes", pathMax-1)
	case strings.ContainsRune(r.Path, 0):
		return fmt.Errorf("path: contains a NUL byte")
	case strings.ContainsRune(r.Cwd, 0):
		return fmt.Errorf("cwd: contains a NUL byte")
	}
	return nil
}

// Resume tells which output the host has of each process that it knows.
type Resume struct {
	Version int           `json:"version"`
	Points  []ResumePoint `json:"points,omitempty"`
}

// ResumePoint tells how much of a process's output the host has stored.
type ResumePoint struct {
	Key    string `json:"key"`
	Stdout int64  `json:"stdout"`
	Stderr int64  `json:"stderr"`
}

// Shutdown ends all processes with SIGTERM, and after the grace period with SIGKILL.
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
	// Stdout and Stderr are the offsets at which the streams continue.
	Stdout int64 `json:"stdout"`
	Stderr int64 `json:"stderr"`
	// TimeoutMillis is the rest of Start.TimeoutMillis, 0 if there is no timeout.
	TimeoutMillis int64 `json:"timeout,omitempty"`
}

// ProcessStates is a listing of at most MaxProcesses processes.
type ProcessStates []ProcessState

// UnmarshalJSON implements json.Unmarshaler.
func (l *ProcessStates) UnmarshalJSON(b []byte) (err error) {
	*l, err = decodeList[ProcessState](b, MaxProcesses)
	return err
}

// decodeList decodes a list of at most limit elements. It stops at the limit, because
// the shortest elements take thirty times their encoded size in memory.
func decodeList[T any](b []byte, limit int) (list []T, err error) {
	d := json.NewDecoder(bytes.NewReader(b))
	if open, err := d.Token(); err != nil || open != json.Delim('[') {
		return nil, fmt.Errorf("%w: not a list", errFrame)
	}
	for d.More() {
		if len(list) == limit {
			return nil, fmt.Errorf("%w: a list of more than %d elements", errFrame, limit)
		}
		var e T
		if err := d.Decode(&e); err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	return list, nil
}

// Exit is how a command ended.
type Exit struct {
	// Code is the exit code. After a signal it is 128 plus the number of the signal.
	Code   int `json:"code"`
	Signal int `json:"signal,omitempty"`
	// TimedOut is set if the timeout sent the signal.
	TimedOut bool `json:"timedOut,omitempty"`
	// Stdout and Stderr are the total lengths of the streams.
	Stdout         int64 `json:"stdout"`
	Stderr         int64 `json:"stderr"`
	DurationMicros int64 `json:"us"`
	// Killed are the processes of the command that Relieve killed. The main process
	// can be one of them.
	Killed Victims `json:"killed,omitempty"`
}

// Victim is a process that was killed to free memory.
type Victim struct {
	PID int `json:"pid"`
	// Name is the kernel's name of the process, at most MaxVictimName bytes.
	Name string `json:"name"`
	// Bytes is the memory that it used.
	Bytes int64 `json:"bytes"`
}

// MaxVictimName is the maximum length of the kernel's name of a process.
const MaxVictimName = 15

// UnmarshalJSON implements json.Unmarshaler. It truncates a name that is too long, and
// does not keep the rest in memory.
func (v *Victim) UnmarshalJSON(b []byte) error {
	type plain Victim
	if err := json.Unmarshal(b, (*plain)(v)); err != nil {
		return err
	}
	if len(v.Name) > MaxVictimName {
		v.Name = strings.Clone(strings.ToValidUTF8(v.Name[:MaxVictimName], ""))
	}
	return nil
}

// MaxVictims limits the victims of one command, because the host keeps them with it.
const MaxVictims = 8

// Victims is a list of at most MaxVictims processes.
type Victims []Victim

// UnmarshalJSON implements json.Unmarshaler.
func (l *Victims) UnmarshalJSON(b []byte) (err error) {
	*l, err = decodeList[Victim](b, MaxVictims)
	return err
}

// Reply answers a request. Each field is for the requests in its comment.
type Reply struct {
	Failure *Failure `json:"failure,omitempty"`
	// Info answers Setup.
	Info *Info `json:"info,omitempty"`
	// PID answers Start. It is 0 if the program could not be executed.
	PID int `json:"pid,omitempty"`
	// Size answers ReadFile. It is -1 if it is not known before the end of the file.
	Size int64 `json:"size,omitempty"`
	// Victim answers Relieve. It is nil if no process was killed.
	Victim *Victim `json:"victim,omitempty"`
	// Processes and LastID answer Resume and List. LastID is the highest used id.
	Processes ProcessStates `json:"processes,omitempty"`
	LastID    uint32        `json:"lastId,omitempty"`
}

// FailureCode is the kind of a Failure.
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
	FailNoExecutable  FailureCode = "no_executable"
	FailCancelled     FailureCode = "cancelled"
	FailInternal      FailureCode = "internal"
)

// Failure is the error of a request. The message is shown to the client.
type Failure struct {
	Code    FailureCode `json:"code"`
	Message string      `json:"message"`
}

func (f *Failure) Error() string { return string(f.Code) + ": " + f.Message }

// Failf returns a Failure with a formatted message.
func Failf(code FailureCode, format string, args ...any) *Failure {
	return &Failure{Code: code, Message: fmt.Sprintf(format, args...)}
}
