package skerry

import "time"

// Limits and defaults of snapshots.
const (
	// DefaultSnapshotExpiration is how long a snapshot is kept by default.
	DefaultSnapshotExpiration = 30 * 24 * time.Hour
	// MinSnapshotExpiration is the minimum expiration, besides 0 for "never".
	MinSnapshotExpiration = time.Minute
	// MaxKeepLast limits Retention.Count. The public service has the same.
	MaxKeepLast = 10
)

// Snapshot is the filesystem of a session at one moment, and with Memory its
// processes too. It does not change.
type Snapshot struct {
	ID    string `json:"id"`
	Scope Scope  `json:"-"`
	// SandboxID is the sandbox of the session. It may have been deleted.
	SandboxID       string `json:"-"`
	SourceSessionID string `json:"sourceSessionId"`
	// SandboxName is our own addition to the wire form.
	SandboxName string `json:"sandboxName,omitempty"`
	// ParentID is the snapshot that the session had started from.
	ParentID string `json:"parentId,omitempty"`
	Region   string `json:"region"`

	Status SnapshotStatus `json:"status"`
	// SizeBytes is the size of the difference to the image.
	SizeBytes      int64          `json:"sizeBytes"`
	CreationMethod CreationMethod `json:"creationMethod,omitempty"`
	// Memory reports whether it includes the memory of the running processes, which
	// continue in sessions that start from it; our own addition to the wire form.
	Memory bool `json:"memory,omitempty"`

	// ExpiresAt is zero for a snapshot that does not expire.
	ExpiresAt  Time `json:"expiresAt,omitzero"`
	CreatedAt  Time `json:"createdAt"`
	UpdatedAt  Time `json:"updatedAt"`
	LastUsedAt Time `json:"lastUsedAt,omitzero"`

	// Base is the image that the snapshot is a difference to, and Manifest is where the
	// difference is stored.
	Base     Base   `json:"-"`
	Manifest string `json:"-"`
}

// Base is the image that a snapshot is a difference to.
type Base struct {
	// Image is the name as the API shows it, Digest the digest of the image file.
	Image  string
	Digest string
	// Runtime is the runtime of the sandbox.
	Runtime string
	// VCPUs and MemoryMB are the size of the session. A session that starts from a
	// snapshot with memory must have the same. They are 0 for other snapshots.
	VCPUs    int
	MemoryMB int
}

// Usable reports whether sessions can start from s.
func (s *Snapshot) Usable(now time.Time) bool {
	return s.Status == SnapshotCreated && (s.ExpiresAt.IsZero() || now.Before(s.ExpiresAt.Time))
}

// SnapshotStatus is a state of a snapshot.
type SnapshotStatus string

// The states of a snapshot. A deleted snapshot stays listed for a while, without its
// files.
const (
	SnapshotCreated SnapshotStatus = "created"
	SnapshotDeleted SnapshotStatus = "deleted"
)

// CreationMethod is the reason for a snapshot.
type CreationMethod string

// The reasons for a snapshot.
const (
	// CreatedManually: a client asked for it.
	CreatedManually CreationMethod = "manual"
	// CreatedAtStop: a session of a persistent sandbox ended.
	CreatedAtStop CreationMethod = "automatic"
	// CreatedForFork: a running sandbox was forked.
	CreatedForFork CreationMethod = "fork"
)

// Retention is the rule for which snapshots of a sandbox are kept.
type Retention struct {
	// Count is the number of newest snapshots to keep, from 1 to MaxKeepLast.
	Count int `json:"count"`
	// Expiration, if not nil, is how long these are kept, counted from their creation;
	// 0 is for ever.
	Expiration *Duration `json:"expiration,omitempty"`
	// DeleteEvicted deletes all other snapshots at once. Otherwise they are kept for the
	// sandbox's default expiration. Nil is true.
	DeleteEvicted *bool `json:"deleteEvicted,omitempty"`
}

// SnapshotFilter filters a listing of snapshots, which is sorted by creation time.
type SnapshotFilter struct {
	Page
	// SandboxName, if set, lists only the snapshots of this sandbox.
	SandboxName string
	// Deleted includes deleted and expired snapshots, as long as they are listed.
	Deleted bool
}

// SnapshotNode is a node in the tree of snapshots.
type SnapshotNode struct {
	Snapshot Snapshot
	// Siblings are the newest of the other snapshots with the same parent. Count is the
	// number of all snapshots with this parent, including this one.
	Siblings []Snapshot
	Count    int
}

// ForkParams are the parameters of a fork. A nil or empty field is copied from the
// source.
type ForkParams struct {
	Name string
	// Image, if set, must be the source's.
	Image      string
	Timeout    *Duration
	VCPUs      *int
	MemoryMB   *int
	Persistent *bool
	Env        map[string]string
	Tags       map[string]string
	// SnapshotExpiration and Retention are as in UpdateParams.
	SnapshotExpiration *Duration
	Retention          *Retention
	// Mounts, if not nil, replaces the mounts. The source's mounts are copied as
	// snapshots, because only one session can mount a drive read-write.
	Mounts map[string]Mount
	// Ports and PrivatePorts are as in UpdateParams. The fork has its own routes.
	Ports, PrivatePorts []int
	// Policy, if not nil, replaces the network policy, and Idle the idle mode.
	Policy *NetworkPolicy
	Idle   *IdleMode
	// OIDCAudience, if not "", replaces the audience of the workload token.
	OIDCAudience string
	// Live copies the present files of a running source, instead of those of its
	// current snapshot. Our own addition.
	Live bool
	// Memory copies the processes of a running source too, with their memory. They
	// continue in the fork. If the source is not running, its current snapshot must
	// include memory. Our own addition.
	Memory bool
}
