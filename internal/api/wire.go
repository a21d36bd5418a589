package api

import (
	"encoding/json"

	"github.com/skerry-dev/skerry"
)

// The bodies of requests. Responses are the types of package skerry, in the
// envelopes at the end.

// scopeFields are what a body may say of its scope; the token decides, so they
// can only agree with it.
type scopeFields struct {
	ProjectID string `json:"projectId,omitempty" doc:"Id or name of the token's own project."`
	TeamID    string `json:"teamId,omitempty" doc:"Id or slug of the token's own team."`
}

type resourcesRequest struct {
	VCPUs    *int `json:"vcpus,omitempty" min:"1" max:"1024" doc:"Virtual CPUs."`
	MemoryMB *int `json:"memory,omitempty" min:"1" max:"16777216" doc:"Memory in MiB; 2048 for each virtual CPU by default."`
}

type sourceRequest struct {
	Type       string `json:"type" required:"true" enum:"git|tarball|snapshot" doc:"What the source is. The files of a snapshot are the whole filesystem; the others are unpacked in the working directory."`
	URL        string `json:"url,omitempty" doc:"Of the repository or tarball."`
	Depth      int    `json:"depth,omitempty" min:"1" doc:"Commits to fetch, all by default; git alone."`
	Revision   string `json:"revision,omitempty" doc:"Branch, tag or commit; git alone."`
	Username   string `json:"username,omitempty" doc:"For the repository; git alone."`
	Password   string `json:"password,omitempty" doc:"For the repository; git alone."`
	SnapshotID string `json:"snapshotId,omitempty" doc:"The snapshot; snapshot alone."`
}

// unbuiltFields are the fields of sandboxes whose features are not in this
// version. Each is refused by name unless what it asks for is what happens
// anyway.
type unbuiltFields struct {
	NetworkID       any      `json:"networkId,omitempty" doc:"Not supported yet."`
	Region          string   `json:"region,omitempty" doc:"Only local is supported yet."`
	FailoverRegions []string `json:"failoverRegions,omitempty" doc:"Only an empty list is supported yet."`
}

// networkFields say what a sandbox may reach.
type networkFields struct {
	NetworkPolicy *policyRequest `json:"networkPolicy,omitempty" doc:"What the sandbox may reach; everything by default. In an update it is enforced at once in the session that runs, and in later ones."`
}

// mountRequest is a drive at a path.
type mountRequest struct {
	Drive string           `json:"drive" required:"true" doc:"Name of the drive, which must exist."`
	Mode  skerry.MountMode `json:"mode,omitempty" enum:"read-write|snapshot|read-only" doc:"read-write, the default, has the drive itself, which one session has at a time; snapshot has a copy of it as it is when the session starts, for reading. read-only is an old name of snapshot."`
}

func mountsOf(m map[string]mountRequest) map[string]skerry.Mount {
	if m == nil {
		return nil
	}
	mounts := make(map[string]skerry.Mount, len(m))
	for at, r := range m {
		mounts[at] = skerry.Mount{Drive: r.Drive, Mode: r.Mode}
	}
	return mounts
}

// stateFields say what becomes of a sandbox's files.
type stateFields struct {
	Persistent         *bool             `json:"persistent,omitempty" doc:"Whether the filesystem is kept when a session ends, for the next one; true by default."`
	SnapshotExpiration *skerry.Duration  `json:"snapshotExpiration,omitempty" doc:"How long snapshots of the sandbox are kept, in ms; 0 is for ever, 30 days by default."`
	KeepLastSnapshots  *retentionRequest `json:"keepLastSnapshots,omitempty" null:"ClearRetention" doc:"Which of the sandbox's snapshots are kept. In an update, null lifts it."`
	ClearRetention     bool              `json:"-"`
}

