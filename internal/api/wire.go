package api

import (
	"encoding/json"

	"github.com/skerry-dev/skerry"
)

// The bodies of requests. Responses are the types of package skerry, in the
// envelopes at the end.

// scopeFields name the scope, see call.enter.
type scopeFields struct {
	ProjectID string `json:"projectId,omitempty" doc:"Id or name of the project. It may be left out if the token is for one project."`
	TeamID    string `json:"teamId,omitempty" doc:"Id or slug of the team, if the query does not name it."`
}

type resourcesRequest struct {
	VCPUs    *int `json:"vcpus,omitempty" min:"1" doc:"Number of virtual CPUs."`
	MemoryMB *int `json:"memory,omitempty" min:"1" doc:"Memory in MiB; 2048 for each virtual CPU by default."`
}

type sourceRequest struct {
	Type       string `json:"type" required:"true" enum:"git|tarball|snapshot" doc:"Kind of the source. A snapshot replaces the whole filesystem. The others are unpacked in the working directory."`
	URL        string `json:"url,omitempty" doc:"URL of the repository or tarball."`
	Depth      int    `json:"depth,omitempty" min:"1" doc:"Number of commits to fetch; all by default. For git only."`
	Revision   string `json:"revision,omitempty" doc:"Branch, tag or commit. For git only."`
	Username   string `json:"username,omitempty" doc:"User name for the repository. For git only."`
	Password   string `json:"password,omitempty" doc:"Password or access token for the repository. For git only."`
	SnapshotID string `json:"snapshotId,omitempty" doc:"Id of the snapshot. For snapshot only."`
}

// unbuiltFields are fields of features that this version does not support. A value is
// refused unless it asks for what happens anyway.
type unbuiltFields struct {
	NetworkID       any      `json:"networkId,omitempty" doc:"Not supported yet."`
	Region          string   `json:"region,omitempty" doc:"Only local is supported yet."`
	FailoverRegions []string `json:"failoverRegions,omitempty" doc:"Only an empty list is supported yet."`
}

// networkFields are the fields for the network policy.
type networkFields struct {
	NetworkPolicy *policyRequest `json:"networkPolicy,omitempty" doc:"Network policy of the sandbox; by default it may reach everything. An update is enforced at once in the running session, and in later ones."`
}

// idleFields are the fields for sessions that nobody uses.
type idleFields struct {
	Idle *skerry.IdleMode `json:"idle,omitempty" notnull:"true" enum:"default|never|pause|hibernate" doc:"When the server pauses a session that nobody uses, that is, one without requests, open streams, connections and packets for a time that the operator sets. The next use resumes it first, so clients do not notice; idleState shows the pause. default: as the operator has set, usually if no program runs in it. never: not at all. pause: also if the programs that run in it use almost no CPU time and have no open connections to the outside; it is resumed for their timers. hibernate: like pause, and a session that stays paused may be saved with its memory and taken off the machine, until its next use; with default, this may happen to a session in which no program runs. An update applies to the running session too. An addition to the public API."`
}

// tokenFields are the fields for what the sandbox's programs can show to others.
type tokenFields struct {
	OIDCAudience string `json:"oidcAudience,omitempty" doc:"Gives the sandbox's programs a workload token for this audience, such as sts.amazonaws.com: a JWT that this server signs, in the file that the environment variable SKERRY_OIDC_TOKEN_FILE names. It is good for an hour and replaced by a new one after half of that. Its subject is team:ID:project:ID:sandbox:NAME. It cannot be this server's own URL. By default there is none. In a fork, it replaces the source's audience. An addition to the public API."`
}

