package agent

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// tree is a directory that nothing outside is touched through. Names are
// walked one component at a time by descriptors, so that neither a symbolic
// link nor one that is put there meanwhile leads out: a link is followed where
// its target lies within the tree, and is an error where it leaves it.
//
// This is not what protects the sandbox: all is done with the credentials of a
// user who could do the same by a command. It keeps an archive from writing
// elsewhere than where its sender said.
type tree struct {
	path string // absolute and clean
	root int

	// The parent of the file before is kept: files of a directory come
	// together.
	lastName string
	last     int
}

const (
	// maxLinks is how many symbolic links Linux follows in one name.
	maxLinks = 40
	// maxDepth bounds the descriptors that a walk holds.
	maxDepth = 256

	openDir = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
)

// openTree makes the directory where it is missing and opens it. The name
// itself is the host's and may lead through links.
func openTree(path string) (*tree, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		if pe := (*os.PathError)(nil); errors.As(err, &pe) {
			return nil, fmt.Errorf("%s: %w", pe.Path, pe.Err)
		}
		return nil, err
	}
	root, err := openRetry(unix.AT_FDCWD, path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &tree{path: path, root: root, last: -1}, nil
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

// parent returns a descriptor of the directory that name, a clean relative
// path, is in, and name's last component. Missing directories are made. The
// descriptor is good until the next call.
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

// dir walks to a directory below the root, making what is missing. The caller
// closes the descriptor.
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

// errLeaves is why a link is not followed.
var errLeaves = wire.Failf(wire.FailUnsafe, "leads out of the directory by a symbolic link")

// walk is a way through a tree. open holds the directories on it, so that ".."
// in a link goes back the way that was come.
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

// step goes on by one component.
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

// follow goes on with the target of a symbolic link; what is none fails with
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

// redirect goes to where a link's target starts from and returns the
// components to walk from there.
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

// inside returns the rest of an absolute path below the tree.
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

// target returns where writing to name leads when name itself is a symbolic
// link: the directory, which the caller closes, and the name in it.
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
