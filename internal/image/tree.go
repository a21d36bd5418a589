package image

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// maxTreePath bounds the path of an entry with all symbolic links resolved, in
// bytes. Deeper trees could be neither packed nor removed.
const maxTreePath = 3500

// tree is a directory that layers are unpacked into. Every path given to it is
// resolved with the directory as its root: a symbolic link, "..", or a chain
// of them never leads out.
type tree struct {
	dir  *os.File
	path string // of dir, without symbolic links
}

// newTree makes the directory and opens it.
func newTree(dir string) (*tree, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // whatever the umask
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	t := &tree{dir: f}
	if t.path, err = t.realPath(int(f.Fd())); err != nil {
		f.Close()
		return nil, err
	}
	return t, nil
}

func (t *tree) Close() error { return t.dir.Close() }

// place is where an entry is or will be: a name in an open directory.
type place struct {
	dir  int
	name string
}

func (p place) Close() error { return unix.Close(p.dir) }

// procPath is a path to the entry for the calls that take no directory.
func (p place) procPath() string { return fmt.Sprintf("/proc/self/fd/%d/%s", p.dir, p.name) }

func (p place) lstat() (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(p.dir, p.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

// remove removes the entry and all that is in it, if it is there.
func (p place) remove() error {
	err := unix.Unlinkat(p.dir, p.name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", p.dir))
	if err != nil {
		return err
	}
	return errors.Join(root.RemoveAll(p.name), root.Close())
}

// find returns the place of a path, whose folder must be there. The path is
// clean; "." is the tree itself.
func (t *tree) find(name string) (place, error) {
	fd, err := t.openDir(path.Dir(name))
	if err != nil {
		return place{}, err
	}
	return place{dir: fd, name: path.Base(name)}, nil
}

// prepare is find for a path whose folders are made if they are missing, and
// which is not too long for an entry to be made.
func (t *tree) prepare(name string) (place, error) {
	p, err := t.find(name)
	if errors.Is(err, unix.ENOENT) {
		if err = t.makeDirs(path.Dir(name)); err == nil {
			p, err = t.find(name)
		}
	}
	if err != nil {
		return place{}, err
	}
	real, err := t.realPath(p.dir)
	if err == nil && len(real)-len(t.path)+1+len(p.name) > maxTreePath {
		err = unix.ENAMETOOLONG
	}
	if err != nil {
		p.Close()
		return place{}, err
	}
	return p, nil
}

// makeDirs makes a folder and those above it, for root, as a layer means it
// that has an entry but not its folder.
func (t *tree) makeDirs(dir string) error {
	for end := range len(dir) + 1 {
		if end < len(dir) && dir[end] != '/' {
			continue
		}
		if err := t.makeDir(dir[:end]); err != nil {
			return err
		}
	}
	return nil
}

// makeDir makes one folder, unless it is there.
func (t *tree) makeDir(dir string) error {
	fd, err := t.openDir(dir)
	if err == nil {
		return unix.Close(fd)
	}
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	p, err := t.find(dir)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := unix.Mkdirat(p.dir, p.name, 0o755); err != nil {
		return err
	}
	return unix.Fchmodat(p.dir, p.name, 0o755, 0) // whatever the umask
}

// openDir opens a folder of the tree.
func (t *tree) openDir(dir string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	for {
		fd, err := unix.Openat2(int(t.dir.Fd()), dir, &how)
		// EAGAIN says that something was renamed anywhere on the machine while
		// the kernel looked at a "..".
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

func (t *tree) realPath(fd int) (string, error) {
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// cleanName returns an entry's name as a clean relative path. Names that are
// absolute or have ".." in them have no honest use in a layer.
func cleanName(name string) (string, error) {
	if name == "/" {
		return ".", nil
	}
	if name == "" || strings.HasPrefix(name, "/") || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("its path is empty, absolute or has a NUL in it")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", fmt.Errorf("its path has \"..\" in it")
		}
		if len(part) > unix.NAME_MAX {
			return "", fmt.Errorf("a name in its path is longer than %d bytes", unix.NAME_MAX)
		}
	}
	return path.Clean(name), nil
}
