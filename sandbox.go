package skerry

import "strings"

// Scope is the team and project that a call is made for. Names are unique in a scope.
// Nothing of one scope is visible in another.
type Scope struct {
	TeamID    string
	ProjectID string
}

// Sandbox is a durable identity: a name and a configuration. It has at most one
// session that has not ended.
type Sandbox struct {
	// ID is internal; the API uses the name.
	ID    string `json:"-"`
	Scope Scope  `json:"-"`

	Name       string   `json:"name"`
	Persistent bool     `json:"persistent"`
	Region     string   `json:"region,omitempty"`
	VCPUs      int      `json:"vcpus,omitempty"`
	MemoryMB   int      `json:"memory,omitempty"`
	Runtime    string   `json:"runtime,omitempty"`
	Image      string   `json:"image,omitempty"`
	Timeout    Duration `json:"timeout,omitempty"`
	// Env is the default environment of every command. It may contain secrets, so it
	// is never sent back.
	Env  map[string]string `json:"-"`
	Tags map[string]string `json:"tags,omitempty"`
	// Source is the source of the files of the first session. It may contain
	// credentials, so it is never sent back.
	Source *Source `json:"-"`

	// Policy is the network policy of sessions. NetworkPolicy is the redacted form that
	// the API returns. SetPolicy sets both.
	Policy        *NetworkPolicy        `json:"-"`
	NetworkPolicy *NetworkPolicySummary `json:"networkPolicy,omitempty"`

	// Ports are the published ports. They contain keys, so the API returns Routes
	// instead; our own addition to the wire form.
	Ports  []PublishedPort `json:"-"`
	Routes []Route         `json:"routes,omitempty"`

	// SnapshotExpiration is how long snapshots of the sandbox are kept; nil is the
	// default, 0 is for ever.
	SnapshotExpiration *Duration  `json:"snapshotExpiration,omitempty"`
	Retention          *Retention `json:"keepLastSnapshots,omitempty"`
	// Mounts are the drives of the next session, by mount path.
	Mounts map[string]Mount `json:"mounts,omitempty"`
	// CurrentSnapshotID is the snapshot that the next session of a persistent sandbox
	// starts from.
	CurrentSnapshotID string `json:"currentSnapshotId,omitempty"`

	CurrentSessionID string        `json:"currentSessionId"`
	Status           SessionStatus `json:"status"`
	StatusUpdatedAt  Time          `json:"statusUpdatedAt,omitzero"`
	Cwd              string        `json:"cwd,omitempty"`
	CreatedAt        Time          `json:"createdAt"`
	UpdatedAt        Time          `json:"updatedAt"`
	// ExpiresAt is when the running session times out.
	ExpiresAt Time `json:"expiresAt,omitzero"`
	// PausedAt is the PausedAt of the current session.
	PausedAt Time `json:"pausedAt,omitzero"`
	// Idle says when the server pauses sessions that nobody uses; "" is IdleDefault.
	// IdleState is that of the current session. Both are our own additions to the wire
	// form.
	Idle      IdleMode  `json:"idle,omitempty"`
	IdleState IdleState `json:"idleState,omitempty"`

	// OIDCAudience is whom the workload token is for that the sandbox's programs have in a
	// file; without it they have none. Our own addition to the wire form.
	OIDCAudience string `json:"oidcAudience,omitempty"`

	// Totals of the ended sessions.
	TotalDuration  Duration `json:"totalDurationMs,omitempty"`
	TotalActiveCPU Duration `json:"totalActiveCpuDurationMs,omitempty"`
	// TotalResidentMBSeconds is our own addition to the wire form.
	TotalResidentMBSeconds int64 `json:"totalResidentMemoryMBSeconds,omitempty"`
	TotalEgressBytes       int64 `json:"totalEgressBytes,omitempty"`
	TotalIngressBytes      int64 `json:"totalIngressBytes,omitempty"`
}

