// Package nodeapi is the seam between the controller and a node, and between a node
// and its network: an interface for each noun, and the plain values that they pass.
// It imports nothing of this module but its root. Neither the controller nor the
// node imports the other, and a network may stand between the two.
//
// # Calls
//
// Every method that does something takes a context, which bounds the call. A stream
// that a call returns lasts until it is closed, or its session ends; only a stream of
// ReadFile also ends with the context. Calls may be made concurrently.
//
// # Errors
//
// Every error is one of these:
//
//   - A *skerry.Error is a definite answer. An unknown session or command is
//     CodeNotFound. A session whose machine has ended is CodeSandboxStopped. What the
//     node did not foresee is CodeInternal: clients see "internal error", and the
//     cause is in the chain, for the log.
//   - An error with ErrUnreachable in its chain (see Unreachable) means: the outcome
//     is not known. It never means that a session or a command is lost. The caller
//     repeats the call, with backoff, or asks what became of it. Clients see
//     CodeUnavailable.
//   - If the call's context ended, the error may be the context's own. It says no
//     more about the outcome than ErrUnreachable does.
//
// The errors of streams are the same, besides io.EOF at the end of one and io.ErrClosedPipe
// or os.ErrClosed from one that was closed. The connections of Ports are those of
// package net.
//
// # Repetition
//
// A call whose outcome is not known can be repeated. All calls but these may be made
// any number of times, with the same effect as once: Start and Exec refuse an id that is
// in use with CodeConflict, so a repetition tells whether the first call succeeded;
// WriteStdin is repeated with an offset; a repetition of Snapshot needs another lease,
// and the first one expires. Stop and Forget continue where a failed attempt stopped.
//
// # Values
//
// There is one type for each noun that crosses the seam: Exit, Usage, SavedFiles.
// The layers below have their own where the noun is another: guest.Exit is an Exit
// with what only the node needs to know, wire.Exit is a message of the guest agent;
// driver.Usage and cgroup.Usage are the meters of a machine and of a cgroup, of which
// Usage has the CPU time.
package nodeapi

import (
	"context"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/skerry-dev/skerry"
)

// Node runs sessions on one machine. It knows nothing of tenants, names or
// HTTP.
type Node interface {
	Sessions
	Saver
	Drives
	Commands
	Files
	Ports
	Events
}

// Sessions starts and ends sessions.
type Sessions interface {
	// Start brings a session up and returns once its guest agent answers. If
	// it fails, or ctx ends, nothing is left behind.
	Start(ctx context.Context, spec SessionSpec) error
	// Stop ends a session, releases everything it held except its commands'
	// output, and returns what it used. Nothing counts as released before it is: a
	// Stop that failed is repeated, and continues where it stopped. Stopping a session
	// that is not there, or has been stopped, is not an error.
	Stop(ctx context.Context, sessionID string) (Usage, error)
	// Forget removes what Stop left: the output of the session's commands.
	Forget(ctx context.Context, sessionID string) error
	// Pause stops all that the session runs until Resume; a session that is
	// paused already is no error, nor is one that is not.
	Pause(ctx context.Context, sessionID string) error
	Resume(ctx context.Context, sessionID string) error
	// SetDeadline changes when the session's time is up: that much from now on. The
	// controller stops the session then. If the time has passed and nobody reads the
	// events, the node pauses the session (see SessionOverdue); SetDeadline with time
	// left resumes it. The node does not stop it: only the controller can name what
	// is saved before. Clocks may differ, so it is a duration.
	SetDeadline(ctx context.Context, sessionID string, left time.Duration) error
	// Meters reads what the running sessions use, by their ids. A session takes a
	// fraction of a millisecond, so it is not for frequent polling. Sessions whose meters
	// cannot be read, because they are ending, are left out.
	Meters(ctx context.Context) (map[string]Meter, error)
	// SetIdle sets the idle mode of the session; "" is the node's own mode. See
	// SessionAsleep.
	SetIdle(ctx context.Context, sessionID string, mode skerry.IdleMode) error
	// Recover adopts the sessions in keep that survived a restart of the node, or
	// of the controller, destroys everything else that the node finds on its
	// machine, and returns the adopted ones. What they may reach is enforced before
	// anything else is done with them. A node that has been started executes no
	// other call before it: they fail with CodeUnavailable.
	Recover(ctx context.Context, keep map[string]NetworkSpec) (adopted []string, err error)
	// Retain forgets every session that is not in ids.
	Retain(ctx context.Context, ids []string) error
	// SetNetwork changes what the session may reach; that is enforced when it
	// returns. If it fails, nothing has changed.
	SetNetwork(ctx context.Context, sessionID string, network NetworkSpec) error
	// NetworkEvents are the newest decisions about what a session reaches, the
	// oldest first; also after its end, until it is forgotten.
	NetworkEvents(ctx context.Context, sessionID string, limit int) ([]skerry.NetworkEvent, error)
}

