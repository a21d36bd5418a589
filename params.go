package skerry

import "io"

// CreateParams is what a client asks for when it creates a sandbox. A zero
// field means the default.
type CreateParams struct {
	Name     string
	Runtime  string // "node24", "node22" or "python3.13"; of the default image
	Image    string // reference of an OCI image known to the installation
	Source   *Source
	Timeout  Duration
	VCPUs    int
	MemoryMB int
	Env      map[string]string
	Tags     map[string]string
	// Persistent keeps the files when a session ends; nil is true.
	Persistent         *bool
	SnapshotExpiration *Duration
	Retention          *Retention
	// Mounts are drives by the path that they are at.
	Mounts map[string]Mount
	// Ports are published; those that are in PrivatePorts too ask for a token.
	Ports, PrivatePorts []int
	// Policy is what sessions may reach; nil is all that any sandbox may.
	Policy *NetworkPolicy
}

// UpdateParams is what a client changes about a sandbox; nil fields stay.
type UpdateParams struct {
	Timeout            *Duration
	VCPUs              *int
	MemoryMB           *int
	Env                map[string]string
	Tags               map[string]string
	Persistent         *bool
	SnapshotExpiration *Duration
	// Retention replaces the sandbox's; with ClearRetention it has none.
	Retention      *Retention
	ClearRetention bool
	// Mounts replaces all; an empty map leaves none.
	Mounts map[string]Mount
	// Ports, if not nil, replaces all published ports; those that stay keep
	// their routes. PrivatePorts, if not nil, says which are private.
	Ports, PrivatePorts []int
	// CurrentSnapshotID has the next session start from that snapshot.
	CurrentSnapshotID *string
	// Policy replaces what the sandbox may reach: in the session that runs, at
	// once, and in later ones.
	Policy *NetworkPolicy
}

// SnapshotParams is how a client wants a snapshot.
type SnapshotParams struct {
	// Expiration is how long it is kept, 0 for ever; nil is as the sandbox
	// says.
	Expiration *Duration
	// Memory has it hold what the session runs too.
	Memory bool
}

// Page asks for one page of a listing. Cursor is opaque: the Next of the page
// before.
type Page struct {
	Limit     int
	Cursor    string
	Ascending bool
}

// SandboxFilter narrows and orders a listing of sandboxes.
type SandboxFilter struct {
	Page
	// SortBy is "createdAt" (default), "name", "statusUpdatedAt" or
	// "currentSnapshotId".
	SortBy     string
	NamePrefix string
	// Tags must all be carried with the given values.
	Tags map[string]string
}

// SessionFilter narrows a listing of sessions, ordered by creation.
type SessionFilter struct {
	Page
	// SandboxName, when set, is the only sandbox whose sessions are listed.
	SandboxName string
}

// CommandParams is a command to run in a session.
type CommandParams struct {
	Name string
	Args []string
	// Cwd is relative to WorkDir when it is not absolute.
	Cwd string
	// Env is added to the sandbox's own and overrides it.
	Env map[string]string
	// Sudo runs the command as root.
	Sudo bool
	// Timeout, when positive, kills the command with SIGKILL.
	Timeout Duration
	// Stdin gives the command a standard input that is written to while it
	// runs; without, it is empty.
	Stdin bool
}

// StdinParams is a piece of a command's standard input.
type StdinParams struct {
	Data []byte
	// Offset, if not nil, is where in the input Data begins: what was taken of
	// it before is skipped, so that a call can be repeated.
	Offset *int64
	// Close ends the input after Data.
	Close bool
}

// TerminalParams is an interactive command on a pseudo-terminal.
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

// Terminal is a running interactive command. Reading yields the terminal's
// output until the command ends, writing types into it. Close hangs up.
type Terminal interface {
	io.ReadWriteCloser
	// Resize tells the command its window's new size.
	Resize(cols, rows uint16) error
	// Wait returns the exit code once the command has ended and its output
	// has been read.
	Wait() (exitCode int, err error)
}

// Stream names one of a command's outputs.
type Stream string

// The outputs of a command.
const (
	Stdout Stream = "stdout"
	Stderr Stream = "stderr"
)

// OutputReader follows what a command writes, in the order in which the
// service received it.
type OutputReader interface {
	// Next returns the next piece of output, waiting for it, and io.EOF when
	// the command has ended and everything was returned. The bytes are valid
	// until the following call. A command waits for the slowest of its
	// readers, so a reader must be closed.
	Next() (Stream, []byte, error)
	Close() error
}

// Size returns the page size that p asks for, within the bounds of the
// service.
func (p Page) Size() int {
	switch {
	case p.Limit <= 0:
		return DefaultPageSize
	case p.Limit > MaxPageSize:
		return MaxPageSize
	}
	return p.Limit
}
