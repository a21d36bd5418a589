package client

import (
	"context"
	"net/http"
	"time"

	"github.com/skerry-dev/skerry"
)

// ForkOptions are what a fork has otherwise than its source; a zero field is
// the source's.
type ForkOptions struct {
	// Name must be unique in the project; the server makes one up if empty.
	Name string
	// Image can only be the source's own: the files stand on it.
	Image    string
	Timeout  time.Duration
	VCPUs    int
	MemoryMB int
	// Env, if not nil, replaces the source's environment.
	Env map[string]string
	// Tags, if not nil, replace the source's.
	Tags       map[string]string
	Persistent *bool
	// Ports, if not nil, replace the published ports, PrivatePorts those that
	// are private. Routes are the fork's own either way.
	Ports              []int
	PrivatePorts       []int
	NetworkPolicy      *NetworkPolicy
	Mounts             map[string]Mount
	SnapshotExpiration *time.Duration
	KeepLastSnapshots  *KeepLastSnapshots
	Region             string
	FailoverRegions    []string
	NetworkID          string
	// Live takes the files of a running source as they are now, without
	// stopping it, in place of those of its current snapshot. Programs that
	// are writing meanwhile may be caught half-way. Our own addition to the
	// public API.
	Live bool
	// Memory takes the running programs along, without stopping the source:
	// they go on from this moment with what they have in memory, in a network
	// of the fork's own, in which the source's connections are cut off. The
	// fork has the source's size. A source that does not run must have a
	// snapshot with memory. Our own addition too.
	Memory bool
}

type forkBody struct {
	ProjectID          string             `json:"projectId,omitempty"`
	Name               string             `json:"name,omitempty"`
	Image              string             `json:"image,omitempty"`
	Timeout            skerry.Duration    `json:"timeout,omitempty"`
	Resources          resources          `json:"resources,omitzero"`
	Env                map[string]string  `json:"env,omitzero"`
	Tags               map[string]string  `json:"tags,omitzero"`
	Persistent         *bool              `json:"persistent,omitempty"`
	Ports              []int              `json:"ports,omitzero"`
	PrivatePorts       []int              `json:"privatePorts,omitzero"`
	NetworkPolicy      *NetworkPolicy     `json:"networkPolicy,omitempty"`
	Mounts             map[string]Mount   `json:"mounts,omitempty"`
	SnapshotExpiration *skerry.Duration   `json:"snapshotExpiration,omitempty"`
	KeepLastSnapshots  *KeepLastSnapshots `json:"keepLastSnapshots,omitempty"`
	Region             string             `json:"region,omitempty"`
	FailoverRegions    []string           `json:"failoverRegions,omitempty"`
	NetworkID          string             `json:"networkId,omitempty"`
	Live               bool               `json:"live,omitempty"`
	Memory             bool               `json:"memory,omitempty"`
}

// ForkSandbox creates a sandbox with the configuration and the files of
// another, and starts its first session. The files are those of the source's
// current snapshot, or of its image when it has none; with Live, those of this
// moment. The source is left as it is.
func (c *Client) ForkSandbox(ctx context.Context, source string, opts ForkOptions) (*Sandbox, error) {
	body := forkBody{
		ProjectID:          c.project,
		Name:               opts.Name,
		Image:              opts.Image,
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
		Region:             opts.Region,
		FailoverRegions:    opts.FailoverRegions,
		NetworkID:          opts.NetworkID,
		Live:               opts.Live,
		Memory:             opts.Memory,
	}
	path, err := sandboxPath(source)
	if err != nil {
		return nil, err
	}
	var run runBody
	err = c.call(ctx, request{method: http.MethodPost, path: path + "/fork", query: c.scope(""), json: body}, &run)
	if err != nil {
		return nil, err
	}
	return newSandbox(c, run), nil
}

// Fork creates a sandbox from this one, as [Client.ForkSandbox] does.
func (sb *Sandbox) Fork(ctx context.Context, opts ForkOptions) (*Sandbox, error) {
	return sb.c.ForkSandbox(ctx, sb.name, opts)
}
