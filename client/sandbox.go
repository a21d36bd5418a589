package client

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
)

// Sandbox is a sandbox, with the last description that the server sent.
type Sandbox struct {
	c    *Client
	name string

	mu      sync.Mutex // guards the fields below
	info    skerry.Sandbox
	session skerry.Session
	routes  []skerry.Route
	resumed bool
}

// runBody is the response of calls that return a sandbox with its session.
type runBody struct {
	Sandbox skerry.Sandbox `json:"sandbox"`
	Session skerry.Session `json:"session"`
	Routes  []skerry.Route `json:"routes"`
	Resumed bool           `json:"resumed"`
}

func newSandbox(c *Client, run runBody) *Sandbox {
	sb := &Sandbox{c: c, name: run.Sandbox.Name}
	sb.set(run)
	return sb
}

func (sb *Sandbox) set(run runBody) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	sb.info, sb.session, sb.routes = run.Sandbox, run.Session, run.Routes
	sb.resumed = sb.resumed || run.Resumed
}

// Name returns the name, unique in the project.
func (sb *Sandbox) Name() string { return sb.name }

// Info returns the sandbox as in the last response about it.
func (sb *Sandbox) Info() skerry.Sandbox {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	return sb.info
}

// Session returns the current session as in the last response about it.
func (sb *Sandbox) Session() skerry.Session {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	return sb.session
}

// Routes returns the routes of the published ports.
func (sb *Sandbox) Routes() []skerry.Route {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	return slices.Clone(sb.routes)
}

// Resumed reports whether a call through sb has started a new session.
func (sb *Sandbox) Resumed() bool {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	return sb.resumed
}

// GetOptions are options of GetSandbox.
type GetOptions struct {
	// Resume starts a new session if none is running.
	Resume bool
}

// GetSandbox returns the sandbox with this name.
func (c *Client) GetSandbox(ctx context.Context, name string, opts GetOptions) (*Sandbox, error) {
	run, err := c.getSandbox(ctx, name, opts.Resume)
	if err != nil {
		return nil, err
	}
	return newSandbox(c, run), nil
}

func (c *Client) getSandbox(ctx context.Context, name string, resume bool) (runBody, error) {
	q := c.scope("projectId")
	q.Set("resume", strconv.FormatBool(resume))
	var run runBody
	err := c.callSandbox(ctx, request{method: http.MethodGet, query: q}, name, &run)
	return run, err
}

// callSandbox sends a request to the path of a sandbox.
func (c *Client) callSandbox(ctx context.Context, r request, name string, out any) error {
	path, err := sandboxPath(name)
	if err != nil {
		return err
	}
	r.path = path
	return c.call(ctx, r, out)
}

// sandboxPath returns the path of the sandbox with a name. It does not apply
// skerry.ValidateName: earlier versions of the server accepted other names.
func sandboxPath(name string) (string, error) {
	if name == "" || name == "." || name == ".." { // the path of another endpoint
		return "", &Error{Status: http.StatusBadRequest, Code: skerry.CodeBadRequest, Field: "name",
			Message: strconv.Quote(name) + " is not the name of a sandbox"}
	}
	return "/v2/sandboxes/" + url.PathEscape(name), nil
}

// Refresh fetches the current state from the server.
func (sb *Sandbox) Refresh(ctx context.Context) error {
	run, err := sb.c.getSandbox(ctx, sb.name, false)
	if err == nil {
		sb.set(run)
	}
	return err
}

// UpdateOptions change a sandbox. Fields that are nil are not changed. A new
// timeout applies to later sessions; see [Sandbox.ExtendTimeout] for the current
// one.
type UpdateOptions struct {
	Timeout  *time.Duration
	VCPUs    *int
	MemoryMB *int
	// Env, if not nil, replaces the environment of every command.
	Env map[string]string
	// Tags, if not nil, replace all tags.
	Tags       map[string]string
	Persistent *bool
	// Ports, if not nil, replace all published ports; ports that stay keep their
	// routes. PrivatePorts, if not nil, are the ports that require a token.
	Ports         []int
	PrivatePorts  []int
	NetworkPolicy *NetworkPolicy
	// Mounts, if not nil, replace all mounts.
	Mounts map[string]Mount
	// SnapshotExpiration is how long later snapshots are kept; 0 is for ever.
	SnapshotExpiration *time.Duration
	// KeepLastSnapshots replaces the whole retention rule; ClearKeepLastSnapshots
	// removes it.
	KeepLastSnapshots      *KeepLastSnapshots
	ClearKeepLastSnapshots bool
	// CurrentSnapshotID is the snapshot that the next session starts from. It may
	// belong to any sandbox of the project.
	CurrentSnapshotID *string
	// Idle says when the server pauses sessions that nobody uses. It applies to the
	// running one too. Our own addition to the public API.
	Idle   *skerry.IdleMode
	Region *string
	// FailoverRegions, if not nil, replace the list.
	FailoverRegions []string
	// NetworkID: the empty string disconnects.
	NetworkID *string
}

