// Package api serves the public API over HTTP. It authenticates callers, decodes
// requests and encodes responses. A Service does the rest: it validates the
// parameters, and decides about sandboxes.
package api

import (
	"context"
	"io"
	"time"

	"github.com/skerry-dev/skerry"
)

// Service is the service behind the API; internal/controller implements it. It
// validates its parameters by the rules of package skerry. Errors for clients are
// *skerry.Error.
type Service interface {
	// CreateSandbox creates a sandbox and its first session, and returns when commands
	// can run in it.
	CreateSandbox(ctx context.Context, scope skerry.Scope, p skerry.CreateParams) (*skerry.Run, error)
	// GetSandbox returns a sandbox with its current session. With resume it waits for a
	// stop in progress, and starts a new session if none is running.
	GetSandbox(ctx context.Context, scope skerry.Scope, name string, resume bool) (*skerry.Run, error)
	// ListSandboxes returns one page and the cursor of the next page, "" on the last.
	ListSandboxes(ctx context.Context, scope skerry.Scope, f skerry.SandboxFilter) ([]skerry.Sandbox, string, error)
	UpdateSandbox(ctx context.Context, scope skerry.Scope, name string, p skerry.UpdateParams) (*skerry.Run, error)
	// DeleteSandbox ends the session without saving its files, and removes the name.
	// With orphans it also deletes the sandbox's snapshots, except those that other
	// sandboxes start from.
	DeleteSandbox(ctx context.Context, scope skerry.Scope, name string, orphans bool) (*skerry.Sandbox, error)
	// ForkSandbox creates a sandbox with the configuration and the files of another.
	ForkSandbox(ctx context.Context, scope skerry.Scope, name string, p skerry.ForkParams) (*skerry.Run, error)

	// RouteToken creates a token for a private port. A life of 0 is the default.
	RouteToken(ctx context.Context, scope skerry.Scope, name string, port int, life skerry.Duration) (*skerry.RouteToken, error)

	// CreateSnapshot saves the files of a session and stops it. The result has the
	// snapshot.
	CreateSnapshot(ctx context.Context, scope skerry.Scope, sessionID string, p skerry.SnapshotParams) (*skerry.Run, error)
	ListSnapshots(ctx context.Context, scope skerry.Scope, f skerry.SnapshotFilter) ([]skerry.Snapshot, string, error)
	GetSnapshot(ctx context.Context, scope skerry.Scope, id string) (*skerry.Snapshot, error)
	// DeleteSnapshot is idempotent.
	DeleteSnapshot(ctx context.Context, scope skerry.Scope, id string) (*skerry.Snapshot, error)
	// SnapshotTree lists the ancestors of a snapshot, or its descendants if the page is
	// ascending. next is the snapshot at which the next page starts.
	SnapshotTree(ctx context.Context, scope skerry.Scope, id string, p skerry.Page) (anchor *skerry.SnapshotNode, nodes []skerry.SnapshotNode, next string, err error)

	// GetOrCreateDrive returns the drive with a name, and creates it if there is none.
	GetOrCreateDrive(ctx context.Context, scope skerry.Scope, p skerry.DriveParams) (d *skerry.Drive, created bool, err error)
	// WriteStdin writes to the standard input of a command, and returns the total
	// number of bytes that have been written to it.
	WriteStdin(ctx context.Context, scope skerry.Scope, sessionID, id string, p skerry.StdinParams) (written int64, err error)

	// ForkDrive creates a drive with the present content of source.
	ForkDrive(ctx context.Context, scope skerry.Scope, source, name string) (*skerry.Drive, error)
	GetDrive(ctx context.Context, scope skerry.Scope, name string) (*skerry.Drive, error)
	ListDrives(ctx context.Context, scope skerry.Scope, f skerry.DriveFilter) ([]skerry.Drive, string, error)
	// DeleteDrive deletes a drive with all its files. It fails if a session has mounted
	// the drive read-write.
	DeleteDrive(ctx context.Context, scope skerry.Scope, name string) (*skerry.Drive, error)

	ListSessions(ctx context.Context, scope skerry.Scope, f skerry.SessionFilter) ([]skerry.Session, string, error)
	GetSession(ctx context.Context, scope skerry.Scope, id string) (*skerry.Run, error)
	// StopSession stops a session, and saves the files of a persistent sandbox before.
	// It returns when the session has stopped. If the files cannot be saved, it fails
	// and the session keeps running, unless force is set. It is idempotent.
	StopSession(ctx context.Context, scope skerry.Scope, id string, p skerry.StopParams) (*skerry.Run, error)
	// PauseSession pauses a running session: it uses no CPU, and its timeout keeps
	// counting. ResumeSession continues it, as does every call that needs its processes
	// or files. Both are idempotent.
	PauseSession(ctx context.Context, scope skerry.Scope, id string) (*skerry.Session, error)
	ResumeSession(ctx context.Context, scope skerry.Scope, id string) (*skerry.Session, error)
	ExtendTimeout(ctx context.Context, scope skerry.Scope, id string, by skerry.Duration) (*skerry.Session, error)
	// SetNetworkPolicy changes the network policy of a session, and returns when it is
	// enforced. The sandbox's own policy does not change.
	SetNetworkPolicy(ctx context.Context, scope skerry.Scope, id string, p *skerry.NetworkPolicy) (*skerry.Session, error)
	// NetworkEvents returns the newest network events of a session, oldest first. It
	// works after the session has ended too.
	NetworkEvents(ctx context.Context, scope skerry.Scope, id string, limit int) ([]skerry.NetworkEvent, error)

	// RunCommand starts a command and returns when it runs. With attach it also returns
	// a reader of all its output, which the caller must close. The reader's Next fails
	// when ctx ends or the reader is closed, also by another goroutine. The command
	// keeps running.
	RunCommand(ctx context.Context, scope skerry.Scope, sessionID string, p skerry.CommandParams, attach bool) (*skerry.Command, skerry.OutputReader, error)
	GetCommand(ctx context.Context, scope skerry.Scope, sessionID, commandID string) (*skerry.Command, error)
	// ListCommands returns one page of the commands of a session, sorted by start time,
	// and the cursor of the next page.
	ListCommands(ctx context.Context, scope skerry.Scope, sessionID string, page skerry.Page) ([]skerry.Command, string, error)
	// WaitCommand returns when the command has ended.
	WaitCommand(ctx context.Context, scope skerry.Scope, sessionID, commandID string) (*skerry.Command, error)
	// CommandOutput follows the kept output of a command from its beginning. It works
	// after the command and its session have ended too. The reader behaves like that of
	// RunCommand.
	CommandOutput(ctx context.Context, scope skerry.Scope, sessionID, commandID string) (skerry.OutputReader, error)
	// KillCommand sends a signal to the command's process group.
	KillCommand(ctx context.Context, scope skerry.Scope, sessionID, commandID string, signal int) (*skerry.Command, error)
	OpenTerminal(ctx context.Context, scope skerry.Scope, sessionID string, p skerry.TerminalParams) (skerry.Terminal, error)
	// CheckSession returns nil if the session is running, and otherwise the error that a
	// call on it would return: not found, stopped or stopping.
	CheckSession(ctx context.Context, scope skerry.Scope, sessionID string) error

	// SessionScope and SnapshotScope return where a session or a snapshot of a team is, or
	// CodeNotFound.
	SessionScope(ctx context.Context, teamID, sessionID string) (skerry.Scope, error)
	SnapshotScope(ctx context.Context, teamID, snapshotID string) (skerry.Scope, error)

	// WriteFiles extracts an uncompressed tar stream into dir.
	WriteFiles(ctx context.Context, scope skerry.Scope, sessionID, dir string, tar io.Reader) error
	// ReadFile reads a regular file. If there is none, the error is CodeNotFound. If the
	// reader is a Sizer, the response has a Content-Length.
	ReadFile(ctx context.Context, scope skerry.Scope, sessionID, cwd, path string) (io.ReadCloser, error)
	// MakeDir creates a directory. With recursive it creates missing parents too, and an
	// existing directory is not an error.
	MakeDir(ctx context.Context, scope skerry.Scope, sessionID, cwd, path string, recursive bool) error

	// Used returns what the running sandboxes of a project use, or those of a team if the
	// scope has no project.
	Used(scope skerry.Scope) skerry.Use
}

