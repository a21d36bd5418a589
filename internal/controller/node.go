package controller

import (
	"context"
	"io"
	"net"
	"time"

	"github.com/skerry-dev/skerry"
)

// Node runs sessions on one machine. It knows nothing of tenants, names or
// HTTP. Its arguments and results are plain values and streams, so that a
// network can stand between the controller and it.
//
// An unknown session or command is CodeNotFound; a session whose machine has
// gone is CodeSandboxStopped.
type Node interface {
	// Start brings a session up and returns once its guest agent answers. If
	// it fails, or ctx ends, nothing is left behind.
	Start(ctx context.Context, spec SessionSpec) error
	// Stop ends a session, gives back everything it held except its commands'
	// output, and returns what it used. Stopping a session that is not there
	// is not an error.
	Stop(ctx context.Context, sessionID string) (Usage, error)
	// Forget removes what Stop left: the output of the session's commands.
	Forget(ctx context.Context, sessionID string) error
	// Snapshot saves the session for good, also one that is paused. If it
	// fails the session goes on.
	Snapshot(ctx context.Context, sessionID string, how Saving) (SavedFiles, error)
	// Keep makes a snapshot of a capture (see SessionSpec), Discard removes it.
	Keep(ctx context.Context, captureID string) (SavedFiles, error)
	Discard(ctx context.Context, captureID string) error
	// Pause stops all that the session runs until Resume; a session that is
	// paused already is no error, nor is one that is not.
	Pause(ctx context.Context, sessionID string) error
	Resume(ctx context.Context, sessionID string) error
	// CollectSnapshots removes all saved files but those of the manifests in
	// keep. The caller sees to it that no Snapshot is between its return and
	// being in keep.
	CollectSnapshots(ctx context.Context, keep []string) (freed int64, err error)
	// Watch returns when the session's machine ends without Stop, with a
	// sentence that says why, or with ctx's error. It returns "" when the
	// session was stopped by Stop.
	Watch(ctx context.Context, sessionID string) (reason string, err error)
	// SetNetwork changes what the session may reach; that is enforced when it
	// returns. If it fails, nothing has changed.
	SetNetwork(ctx context.Context, sessionID string, network NetworkSpec) error
	// NetworkEvents are the newest decisions about what a session reaches, the
	// oldest first; also after its end, until it is forgotten.
	NetworkEvents(ctx context.Context, sessionID string, limit int) ([]skerry.NetworkEvent, error)
	// Recover adopts the sessions in keep that survived a restart of the
	// service, destroys everything else this node finds on its machine, and
	// returns the adopted ones. What they may reach is enforced before anything
	// else is done with them.
	Recover(ctx context.Context, keep map[string]NetworkSpec) (adopted []string, err error)
	// Retain forgets every session that is not in ids.
	Retain(ctx context.Context, ids []string) error

	// CreateDrive makes a drive of that size, and returns when it survives a
	// loss of power. One that is there stays as it is.
	CreateDrive(ctx context.Context, driveID string, sizeBytes int64) error
	// ForkDrive makes a drive that has what another has at this moment, and
	// returns when it survives a loss of power.
	ForkDrive(ctx context.Context, driveID, fromID string) error
	// DeleteDrive removes a drive that no session has for writing; one that is
	// not there is no error.
	DeleteDrive(ctx context.Context, driveID string) error
	// RetainDrives removes every drive that is not in ids.
	RetainDrives(ctx context.Context, ids []string) error

	// Exec starts a command and returns once it runs. With attach it also
	// returns a reader of all its output. A command that cannot be executed
	// is no error: it ends with 127 (not found) or 126 and says why on its
	// standard error.
	Exec(ctx context.Context, sessionID string, spec CommandSpec, attach bool) (skerry.OutputReader, error)
	// WriteStdin writes to a command's standard input, for a while, and returns
	// how much of that was taken in all.
	WriteStdin(ctx context.Context, sessionID, commandID string, p skerry.StdinParams) (written int64, err error)
	// Wait returns once the command has ended, after its output was taken in.
	Wait(ctx context.Context, sessionID, commandID string) (Exit, error)
	// Output follows the kept output of a command from its start.
	Output(ctx context.Context, sessionID, commandID string) (skerry.OutputReader, error)
	// Drop removes the kept output of a command that has ended.
	Drop(ctx context.Context, sessionID, commandID string) error
	// Signal sends a signal to the command's process group; a command that
	// has ended ignores it.
	Signal(ctx context.Context, sessionID, commandID string, signal int) error
	Terminal(ctx context.Context, sessionID string, p skerry.TerminalParams) (skerry.Terminal, error)

	// Dial connects to a TCP port of a running session. That nothing listens
	// there is CodeUnavailable. The connection ends with the session.
	Dial(ctx context.Context, sessionID string, port int) (net.Conn, error)

	WriteFiles(ctx context.Context, sessionID, dir string, tar io.Reader) error
	ReadFile(ctx context.Context, sessionID, cwd, path string) (io.ReadCloser, error)
	// MakeDir makes a directory. With recursive it makes its parents too, and
	// a directory that is there already is no error.
	MakeDir(ctx context.Context, sessionID, cwd, path string, recursive bool) error
}

