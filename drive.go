package skerry

// Limits and defaults of drives.
const (
	// DefaultDriveSize is the size of a drive whose creator does not say, and
	// MaxDriveSize the largest, unless the installation sets others.
	DefaultDriveSize = 10 << 30
	MaxDriveSize     = 1 << 40
	// MinDriveSize has room for a filesystem and a little more.
	MinDriveSize = 16 << 20
	// MaxMounts bounds how many drives a sandbox mounts.
	MaxMounts = 16
)

// Drive is a volume that outlives the sandboxes that it is mounted in.
type Drive struct {
	ID        string `json:"id"`
	Scope     Scope  `json:"-"`
	Name      string `json:"name"`
	ProjectID string `json:"projectId"`
	Region    string `json:"region"`
	// MaxSizeBytes bounds what is in the drive, with what its filesystem needs
	// for itself.
	MaxSizeBytes int64 `json:"maxSizeBytes"`
	// CurrentSessionID is the session that has the drive for writing, and
	// CurrentSandboxName the sandbox that it is a run of; empty if none has.
	CurrentSessionID   string `json:"currentSessionId,omitempty"`
	CurrentSandboxName string `json:"currentSandboxName,omitempty"`

	// ParentDriveID is the drive that this one was forked from, and RootDriveID
	// the first of that line; empty for a drive that began empty. Either may have
	// been deleted.
	ParentDriveID string `json:"parentDriveId,omitempty"`
	RootDriveID   string `json:"rootDriveId,omitempty"`

	CreatedAt Time `json:"createdAt"`
	UpdatedAt Time `json:"updatedAt"`
}

// MountMode is how a sandbox has a drive.
type MountMode string

// The modes of a mount.
const (
	// MountReadWrite has the drive itself; one session has at a time.
	MountReadWrite MountMode = "read-write"
	// MountSnapshot has a copy of the drive as it was when the session
	// started, which cannot be written to.
	MountSnapshot MountMode = "snapshot"
)

// Mount is a drive at a path of a sandbox.
type Mount struct {
	// Drive is its name.
	Drive string    `json:"drive"`
	Mode  MountMode `json:"mode"`
}

// DriveParams is the drive that a client wants to have.
type DriveParams struct {
	Name string
	// MaxSizeBytes is the size of one that has to be made; 0 is the default.
	MaxSizeBytes int64
}

// DriveFilter narrows and orders a listing of drives.
type DriveFilter struct {
	Page
	// SortBy is "createdAt" (default), "updatedAt" or "name".
	SortBy     string
	NamePrefix string
}
