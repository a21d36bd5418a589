package controller

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// driveStore is what drives need of the store. CreateDrive and DeleteDrive return
// when their change survives a loss of power. A session has its DriveIDs from
// AddSession, or CreateSandbox, to its end.
type driveStore interface {
	CreateDrive(ctx context.Context, d *skerry.Drive) error
	DeleteDrive(ctx context.Context, id string) error
	Drive(ctx context.Context, scope skerry.Scope, name string) (*skerry.Drive, error)
	ListDrives(ctx context.Context, scope skerry.Scope, f skerry.DriveFilter) ([]skerry.Drive, string, error)
	DriveIDs(ctx context.Context) ([]string, error)
}

// drives creates and deletes drives. A drive is made on the node first and then
// named in the store, and removed in the opposite order: Recover removes what a
// crash leaves without a name. The store decides which session writes to a drive,
// in the transaction that creates the session.
type drives struct {
	*background
	store  driveStore
	node   nodeapi.Drives
	limits skerry.Limits
	// defaultSize is the size of a drive whose creator does not say, in bytes.
	defaultSize int64
	// names are held while a drive of that name is made.
	names keyed
}

// GetOrCreateDrive implements api.Service. A drive that exists is returned as
// it is, whatever its size.
func (d *drives) GetOrCreateDrive(ctx context.Context, scope skerry.Scope, p skerry.DriveParams) (drive *skerry.Drive, created bool, err error) {
	drive, err = d.store.Drive(ctx, scope, p.Name)
	if skerry.CodeOf(err) != skerry.CodeNotFound {
		return drive, false, err
	}
	if p.MaxSizeBytes == 0 {
		p.MaxSizeBytes = d.defaultSize
	}
	if err := p.Validate(d.limits); err != nil {
		return nil, false, err
	}
	// Concurrent calls for the same name return the same drive.
	unlock, err := d.lockName(ctx, scope, p.Name)
	if err != nil {
		return nil, false, err
	}
	defer unlock()
	drive, err = d.store.Drive(ctx, scope, p.Name)
	if skerry.CodeOf(err) != skerry.CodeNotFound {
		return drive, false, err
	}
	drive = newDrive(scope, p.Name, p.MaxSizeBytes)
	if err := d.node.CreateDrive(ctx, drive.ID, drive.MaxSizeBytes); err != nil {
		d.removeUnknown(drive, err)
		return nil, false, err
	}
	if err := d.add(ctx, drive); err != nil {
		return nil, false, err
	}
	return drive, true, nil
}