// SessionSpec is what a node needs to bring a session up.
type SessionSpec struct {
	ID string
	// Hostname inside the sandbox; a valid DNS label.
	Hostname string
	// ImageDigest names an image in the node's image store ("sha256:…").
	ImageDigest string
	// Snapshot is the manifest of the saved files that the session starts
	// from; "" for the image alone. With Memory it goes on from what it ran when
	// it was saved, and VCPUs and MemoryMB must be as they were then.
	Snapshot string
	Memory   bool
	// ForkOf, if not "", is a running session of this node that the session
	// goes on from in the place of a Snapshot with Memory. It goes on itself.
	// What it is at this moment stays on the node as the capture of that id
	// until Keep or Discard, but not if Start fails, nor when the service ends.
	ForkOf  string
	Capture string
	// Runtime chooses what is first on PATH in the default image; empty for
	// other images.
	Runtime  string
	VCPUs    int
	MemoryMB int
	// Env is the environment of every command.
	Env map[string]string
	// Mounts are the drives of the session, ordered by path.
	Mounts []DriveMount
	// Network is enforced before the session starts.
	Network NetworkSpec
}

// NetworkSpec is what a session may reach, and as whom.
type NetworkSpec struct {
	Policy *skerry.NetworkPolicy
	// Claims say whose session it is to the proxies that rules forward to.
	Claims map[string]string
	// SandboxID is whose session it is in the operator's log: of the claims, the
	// sandbox's id is the session's.
	SandboxID string
}

// DriveMount is a drive at a path of a session, or a frozen copy of it.
type DriveMount struct {
	Path    string
	DriveID string
	Frozen  bool
}

// Saving is what a snapshot shall be.
type Saving struct {
	// Hold has the session paused afterwards, so that nothing happens in it
	// that is not saved; Stop or Resume follows.
	Hold bool
	// Memory saves what the session runs, and not only its files, as far as
	// they differ from its image.
	Memory bool
}

// SavedFiles is where a session's files were saved.
type SavedFiles struct {
	Manifest string
	// Size is that of what was saved, Added how many bytes that took: what
	// other snapshots have too is kept once.
	Size  int64
	Added int64
}

// CommandSpec is a command to start in a session.
type CommandSpec struct {
	ID string
	skerry.CommandParams
}

// Exit is how a command ended.
type Exit struct {
	Code     int
	Duration time.Duration
}

// Usage is what a session used from its start to its stop.
type Usage struct {
	ActiveCPU    time.Duration
	IngressBytes int64
	EgressBytes  int64
}

// Images resolves what a client names to an image that nodes have.
type Images interface {
	// Resolve returns the image for a reference ("" is the default image), or
	// CodeNotFound / CodeImageInvalid with a message naming it.
	Resolve(ctx context.Context, ref string) (Image, error)
}

// Image is a resolved image.
type Image struct {
	Digest string
	// Name is what the API shows: "repository@sha256:…"; "" for the default
	// image.
	Name string
	// Runtimes are the names that CreateParams.Runtime may have with this
	// image, the default first; none for images that are not the default.
	Runtimes []string
	// Env is what the image's configuration sets, below the sandbox's own.
	Env map[string]string
}
