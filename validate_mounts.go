package skerry

import (
	"maps"
	"path"
	"slices"
	"strings"
)

// SystemFolders and SystemTrees are where no drive can be mounted: what is there is
// needed to start anything. A folder below one of SystemFolders is allowed, unless
// it is in the list itself; nothing below one of SystemTrees is.
var (
	SystemFolders = []string{
		"/", "/bin", "/boot", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/run", "/sbin", "/usr", "/usr/bin", "/usr/lib",
		"/usr/lib64", "/usr/libexec", "/usr/local", "/usr/local/bin", "/usr/sbin", "/usr/share", "/var", "/var/lib", "/vercel",
	}
	SystemTrees = []string{"/.skerry", "/dev", "/proc", "/sys", "/vercel/runtimes"}
)

// maxPathElement is Linux's NAME_MAX.
const maxPathElement = 255

// ValidateMounts checks the drives of a sandbox by their paths, and fills in the
// default mode. Messages name the path at fault.
func ValidateMounts(field string, mounts map[string]Mount) error {
	if len(mounts) > MaxMounts {
		return Invalid(field, "must have at most %d entries, has %d", MaxMounts, len(mounts))
	}
	paths := slices.Sorted(maps.Keys(mounts))
	drives := map[string]string{}
	for i, at := range paths {
		if err := validateMountPath(field, at); err != nil {
			return err
		}
		m := mounts[at]
		for _, other := range paths[i+1:] {
			if within(other, at) {
				return Invalid(field, "%s is inside %s, where another drive is mounted; mount it somewhere else", other, at)
			}
		}
		switch m.Mode {
		case "":
			m.Mode = MountReadWrite
		case mountReadOnly:
			m.Mode = MountSnapshot
		case MountReadWrite, MountSnapshot:
		default:
			return Invalid(field, "the mode of %s must be %s or %s, is %.64q", at, MountReadWrite, MountSnapshot, m.Mode)
		}
		if m.Drive == "" {
			return Invalid(field, "%s must have the name of a drive", at)
		}
		if other, twice := drives[m.Drive]; twice {
			return Invalid(field, "drive %q is mounted at both %s and %s; a sandbox can mount a drive only once", m.Drive, other, at)
		}
		drives[m.Drive] = at
		mounts[at] = m
	}
	return nil
}

// mountReadOnly is what older clients call MountSnapshot.
const mountReadOnly MountMode = "read-only"

func validateMountPath(field, at string) error {
	if err := ValidatePath(field, at); err != nil {
		return err
	}
	refuse := func(why string) error { return Invalid(field, "%.128q %s", at, why) }
	if !path.IsAbs(at) {
		return refuse("must be an absolute path")
	}
	if at != path.Clean(at) {
		return refuse("must be written as " + path.Clean(at))
	}
	for element := range strings.SplitSeq(at, "/") {
		if len(element) > maxPathElement {
			return refuse("must not have a name of more than 255 bytes in it")
		}
	}
	if strings.ContainsFunc(at, isControl) {
		return refuse("must not contain a control character")
	}
	if slices.Contains(SystemFolders, at) {
		return refuse("is a system folder; mount the drive somewhere else")
	}
	for _, tree := range SystemTrees {
		if at == tree || within(at, tree) {
			return refuse("is in the system folder " + tree + "; mount the drive somewhere else")
		}
	}
	return nil
}

// within reports whether a path is below a folder.
func within(p, folder string) bool { return strings.HasPrefix(p, folder+"/") }
