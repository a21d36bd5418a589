// Package api is the HTTP face of the service: it speaks the public wire
// contract, decides who calls and what a request means, and leaves every
// decision about sandboxes to a Service.
package api

import (
	"context"
	"io"

	"github.com/skerry-dev/skerry"
)

// Service is what the API exposes; internal/controller implements it. Every
// error that a client may see is a *skerry.Error.
type Service interface {
	// CreateSandbox creates a sandbox and its first session, and returns once
	// commands can run in it.
	CreateSandbox(ctx context.Context, scope skerry.Scope, p skerry.CreateParams) (*skerry.Run, error)
	// GetSandbox returns a sandbox with its current session. With resume it
	// waits for a stop in progress and starts a new session if none runs.
	GetSandbox(ctx context.Context, scope skerry.Scope, name string, resume bool) (*skerry.Run, error)
	// ListSandboxes returns one page and the cursor of the next, "" at the end.
	ListSandboxes(ctx context.Context, scope skerry.Scope, f skerry.SandboxFilter) ([]skerry.Sandbox, string, error)
	UpdateSandbox(ctx context.Context, scope skerry.Scope, name string, p skerry.UpdateParams) (*skerry.Run, error)
	// DeleteSandbox ends the session without saving its files and removes the
	// name; with orphans, the sandbox's snapshots too, but for those that other
	// sandboxes start from.
	DeleteSandbox(ctx context.Context, scope skerry.Scope, name string, orphans bool) (*skerry.Sandbox, error)
	// ForkSandbox creates a sandbox with another's configuration and files.
	ForkSandbox(ctx context.Context, scope skerry.Scope, name string, p skerry.ForkParams) (*skerry.Run, error)

	// RouteToken makes a token for a private port; 0 is the default life.
	RouteToken(ctx context.Context, scope skerry.Scope, name string, port int, life skerry.Duration) (*skerry.RouteToken, error)

	// CreateSnapshot saves a session's files and stops it; the result has the
	// snapshot.
	CreateSnapshot(ctx context.Context, scope skerry.Scope, sessionID string, p skerry.SnapshotParams) (*skerry.Run, error)
	ListSnapshots(ctx context.Context, scope skerry.Scope, f skerry.SnapshotFilter) ([]skerry.Snapshot, string, error)
	GetSnapshot(ctx context.Context, scope skerry.Scope, id string) (*skerry.Snapshot, error)
	// DeleteSnapshot is idempotent.
	DeleteSnapshot(ctx context.Context, scope skerry.Scope, id string) (*skerry.Snapshot, error)
	// SnapshotTree walks from a snapshot to its ancestors, or its descendants
	// if the page is ascending; next is the snapshot to go on from.
	SnapshotTree(ctx context.Context, scope skerry.Scope, id string, p skerry.Page) (anchor *skerry.SnapshotNode, nodes []skerry.SnapshotNode, next string, err error)

	// GetOrCreateDrive returns the drive of that name, a new one if there is
	// none.
	GetOrCreateDrive(ctx context.Context, scope skerry.Scope, p skerry.DriveParams) (d *skerry.Drive, created bool, err error)
	// WriteStdin writes to a command's standard input and returns how much of
	// that was taken in all.
	WriteStdin(ctx context.Context, scope skerry.Scope, sessionID, id string, p skerry.StdinParams) (written int64, err error)

	// ForkDrive returns a new drive with what source has at this moment.
	ForkDrive(ctx context.Context, scope skerry.Scope, source, name string) (*skerry.Drive, error)
	GetDrive(ctx context.Context, scope skerry.Scope, name string) (*skerry.Drive, error)
	ListDrives(ctx context.Context, scope skerry.Scope, f skerry.DriveFilter) ([]skerry.Drive, string, error)
	// DeleteDrive removes a drive with all that is in it, unless a session has
	// it for writing.
	DeleteDrive(ctx context.Context, scope skerry.Scope, name string) (*skerry.Drive, error)

	ListSessions(ctx context.Context, scope skerry.Scope, f skerry.SessionFilter) ([]skerry.Session, string, error)
	GetSession(ctx context.Context, scope skerry.Scope, id string) (*skerry.Run, error)
	// StopSession returns once the session has stopped, after a persistent
	// sandbox's files were saved. It is idempotent. If it fails because they
	// could not be saved, the session runs on.
	StopSession(ctx context.Context, scope skerry.Scope, id string) (*skerry.Run, error)
	// PauseSession has a running session stand still: it uses no CPU, and its
	// time goes on. ResumeSession lets it go on, as does every call that needs
	// what is in it. Both are idempotent.
	PauseSession(ctx context.Context, scope skerry.Scope, id string) (*skerry.Session, error)
	ResumeSession(ctx context.Context, scope skerry.Scope, id string) (*skerry.Session, error)
	ExtendTimeout(ctx context.Context, scope skerry.Scope, id string, by skerry.Duration) (*skerry.Session, error)
	// SetNetworkPolicy changes what a session may reach, and returns once that
	// is enforced. The sandbox's own policy stays as it is.
	SetNetworkPolicy(ctx context.Context, scope skerry.Scope, id string, p *skerry.NetworkPolicy) (*skerry.Session, error)
	// NetworkEvents returns the newest decisions of the proxy about a session,
	// the oldest first, also after it has ended.
	NetworkEvents(ctx context.Context, scope skerry.Scope, id string, limit int) ([]skerry.NetworkEvent, error)

	// RunCommand starts a command and returns as soon as it runs. With attach
	// it also returns a reader of all its output, which the caller closes. The
	// reader's Next fails once ctx ends or the reader is closed, also from
	// another goroutine; neither ends the command.
	RunCommand(ctx context.Context, scope skerry.Scope, sessionID string, p skerry.CommandParams, attach bool) (*skerry.Command, skerry.OutputReader, error)
	GetCommand(ctx context.Context, scope skerry.Scope, sessionID, commandID string) (*skerry.Command, error)
	// ListCommands returns the commands of a session, oldest first.
	ListCommands(ctx context.Context, scope skerry.Scope, sessionID string) ([]skerry.Command, error)
	// WaitCommand returns once the command has finished.
	WaitCommand(ctx context.Context, scope skerry.Scope, sessionID, commandID string) (*skerry.Command, error)
	// CommandOutput follows the kept output of a command from its start. It
	// works after the command and its session have ended too. The reader ends
	// as the one of RunCommand does.
	CommandOutput(ctx context.Context, scope skerry.Scope, sessionID, commandID string) (skerry.OutputReader, error)
	// KillCommand sends a signal to the command's process group.
	KillCommand(ctx context.Context, scope skerry.Scope, sessionID, commandID string, signal int) (*skerry.Command, error)
	OpenTerminal(ctx context.Context, scope skerry.Scope, sessionID string, p skerry.TerminalParams) (skerry.Terminal, error)
	// CheckSession returns the error that a call on the session would meet
	// (not found, stopped, stopping), nil when it runs.
	CheckSession(ctx context.Context, scope skerry.Scope, sessionID string) error

	// WriteFiles extracts a tar stream, already decompressed, into dir.
	WriteFiles(ctx context.Context, scope skerry.Scope, sessionID, dir string, tar io.Reader) error
	// ReadFile streams a regular file; a missing one is CodeNotFound. When the
	// reader is a Sizer, its size is announced to the client.
	ReadFile(ctx context.Context, scope skerry.Scope, sessionID, cwd, path string) (io.ReadCloser, error)
	// MakeDir makes a directory. With recursive it makes its parents too, and
	// a directory that is there already is no error.
	MakeDir(ctx context.Context, scope skerry.Scope, sessionID, cwd, path string, recursive bool) error
}

// Sizer is what the reader of a file may implement when it knows how many
// bytes it will yield.
type Sizer interface {
	Size() int64
}

// Accounts tells who a token belongs to; internal/auth implements it.
type Accounts interface {
	// Authenticate returns CodeUnauthorized for an unknown, expired or revoked
	// token.
	Authenticate(ctx context.Context, token string) (*skerry.Identity, error)
}
