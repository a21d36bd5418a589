package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/skerry-dev/skerry"
)

// A drive is made on the node first and then named in the store, and removed in
// the opposite order: what a crash leaves without a name is removed by Recover.
// Who has a drive for writing is decided by the store, in the transaction that
// creates the session, and ends with the session.

// GetOrCreateDrive implements api.Service. A drive that exists is returned as
// it is, whatever its size.
func (c *Controller) GetOrCreateDrive(ctx context.Context, scope skerry.Scope, p skerry.DriveParams) (d *skerry.Drive, created bool, err error) {
	if err := validateName(p.Name); err != nil {
		return nil, false, err
	}
	d, err = c.cfg.Store.Drive(ctx, scope, p.Name)
	if skerry.CodeOf(err) != skerry.CodeNotFound {
		return d, false, err
	}
	if p.MaxSizeBytes == 0 {
		p.MaxSizeBytes = c.cfg.DriveSize
	}
	if p.MaxSizeBytes < skerry.MinDriveSize || p.MaxSizeBytes > c.cfg.MaxDriveSize {
		return nil, false, skerry.Invalid("maxSizeBytes", "must be %d to %d, is %d", skerry.MinDriveSize, c.cfg.MaxDriveSize, p.MaxSizeBytes)
	}
	// Whoever asks for it twice at once gets it twice.
	unlock, err := c.lockDrive(ctx, scope, p.Name)
	if err != nil {
		return nil, false, err
	}
	defer unlock()
	d, err = c.cfg.Store.Drive(ctx, scope, p.Name)
	if skerry.CodeOf(err) != skerry.CodeNotFound {
		return d, false, err
	}
	d = newDrive(scope, p.Name, p.MaxSizeBytes)
	if err := c.cfg.Node.CreateDrive(ctx, d.ID, d.MaxSizeBytes); err != nil {
		return nil, false, err
	}
	if err := c.nameDrive(ctx, d); err != nil {
		return nil, false, err
	}
	return d, true, nil
}

// ForkDrive implements api.Service: a new drive with what another has at this
// moment, of its size. A session that writes to that may go on.
func (c *Controller) ForkDrive(ctx context.Context, scope skerry.Scope, source, name string) (*skerry.Drive, error) {
	if err := validateName(name); err != nil {
		return nil, err
	}
	from, err := c.cfg.Store.Drive(ctx, scope, source)
	if err != nil {
		return nil, err
	}
	unlock, err := c.lockDrive(ctx, scope, name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	// The store refuses it too, but only when all is copied.
	switch _, err := c.cfg.Store.Drive(ctx, scope, name); {
	case err == nil:
		return nil, &skerry.Error{Code: skerry.CodeConflict, Field: "name", Message: fmt.Sprintf("a drive named %q exists", name)}
	case skerry.CodeOf(err) != skerry.CodeNotFound:
		return nil, err
	}
	d := newDrive(scope, name, from.MaxSizeBytes)
	d.ParentDriveID, d.RootDriveID = from.ID, cmp.Or(from.RootDriveID, from.ID)
	if err := c.cfg.Node.ForkDrive(ctx, d.ID, from.ID); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, skerry.Errorf(skerry.CodeNotFound, "there is no drive named %q any more", source)
		}
		return nil, err
	}
	if err := c.nameDrive(ctx, d); err != nil {
		return nil, err
	}
	return d, nil
}

// lockDrive keeps a drive's name from being given twice.
func (c *Controller) lockDrive(ctx context.Context, scope skerry.Scope, name string) (unlock func(), err error) {
	return c.boxes.lock(ctx, "drive "+scope.ProjectID+" "+name)
}

func newDrive(scope skerry.Scope, name string, size int64) *skerry.Drive {
	now := skerry.At(time.Now())
	return &skerry.Drive{
		ID: skerry.NewID(skerry.PrefixDrive), Scope: scope, Name: name, ProjectID: scope.ProjectID,
		Region: skerry.Region, MaxSizeBytes: size, CreatedAt: now, UpdatedAt: now,
	}
}

// nameDrive puts a drive that the node has made into the store.
func (c *Controller) nameDrive(ctx context.Context, d *skerry.Drive) error {
	if err := c.cfg.Store.CreateDrive(ctx, d); err != nil {
		return errors.Join(err, c.cfg.Node.DeleteDrive(context.WithoutCancel(ctx), d.ID))
	}
	c.cfg.Log.Info("drive created", "drive", d.ID, "bytes", d.MaxSizeBytes, "from", d.ParentDriveID)
	return nil
}

// GetDrive implements api.Service.
func (c *Controller) GetDrive(ctx context.Context, scope skerry.Scope, name string) (*skerry.Drive, error) {
	return c.cfg.Store.Drive(ctx, scope, name)
}

// ListDrives implements api.Service.
func (c *Controller) ListDrives(ctx context.Context, scope skerry.Scope, f skerry.DriveFilter) ([]skerry.Drive, string, error) {
	return c.cfg.Store.ListDrives(ctx, scope, f)
}

