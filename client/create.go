package client

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/skerry-dev/skerry"
)

// CreateOptions describe a new sandbox. For a zero field the server chooses a
// default. The server refuses fields for features that it does not have with 501,
// see [IsNotImplemented].
type CreateOptions struct {
	// Name must be unique in the project. If it is empty, the server generates one.
	Name string
	// Runtime is the runtime that comes first on PATH in the default image:
	// "node24", "node26", "node22" or "python3.13". Image is an OCI image to use
	// instead of the default image. At most one of them may be set.
	Runtime string
	Image   string
	// Source is the source of the files in the working directory, or a snapshot of
	// the whole filesystem, see [FromSnapshot]. A snapshot has its own image.
	Source *skerry.Source
	// Timeout is the maximum duration of each session; five minutes by default.
	Timeout time.Duration
	// VCPUs is the number of virtual CPUs. MemoryMB is 2048 for each by default.
	VCPUs    int
	MemoryMB int
	// Env is the environment of every command.
	Env map[string]string
	// Tags are labels for finding the sandbox.
	Tags map[string]string
	// Persistent keeps the filesystem from one session to the next: each stop takes
	// a snapshot. Nil is true. The sessions of a sandbox that is not persistent
	// start from its image or source each time, and stop more quickly.
	Persistent *bool
	// Ports are the ports to publish, see [Sandbox.Domain]. Those that are also in
	// PrivatePorts require a token, see [Sandbox.RouteToken].
	Ports []int
	// PrivatePorts are our own addition to the public API.
	PrivatePorts []int
	// NetworkPolicy controls what the sandbox may reach.
	NetworkPolicy *NetworkPolicy
	// Mounts are the drives to mount, by path.
	Mounts map[string]Mount
	// SnapshotExpiration is how long a snapshot is kept: 30 days by default, at
	// least a minute; 0 is for ever.
	SnapshotExpiration *time.Duration
	// KeepLastSnapshots limits how many snapshots are kept. If nil, all are kept
	// until they expire.
	KeepLastSnapshots *KeepLastSnapshots
	// Idle says when the server pauses sessions that nobody uses; "" is
	// skerry.IdleDefault. Our own addition to the public API.
	Idle skerry.IdleMode
	// OIDCAudience, if not "", gives the sandbox's programs a workload token for this
	// audience, in the file that SKERRY_OIDC_TOKEN_FILE names. Our own addition to the public API.
	OIDCAudience    string
	Region          string
	FailoverRegions []string
	NetworkID       string
}

// NetworkPolicy is what a sandbox may reach. Either Mode is "allow-all" or
// "deny-all", or Mode is empty and every destination that is not listed is denied.
type NetworkPolicy struct {
	Mode string
	// AllowDomains are domains that may be reached over HTTPS on port 443 and HTTP
	// on port 80. A label "*" matches one label; as the first label it matches one
	// or more; the pattern "*" alone matches every domain.
	AllowDomains []string
	// Rules are further domains that may be reached, with rules for requests to
	// each. The first matching rule of a domain is used.
	Rules map[string][]NetworkRule
	// AllowCIDRs are networks that may be reached over any protocol.
	AllowCIDRs []string
	// DenyCIDRs are networks that may not be reached. They take precedence over
	// everything that is allowed.
	DenyCIDRs []string
}

// MarshalJSON writes the form of a request.
func (p NetworkPolicy) MarshalJSON() ([]byte, error) {
	if p.Mode != "" {
		return json.Marshal(map[string]string{"mode": p.Mode})
	}
	type subnets struct {
		Allow []string `json:"allow,omitempty"`
		Deny  []string `json:"deny,omitempty"`
	}
	body := struct {
		Allow   any     `json:"allow,omitempty"`
		Subnets subnets `json:"subnets,omitzero"`
	}{Subnets: subnets{p.AllowCIDRs, p.DenyCIDRs}}
	if len(p.Rules) > 0 {
		allow := map[string][]NetworkRule{}
		for _, domain := range p.AllowDomains {
			allow[domain] = []NetworkRule{}
		}
		for domain, rules := range p.Rules {
			allow[domain] = append([]NetworkRule{}, rules...)
		}
		body.Allow = allow
	} else if len(p.AllowDomains) > 0 {
		body.Allow = p.AllowDomains
	}
	return json.Marshal(body)
}

