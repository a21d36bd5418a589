package client

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/skerry-dev/skerry"
)

// CreateOptions describe a new sandbox. A zero field is left to the server.
// Fields whose feature the server does not have are refused by it with 501,
// see [IsNotImplemented].
type CreateOptions struct {
	// Name must be unique in the project; the server makes one up if empty.
	Name string
	// Runtime is what comes first on PATH in the default image: "node24",
	// "node22" or "python3.13". Image is an OCI image instead. One of them at
	// most.
	Runtime string
	Image   string
	// Source is what the working directory is filled from, or the snapshot
	// that the whole filesystem is taken from, see [FromSnapshot]. A snapshot
	// brings its image along.
	Source *skerry.Source
	// Timeout ends each session, five minutes after its start by default.
	Timeout time.Duration
	// VCPUs come with 2048 MiB of memory each unless MemoryMB is set.
	VCPUs    int
	MemoryMB int
	// Env is the environment of every command.
	Env map[string]string
	// Tags are for finding the sandbox again.
	Tags map[string]string
	// Persistent keeps the filesystem from one session to the next: each stop
	// takes a snapshot. Nil is true. A sandbox that is not persistent starts
	// anew each time, and its stop is quicker.
	Persistent *bool
	// Ports are published: reachable from outside.
	Ports []int
	// NetworkPolicy says what the sandbox may reach.
	NetworkPolicy *NetworkPolicy
	// Mounts attaches drives, by the path they appear at.
	Mounts map[string]Mount
	// SnapshotExpiration is how long a snapshot is kept, 30 days by default, a
	// minute at least; 0 is for ever.
	SnapshotExpiration *time.Duration
	// KeepLastSnapshots bounds how many are kept; nil is all of them until
	// they expire.
	KeepLastSnapshots *KeepLastSnapshots
	Region            string
	FailoverRegions   []string
	NetworkID         string
}

// NetworkPolicy is what a sandbox may reach. Either Mode is "allow-all" or
// "deny-all", or Mode is empty and everything that is not listed is denied.
type NetworkPolicy struct {
	Mode string
	// AllowDomains may be reached by HTTPS on port 443 and HTTP on port 80. "*"
	// stands for one label, as the first for one or more, alone for every domain.
	AllowDomains []string
	// Rules are domains that may be reached too, and what is done with requests
	// to each: what the first rule that matches says.
	Rules map[string][]NetworkRule
	// AllowCIDRs may be reached by every protocol.
	AllowCIDRs []string
	// DenyCIDRs takes precedence over what is allowed.
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

// NetworkRule says what is done with requests to a domain; see
// [skerry.NetworkRule].
type NetworkRule = skerry.NetworkRule

// Mount attaches a drive. Mode is "read-write" (default) or "snapshot".
type Mount struct {
	Drive string `json:"drive"`
	Mode  string `json:"mode,omitempty"`
}

// KeepLastSnapshots is which snapshots of a sandbox are kept. It is applied
// when the sandbox's next snapshot is taken.
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
	NetworkPolicy      *NetworkPolicy     `json:"networkPolicy,omitempty"`
	Mounts             map[string]Mount   `json:"mounts,omitempty"`
	SnapshotExpiration *skerry.Duration   `json:"snapshotExpiration,omitempty"`
	KeepLastSnapshots  *KeepLastSnapshots `json:"keepLastSnapshots,omitempty"`
	Region             string             `json:"region,omitempty"`
	FailoverRegions    []string           `json:"failoverRegions,omitempty"`
	NetworkID          string             `json:"networkId,omitempty"`
}

// CreateSandbox creates a sandbox and starts its first session. It returns
// once commands can run in it.
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
		NetworkPolicy:      opts.NetworkPolicy,
		Mounts:             opts.Mounts,
		SnapshotExpiration: (*skerry.Duration)(opts.SnapshotExpiration),
		KeepLastSnapshots:  opts.KeepLastSnapshots,
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