// Source is the source of the files in the working directory, or a snapshot of the
// whole filesystem.
type Source struct {
	// Type is "git", "tarball" or "snapshot".
	Type string `json:"type"`
	// URL is the URL of the repository or the tarball. The tarball may be compressed.
	URL string `json:"url,omitempty"`
	// Depth is the number of commits to fetch, 0 for all. For git only.
	Depth int `json:"depth,omitempty"`
	// Revision is a branch, tag or commit. For git only.
	Revision string `json:"revision,omitempty"`
	// Username and Password are used for the requests of git only.
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`
	// SnapshotID is the snapshot of a source of type "snapshot". Every session starts
	// from it, unless the sandbox has a later snapshot of its own.
	SnapshotID string `json:"snapshotId,omitempty"`
}

// SetPolicy sets the network policy of the sandbox.
func (s *Sandbox) SetPolicy(p *NetworkPolicy) { s.Policy, s.NetworkPolicy = p, p.Summary() }

// Route is the public address of a published port.
type Route struct {
	URL       string `json:"url"`
	Subdomain string `json:"subdomain"`
	Port      int    `json:"port"`
	// Private reports whether requests need a token; our own addition to the wire form.
	Private bool `json:"private,omitempty"`
}

// Session is one run of a sandbox: one isolated machine from start to stop.
type Session struct {
	ID        string `json:"id"`
	SandboxID string `json:"-"`
	Scope     Scope  `json:"-"`
	// SandboxName is our own addition to the wire form, for listings.
	SandboxName string `json:"sandboxName,omitempty"`

	VCPUs    int      `json:"vcpus"`
	MemoryMB int      `json:"memory"`
	Region   string   `json:"region"`
	Runtime  string   `json:"runtime,omitempty"`
	Image    string   `json:"image,omitempty"`
	Timeout  Duration `json:"timeout"`
	Cwd      string   `json:"cwd"`

	// Persistent reports whether the files are kept when the session ends.
	Persistent bool `json:"persistent"`
	// PausedAt is set while the session is paused; its status is then running. Our own
	// addition to the wire form.
	PausedAt Time `json:"pausedAt,omitzero"`
	// IdleState is set while the server has paused the session because nobody uses it;
	// its status is then running. It is not stored. Our own addition to the wire form.
	IdleState IdleState `json:"idleState,omitempty"`
	// ImageDigest is the digest of the image file; our own addition to the wire form.
	ImageDigest string `json:"imageDigest,omitempty"`
	// DriveIDs are the drives that it has mounted read-write. The field is set only
	// when the session is created; afterwards the store has them.
	DriveIDs []string `json:"-"`
	// SourceSnapshotID is the snapshot that it started from.
	SourceSnapshotID string `json:"sourceSnapshotId,omitempty"`

	Status SessionStatus `json:"status"`
	// Reason is the reason why the session failed, was aborted, or stopped without
	// being saved; our own addition to the wire form.
	Reason string `json:"reason,omitempty"`

	// Saving is how the session is saved, from the moment in which that begins. A server
	// that finds the save interrupted begins it again.
	Saving *SessionSaving `json:"-"`

	RequestedAt     Time     `json:"requestedAt"`
	StartedAt       Time     `json:"startedAt,omitzero"`
	RequestedStopAt Time     `json:"requestedStopAt,omitzero"`
	StoppedAt       Time     `json:"stoppedAt,omitzero"`
	AbortedAt       Time     `json:"abortedAt,omitzero"`
	SnapshottedAt   Time     `json:"snapshottedAt,omitzero"`
	Duration        Duration `json:"duration,omitempty"`
	CreatedAt       Time     `json:"createdAt"`
	UpdatedAt       Time     `json:"updatedAt"`

	// Policy is the network policy, nil after the session's end. NetworkPolicy is the
	// redacted form that the API returns.
	Policy        *NetworkPolicy        `json:"-"`
	NetworkPolicy *NetworkPolicySummary `json:"networkPolicy,omitempty"`
	ActiveCPU     Duration              `json:"activeCpuDurationMs,omitempty"`
	// ResidentMBSeconds is the memory that the session held on the server's machine over
	// time, in MiB times seconds; our own addition to the wire form. What it wrote to swap
	// or to disk while it was idle does not count.
	ResidentMBSeconds int64            `json:"residentMemoryMBSeconds,omitempty"`
	Network           *NetworkTransfer `json:"networkTransfer,omitempty"`
}

// SessionSaving says what snapshot is taken of a session. It does not change.
type SessionSaving struct {
	Method     CreationMethod
	Memory     bool
	Expiration *Duration // nil for the sandbox's own
}

// SetPolicy sets the network policy of the session.
func (s *Session) SetPolicy(p *NetworkPolicy) { s.Policy, s.NetworkPolicy = p, p.Summary() }

// ExpiresAt returns when the session times out; zero before it has started.
func (s *Session) ExpiresAt() Time {
	if s.StartedAt.IsZero() {
		return Time{}
	}
	return Time{s.StartedAt.Add(s.Timeout.Std())}
}

// NetworkTransfer is the number of bytes that a session has received and sent,
// headers included.
type NetworkTransfer struct {
	Ingress int64 `json:"ingress"`
	Egress  int64 `json:"egress"`
}

// SessionStatus is a state of a session.
type SessionStatus string

// The states of a session.
const (
	StatusPending      SessionStatus = "pending"
	StatusRunning      SessionStatus = "running"
	StatusSnapshotting SessionStatus = "snapshotting"
	StatusStopping     SessionStatus = "stopping"
	StatusStopped      SessionStatus = "stopped"
	// StatusFailed: it did not start.
	StatusFailed SessionStatus = "failed"
	// StatusAborted: it was lost while it ran.
	StatusAborted SessionStatus = "aborted"
)

// transitions lists, for each state, the states that may follow it.
var transitions = map[SessionStatus][]SessionStatus{
	StatusPending:      {StatusRunning, StatusStopping, StatusFailed, StatusAborted},
	StatusRunning:      {StatusSnapshotting, StatusStopping, StatusAborted},
	StatusSnapshotting: {StatusStopping, StatusRunning, StatusAborted},
	StatusStopping:     {StatusStopped, StatusAborted},
}

// CanBecome reports whether a session in state s may change to state next.
func (s SessionStatus) CanBecome(next SessionStatus) bool {
	for _, t := range transitions[s] {
		if t == next {
			return true
		}
	}
	return false
}

// Ended reports whether s is a final state.
func (s SessionStatus) Ended() bool { return len(transitions[s]) == 0 }

// Command is a process that was started through the API in a session.
type Command struct {
	ID        string   `json:"id"`
	SessionID string   `json:"sessionId"`
	Name      string   `json:"name"`
	Args      []string `json:"args"`
	// ArgsTruncated reports whether Name and Args are incomplete, see MaxKeptArgs; our
	// own addition to the wire form.
	ArgsTruncated bool   `json:"argsTruncated,omitempty"`
	Cwd           string `json:"cwd"`
	// ExitCode is nil while the command runs. If a signal ended it, the code is 128
	// plus the signal's number.
	ExitCode  *int     `json:"exitCode"`
	Duration  Duration `json:"durationMs,omitempty"`
	StartedAt Time     `json:"startedAt"`
}

// MaxKeptArgs limits the bytes of a command's name and arguments that are kept after
// its start: a thousand commands of a session then have 8 MiB at most.
const MaxKeptArgs = 8 << 10

// Kept returns the command with its name and arguments cut to MaxKeptArgs.
func (c Command) Kept() Command {
	left := MaxKeptArgs
	cut := func(s string) string {
		if len(s) > left {
			s = strings.Clone(strings.ToValidUTF8(s[:left], "")) // so that the rest can be freed
			c.ArgsTruncated, left = true, 0
			return s
		}
		left -= len(s)
		return s
	}
	c.Name = cut(c.Name)
	args := make([]string, 0, min(len(c.Args), MaxKeptArgs))
	for _, arg := range c.Args {
		// An argument takes more memory than its bytes.
		if left -= 16; left < 0 {
			c.ArgsTruncated = true
			break
		}
		args = append(args, cut(arg))
	}
	c.Args = args
	return c
}

// Finished reports whether the command has ended.
func (c *Command) Finished() bool { return c.ExitCode != nil }

// Run is a sandbox with its current session and its routes.
type Run struct {
	Sandbox Sandbox
	Session Session
	Routes  []Route
	// Snapshot is the snapshot that this call took, if any.
	Snapshot *Snapshot
	// Resumed reports whether this call started the session.
	Resumed bool
}