type retentionRequest struct {
	Count         int              `json:"count" required:"true" min:"1" max:"10" doc:"How many of the newest are kept."`
	Expiration    *skerry.Duration `json:"expiration,omitempty" doc:"How long those are kept, in ms from their creation; 0 is for ever."`
	DeleteEvicted *bool            `json:"deleteEvicted,omitempty" doc:"Whether the others are deleted at once; otherwise they are kept as snapshotExpiration says. True by default."`
}

func (r *retentionRequest) retention() *skerry.Retention {
	if r == nil {
		return nil
	}
	return &skerry.Retention{Count: r.Count, Expiration: r.Expiration, DeleteEvicted: r.DeleteEvicted}
}

type createRequest struct {
	scopeFields
	unbuiltFields
	portFields
	networkFields
	stateFields
	Name      string                  `json:"name,omitempty" doc:"Unique in the project; chosen by the server if absent."`
	Runtime   string                  `json:"runtime,omitempty" enum:"node24|node22|python3.13" doc:"Runtime of the default image that is first on PATH; not together with image."`
	Image     string                  `json:"image,omitempty" doc:"Reference of an OCI image of the installation, the default image if absent."`
	Source    *sourceRequest          `json:"source,omitempty" doc:"What the working directory is filled from."`
	Timeout   *skerry.Duration        `json:"timeout,omitempty" doc:"How long a session lives, in ms; 300000 by default."`
	Resources *resourcesRequest       `json:"resources,omitempty" doc:"Size of the machine."`
	Env       map[string]string       `json:"env,omitempty" doc:"Default environment of every command."`
	Tags      map[string]string       `json:"tags,omitempty" doc:"Labels to find the sandbox by."`
	Mounts    map[string]mountRequest `json:"mounts,omitempty" doc:"Drives, by the absolute path that each is at."`
}

// forkRequest has what shall be otherwise than in the source.
type forkRequest struct {
	scopeFields
	unbuiltFields
	portFields
	networkFields
	stateFields
	Name      string                  `json:"name,omitempty" doc:"Unique in the project; chosen by the server if absent."`
	Image     string                  `json:"image,omitempty" doc:"Can only be the source's: its files stand on it."`
	Timeout   *skerry.Duration        `json:"timeout,omitempty" doc:"How long a session lives, in ms."`
	Resources *resourcesRequest       `json:"resources,omitempty" doc:"Size of the machine."`
	Env       map[string]string       `json:"env,omitempty" doc:"Replaces the source's environment."`
	Tags      map[string]string       `json:"tags,omitempty" doc:"Replaces the source's tags."`
	Mounts    map[string]mountRequest `json:"mounts,omitempty" doc:"Replaces the source's drives, of which the fork has snapshots otherwise."`
	Live      bool                    `json:"live,omitempty" doc:"Take the files of a running source as they are now, instead of those of its current snapshot. An addition to the public API."`
	Memory    bool                    `json:"memory,omitempty" doc:"Go on with the processes of a running source, which is not stopped, from this moment, in a network of the fork's own: connections of the source are cut off, its commands are not listed, and what they print is dropped. The size cannot be another. Without a running source its current snapshot must hold memory. A session that was itself started from memory, or that has outlived a restart of the server, cannot be forked so (409 conflict). An addition to the public API."`
}

type snapshotRequest struct {
	Expiration *skerry.Duration `json:"expiration,omitempty" doc:"How long it is kept, in ms; 0 is for ever. As the sandbox says by default."`
	Memory     bool             `json:"memory,omitempty" doc:"Save what runs too: a session that starts from the snapshot goes on with the processes, in a network and under a name of its own. Connections that they had are cut off; commands belong to the session that they were started in, are not listed in the new one, and what they print there is dropped. It can start in a machine of the same size alone, and only with the version of the isolation that it was taken with (422 snapshot_incompatible). A session that was itself started from memory, or that has outlived a restart of the server, cannot be saved so (409 conflict). An addition to the public API."`
}

