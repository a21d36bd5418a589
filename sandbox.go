package skerry

// Scope is the team and project on whose behalf a call is made. Every name is
// unique within its scope, and nothing of one scope is visible in another.
type Scope struct {
	TeamID    string
	ProjectID string
}

// Sandbox is a durable identity: a name and a configuration. It never runs
// itself; its sessions do, at most one at a time.
type Sandbox struct {
	// ID is internal and stable across renames; the wire knows the name.
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
	// Env is the default environment of every command. It may hold secrets,
	// so it is never sent back.
	Env  map[string]string `json:"-"`
	Tags map[string]string `json:"tags,omitempty"`
	// Source is what a fresh session's working directory is filled from. It
	// may hold credentials, so it is never sent back.
	Source *Source `json:"-"`

	// Policy is what sessions may reach; NetworkPolicy is what of it is shown.
	// SetPolicy sets both.
	Policy        *NetworkPolicy        `json:"-"`
	NetworkPolicy *NetworkPolicySummary `json:"networkPolicy,omitempty"`

	// Ports are reached from outside. They hold keys, so what is sent back are
	// Routes, which a listing has too; our own addition to the wire form.
	Ports  []PublishedPort `json:"-"`
	Routes []Route         `json:"routes,omitempty"`

	// SnapshotExpiration is how long snapshots of the sandbox are kept; nil is
	// the default, 0 for ever.
	SnapshotExpiration *Duration  `json:"snapshotExpiration,omitempty"`
	Retention          *Retention `json:"keepLastSnapshots,omitempty"`
	// Mounts are the drives of the next session, by the path that they are at.
	Mounts map[string]Mount `json:"mounts,omitempty"`
	// CurrentSnapshotID is what the next session of a persistent sandbox
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
	// PausedAt is that of the current session.
	PausedAt Time `json:"pausedAt,omitzero"`

	// Totals over the sessions that have ended.
	TotalDuration     Duration `json:"totalDurationMs,omitempty"`
	TotalActiveCPU    Duration `json:"totalActiveCpuDurationMs,omitempty"`
	TotalEgressBytes  int64    `json:"totalEgressBytes,omitempty"`
	TotalIngressBytes int64    `json:"totalIngressBytes,omitempty"`
}

