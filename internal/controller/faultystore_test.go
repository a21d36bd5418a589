package controller

import (
	"context"
	"fmt"
	"sync"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/store"
)

// faultyStore is the real store, of which calls fail.
type faultyStore struct {
	*store.Store

	mu sync.Mutex
	// calls counts the calls; those from the first to the last fail. With lost,
	// writes alone are counted: they are done, and their answer is lost.
	calls, first, last int
	lost               bool
	failed             int
	// down has every call of that name fail ("" for none, "*" for all).
	down string
}

var errStore = &skerry.Error{Code: skerry.CodeUnavailable, Message: "the database cannot be written"}

// call makes a call, or has it fail, or loses its answer.
func (f *faultyStore) call(name string, write bool, do func() error) error {
	f.mu.Lock()
	counted := write || !f.lost
	if counted {
		f.calls++
	}
	fails := counted && f.calls >= f.first && f.calls <= f.last || f.down == name || f.down == "*"
	lost := fails && f.lost
	if fails {
		f.failed++
	}
	f.mu.Unlock()
	if fails && !lost {
		return fmt.Errorf("%s: %w", name, errStore)
	}
	err := do()
	if lost && err == nil {
		err = fmt.Errorf("%s: the answer was lost: %w", name, errStore)
	}
	return err
}

// setDown has calls of a name fail from now on.
func (f *faultyStore) setDown(call string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = call
}

// arm has the calls from the first to the last from now on fail, or lose their
// answers, and returns how many have failed so far.
func (f *faultyStore) arm(first, last int, lost bool) (failed int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls, f.first, f.last, f.lost = 0, first, last, lost
	return f.failed
}

func (f *faultyStore) CreateSandbox(ctx context.Context, sandbox *skerry.Sandbox, run *skerry.Session) error {
	return f.call("CreateSandbox", true, func() error { return f.Store.CreateSandbox(ctx, sandbox, run) })
}

func (f *faultyStore) DeleteSandbox(ctx context.Context, id string) error {
	return f.call("DeleteSandbox", true, func() error { return f.Store.DeleteSandbox(ctx, id) })
}