// NetworkRule is a rule for requests to a domain; see [skerry.NetworkRule].
type NetworkRule = skerry.NetworkRule

// Mount attaches a drive. Mode is "read-write" (default) or "snapshot".
type Mount struct {
	Drive string `json:"drive"`
	Mode  string `json:"mode,omitempty"`
}

// KeepLastSnapshots is a rule for which snapshots of a sandbox are kept. It is
// applied when the sandbox's next snapshot is taken.
type KeepLastSnapshots = skerry.Retention

// resources is the wire form of a machine's size.
type resources struct {
	VCPUs    int `json:"vcpus,omitempty"`
	MemoryMB int `json:"memory,omitempty"`
}

type createBody struct {
	ProjectID          string             `json:"projectId,omitempty"`
	Name               string             `json:"name,omitempty"`
	Runtime            string             `json:"runtime,omitempty"`
	Image              string             `json:"image,omitempty"`
	Source             *skerry.Source     `json:"source,omitempty"`
	Timeout            skerry.Duration    `json:"timeout,omitempty"`
	Resources          resources          `json:"resources,omitzero"`
	Env                map[string]string  `json:"env,omitempty"`
	Tags               map[string]string  `json:"tags,omitempty"`
	Persistent         *bool              `json:"persistent,omitempty"`
	Ports              []int              `json:"ports,omitempty"`
	PrivatePorts       []int              `json:"privatePorts,omitempty"`
	NetworkPolicy      *NetworkPolicy     `json:"networkPolicy,omitempty"`
	Mounts             map[string]Mount   `json:"mounts,omitempty"`
	SnapshotExpiration *skerry.Duration   `json:"snapshotExpiration,omitempty"`
	KeepLastSnapshots  *KeepLastSnapshots `json:"keepLastSnapshots,omitempty"`
	Idle               skerry.IdleMode    `json:"idle,omitempty"`
	OIDCAudience       string             `json:"oidcAudience,omitempty"`
	Region             string             `json:"region,omitempty"`
	FailoverRegions    []string           `json:"failoverRegions,omitempty"`
	NetworkID          string             `json:"networkId,omitempty"`
}

// CreateSandbox creates a sandbox and starts its first session. It returns as soon
// as commands can run in it.
func (c *Client) CreateSandbox(ctx context.Context, opts CreateOptions) (*Sandbox, error) {
	body := createBody{
		ProjectID:          c.project,
		Name:               opts.Name,
		Runtime:            opts.Runtime,
		Image:              opts.Image,
		Source:             opts.Source,
		Timeout:            skerry.Duration(opts.Timeout),
		Resources:          resources{opts.VCPUs, opts.MemoryMB},
		Env:                opts.Env,
		Tags:               opts.Tags,
		Persistent:         opts.Persistent,
		Ports:              opts.Ports,
		PrivatePorts:       opts.PrivatePorts,
		NetworkPolicy:      opts.NetworkPolicy,
		Mounts:             opts.Mounts,
		SnapshotExpiration: (*skerry.Duration)(opts.SnapshotExpiration),
		KeepLastSnapshots:  opts.KeepLastSnapshots,
		Idle:               opts.Idle,
		OIDCAudience:       opts.OIDCAudience,
		Region:             opts.Region,
		FailoverRegions:    opts.FailoverRegions,
		NetworkID:          opts.NetworkID,
	}
	path := "/v3/sandboxes"
	if opts.Runtime != "" { // v3 knows images only
		path = "/v2/sandboxes"
	}
	var run runBody
	err := c.call(ctx, request{method: http.MethodPost, path: path, query: c.scope(""), json: body}, &run)
	if err != nil {
		return nil, err
	}
	return newSandbox(c, run), nil
}
