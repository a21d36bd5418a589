package client

import (
	"context"
	"net/http"
	"time"

	"github.com/skerry-dev/skerry"
)

// ForkOptions override the configuration of the source. For a zero field the fork
// has the source's value.
type ForkOptions struct {
	// Name must be unique in the project. If it is empty, the server generates one.
	Name string
	// Image must be the source's image, because its files are a difference to it.
	Image    string
	Timeout  time.Duration
	VCPUs    int
	MemoryMB int
	// Env, if not nil, replaces the source's environment.
	Env map[string]string
	// Tags, if not nil, replace the source's.
	Tags       map[string]string
	Persistent *bool
	// Ports, if not nil, replace the published ports, and PrivatePorts those that
	// are private. A fork always has its own routes.
	Ports              []int
	PrivatePorts       []int
	NetworkPolicy      *NetworkPolicy
	Mounts             map[string]Mount
	SnapshotExpiration *time.Duration
	KeepLastSnapshots  *KeepLastSnapshots
	// Idle, if not "", replaces the source's idle mode. Our own addition to the public
	// API.
	Idle skerry.IdleMode
	// OIDCAudience, if not "", replaces the audience of the source's workload token. Our own
	// addition to the public API.
	OIDCAudience    string
	Region          string
	FailoverRegions []string
	NetworkID       string
	// Live copies the present files of a running source, without stopping it,
	// instead of the files of its current snapshot. Files that a program is writing
	// at that moment may be incomplete. Our own addition to the public API.
	Live bool
	// Memory copies the running programs too, with their memory, without stopping
	// the source. They continue in the fork, in a network of its own, where the
	// source's connections are closed. The fork has the source's size. If the
	// source is not running, its current snapshot must include memory. Our own
	// addition to the public API.
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
	Idle               skerry.IdleMode    `json:"idle,omitempty"`
	OIDCAudience       string             `json:"oidcAudience,omitempty"`
	Region             string             `json:"region,omitempty"`
	FailoverRegions    []string           `json:"failoverRegions,omitempty"`
	NetworkID          string             `json:"networkId,omitempty"`
	Live               bool               `json:"live,omitempty"`
	Memory             bool               `json:"memory,omitempty"`
}

// ForkSandbox creates a sandbox with the configuration and the files of another,
// and starts its first session. The files are those of the source's current
// snapshot, or of its image if there is none; with Live they are the present files.
// The source is not changed.
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
		Idle:               opts.Idle,
		OIDCAudience:       opts.OIDCAudience,
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