// mountRequest is a drive that is mounted at a path.
type mountRequest struct {
	Drive string           `json:"drive" required:"true" doc:"Name of an existing drive."`
	Mode  skerry.MountMode `json:"mode,omitempty" enum:"read-write|snapshot|read-only" doc:"read-write (the default) mounts the drive itself; only one session at a time can do so. snapshot mounts a read-only copy, made when the session starts. read-only is an old name of snapshot."`
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

// stateFields are the fields for what is kept of a sandbox's files.
type stateFields struct {
	Persistent         *bool             `json:"persistent,omitempty" doc:"Whether the filesystem is saved when a session ends, for the next session; true by default."`
	SnapshotExpiration *skerry.Duration  `json:"snapshotExpiration,omitempty" doc:"How long snapshots of the sandbox are kept, in ms; 30 days by default. 0: for ever."`
	KeepLastSnapshots  *retentionRequest `json:"keepLastSnapshots,omitempty" null:"ClearRetention" doc:"Rule for which of the sandbox's snapshots are kept. In an update, null removes the rule."`
	ClearRetention     bool              `json:"-"`
}

type retentionRequest struct {
	Count         int              `json:"count" required:"true" doc:"Number of newest snapshots to keep."`
	Expiration    *skerry.Duration `json:"expiration,omitempty" doc:"How long these are kept, in ms from their creation. 0: for ever."`
	DeleteEvicted *bool            `json:"deleteEvicted,omitempty" doc:"Whether all other snapshots are deleted at once; true by default. Otherwise they are kept for snapshotExpiration."`
}

func (r *retentionRequest) retention() *skerry.Retention {
	if r == nil {
		return nil
	}
	evicted := r.DeleteEvicted == nil || *r.DeleteEvicted
	return &skerry.Retention{Count: r.Count, Expiration: r.Expiration, DeleteEvicted: &evicted}
}

type createRequest struct {
	scopeFields
	unbuiltFields
	portFields
	networkFields
	stateFields
	idleFields
	tokenFields
	Name      string                  `json:"name,omitempty" doc:"Unique in the project; chosen by the server if absent."`
	Runtime   string                  `json:"runtime,omitempty" enum:"node24|node26|node22|python3.13" doc:"Runtime of the default image that is first on PATH. It cannot be combined with image."`
	Image     string                  `json:"image,omitempty" doc:"Reference of an OCI image in the installation; the default image if absent."`
	Source    *sourceRequest          `json:"source,omitempty" doc:"Source of the files in the working directory."`
	Timeout   *skerry.Duration        `json:"timeout,omitempty" doc:"Timeout of a session, in ms; 300000 by default."`
	Resources *resourcesRequest       `json:"resources,omitempty" doc:"Size of the machine."`
	Env       map[string]string       `json:"env,omitempty" doc:"Default environment of every command."`
	Tags      map[string]string       `json:"tags,omitempty" doc:"Labels for finding the sandbox."`
	Mounts    map[string]mountRequest `json:"mounts,omitempty" doc:"Drives by mount path, which must be absolute."`
}

// forkRequest has the fields that differ from the source.
type forkRequest struct {
	scopeFields
	unbuiltFields
	portFields
	networkFields
	stateFields
	idleFields
	tokenFields
	Name      string                  `json:"name,omitempty" doc:"Unique in the project; chosen by the server if absent."`
	Image     string                  `json:"image,omitempty" doc:"If given, it must be the source's image, because the source's files are a difference to it."`
	Timeout   *skerry.Duration        `json:"timeout,omitempty" doc:"Timeout of a session, in ms."`
	Resources *resourcesRequest       `json:"resources,omitempty" doc:"Size of the machine."`
	Env       map[string]string       `json:"env,omitempty" doc:"Replaces the source's environment."`
	Tags      map[string]string       `json:"tags,omitempty" doc:"Replaces the source's tags."`
	Mounts    map[string]mountRequest `json:"mounts,omitempty" doc:"Replaces the source's drives. If absent, the fork has snapshots of these drives."`
	Live      bool                    `json:"live,omitempty" doc:"Use the present files of a running source instead of the files of its current snapshot. An addition to the public API."`
	Memory    bool                    `json:"memory,omitempty" doc:"Copy the processes of a running source too, with their memory. The source is not stopped. The processes continue in the fork, in a network of its own: their connections are closed, the source's commands are not listed in the fork, and the output of these commands is dropped there. The fork must have the size of the source. If the source is not running, its current snapshot must include memory. A session with drives cannot be forked in this way (409 conflict). An addition to the public API."`
}

type snapshotRequest struct {
	Expiration *skerry.Duration `json:"expiration,omitempty" doc:"How long it is kept, in ms. 0: for ever. By default the snapshotExpiration of the sandbox."`
	Memory     bool             `json:"memory,omitempty" doc:"Save the running processes too, with their memory. They continue in each session that starts from the snapshot, in a network and with a hostname of its own. Their connections are closed. Commands belong to the session in which they were started: they are not listed in the new session, and their output there is dropped. A sandbox that starts from the snapshot must have the same size, and the server the version of the isolation that took the snapshot (422 snapshot_incompatible). A session with drives cannot be saved in this way (409 conflict). An addition to the public API."`
}

type updateRequest struct {
	scopeFields
	unbuiltFields
	portFields
	networkFields
	stateFields
	idleFields
	CurrentSnapshotID *string                 `json:"currentSnapshotId,omitempty" doc:"Id of the snapshot that the next session starts from."`
	Timeout           *skerry.Duration        `json:"timeout,omitempty" notnull:"true" doc:"Timeout of the next session, in ms."`
	Resources         *resourcesRequest       `json:"resources,omitempty" notnull:"true" doc:"Size of the next session's machine."`
	Env               map[string]string       `json:"env,omitempty" notnull:"true" doc:"Replaces the default environment."`
	Tags              map[string]string       `json:"tags,omitempty" notnull:"true" doc:"Replaces the tags."`
	Mounts            map[string]mountRequest `json:"mounts,omitempty" notnull:"true" doc:"Replaces the drives of the next session; an empty object removes all."`
}

type driveRequest struct {
	scopeFields
	Region       string `json:"region,omitempty" doc:"Only local is supported."`
	MaxSizeBytes int64  `json:"maxSizeBytes,omitempty" min:"1" doc:"Size of a new drive in bytes, including the filesystem's own data. The size of an existing drive does not change."`
}

type forkDriveRequest struct {
	scopeFields
	Name string `json:"name" required:"true" doc:"Name of the new drive, unique in its project."`
}

type extendRequest struct {
	Duration skerry.Duration `json:"duration" required:"true" doc:"Duration to add to the session's timeout, in ms."`
}

type runRequest struct {
	Command     string            `json:"command" required:"true" minlen:"1" doc:"Path or name of the program."`
	Args        []string          `json:"args,omitempty" doc:"Arguments of the program."`
	Cwd         string            `json:"cwd,omitempty" doc:"Working directory; /vercel/sandbox by default."`
	Env         map[string]string `json:"env,omitempty" doc:"Added to the sandbox's environment; overrides variables of the same name."`
	Sudo        bool              `json:"sudo,omitempty" doc:"Run as root."`
	Wait        bool              `json:"wait,omitempty" doc:"Respond with a stream that ends when the command ends."`
	Logs        bool              `json:"logs,omitempty" doc:"With wait=true: stream the output too."`
	Timeout     *skerry.Duration  `json:"timeout,omitempty" doc:"Time in ms after which the command is killed with SIGKILL; never if absent."`
	AttachStdin bool              `json:"attachStdin,omitempty" doc:"Attach a standard input, to be written with writeStdin. Otherwise standard input is empty."`
}

type stdinRequest struct {
	Data   string `json:"data,omitempty" doc:"Bytes to write, in base64; nothing if absent."`
	Offset *int64 `json:"offset,omitempty" min:"0" doc:"Offset in the input at which data begins. Bytes that were written already are skipped, so a call can be repeated. An offset beyond the bytes written so far is refused."`
	Close  bool   `json:"close,omitempty" doc:"Close the input after data."`
}

type stdinResponse struct {
	BytesWritten int64 `json:"bytesWritten" doc:"Total number of input bytes written to the command."`
}

type killRequest struct {
	Signal signalNumber `json:"signal,omitempty" doc:"Signal number, or a name such as SIGKILL; SIGTERM by default."`
}

type readRequest struct {
	Path string `json:"path" required:"true" minlen:"1" doc:"File to read."`
	Cwd  string `json:"cwd,omitempty" doc:"Directory that a relative path starts from; /vercel/sandbox by default."`
}

type mkdirRequest struct {
	Path      string `json:"path" required:"true" minlen:"1" doc:"Directory to create."`
	Cwd       string `json:"cwd,omitempty" doc:"Directory that a relative path starts from; /vercel/sandbox by default."`
	Recursive bool   `json:"recursive,omitempty" doc:"Create missing parents too, and accept an existing directory."`
}

type projectRequest struct {
	Name string `json:"name" required:"true" minlen:"1" doc:"Name of the project: lower-case letters, digits, hyphens, dots and underscores; unique in its team."`
}

// Query parameters.

type scopeQuery struct {
	TeamID    string `json:"teamId" doc:"Id or slug of the team; the caller's first team by default."`
	Slug      string `json:"slug" doc:"Slug of the team."`
	ProjectID string `json:"projectId" doc:"Id or name of the project. It may be left out if the token is for one project, or if the path has the id of a session or snapshot."`
	Project   string `json:"project" doc:"Same as projectId."`
}

type getSandboxQuery struct {
	Resume bool `json:"resume" doc:"Start a session if none is running; wait for a stop in progress first."`
}

// stopQuery is the query of stopSession.
type stopQuery struct {
	Force bool `json:"force" doc:"End the session at once, without saving it. A save in progress is abandoned, and the sandbox keeps its last snapshot. An addition to the public API."`
}

type deleteSandboxQuery struct {
	DeleteOrphanSnapshots bool `json:"deleteOrphanSnapshots" doc:"Also delete snapshots of the sandbox that nothing else uses."`
}

type listSnapshotsQuery struct {
	Limit     int    `json:"limit" min:"1" max:"100" doc:"Size of a page, 50 by default."`
	Cursor    string `json:"cursor" doc:"Value of next from the previous page."`
	SortOrder string `json:"sortOrder" enum:"asc|desc" doc:"Order by creation time; desc by default."`
	Name      string `json:"name" doc:"Only snapshots of the sandbox with this name."`
	Deleted   *bool  `json:"deleted" doc:"Whether to include deleted and expired snapshots; true by default. They are listed for 30 days. An addition to the public API."`
}

type listDrivesQuery struct {
	Limit      int    `json:"limit" min:"1" max:"100" doc:"Size of a page, 50 by default."`
	Cursor     string `json:"cursor" doc:"Value of next from the previous page."`
	SortBy     string `json:"sortBy" enum:"createdAt|updatedAt|name" doc:"Field to order by; createdAt by default."`
	SortOrder  string `json:"sortOrder" enum:"asc|desc" doc:"desc by default."`
	NamePrefix string `json:"namePrefix" doc:"Only items whose name has this prefix."`
}

type treeQuery struct {
	SnapshotID string `json:"snapshotId" required:"true" minlen:"1" doc:"Id of the snapshot to start at, or the value of next from the previous page."`
	Limit      int    `json:"limit" min:"1" max:"100" doc:"Size of a page, 50 by default."`
	SortOrder  string `json:"sortOrder" enum:"asc|desc" doc:"desc (the default) lists the ancestors, asc the descendants."`
}

type listSandboxesQuery struct {
	Limit      int      `json:"limit" min:"1" max:"100" doc:"Size of a page, 50 by default."`
	Cursor     string   `json:"cursor" doc:"Value of next from the previous page."`
	SortBy     string   `json:"sortBy" enum:"createdAt|name|statusUpdatedAt|currentSnapshotId" doc:"Field to order by; createdAt by default."`
	SortOrder  string   `json:"sortOrder" enum:"asc|desc" doc:"desc by default."`
	NamePrefix string   `json:"namePrefix" doc:"Only items whose name has this prefix."`
	Tags       []string `json:"tags" doc:"Only sandboxes with this tag, in the form key:value. If repeated, a sandbox must have all of them."`
}

type listSessionsQuery struct {
	Name      string `json:"name" doc:"Only sessions of the sandbox with this name."`
	Limit     int    `json:"limit" min:"1" max:"100" doc:"Size of a page, 50 by default."`
	Cursor    string `json:"cursor" doc:"Value of next from the previous page."`
	SortOrder string `json:"sortOrder" enum:"asc|desc" doc:"desc by default."`
}

type listCommandsQuery struct {
	Limit     int    `json:"limit" min:"1" max:"100" doc:"Size of a page, 50 by default."`
	Cursor    string `json:"cursor" doc:"Value of next from the previous page."`
	SortOrder string `json:"sortOrder" enum:"asc|desc" doc:"Order by start time; asc by default."`
}

// outputQuery is the query of calls that respond with the output of a command.
type outputQuery struct {
	Offsets bool `json:"offsets" doc:"Add to each output line its offset in its stream and the offset of the next one. An addition to the public API."`
}

type logsQuery struct {
	Offsets      bool  `json:"offsets" doc:"Add to each output line its offset in its stream and the offset of the next one. An addition to the public API."`
	StdoutOffset int64 `json:"stdoutOffset" min:"0" doc:"Skip standard output before this offset, in bytes. An addition to the public API."`
	StderrOffset int64 `json:"stderrOffset" min:"0" doc:"Skip standard error before this offset, in bytes. An addition to the public API."`
}

type getCommandQuery struct {
	Wait bool `json:"wait" doc:"Respond when the command has ended."`
}

type terminalQuery struct {
	Token string `json:"token" required:"true" doc:"Token from openInteractive. It can be used once, within 60 seconds."`
}

// Envelopes of responses.

type pagination struct {
	Count int     `json:"count" doc:"Number of items on this page."`
	Next  *string `json:"next" doc:"Cursor of the next page; null on the last page."`
}

// sessionView is a session in a response.
type sessionView struct {
	skerry.Session
	ProjectID string `json:"projectId"`
	// SourceSandboxName is read by the Python client.
	SourceSandboxName string `json:"sourceSandboxName,omitempty"`
	// InteractivePort is the port for terminals, which is the server's own port. The
	// public CLI requires it.
	InteractivePort int `json:"interactivePort"`
}

type runResponse struct {
	Sandbox skerry.Sandbox `json:"sandbox"`
	Session sessionView    `json:"session"`
	Routes  []skerry.Route `json:"routes"`
	Resumed bool           `json:"resumed,omitempty" doc:"True if this call started the session."`
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

// pauseResponse is the response of pause and resume.
type pauseResponse struct {
	Session sessionView `json:"session"`
}

type extendResponse struct {
	Session sessionView `json:"session"`
}

type stopResponse struct {
	Session  sessionView      `json:"session"`
	Sandbox  skerry.Sandbox   `json:"sandbox"`
	Snapshot *skerry.Snapshot `json:"snapshot,omitempty" doc:"Snapshot taken by this stop, or by a concurrent one that this call joined."`
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

// treeNode has its count in a string, as in the public API.
type treeNode struct {
	Snapshot skerry.Snapshot   `json:"snapshot"`
	Siblings []skerry.Snapshot `json:"siblings" doc:"Up to 10 of the newest other snapshots with the same parent."`
	Count    string            `json:"count" doc:"Number of snapshots with this parent, including this one."`
}

type treeResponse struct {
	Snapshots  []treeNode `json:"snapshots"`
	Anchor     *treeNode  `json:"anchor,omitempty" doc:"Snapshot at which the list starts."`
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
	Commands   []skerry.Command `json:"commands"`
	Pagination pagination       `json:"pagination"`
}

type interactiveResponse struct {
	URL   string `json:"url" doc:"URL of the WebSocket. Open it with ?token= and the token."`
	Token string `json:"token" doc:"Token for the WebSocket. It can be used once, within 60 seconds."`
}

type emptyResponse struct{}

type statusResponse struct {
	Status string `json:"status"`
}

// logLine is a line of output.
type logLine struct {
	Stream string `json:"stream" enum:"stdout|stderr"`
	Offset *int64 `json:"offset,omitempty" doc:"With offsets=true: offset of data in the stream, in bytes as written by the command."`
	Next   *int64 `json:"next,omitempty" doc:"With offsets=true: offset in the stream at which the next output begins."`
	Data   string `json:"data"`
}

// errorLine is the last line of a stream that failed after its beginning.
type errorLine struct {
	Stream string    `json:"stream" enum:"error"`
	Data   errorBody `json:"data"`
}

// documentResponse is the OpenAPI document.
type documentResponse map[string]json.RawMessage