// body returns the wire form, which has only the fields that change.
func (o UpdateOptions) body() map[string]any {
	body := map[string]any{}
	size := map[string]int{}
	if o.VCPUs != nil {
		size["vcpus"] = *o.VCPUs
	}
	if o.MemoryMB != nil {
		size["memory"] = *o.MemoryMB
	}
	if len(size) > 0 {
		body["resources"] = size
	}
	if o.Timeout != nil {
		body["timeout"] = skerry.Duration(*o.Timeout)
	}
	if o.SnapshotExpiration != nil {
		body["snapshotExpiration"] = skerry.Duration(*o.SnapshotExpiration)
	}
	if o.NetworkID != nil {
		body["networkId"] = *o.NetworkID
		if *o.NetworkID == "" {
			body["networkId"] = nil
		}
	}
	setIf(body, "env", o.Env != nil, o.Env)
	setIf(body, "tags", o.Tags != nil, o.Tags)
	setIf(body, "persistent", o.Persistent != nil, o.Persistent)
	setIf(body, "ports", o.Ports != nil, o.Ports)
	setIf(body, "privatePorts", o.PrivatePorts != nil, o.PrivatePorts)
	setIf(body, "networkPolicy", o.NetworkPolicy != nil, o.NetworkPolicy)
	setIf(body, "mounts", o.Mounts != nil, o.Mounts)
	setIf(body, "keepLastSnapshots", o.ClearKeepLastSnapshots, nil)
	setIf(body, "keepLastSnapshots", o.KeepLastSnapshots != nil, o.KeepLastSnapshots)
	setIf(body, "idle", o.Idle != nil, o.Idle)
	setIf(body, "currentSnapshotId", o.CurrentSnapshotID != nil, o.CurrentSnapshotID)
	setIf(body, "region", o.Region != nil, o.Region)
	setIf(body, "failoverRegions", o.FailoverRegions != nil, o.FailoverRegions)
	return body
}

func setIf(body map[string]any, key string, is bool, value any) {
	if is {
		body[key] = value
	}
}

// Update changes the configuration.
func (sb *Sandbox) Update(ctx context.Context, opts UpdateOptions) error {
	var answer struct {
		Sandbox skerry.Sandbox  `json:"sandbox"`
		Routes  *[]skerry.Route `json:"routes"`
	}
	r := request{method: http.MethodPatch, query: sb.c.scope("projectId"), json: opts.body(), repeatable: true}
	if err := sb.c.callSandbox(ctx, r, sb.name, &answer); err != nil {
		return err
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	sb.info = answer.Sandbox
	if answer.Routes != nil {
		sb.routes = *answer.Routes
	}
	return nil
}

// DeleteOptions are options of DeleteSandbox.
type DeleteOptions struct {
	// OrphanSnapshots also deletes the sandbox's snapshots, except those that
	// another sandbox would start from. Otherwise they stay until they expire.
	OrphanSnapshots bool
}

// Delete stops the session and deletes the sandbox. The files of the session are
// not saved first. Snapshots stay until they expire; see [Client.DeleteSandbox] for
// deleting them too.
func (sb *Sandbox) Delete(ctx context.Context) error {
	return sb.c.DeleteSandbox(ctx, sb.name, DeleteOptions{})
}

// DeleteSandbox stops the session of the sandbox with this name and deletes the
// sandbox.
func (c *Client) DeleteSandbox(ctx context.Context, name string, opts DeleteOptions) error {
	q := c.scope("projectId")
	if opts.OrphanSnapshots {
		q.Set("deleteOrphanSnapshots", "true")
	}
	return c.callSandbox(ctx, request{method: http.MethodDelete, query: q}, name, nil)
}
