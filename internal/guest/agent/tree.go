package agent

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// tree is a directory for writing files that must stay inside it. It walks names one
// component at a time with descriptors. So no symbolic link leads out, not even one that
// is created at the same time. A link with a target in the tree is followed. A link that
// leaves the tree is an error.
//
// This does not protect the sandbox: the agent acts with the credentials of a user, who
// could do the same with a command. It keeps an archive from writing outside the
// directory that its sender named.
type tree struct {
	path string // in the sandbox, absolute and clean
	root int

	// The parent of the last file is kept open, because the files of a directory
	// usually follow each other.
	lastName string
	last     int
}

const (
	// maxLinks is the number of symbolic links that Linux follows in one path.
	maxLinks = 40
	// maxDepth limits the open descriptors of a walk.
	maxDepth = 256

	openDir = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
)

// openTree opens a directory, and creates it if it is missing. The path comes from the
// host and may lead through links. root is the folder that the paths of the sandbox
// start from.
func openTree(root, path string) (*tree, error) {
	if err := os.MkdirAll(root+path, 0o755); err != nil {
		if pe := (*os.PathError)(nil); errors.As(err, &pe) {
			return nil, fmt.Errorf("%s: %w", strings.TrimPrefix(pe.Path, root), pe.Err)
		}
		return nil, err
	}
	fd, err := openRetry(unix.AT_FDCWD, root+path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &tree{path: path, root: fd, last: -1}, nil
}

func (t *tree) close() {
	t.forget()
	unix.Close(t.root)
}

// forget drops the kept parent.
func (t *tree) forget() {
	if t.last >= 0 {
		unix.Close(t.last)
	}
	t.last, t.lastName = -1, ""
}

// parent returns a descriptor of the parent directory of name, and the last component
// of name, which is a clean relative path. It creates missing directories. The
// descriptor is valid until the next call.
func (t *tree) parent(name string) (fd int, base string, err error) {
	dir, base := "", name
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		dir, base = name[:i], name[i+1:]
	}
	if dir == "" {
		return t.root, base, nil
	}
	if t.last < 0 || t.lastName != dir {
		fd, err := t.dir(dir)
		if err != nil {
			return -1, "", err
		}
		t.forget()
		t.last, t.lastName = fd, dir
	}
	return t.last, base, nil
}

// dir returns a descriptor of a directory in the tree. It creates missing directories.
// The caller closes the descriptor.
func (t *tree) dir(name string) (int, error) {
	w := walk{t: t, todo: strings.Split(name, "/")}
	defer w.close()
	for len(w.todo) > 0 {
		if err := w.step(); err != nil {
			return -1, err
		}
	}
	return unix.FcntlInt(uintptr(w.at()), unix.F_DUPFD_CLOEXEC, 0)
}

// errLeaves is the error for a symbolic link that leads out of the tree.
var errLeaves = wire.Failf(wire.FailUnsafe, "leads out of the directory through a symbolic link")

// walk walks a path in a tree. open holds the directories on the path, so ".." in a
// link returns to the directory before.
type walk struct {
	t     *tree
	open  []int
	todo  []string
	links int
}

func (w *walk) close() { w.back(0) }

func (w *walk) at() int {
	if len(w.open) == 0 {
		return w.t.root
	}
	return w.open[len(w.open)-1]
}

// back returns to the given depth.
func (w *walk) back(depth int) {
	for len(w.open) > depth {
		unix.Close(w.at())
		w.open = w.open[:len(w.open)-1]
	}
}

// step walks one component.
func (w *walk) step() error {
	name := w.todo[0]
	w.todo = w.todo[1:]
	switch name {
	case "", ".":
		return nil
	case "..":
		if len(w.open) == 0 {
			if w.t.path == "/" {
				return nil // the root is its own parent
			}
			return errLeaves
		}
		w.back(len(w.open) - 1)
		return nil
	}
	if len(w.open) == maxDepth {
		return unix.ENAMETOOLONG
	}
	fd, err := openRetry(w.at(), name, openDir, 0)
	if err == unix.ENOENT {
		if err = unix.Mkdirat(w.at(), name, 0o755); err != nil && err != unix.EEXIST {
			return err
		}
		fd, err = openRetry(w.at(), name, openDir, 0)
	}
	if err == unix.ENOTDIR || err == unix.ELOOP {
		return w.follow(name, err)
	}
	if err != nil {
		return err
	}
	w.open = append(w.open, fd)
	return nil
}

// follow continues with the target of a symbolic link. If name is not a link, it returns
// notLink.
func (w *walk) follow(name string, notLink error) error {
	target, err := readlinkat(w.at(), name)
	if err != nil {
		return notLink
	}
	parts, err := w.redirect(target)
	if err != nil {
		return err
	}
	w.todo = append(parts, w.todo...)
	return nil
}

// redirect goes to the start of a link's target, and returns the components to walk from
// there.
func (w *walk) redirect(target string) ([]string, error) {
	if w.links++; w.links > maxLinks {
		return nil, unix.ELOOP
	}
	if strings.HasPrefix(target, "/") {
		inside, ok := w.t.inside(target)
		if !ok {
			return nil, errLeaves
		}
		w.back(0)
		target = inside
	}
	parts := strings.Split(target, "/")
	if len(parts)+len(w.todo) > 4*maxDepth {
		return nil, unix.ENAMETOOLONG
	}
	return parts, nil
}

// inside returns the part of an absolute path below the tree, if it is in the tree.
func (t *tree) inside(target string) (string, bool) {
	if t.path == "/" {
		return target, true
	}
	rest, ok := strings.CutPrefix(target, t.path)
	return rest, ok && (rest == "" || rest[0] == '/')
}

func readlinkat(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// target resolves name if it is itself a symbolic link. It returns the directory of the
// file, which the caller closes, and the name in it.
func (t *tree) target(name string) (dir int, base string, err error) {
	parts := strings.Split(name, "/")
	w := walk{t: t}
	defer w.close()
	for {
		last := len(parts) - 1
		base = parts[last]
		w.todo = parts[:last]
		for len(w.todo) > 0 {
			if err := w.step(); err != nil {
				return -1, "", err
			}
		}
		if base == "" || base == "." || base == ".." {
			return -1, "", unix.EISDIR
		}
		link, err := readlinkat(w.at(), base)
		if err != nil {
			dir, err := unix.FcntlInt(uintptr(w.at()), unix.F_DUPFD_CLOEXEC, 0)
			return dir, base, err
		}
		if parts, err = w.redirect(link); err != nil {
			return -1, "", err
		}
	}
}