// DeleteDrive implements api.Service. Copies that sessions have of the drive
// stay until those end.
func (c *Controller) DeleteDrive(ctx context.Context, scope skerry.Scope, name string) (*skerry.Drive, error) {
	d, err := c.cfg.Store.Drive(ctx, scope, name)
	if err != nil {
		return nil, err
	}
	if err := c.cfg.Store.DeleteDrive(ctx, d.ID); err != nil {
		return nil, err
	}
	c.cfg.Log.Info("drive deleted", "drive", d.ID)
	return d, c.cfg.Node.DeleteDrive(context.WithoutCancel(ctx), d.ID)
}

// findDrives returns what a session with these mounts is to have, by path.
func (c *Controller) findDrives(ctx context.Context, scope skerry.Scope, mounts map[string]skerry.Mount) ([]DriveMount, error) {
	var list []DriveMount
	for _, at := range sortedPaths(mounts) {
		d, err := c.cfg.Store.Drive(ctx, scope, mounts[at].Drive)
		if skerry.CodeOf(err) == skerry.CodeNotFound {
			// Not CodeNotFound: to clients that means that the sandbox is.
			return nil, skerry.Invalid("mounts", "there is no drive named %q to mount at %s", mounts[at].Drive, at)
		}
		if err != nil {
			return nil, err
		}
		list = append(list, DriveMount{Path: at, DriveID: d.ID, Frozen: mounts[at].Mode == skerry.MountSnapshot})
	}
	return list, nil
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

// Paths that no drive is mounted at: what is there is needed to start anything.
// Below those of the second list there is nothing for a drive either.
var (
	vitalPaths = []string{
		"/", "/bin", "/boot", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/run", "/sbin", "/usr", "/usr/bin", "/usr/lib",
		"/usr/lib64", "/usr/libexec", "/usr/local", "/usr/local/bin", "/usr/sbin", "/usr/share", "/var", "/var/lib", "/vercel",
	}
	systemTrees = []string{"/.skerry", "/dev", "/proc", "/sys", "/vercel/runtimes"}
)

// maxPathElement is Linux's NAME_MAX.
const maxPathElement = 255

func sortedPaths(mounts map[string]skerry.Mount) []string {
	paths := make([]string, 0, len(mounts))
	for at := range mounts {
		paths = append(paths, at)
	}
	slices.Sort(paths)
	return paths
}

// validateMounts checks mounts and fills in the default mode. Messages name the
// path at fault.
func validateMounts(mounts map[string]skerry.Mount) error {
	if len(mounts) > skerry.MaxMounts {
		return skerry.Invalid("mounts", "are %d, more than %d", len(mounts), skerry.MaxMounts)
	}
	paths := sortedPaths(mounts)
	drives := map[string]string{}
	for i, at := range paths {
		if err := validateMountPath(at); err != nil {
			return err
		}
		m := mounts[at]
		for _, other := range paths[i+1:] {
			if within(other, at) {
				return skerry.Invalid("mounts", "%s is below %s, which is a drive itself", other, at)
			}
		}
		switch m.Mode {
		case "":
			m.Mode = skerry.MountReadWrite
		case "read-only": // what older clients call it
			m.Mode = skerry.MountSnapshot
		case skerry.MountReadWrite, skerry.MountSnapshot:
		default:
			return skerry.Invalid("mounts", "the mode of %s is %.64q, want %s or %s", at, m.Mode, skerry.MountReadWrite, skerry.MountSnapshot)
		}
		if m.Drive == "" {
			return skerry.Invalid("mounts", "%s names no drive", at)
		}
		if other, twice := drives[m.Drive]; twice {
			return skerry.Invalid("mounts", "drive %q is at %s and %s; a sandbox has a drive once", m.Drive, other, at)
		}
		drives[m.Drive] = at
		mounts[at] = m
	}
	return nil
}

func validateMountPath(at string) error {
	if err := validatePath("mounts", at); err != nil {
		return err
	}
	refuse := func(why string) error { return skerry.Invalid("mounts", "%.128q %s", at, why) }
	if !path.IsAbs(at) {
		return refuse("is not an absolute path")
	}
	if at != path.Clean(at) {
		return refuse("must be written as " + path.Clean(at))
	}
	for _, element := range strings.Split(at, "/") {
		if len(element) > maxPathElement {
			return refuse("has a name of more than 255 bytes")
		}
	}
	if strings.ContainsFunc(at, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return refuse("holds a control character")
	}
	if slices.Contains(vitalPaths, at) {
		return refuse("is a folder of the system; mount the drive somewhere else")
	}
	for _, tree := range systemTrees {
		if at == tree || within(at, tree) {
			return refuse("is in " + tree + ", which is the system's; mount the drive somewhere else")
		}
	}
	return nil
}

// within reports whether a path is below a folder.
func within(p, folder string) bool { return strings.HasPrefix(p, folder+"/") }
