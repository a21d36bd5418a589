package skerry

import "io"

// CreateParams are the parameters of a new sandbox. A zero field is the default.
type CreateParams struct {
	Name     string
	Runtime  string // one of Runtimes, in the default image
	Image    string // reference of an OCI image in the installation
	Source   *Source
	Timeout  Duration
	VCPUs    int
	MemoryMB int
	Env      map[string]string
	Tags     map[string]string
	// Persistent keeps the files from one session to the next; nil is true.
	Persistent         *bool
	SnapshotExpiration *Duration
	Retention          *Retention
	// Mounts are the drives, by mount path.
	Mounts map[string]Mount
	// Ports are published. Those that are also in PrivatePorts require a token.
	Ports, PrivatePorts []int
	// Policy is the network policy; nil is AllowAll.
	Policy *NetworkPolicy
	// Idle is when sessions that nobody uses are paused; nil is IdleDefault.
	Idle *IdleMode
	// OIDCAudience is whom the sandbox's workload token is for; "" is for no token.
	OIDCAudience string
}

// UpdateParams are the changes of a sandbox. A nil field changes nothing.
type UpdateParams struct {
	Timeout            *Duration
	VCPUs              *int
	MemoryMB           *int
	Env                map[string]string
	Tags               map[string]string
	Persistent         *bool
	SnapshotExpiration *Duration
	// Retention replaces the sandbox's rule; ClearRetention removes it.
	Retention      *Retention
	ClearRetention bool
	// Mounts replaces all mounts; an empty map removes them.
	Mounts map[string]Mount
	// Ports, if not nil, replaces all published ports. Ports that stay keep their
	// routes. PrivatePorts, if not nil, replaces the list of private ports.
	Ports, PrivatePorts []int
	// CurrentSnapshotID is the snapshot that the next session starts from.
	CurrentSnapshotID *string
	// Policy replaces the network policy: at once in the running session, and in later
	// ones. Idle does so too.
	Policy *NetworkPolicy
	Idle   *IdleMode
}

// StopParams are the parameters of a stop.
type StopParams struct {
	// Force ends the session without saving it. A save in progress is abandoned, and
	// the sandbox keeps its last snapshot.
	Force bool
}

// SnapshotParams are the parameters of a snapshot.
type SnapshotParams struct {
	// Expiration is how long the snapshot is kept; 0 is for ever, nil is the sandbox's
	// default.
	Expiration *Duration
	// Memory includes the memory of the running processes.
	Memory bool
}

// Page selects one page of a listing. Cursor is opaque: it comes from the previous
// page.
type Page struct {
	Limit     int
	Cursor    string
	Ascending bool
}

// SandboxFilter filters and sorts a listing of sandboxes.
type SandboxFilter struct {
	Page
	// SortBy is "createdAt" (default), "name", "statusUpdatedAt" or
	// "currentSnapshotId".
	SortBy     string
	NamePrefix string
	// Tags are tags that a sandbox must have, with these values.
	Tags map[string]string
}

// SessionFilter filters a listing of sessions, which is sorted by creation time.
type SessionFilter struct {
	Page
	// SandboxName, if set, lists only the sessions of this sandbox.
	SandboxName string
}

// CommandParams is a command to run in a session.
type CommandParams struct {
	Name string
	Args []string
	// Cwd is the working directory. A relative path starts at WorkDir.
	Cwd string
	// Env is added to the sandbox's environment. It overrides variables of the same
	// name.
	Env map[string]string
	// Sudo runs the command as root.
	Sudo bool
	// Timeout is the time after which the command is killed with SIGKILL; 0 is never.
	Timeout Duration
	// Stdin attaches a standard input, to be written while the command runs. Otherwise
	// standard input is empty.
	Stdin bool
}

// StdinParams are the parameters of a write to a command's standard input.
type StdinParams struct {
	Data []byte
	// Offset, if not nil, is the offset in the input at which Data begins. Bytes that
	// were written before are skipped, so a call can be repeated.
	Offset *int64
	// Close closes the input after Data.
	Close bool
}

// TerminalParams are the parameters of a command on a pseudo-terminal.
type TerminalParams struct {
	Name string
	Args []string
	Cwd  string
	// Env is a list of NAME=value.
	Env  []string
	Sudo bool
	Cols uint16
	Rows uint16
}

// Terminal is a command that runs on a pseudo-terminal. Read returns the terminal's
// output until the command ends, Write sends keystrokes, Close hangs up.
type Terminal interface {
	io.ReadWriteCloser
	// Resize changes the size of the terminal.
	Resize(cols, rows uint16) error
	// Wait returns the exit code, after the command has ended and its output has been
	// read.
	Wait() (exitCode int, err error)
}

// Stream is one of the output streams of a command.
type Stream string

// The output streams of a command.
const (
	Stdout Stream = "stdout"
	Stderr Stream = "stderr"
)

// OutputReader follows the output of a command, in the order in which the service
// received it.
type OutputReader interface {
	// Next waits for the next piece of output and returns it. It returns io.EOF when
	// the command has ended and everything has been returned. The bytes are valid
	// until the next call. A command waits for its slowest reader, so every reader
	// must be closed.
	Next() (Output, error)
	Close() error
}

// Output is a piece of a command's output.
type Output struct {
	Stream Stream
	// Offset is the offset of Data in all output to Stream, in bytes.
	Offset int64
	Data   []byte
}

// Size returns the size of the page: DefaultPageSize if Limit is not set, and
// MaxPageSize at most.
func (p Page) Size() int {
	switch {
	case p.Limit <= 0:
		return DefaultPageSize
	case p.Limit > MaxPageSize:
		return MaxPageSize
	}
	return p.Limit
}
