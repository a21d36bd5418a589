package skerry

// Limits and defaults of drives.
const (
	// DefaultDriveSize is the size of a new drive, MaxDriveSize the maximum, unless
	// the installation sets others.
	DefaultDriveSize = 10 << 30
	MaxDriveSize     = 1 << 40
	// MinDriveSize is the minimum: an ext4 filesystem and some files fit in.
	MinDriveSize = 16 << 20
	// MaxMounts limits the drives of a sandbox. Each is a loop device and a mount
	// of the host.
	MaxMounts = 16
)

// Drive is a volume that outlives the sandboxes that mount it.
type Drive struct {
	ID        string `json:"id"`
	Scope     Scope  `json:"-"`
	Name      string `json:"name"`
	ProjectID string `json:"projectId"`
	Region    string `json:"region"`
	// MaxSizeBytes is the size of the drive, including the filesystem's own data.
	MaxSizeBytes int64 `json:"maxSizeBytes"`
	// CurrentSessionID is the session that has mounted the drive read-write, and
	// CurrentSandboxName the session's sandbox. Both are empty if there is none.
	CurrentSessionID   string `json:"currentSessionId,omitempty"`
	CurrentSandboxName string `json:"currentSandboxName,omitempty"`

	// ParentDriveID is the drive that this one was forked from, and RootDriveID the
	// first drive in the chain of forks. Both are empty for a drive that was created
	// empty. Either drive may have been deleted.
	ParentDriveID string `json:"parentDriveId,omitempty"`
	RootDriveID   string `json:"rootDriveId,omitempty"`

	CreatedAt Time `json:"createdAt"`
	UpdatedAt Time `json:"updatedAt"`
}

// MountMode is how a drive is mounted.
type MountMode string

// The modes of a mount.
const (
	// MountReadWrite mounts the drive itself; at most one session at a time.
	MountReadWrite MountMode = "read-write"
	// MountSnapshot mounts a read-only copy of the drive, made when the session
	// starts.
	MountSnapshot MountMode = "snapshot"
)

// Mount is a drive that is mounted in a sandbox.
type Mount struct {
	// Drive is the drive's name.
	Drive string    `json:"drive"`
	Mode  MountMode `json:"mode"`
}

// DriveParams are the parameters of GetOrCreateDrive.
type DriveParams struct {
	Name string
	// MaxSizeBytes is the size of a new drive; 0 is the default.
	MaxSizeBytes int64
}

// DriveFilter filters and sorts a listing of drives.
type DriveFilter struct {
	Page
	// SortBy is "createdAt" (default), "updatedAt" or "name".
	SortBy     string
	NamePrefix string
}