func (f *faultyStore) SandboxByName(ctx context.Context, scope skerry.Scope, name string) (a *skerry.Sandbox, err error) {
	err = f.call("SandboxByName", false, func() (err error) {
		a, err = f.Store.SandboxByName(ctx, scope, name)
		return err
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (f *faultyStore) Sandbox(ctx context.Context, id string) (a *skerry.Sandbox, err error) {
	err = f.call("Sandbox", false, func() (err error) {
		a, err = f.Store.Sandbox(ctx, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (f *faultyStore) UpdateSandbox(ctx context.Context, id string, change func(*skerry.Sandbox) error) (a *skerry.Sandbox, err error) {
	err = f.call("UpdateSandbox", true, func() (err error) {
		a, err = f.Store.UpdateSandbox(ctx, id, change)
		return err
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (f *faultyStore) PublishedSandboxes(ctx context.Context) (a []skerry.Sandbox, err error) {
	err = f.call("PublishedSandboxes", false, func() (err error) {
		a, err = f.Store.PublishedSandboxes(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (f *faultyStore) AddSession(ctx context.Context, id string, start func(*skerry.Sandbox) (*skerry.Session, error)) (a *skerry.Sandbox, b *skerry.Session, err error) {
	err = f.call("AddSession", true, func() (err error) {
		a, b, err = f.Store.AddSession(ctx, id, start)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return a, b, nil
}

func (f *faultyStore) UpdateSession(ctx context.Context, id string, change func(*skerry.Sandbox, *skerry.Session) error) (a *skerry.Sandbox, b *skerry.Session, err error) {
	err = f.call("UpdateSession", true, func() (err error) {
		a, b, err = f.Store.UpdateSession(ctx, id, change)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return a, b, nil
}

func (f *faultyStore) Session(ctx context.Context, scope skerry.Scope, id string) (a *skerry.Session, err error) {
	err = f.call("Session", false, func() (err error) {
		a, err = f.Store.Session(ctx, scope, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (f *faultyStore) LiveSessions(ctx context.Context) (a []skerry.Session, err error) {
	err = f.call("LiveSessions", false, func() (err error) {
		a, err = f.Store.LiveSessions(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (f *faultyStore) SessionIDs(ctx context.Context, id string) (a []string, err error) {
	err = f.call("SessionIDs", false, func() (err error) {
		a, err = f.Store.SessionIDs(ctx, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (f *faultyStore) PruneSessions(ctx context.Context, id string, keep int) (a []string, err error) {
	err = f.call("PruneSessions", true, func() (err error) {
		a, err = f.Store.PruneSessions(ctx, id, keep)
		return err
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (f *faultyStore) AddSnapshot(ctx context.Context, snap *skerry.Snapshot, saved nodeapi.SavedFiles, id string, change func(*skerry.Sandbox, *skerry.Session) error) (a *skerry.Sandbox, b *skerry.Session, err error) {
	err = f.call("AddSnapshot", true, func() (err error) {
		a, b, err = f.Store.AddSnapshot(ctx, snap, saved, id, change)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return a, b, nil
}

func (f *faultyStore) UpdateSnapshot(ctx context.Context, id string, change func(*skerry.Snapshot) error) (a *skerry.Snapshot, err error) {
	err = f.call("UpdateSnapshot", true, func() (err error) {
		a, err = f.Store.UpdateSnapshot(ctx, id, change)
		return err
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (f *faultyStore) UpdateUnusedSnapshot(ctx context.Context, id string, change func(*skerry.Snapshot) error) (a bool, err error) {
	err = f.call("UpdateUnusedSnapshot", true, func() (err error) {
		a, err = f.Store.UpdateUnusedSnapshot(ctx, id, change)
		return err
	})
	if err != nil {
		return false, err
	}
	return a, nil
}

func (f *faultyStore) Snapshot(ctx context.Context, scope skerry.Scope, id string) (a *skerry.Snapshot, err error) {
	err = f.call("Snapshot", false, func() (err error) {
		a, err = f.Store.Snapshot(ctx, scope, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (f *faultyStore) SnapshotsOf(ctx context.Context, id string) (a []skerry.Snapshot, err error) {
	err = f.call("SnapshotsOf", false, func() (err error) {
		a, err = f.Store.SnapshotsOf(ctx, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (f *faultyStore) TouchSnapshot(ctx context.Context, id string, now skerry.Time) error {
	return f.call("TouchSnapshot", true, func() error { return f.Store.TouchSnapshot(ctx, id, now) })
}

func (f *faultyStore) ExpiredSnapshots(ctx context.Context, now skerry.Time) (a []skerry.Snapshot, err error) {
	err = f.call("ExpiredSnapshots", false, func() (err error) {
		a, err = f.Store.ExpiredSnapshots(ctx, now)
		return err
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (f *faultyStore) ForgetSnapshots(ctx context.Context, before skerry.Time) error {
	return f.call("ForgetSnapshots", true, func() error { return f.Store.ForgetSnapshots(ctx, before) })
}

func (f *faultyStore) AddLease(ctx context.Context, id string, expires skerry.Time) error {
	return f.call("AddLease", true, func() error { return f.Store.AddLease(ctx, id, expires) })
}

func (f *faultyStore) EndLease(ctx context.Context, id string, expires skerry.Time) error {
	return f.call("EndLease", true, func() error { return f.Store.EndLease(ctx, id, expires) })
}

func (f *faultyStore) EndLeases(ctx context.Context) error {
	return f.call("EndLeases", true, func() error { return f.Store.EndLeases(ctx) })
}

func (f *faultyStore) BeginCollection(ctx context.Context, now skerry.Time) (a nodeapi.Records, err error) {
	err = f.call("BeginCollection", true, func() (err error) {
		a, err = f.Store.BeginCollection(ctx, now)
		return err
	})
	if err != nil {
		return nodeapi.Records{}, err
	}
	return a, nil
}

func (f *faultyStore) RecordCollection(ctx context.Context, now skerry.Time, c nodeapi.Collected) error {
	return f.call("RecordCollection", true, func() error { return f.Store.RecordCollection(ctx, now, c) })
}

func (f *faultyStore) CreateDrive(ctx context.Context, d *skerry.Drive) error {
	return f.call("CreateDrive", true, func() error { return f.Store.CreateDrive(ctx, d) })
}

func (f *faultyStore) DeleteDrive(ctx context.Context, id string) error {
	return f.call("DeleteDrive", true, func() error { return f.Store.DeleteDrive(ctx, id) })
}

func (f *faultyStore) Drive(ctx context.Context, scope skerry.Scope, name string) (a *skerry.Drive, err error) {
	err = f.call("Drive", false, func() (err error) {
		a, err = f.Store.Drive(ctx, scope, name)
		return err
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (f *faultyStore) DriveIDs(ctx context.Context) (a []string, err error) {
	err = f.call("DriveIDs", false, func() (err error) {
		a, err = f.Store.DriveIDs(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (f *faultyStore) SaveCommands(ctx context.Context, cmds []skerry.Command) error {
	return f.call("SaveCommands", true, func() error { return f.Store.SaveCommands(ctx, cmds) })
}

func (f *faultyStore) Command(ctx context.Context, sessionID, id string) (a *skerry.Command, err error) {
	err = f.call("Command", false, func() (err error) {
		a, err = f.Store.Command(ctx, sessionID, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (f *faultyStore) ListCommands(ctx context.Context, sessionID string, page skerry.Page) (a []skerry.Command, b string, err error) {
	err = f.call("ListCommands", false, func() (err error) {
		a, b, err = f.Store.ListCommands(ctx, sessionID, page)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	return a, b, nil
}

func (f *faultyStore) DeleteCommands(ctx context.Context, ids []string) error {
	return f.call("DeleteCommands", true, func() error { return f.Store.DeleteCommands(ctx, ids) })
}