// Saver saves sessions for good.
type Saver interface {
	// Snapshot saves the session for good, also one that is paused. If it
	// fails the session goes on.
	Snapshot(ctx context.Context, sessionID string, how Saving) (SavedFiles, error)
	// Capture begins to save what a running session is now, for a session that will
	// start as its fork with this capture (see SessionSpec). Without it, or if Start
	// comes too late, Start saves what the session is then. Captures that are asked
	// for at once share a save. It can be repeated; Discard ends it.
	Capture(ctx context.Context, sessionID, captureID string) error
	// Keep makes a snapshot of a capture (see SessionSpec) for a lease, Discard
	// removes it.
	Keep(ctx context.Context, captureID, lease string) (SavedFiles, error)
	Discard(ctx context.Context, captureID string) error
}

// Collector removes saved files that nothing needs. The storage may be many
// nodes', so it is none's.
type Collector interface {
	// Collect removes the saved files of known that are deleted, and those whose
	// saves failed. Saves go on meanwhile. What it may not remove yet, since saves
	// under way may rely on it, is left to a later collection.
	Collect(ctx context.Context, known Records) (Collected, error)
}

// Records are what the store knows of saved files. The leases were read first: a
// save whose snapshot is recorded meanwhile is in Active, in Manifests, or in both.
type Records struct {
	// Round is the Collected.Round of the collection before, which had returned when
	// the rest was read. If it is not, nothing is collected.
	Round string
	// Active are the leases of saves that may be in progress, Ended those of saves
	// whose files nothing will name.
	Active, Ended []string
	Manifests     []Manifest
}

// Manifest is what the store knows of one save's files.
type Manifest struct {
	Name string
	// CreatedAt is the time of the newest snapshot that names it, or of the manifest.
	CreatedAt skerry.Time
	// Deleted says that all snapshots that name it are deleted.
	Deleted bool
	// UnknownSince is when a collection found files that no snapshot names. The
	// store may have been restored from a backup that is older than they are.
	UnknownSince skerry.Time `json:",omitzero"`
	// Chunks are SavedFiles.Chunks, nil if they are not known.
	Chunks []byte
}

// Collected is what a collection came to.
type Collected struct {
	// Round identifies the collection to the next one.
	Round string
	// Freed is how many bytes were removed.
	Freed int64
	// Waiting is the number of blobs that a later collection can remove.
	Waiting int
	// Learned are manifests of which the store knows less. It records them.
	Learned []Manifest
	// Gone are the names of manifests of which nothing is left.
	Gone []string
}

// Drives makes and removes drives.
type Drives interface {
	// CreateDrive makes a drive of that size, and returns when it survives a
	// loss of power. One that is there stays as it is.
	CreateDrive(ctx context.Context, driveID string, sizeBytes int64) error
	// ForkDrive makes a drive that has what another has at this moment, and
	// returns when it survives a loss of power. If there is no such other, that is
	// CodeNotFound.
	ForkDrive(ctx context.Context, driveID, fromID string) error
	// DeleteDrive removes a drive that no session has for writing; one that is
	// not there is no error.
	DeleteDrive(ctx context.Context, driveID string) error
	// RetainDrives removes every drive that is not in ids.
	RetainDrives(ctx context.Context, ids []string) error
}