type updateRequest struct {
	scopeFields
	unbuiltFields
	portFields
	networkFields
	stateFields
	CurrentSnapshotID *string                 `json:"currentSnapshotId,omitempty" doc:"The snapshot that the next session starts from."`
	Timeout           *skerry.Duration        `json:"timeout,omitempty" notnull:"true" doc:"How long the next session lives, in ms."`
	Resources         *resourcesRequest       `json:"resources,omitempty" notnull:"true" doc:"Size of the next session's machine."`
	Env               map[string]string       `json:"env,omitempty" notnull:"true" doc:"Replaces the default environment."`
	Tags              map[string]string       `json:"tags,omitempty" notnull:"true" doc:"Replaces the tags."`
	Mounts            map[string]mountRequest `json:"mounts,omitempty" notnull:"true" doc:"Replaces the drives of the next session; an empty object leaves none."`
}

type driveRequest struct {
	scopeFields
	Region       string `json:"region,omitempty" doc:"Only local is supported."`
	MaxSizeBytes int64  `json:"maxSizeBytes,omitempty" min:"1" doc:"Size of a new drive, with what its filesystem needs for itself. The size of one that exists stays as it is."`
}

type forkDriveRequest struct {
	scopeFields
	Name string `json:"name" required:"true" doc:"Name of the new drive, unique in its project."`
}

type extendRequest struct {
	Duration skerry.Duration `json:"duration" required:"true" doc:"What to add to the session's timeout, in ms."`
}

type runRequest struct {
	Command     string            `json:"command" required:"true" doc:"Path or name of the program."`
	Args        []string          `json:"args,omitempty" doc:"Its arguments."`
	Cwd         string            `json:"cwd,omitempty" doc:"Directory to run in; /vercel/sandbox by default."`
	Env         map[string]string `json:"env,omitempty" doc:"Added to the sandbox's environment, and wins over it."`
	Sudo        bool              `json:"sudo,omitempty" doc:"Run as root."`
	Wait        bool              `json:"wait,omitempty" doc:"Answer with a stream that ends with the command."`
	Logs        bool              `json:"logs,omitempty" doc:"With wait: stream the output too."`
	Timeout     *skerry.Duration  `json:"timeout,omitempty" doc:"After how many ms the command is killed with SIGKILL; never if absent."`
	AttachStdin bool              `json:"attachStdin,omitempty" doc:"Give it a standard input that is written to by calls of its own; without, it is empty."`
}

type stdinRequest struct {
	Data   string `json:"data,omitempty" doc:"What to write, in base64; nothing if absent."`
	Offset *int64 `json:"offset,omitempty" min:"0" doc:"Where in the input data begins. What was taken of it before is skipped, so that a call can be repeated; more than was taken is refused."`
	Close  bool   `json:"close,omitempty" doc:"End the input after data."`
}

type stdinResponse struct {
	BytesWritten int64 `json:"bytesWritten" doc:"How much of the input the command was given in all."`
}

type killRequest struct {
	Signal signalNumber `json:"signal,omitempty" doc:"Number, or name such as SIGKILL; SIGTERM by default."`
}

type readRequest struct {
	Path string `json:"path" required:"true" doc:"File to read."`
	Cwd  string `json:"cwd,omitempty" doc:"Where a relative path starts; /vercel/sandbox by default."`
}

type mkdirRequest struct {
	Path      string `json:"path" required:"true" doc:"Directory to make."`
	Cwd       string `json:"cwd,omitempty" doc:"Where a relative path starts; /vercel/sandbox by default."`
	Recursive bool   `json:"recursive,omitempty" doc:"Make parents too, and accept a directory that exists."`
}

type projectRequest struct {
	Name string `json:"name" required:"true" doc:"The token's own project, or vercel-sandbox-default-project."`
}

// Query parameters.

type scopeQuery struct {
	TeamID    string `json:"teamId" doc:"Id of the token's own team."`
	Slug      string `json:"slug" doc:"Slug of the token's own team."`
	ProjectID string `json:"projectId" doc:"Id or name of the token's own project."`
	Project   string `json:"project" doc:"Id or name of the token's own project."`
}

