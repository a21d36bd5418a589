package skerry

import "time"

// Limits and defaults of snapshots.
const (
	// DefaultSnapshotExpiration is how long a snapshot is kept when neither it
	// nor its sandbox says.
	DefaultSnapshotExpiration = 30 * 24 * time.Hour
	// MinSnapshotExpiration is the shortest expiration that is accepted,
	// beside 0 for "never".
	MinSnapshotExpiration = time.Minute
	// MaxKeepLast bounds Retention.Count.
	MaxKeepLast = 10
)

// Snapshot is a session's filesystem at one moment, and with Memory what the
// session ran too. It does not change.
type Snapshot struct {
	ID    string `json:"id"`
	Scope Scope  `json:"-"`
	// SandboxID is the sandbox that it was taken of, which may be gone.
	SandboxID       string `json:"-"`
	SourceSessionID string `json:"sourceSessionId"`
	// SandboxName is our own addition to the wire form.
	SandboxName string `json:"sandboxName,omitempty"`
	// ParentID is the snapshot that the session started from.
	ParentID string `json:"parentId,omitempty"`
	Region   string `json:"region"`

	Status SnapshotStatus `json:"status"`
	// SizeBytes is the size of what differs from the image.
	SizeBytes      int64          `json:"sizeBytes"`
	CreationMethod CreationMethod `json:"creationMethod,omitempty"`
	// Memory says that sessions that start from it go on with the processes
	// that ran when it was taken; our own addition to the wire form.
	Memory bool `json:"memory,omitempty"`

	// ExpiresAt is zero for a snapshot that is kept until it is deleted.
	ExpiresAt  Time `json:"expiresAt,omitzero"`
	CreatedAt  Time `json:"createdAt"`
	UpdatedAt  Time `json:"updatedAt"`
	LastUsedAt Time `json:"lastUsedAt,omitzero"`

	// Base is what the snapshot is the difference to, and Manifest where the
	// difference is.
	Base     Base   `json:"-"`
	Manifest string `json:"-"`
}

// Base is the image that a snapshot stands on.
type Base struct {
	// Image is its name as the API shows it, Digest that of its file.
	Image  string
	Digest string
	// Runtime is what the sandbox had chosen.
	Runtime string
	// VCPUs and MemoryMB are what a session that starts from a snapshot with
	// memory must have; 0 for other snapshots.
	VCPUs    int
	MemoryMB int
}

// Usable reports whether sessions can start from s.
func (s *Snapshot) Usable(now time.Time) bool {
	return s.Status == SnapshotCreated && (s.ExpiresAt.IsZero() || now.Before(s.ExpiresAt.Time))
}

// SnapshotStatus is a state of a snapshot.
type SnapshotStatus string

// The states of a snapshot. A deleted one is remembered, so that who asks for
// it learns what happened; its bytes are gone.
const (
	SnapshotCreated SnapshotStatus = "created"
	SnapshotDeleted SnapshotStatus = "deleted"
)

// CreationMethod says why a snapshot was taken.
type CreationMethod string

// The reasons for a snapshot.
const (
	// CreatedManually: by the call that takes one.
	CreatedManually CreationMethod = "manual"
	// CreatedAtStop: because a persistent sandbox's session ended.
	CreatedAtStop CreationMethod = "automatic"
	// CreatedForFork: of a running sandbox, to fork it.
	CreatedForFork CreationMethod = "fork"
)

// Retention says which of a sandbox's snapshots are kept.
type Retention struct {
	// Count is how many of the newest are kept, 1 to MaxKeepLast.
	Count int `json:"count"`
	// Expiration, if not nil, is that of the kept ones, from their creation;
	// 0 is never.
	Expiration *Duration `json:"expiration,omitempty"`
	// DeleteEvicted says that the others are deleted at once; otherwise they
	// stay for the sandbox's default expiration. Nil is true.
	DeleteEvicted *bool `json:"deleteEvicted,omitempty"`
}

// SnapshotFilter narrows a listing of snapshots, ordered by creation. Deleted
// and expired ones are not listed.
type SnapshotFilter struct {
	Page
	// SandboxName, when set, is the only sandbox whose snapshots are listed.
	SandboxName string
}

// SnapshotNode is one generation in the ancestry of a snapshot.
type SnapshotNode struct {
	Snapshot Snapshot
	// Siblings are the newest of the other snapshots with the same parent,
	// Count is how many there are with this one.
	Siblings []Snapshot
	Count    int
}

// ForkParams is what a fork has otherwise than its source; nil fields and
// empty values are the source's.
type ForkParams struct {
	Name string
	// Image, if not empty, must be the source's.
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
	// Mounts, if not nil, are the fork's. The source's are copied as snapshots,
	// since a drive has one writer.
	Mounts map[string]Mount
	// Ports and PrivatePorts are as in UpdateParams. The fork has routes of its
	// own to them.
	Ports, PrivatePorts []int
	// Policy, if not nil, is what the fork may reach, in the place of what the
	// source may.
	Policy *NetworkPolicy
	// Live takes the files of a running source as they are at this moment,
	// instead of those of its current snapshot. Our own addition.
	Live bool
	// Memory takes what a running source runs along: the fork goes on with its
	// processes. Without a running source its current snapshot must have them.
	// Our own addition.
	Memory bool
}