// Commands runs commands in sessions.
type Commands interface {
	// Exec starts a command and returns once it runs; Events tells its end. With
	// attach it also returns a reader of all its output. It fails with
	// CodeExecutableNotFound if there is no such program. One that cannot be
	// executed is no error: it ends with 126 and says why on its standard error.
	Exec(ctx context.Context, sessionID string, spec CommandSpec, attach bool) (skerry.OutputReader, error)
	// WriteStdin writes to a command's standard input, for a while, and returns
	// how much of that was taken in all.
	WriteStdin(ctx context.Context, sessionID, commandID string, p skerry.StdinParams) (written int64, err error)
	// Output follows the kept output of a command from its start. That nothing of a
	// command is kept may be CodeNotFound or an empty output: of a command that
	// printed nothing, no more may be known after the session's end.
	Output(ctx context.Context, sessionID, commandID string) (skerry.OutputReader, error)
	// Drop removes what is kept of a command that has ended: its output and its end.
	Drop(ctx context.Context, sessionID, commandID string) error
	// Signal sends a signal to the command's process group; a command that
	// has ended ignores it.
	Signal(ctx context.Context, sessionID, commandID string, signal int) error
	Terminal(ctx context.Context, sessionID string, p skerry.TerminalParams) (skerry.Terminal, error)
}

// Files moves files in and out of sessions.
type Files interface {
	WriteFiles(ctx context.Context, sessionID, dir string, tar io.Reader) error
	ReadFile(ctx context.Context, sessionID, cwd, path string) (io.ReadCloser, error)
	// MakeDir makes a directory. With recursive it makes its parents too, and
	// a directory that is there already is no error.
	MakeDir(ctx context.Context, sessionID, cwd, path string, recursive bool) error
}

// Ports reaches servers in sessions.
type Ports interface {
	// Dial connects to a TCP port of a running session. That nothing listens
	// there is CodeUnavailable. The connection ends with the session. If there can
	// be only few, one client does not get all of them; what it gets then has a
	// method ChargeTo, see package ingress.
	Dial(ctx context.Context, sessionID string, port int, client netip.Addr) (net.Conn, error)
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
	// What it is at this moment, or was when Capture was called, stays on the node as the capture of that id
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
	// TimeLeft is the session's time, counted from its start; see SetDeadline. 0 is
	// without a deadline.
	TimeLeft time.Duration
	// Network is enforced before the session starts.
	Network NetworkSpec
	// Idle is the idle mode of the session; see SetIdle.
	Idle skerry.IdleMode
	// Audience is whom the session's workload token is for, "" for no token. The token says
	// whose the session is (Network.Owner), and is renewed as long as the session runs.
	Audience string
}

// NetworkSpec is what a session may reach, and whose it is.
type NetworkSpec struct {
	Policy *skerry.NetworkPolicy
	Owner  Owner
}

// Owner is whose session it is, for the operator's log and for the proxies that
// rules of a policy forward to.
type Owner struct{ TeamID, ProjectID, SandboxID, SandboxName string }

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
	// Lease names the save. The store has it before the save begins, and until a
	// snapshot names the files. So a collection does not remove what it relies on.
	Lease string
}

// SavedFiles is where a session's files were saved.
type SavedFiles struct {
	Manifest string
	// Size is that of what was saved, Added how many bytes that took: what
	// other snapshots have too is kept once.
	Size  int64
	Added int64
	// Lease is that of Saving. It ends in the transaction that names the files.
	Lease string
	// Chunks tell a Collector, and nobody else, which parts of the storage the
	// files are in.
	Chunks []byte
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
	ActiveCPU time.Duration
	// ResidentMBSeconds is the memory that the session held on the host over time, in MiB
	// times seconds, without what the host's kernel can take back. One that hibernates
	// holds none.
	ResidentMBSeconds int64
	IngressBytes      int64
	EgressBytes       int64
}

// Meter is what a running session has used so far, and the memory that it uses now.
type Meter struct {
	Usage
	// MemoryBytes is memory that the host's kernel cannot reclaim.
	MemoryBytes int64
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