// Source is what a fresh session's working directory is filled from.
type Source struct {
	// Type is "git", "tarball" or "snapshot".
	Type string `json:"type"`
	// URL of the repository or of the tarball (optionally gzipped).
	URL string `json:"url,omitempty"`
	// Depth of the clone, 0 for the whole history; git alone.
	Depth int `json:"depth,omitempty"`
	// Revision is a branch, tag or commit; git alone.
	Revision string `json:"revision,omitempty"`
	// Username and Password go into the clone's requests and nowhere else.
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`
	// SnapshotID names the snapshot of a source of type "snapshot": every
	// session that has no later snapshot of its own starts from it.
	SnapshotID string `json:"snapshotId,omitempty"`
}

// SetPolicy sets what sessions of the sandbox may reach.
func (s *Sandbox) SetPolicy(p *NetworkPolicy) { s.Policy, s.NetworkPolicy = p, p.Summary() }

// Route is how a port that listens in a sandbox is reached from outside.
type Route struct {
	URL       string `json:"url"`
	Subdomain string `json:"subdomain"`
	Port      int    `json:"port"`
	// Private says that only who has a token gets through; our own addition to
	// the wire form.
	Private bool `json:"private,omitempty"`
}

// Session is one run of a sandbox: one isolated machine from start to stop.
type Session struct {
	ID        string `json:"id"`
	SandboxID string `json:"-"`
	Scope     Scope  `json:"-"`
	// SandboxName is our own addition to the wire form, so that a listing can
	// name what each session belongs to.
	SandboxName string `json:"sandboxName,omitempty"`

	VCPUs    int      `json:"vcpus"`
	MemoryMB int      `json:"memory"`
	Region   string   `json:"region"`
	Runtime  string   `json:"runtime,omitempty"`
	Image    string   `json:"image,omitempty"`
	Timeout  Duration `json:"timeout"`
	Cwd      string   `json:"cwd"`

	// Persistent says that the files are kept when the session ends.
	Persistent bool `json:"persistent"`
	// PausedAt is set while the session is paused; its status is running then.
	// Our own addition to the wire form, of the sandbox's too.
	PausedAt Time `json:"pausedAt,omitzero"`
	// ImageDigest names the file of the image that its files stand on; our own
	// addition to the wire form.
	ImageDigest string `json:"imageDigest,omitempty"`
	// DriveIDs are the drives that it has for writing; set when it is created,
	// and then in the store alone.
	DriveIDs []string `json:"-"`
	// SourceSnapshotID is what its files started from.
	SourceSnapshotID string `json:"sourceSnapshotId,omitempty"`

	Status SessionStatus `json:"status"`
	// Reason says in a sentence why a session failed or was aborted; our own
	// addition to the wire form.
	Reason string `json:"reason,omitempty"`

	RequestedAt     Time     `json:"requestedAt"`
	StartedAt       Time     `json:"startedAt,omitzero"`
	RequestedStopAt Time     `json:"requestedStopAt,omitzero"`
	StoppedAt       Time     `json:"stoppedAt,omitzero"`
	AbortedAt       Time     `json:"abortedAt,omitzero"`
	SnapshottedAt   Time     `json:"snapshottedAt,omitzero"`
	Duration        Duration `json:"duration,omitempty"`
	CreatedAt       Time     `json:"createdAt"`
	UpdatedAt       Time     `json:"updatedAt"`

	// Policy is what the session may reach; nil once it has ended. NetworkPolicy
	// is what of it is shown.
	Policy        *NetworkPolicy        `json:"-"`
	NetworkPolicy *NetworkPolicySummary `json:"networkPolicy,omitempty"`
	ActiveCPU     Duration              `json:"activeCpuDurationMs,omitempty"`
	Network       *NetworkTransfer      `json:"networkTransfer,omitempty"`
}

// SetPolicy sets what the session may reach.
func (s *Session) SetPolicy(p *NetworkPolicy) { s.Policy, s.NetworkPolicy = p, p.Summary() }

// ExpiresAt is when the session times out; zero before it has started.
func (s *Session) ExpiresAt() Time {
	if s.StartedAt.IsZero() {
		return Time{}
	}
	return Time{s.StartedAt.Add(s.Timeout.Std())}
}

// NetworkTransfer counts a session's bytes, headers included.
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
	// StatusFailed: it never came up.
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

// CanBecome reports whether a session in state s may go to state next.
func (s SessionStatus) CanBecome(next SessionStatus) bool {
	for _, t := range transitions[s] {
		if t == next {
			return true
		}
	}
	return false
}

// Ended reports whether no state follows s.
func (s SessionStatus) Ended() bool { return len(transitions[s]) == 0 }

// Command is one process that was started through the API in a session.
type Command struct {
	ID        string   `json:"id"`
	SessionID string   `json:"sessionId"`
	Name      string   `json:"name"`
	Args      []string `json:"args"`
	Cwd       string   `json:"cwd"`
	// ExitCode is nil while the command runs. A command that a signal ended
	// has 128 plus the signal's number.
	ExitCode  *int     `json:"exitCode"`
	Duration  Duration `json:"durationMs,omitempty"`
	StartedAt Time     `json:"startedAt"`
}

// Finished reports whether the command has ended.
func (c *Command) Finished() bool { return c.ExitCode != nil }

// Run is a sandbox together with its current session and the routes to it.
type Run struct {
	Sandbox Sandbox
	Session Session
	Routes  []Route
	// Snapshot is the one that this call took, if any.
	Snapshot *Snapshot
	// Resumed says that this call started the session.
	Resumed bool
}