type getSandboxQuery struct {
	Resume bool `json:"resume" doc:"Start a session if none runs, after the stop in progress."`
}

type deleteSandboxQuery struct {
	DeleteOrphanSnapshots bool `json:"deleteOrphanSnapshots" doc:"Delete snapshots that nothing else uses."`
}

type listSnapshotsQuery struct {
	Limit     int    `json:"limit" min:"1" max:"100" doc:"Size of a page, 50 by default."`
	Cursor    string `json:"cursor" doc:"The next of the page before."`
	SortOrder string `json:"sortOrder" enum:"asc|desc" doc:"By creation; desc by default."`
	Name      string `json:"name" doc:"Snapshots of the sandbox of that name alone."`
}

type listDrivesQuery struct {
	Limit      int    `json:"limit" min:"1" max:"100" doc:"Size of a page, 50 by default."`
	Cursor     string `json:"cursor" doc:"The next of the page before."`
	SortBy     string `json:"sortBy" enum:"createdAt|updatedAt|name" doc:"What to order by, createdAt by default."`
	SortOrder  string `json:"sortOrder" enum:"asc|desc" doc:"desc by default."`
	NamePrefix string `json:"namePrefix" doc:"What names start with."`
}

type treeQuery struct {
	SnapshotID string `json:"snapshotId" required:"true" doc:"Where the walk begins, and the next of the page before."`
	Limit      int    `json:"limit" min:"1" max:"100" doc:"Size of a page, 50 by default."`
	SortOrder  string `json:"sortOrder" enum:"asc|desc" doc:"desc, the default, walks to the ancestors, asc to the descendants."`
}

type listSandboxesQuery struct {
	Limit      int      `json:"limit" min:"1" max:"100" doc:"Size of a page, 50 by default."`
	Cursor     string   `json:"cursor" doc:"The next of the page before."`
	SortBy     string   `json:"sortBy" enum:"createdAt|name|statusUpdatedAt|currentSnapshotId" doc:"What to order by, createdAt by default."`
	SortOrder  string   `json:"sortOrder" enum:"asc|desc" doc:"desc by default."`
	NamePrefix string   `json:"namePrefix" doc:"What names start with."`
	Tags       []string `json:"tags" doc:"key:value that a sandbox must carry; all of them if repeated."`
}

type listSessionsQuery struct {
	Name      string `json:"name" doc:"The only sandbox whose sessions are listed."`
	Limit     int    `json:"limit" min:"1" max:"100" doc:"Size of a page, 50 by default."`
	Cursor    string `json:"cursor" doc:"The next of the page before."`
	SortOrder string `json:"sortOrder" enum:"asc|desc" doc:"desc by default."`
}

type getCommandQuery struct {
	Wait bool `json:"wait" doc:"Answer once the command has finished."`
}

type terminalQuery struct {
	Token string `json:"token" required:"true" doc:"The token of the interactive call; good once, for 60 seconds."`
}

// Envelopes of responses.

type pagination struct {
	Count int     `json:"count" doc:"Items on this page."`
	Next  *string `json:"next" doc:"Cursor of the next page, null on the last."`
}

// sessionView is a session as the clients know it.
type sessionView struct {
	skerry.Session
	ProjectID string `json:"projectId"`
	// SourceSandboxName is the name that the Python client reads.
	SourceSandboxName string `json:"sourceSandboxName,omitempty"`
	// InteractivePort is where terminals are served, which is this server's
	// own port. The public CLI takes a session without one for broken.
	InteractivePort int `json:"interactivePort"`
}

type runResponse struct {
	Sandbox skerry.Sandbox `json:"sandbox"`
	Session sessionView    `json:"session"`
	Routes  []skerry.Route `json:"routes"`
	Resumed bool           `json:"resumed,omitempty" doc:"This call started the session."`
}