// Sizer is implemented by readers that know how many bytes they return. Size returns
// -1 if the number is not known.
type Sizer interface {
	Size() int64
}

// Accounts authenticates access tokens, and keeps teams and what they have; internal/auth
// implements it. It validates its parameters. Teams and projects are given by id or by slug or
// name, users by id or name.
type Accounts interface {
	// Authenticate returns the identity of a token, or CodeUnauthorized if the token is
	// unknown, expired or revoked. The error is for the caller, and has nothing of the token.
	Authenticate(ctx context.Context, token string) (*skerry.Identity, error)
	// Ended returns those accesses that are not allowed any more.
	Ended(ctx context.Context, accesses []skerry.Access) ([]skerry.Access, error)

	// Quotas returns the quotas of a project and its team, or of the team alone if the scope
	// has no project.
	Quotas(ctx context.Context, scope skerry.Scope) (skerry.Quotas, error)

	CreateTeam(ctx context.Context, slug, name string) (*skerry.Team, error)
	Team(ctx context.Context, team string) (*skerry.Team, error)
	Teams(ctx context.Context) ([]skerry.Team, error)
	// UpdateTeam changes what is not "".
	UpdateTeam(ctx context.Context, team, slug, name string) (*skerry.Team, error)
	// DeleteTeam and DeleteProject fail with CodeConflict if something is in a project.
	DeleteTeam(ctx context.Context, team string) (*skerry.Team, error)

	CreateProject(ctx context.Context, teamID, name string) (*skerry.Project, error)
	Project(ctx context.Context, teamID, project string) (*skerry.Project, error)
	Projects(ctx context.Context, teamID string, page skerry.Page) ([]skerry.Project, string, error)
	RenameProject(ctx context.Context, teamID, project, name string) (*skerry.Project, error)
	DeleteProject(ctx context.Context, teamID, project string) (*skerry.Project, error)

	AddMember(ctx context.Context, teamID, user string, role skerry.Role) (*skerry.Member, error)
	Members(ctx context.Context, teamID string, page skerry.Page) ([]skerry.Member, string, error)
	SetRole(ctx context.Context, teamID, user string, role skerry.Role) (*skerry.Member, error)
	RemoveMember(ctx context.Context, teamID, user string) (*skerry.Member, error)

	// CreateToken also returns the token itself.
	CreateToken(ctx context.Context, p skerry.TokenParams) (string, *skerry.AccessToken, error)
	Token(ctx context.Context, id string) (*skerry.AccessToken, error)
	// Tokens lists the tokens of a team, or of one of its projects.
	Tokens(ctx context.Context, teamID, projectID string, page skerry.Page) ([]skerry.AccessToken, string, error)
	RevokeToken(ctx context.Context, id string) (*skerry.AccessToken, error)
	// DevelopmentToken makes a token for one project with the access token of the caller, and
	// returns when it ends. It fails with CodeForbidden if the caller has another kind of token.
	DevelopmentToken(ctx context.Context, id *skerry.Identity, teamID, project string) (token string, expires time.Time, err error)
}
