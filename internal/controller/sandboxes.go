package controller

import (
	"context"
	"sync"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// sandboxStore is what sandboxes need of the store.
type sandboxStore interface {
	CreateSandbox(ctx context.Context, sandbox *skerry.Sandbox, run *skerry.Session) error
	DeleteSandbox(ctx context.Context, id string) error
	SandboxByName(ctx context.Context, scope skerry.Scope, name string) (*skerry.Sandbox, error)
	Sandbox(ctx context.Context, id string) (*skerry.Sandbox, error)
	UpdateSandbox(ctx context.Context, id string, change func(*skerry.Sandbox) error) (*skerry.Sandbox, error)
	ListSandboxes(ctx context.Context, scope skerry.Scope, f skerry.SandboxFilter) ([]skerry.Sandbox, string, error)
	AddSession(ctx context.Context, sandboxID string, start func(*skerry.Sandbox) (*skerry.Session, error)) (*skerry.Sandbox, *skerry.Session, error)
	SessionIDs(ctx context.Context, sandboxID string) ([]string, error)
	Snapshot(ctx context.Context, scope skerry.Scope, id string) (*skerry.Snapshot, error)
	AddSnapshot(ctx context.Context, snap *skerry.Snapshot, saved nodeapi.SavedFiles, sessionID string, change func(*skerry.Sandbox, *skerry.Session) error) (*skerry.Sandbox, *skerry.Session, error)
}

// sandboxes creates, resumes, forks, changes and deletes sandboxes.
type sandboxes struct {
	*sessions
	store  sandboxStore
	images nodeapi.Images
	drives *drives
	limits skerry.Limits

	// lifecycles are held, by the sandbox's id, while a sandbox is created,
	// resumed or deleted.
	lifecycles keyed

	absences absences

	// forkKeeps bounds how many snapshots of memory forks are stored at once.
	forkKeeps chan struct{}

	// undo guards undoing: the sandboxes whose creation failed and is not undone
	// yet.
	undo    sync.Mutex
	undoing map[string]bool
}

// ListSandboxes implements api.Service.
func (c *sandboxes) ListSandboxes(ctx context.Context, scope skerry.Scope, f skerry.SandboxFilter) ([]skerry.Sandbox, string, error) {
	list, next, err := c.store.ListSandboxes(ctx, scope, f)
	for i := range list {
		list[i].Routes = c.ports.routes(&list[i])
		c.showIdle(&list[i])
	}
	return list, next, err
}