type sandboxResponse struct {
	Sandbox skerry.Sandbox `json:"sandbox"`
	Routes  []skerry.Route `json:"routes"`
}

type sandboxesResponse struct {
	Sandboxes  []skerry.Sandbox `json:"sandboxes"`
	Pagination pagination       `json:"pagination"`
}

type sessionResponse struct {
	Session sessionView    `json:"session"`
	Routes  []skerry.Route `json:"routes"`
}

// pauseResponse answers pause and resume.
type pauseResponse struct {
	Session sessionView `json:"session"`
}

type extendResponse struct {
	Session sessionView `json:"session"`
}

type stopResponse struct {
	Session  sessionView      `json:"session"`
	Sandbox  skerry.Sandbox   `json:"sandbox"`
	Snapshot *skerry.Snapshot `json:"snapshot,omitempty" doc:"What the stop has saved, if this call or one that it joined did."`
}

type createSnapshotResponse struct {
	Snapshot skerry.Snapshot `json:"snapshot"`
	Session  sessionView     `json:"session"`
}

type snapshotResponse struct {
	Snapshot skerry.Snapshot `json:"snapshot"`
}

type snapshotsResponse struct {
	Snapshots  []skerry.Snapshot `json:"snapshots"`
	Pagination pagination        `json:"pagination"`
}

type driveResponse struct {
	Drive skerry.Drive `json:"drive"`
}

type drivesResponse struct {
	Drives     []skerry.Drive `json:"drives"`
	Pagination pagination     `json:"pagination"`
}

// treeNode counts in a string, as the public API does.
type treeNode struct {
	Snapshot skerry.Snapshot   `json:"snapshot"`
	Siblings []skerry.Snapshot `json:"siblings" doc:"Up to 10 of the newest others with the same parent."`
	Count    string            `json:"count" doc:"How many have this parent, this one included."`
}

type treeResponse struct {
	Snapshots  []treeNode `json:"snapshots"`
	Anchor     *treeNode  `json:"anchor,omitempty" doc:"The snapshot that the walk began at."`
	Pagination pagination `json:"pagination"`
}

type sessionsResponse struct {
	Sessions   []sessionView `json:"sessions"`
	Pagination pagination    `json:"pagination"`
}

type commandResponse struct {
	Command skerry.Command `json:"command"`
}

type commandsResponse struct {
	Commands []skerry.Command `json:"commands"`
}

type interactiveResponse struct {
	URL   string `json:"url" doc:"WebSocket to open with ?token= and the token."`
	Token string `json:"token" doc:"Good once, for 60 seconds."`
}

type emptyResponse struct{}

type statusResponse struct {
	Status string `json:"status"`
}

// logLine is one line of a command's output.
type logLine struct {
	Stream string `json:"stream" enum:"stdout|stderr"`
	Data   string `json:"data"`
}

// errorLine ends a stream that failed after it began.
type errorLine struct {
	Stream string    `json:"stream" enum:"error"`
	Data   errorBody `json:"data"`
}

type userResponse struct {
	User user `json:"user"`
}

type user struct {
	ID            string `json:"id"`
	Username      string `json:"username"`
	DefaultTeamID string `json:"defaultTeamId"`
}

// teamView is a team with what the clients look for when they choose one: a
// role and a plan under which they may make a project.
type teamView struct {
	skerry.Team
	Membership membership `json:"membership"`
	Billing    billing    `json:"billing"`
}

type membership struct {
	Role string `json:"role"`
}

type billing struct {
	Plan string `json:"plan"`
}

type teamsResponse struct {
	Teams      []teamView     `json:"teams"`
	Pagination teamPagination `json:"pagination"`
}

type teamPagination struct {
	Count int          `json:"count"`
	Next  *skerry.Time `json:"next" doc:"Always null: a token has one team."`
}

// documentResponse is the OpenAPI document.
type documentResponse map[string]json.RawMessage