// ForkDrive implements api.Service: a new drive with what another has at this
// moment, of its size. A session that writes to that may continue.
func (d *drives) ForkDrive(ctx context.Context, scope skerry.Scope, source, name string) (*skerry.Drive, error) {
	if err := skerry.ValidateName("name", name); err != nil {
		return nil, err
	}
	from, err := d.store.Drive(ctx, scope, source)
	if err != nil {
		return nil, err
	}
	unlock, err := d.lockName(ctx, scope, name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	// The store refuses it too, but only when all is copied.
	switch _, err := d.store.Drive(ctx, scope, name); {
	case err == nil:
		return nil, &skerry.Error{Code: skerry.CodeConflict, Field: "name", Message: fmt.Sprintf("a drive named %q exists already", name)}
	case skerry.CodeOf(err) != skerry.CodeNotFound:
		return nil, err
	}
	drive := newDrive(scope, name, from.MaxSizeBytes)
	drive.ParentDriveID, drive.RootDriveID = from.ID, cmp.Or(from.RootDriveID, from.ID)
	if err := d.node.ForkDrive(ctx, drive.ID, from.ID); err != nil {
		d.removeUnknown(drive, err)
		if skerry.CodeOf(err) == skerry.CodeNotFound {
			return nil, skerry.Errorf(skerry.CodeNotFound, "there is no drive named %q any more", source).About(skerry.ResourceDrive)
		}
		return nil, err
	}
	if err := d.add(ctx, drive); err != nil {
		return nil, err
	}
	return drive, nil
}

// lockName keeps a drive's name from being given twice.
func (d *drives) lockName(ctx context.Context, scope skerry.Scope, name string) (unlock func(), err error) {
	return d.names.lock(ctx, scope.ProjectID+" "+name)
}

func newDrive(scope skerry.Scope, name string, size int64) *skerry.Drive {
	now := skerry.At(time.Now())
	return &skerry.Drive{
		ID: skerry.NewID(skerry.PrefixDrive), Scope: scope, Name: name, ProjectID: scope.ProjectID,
		Region: skerry.Region, MaxSizeBytes: size, CreatedAt: now, UpdatedAt: now,
	}
}

// add puts a drive that the node has made into the store.
func (d *drives) add(ctx context.Context, drive *skerry.Drive) error {
	if err := d.store.CreateDrive(ctx, drive); err != nil {
		d.removeUnnamed(drive)
		return err
	}
	d.log.Info("drive created", "drive", drive.ID, "bytes", drive.MaxSizeBytes, "from", drive.ParentDriveID)
	return nil
}

// removeUnknown removes a drive from the node if a failed call may have made it.
func (d *drives) removeUnknown(drive *skerry.Drive, err error) {
	if nodeapi.OutcomeUnknown(err) {
		d.inBackground("remove a drive that is not in the store", func(ctx context.Context) error { return d.node.DeleteDrive(ctx, drive.ID) })
	}
}

// removeUnnamed removes a drive from the node if the store does not have it. A
// write that failed may have been done: only the store can say.
func (d *drives) removeUnnamed(drive *skerry.Drive) {
	d.untilDone("remove a drive that is not in the store", func(ctx context.Context) error {
		switch stored, err := d.store.Drive(ctx, drive.Scope, drive.Name); {
		case err == nil && stored.ID == drive.ID:
			return nil
		case err != nil && skerry.CodeOf(err) != skerry.CodeNotFound:
			return err
		}
		return d.node.DeleteDrive(ctx, drive.ID)
	})
}

// GetDrive implements api.Service.
func (d *drives) GetDrive(ctx context.Context, scope skerry.Scope, name string) (*skerry.Drive, error) {
	return d.store.Drive(ctx, scope, name)
}

// ListDrives implements api.Service.
func (d *drives) ListDrives(ctx context.Context, scope skerry.Scope, f skerry.DriveFilter) ([]skerry.Drive, string, error) {
	return d.store.ListDrives(ctx, scope, f)
}

// DeleteDrive implements api.Service. Copies that sessions have of the drive
// stay until those end.
func (d *drives) DeleteDrive(ctx context.Context, scope skerry.Scope, name string) (*skerry.Drive, error) {
	drive, err := d.store.Drive(ctx, scope, name)
	if err != nil {
		return nil, err
	}
	if err := d.store.DeleteDrive(ctx, drive.ID); err != nil {
		d.removeUnnamed(drive)
		return nil, err
	}
	d.log.Info("drive deleted", "drive", drive.ID)
	d.untilDone("remove a deleted drive", func(ctx context.Context) error { return d.node.DeleteDrive(ctx, drive.ID) })
	return drive, nil
}

// find returns the drives of a session with these mounts, ordered by path.
func (d *drives) find(ctx context.Context, scope skerry.Scope, mounts map[string]skerry.Mount) ([]nodeapi.DriveMount, error) {
	var list []nodeapi.DriveMount
	for _, at := range slices.Sorted(maps.Keys(mounts)) {
		drive, err := d.store.Drive(ctx, scope, mounts[at].Drive)
		if skerry.CodeOf(err) == skerry.CodeNotFound {
			// Not CodeNotFound: to clients that means that the sandbox is.
			return nil, skerry.Invalid("mounts", "there is no drive named %q, which is to be mounted at %s", mounts[at].Drive, at).About(skerry.ResourceDrive)
		}
		if err != nil {
			return nil, err
		}
		list = append(list, nodeapi.DriveMount{Path: at, DriveID: drive.ID, Frozen: mounts[at].Mode == skerry.MountSnapshot})
	}
	return list, nil
}

// recover removes the drives that the store does not have. It is called before
// any drive is made.
func (d *drives) recover(ctx context.Context) error {
	ids, err := d.store.DriveIDs(ctx)
	if err != nil {
		return err
	}
	return d.node.RetainDrives(ctx, ids)
}

// frozenMounts are the mounts of a fork.
func frozenMounts(mounts map[string]skerry.Mount) map[string]skerry.Mount {
	var frozen map[string]skerry.Mount
	for at, m := range mounts {
		if frozen == nil {
			frozen = map[string]skerry.Mount{}
		}
		frozen[at] = skerry.Mount{Drive: m.Drive, Mode: skerry.MountSnapshot}
	}
	return frozen
}
