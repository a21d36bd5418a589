package agent

import (
	"archive/tar"
	"errors"
	"io"
	"path"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// extractor writes the entries of an archive into a tree. It runs with the credentials
// of the user who will own the files.
//
// Existing files are overwritten, because a client means "write this file". A regular
// file is overwritten in place: it keeps its owner and its other names. For a symbolic
// link with a target in the tree, the target is overwritten. Modes are the permission
// bits of the archive. A time of zero means that the client gave none.
type extractor struct {
	t    *tree
	buf  []byte
	dirs []dirMeta
	// reach, if set, is called with the absolute name of each entry before the entry
	// is written.
	reach func(name string) error
}

// dirMeta is the mode and time of a directory. They are set after all entries: the mode
// may forbid writes, and each write changes the time.
type dirMeta struct {
	name string
	mode uint32
	time time.Time
}

// maxDirs limits the list of dirMeta. Directories over the limit keep the default mode
// and time.
const maxDirs = 1 << 16

func newExtractor(root, dir string) (*extractor, error) {
	t, err := openTree(root, dir)
	if err != nil {
		return nil, err
	}
	return &extractor{t: t, buf: make([]byte, wire.MaxData)}, nil
}

func (x *extractor) close() { x.t.close() }

// extract writes all entries of r, and reads r to its end.
func (x *extractor) extract(r io.Reader) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return archiveError(err)
		}
		if err := x.entry(h, tr); err != nil {
			return x.entryError(h.Name, err)
		}
	}
	// In reverse order, because the mode of a directory may block access to those
	// below it.
	for i := len(x.dirs) - 1; i >= 0; i-- {
		if err := x.finishDir(x.dirs[i]); err != nil {
			return x.entryError(x.dirs[i].name, err)
		}
	}
	// Archives have padding after their end.
	if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{r}, x.buf); err != nil {
		return archiveError(err)
	}
	return nil
}

// archiveError turns errors of the archive into failures. Other errors are of the
// connection, and stay.
func archiveError(err error) error {
	switch {
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong):
		return wire.Failf(wire.FailInvalid, "not a tar archive: %v", err)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return wire.Failf(wire.FailInvalid, "the tar archive is truncated")
	}
	return err
}

// entryError adds the path of the file to an error, or the name of the entry if it is
// not allowed. The code stays.
func (x *extractor) entryError(name string, err error) error {
	const maxName = 256 // in a message
	if clean, err := entryName(name); err == nil {
		name = path.Join(x.t.path, clean)
	}
	if len(name) > maxName {
		name = name[:maxName] + "…"
	}
	return about(name, err)
}

// about adds a subject to an error. The code stays.
func about(what string, err error) error {
	f := failure(err)
	return wire.Failf(f.Code, "%s: %s", what, f.Message)
}

// entry writes one entry.
func (x *extractor) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return wire.Failf(wire.FailUnsafe, "sparse files are not supported")
		}
	}
	name, err := entryName(h.Name)
	if err != nil {
		return err
	}
	if x.reach != nil {
		if err := x.reach(path.Join(x.t.path, name)); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return x.dir(name, h)
	case tar.TypeReg:
		return x.file(name, h, content)
	case tar.TypeSymlink:
		return x.symlink(name, h.Linkname)
	case tar.TypeLink:
		return x.hardLink(name, h.Linkname)
	case tar.TypeGNUSparse:
		return wire.Failf(wire.FailUnsafe, "sparse files are not supported")
	case tar.TypeChar, tar.TypeBlock:
		return wire.Failf(wire.FailUnsafe, "devices are not supported")
	case tar.TypeFifo:
		return x.fifo(name, h)
	}
	return wire.Failf(wire.FailUnsafe, "entries of type %q are not supported", h.Typeflag)
}

// entryName returns the clean relative form of a name, which is "." for the directory
// itself. It refuses names that lead out of the directory.
func entryName(name string) (string, error) {
	switch {
	case name == "":
		return "", wire.Failf(wire.FailInvalid, "the name is empty")
	case strings.HasPrefix(name, "/"):
		return "", wire.Failf(wire.FailUnsafe, "the name is absolute")
	case strings.ContainsRune(name, 0):
		return "", wire.Failf(wire.FailUnsafe, "the name contains a NUL byte")
	case len(name) >= unix.PathMax:
		return "", unix.ENAMETOOLONG
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", wire.Failf(wire.FailUnsafe, `the name contains ".."`)
		}
	}
	return path.Clean(name), nil
}

// dir creates a directory if it is missing. Its mode and time are set at the end.
func (x *extractor) dir(name string, h *tar.Header) error {
	if name == "." {
		return nil
	}
	fd, err := x.t.dir(name)
	if err != nil {
		return err
	}
	unix.Close(fd)
	if len(x.dirs) < maxDirs {
		x.dirs = append(x.dirs, dirMeta{name, permissions(h), h.ModTime})
	}
	return nil
}

func permissions(h *tar.Header) uint32 { return uint32(h.Mode) & 0o777 }

// finishDir sets the mode and time of a directory. A directory that the user does not
// own stays as it is.
func (x *extractor) finishDir(d dirMeta) error {
	fd, err := x.t.dir(d.name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if int(st.Uid) != unix.Geteuid() {
		return nil
	}
	if st.Mode&0o777 != d.mode {
		if err := unix.Fchmodat(fd, ".", d.mode, 0); err != nil {
			return err
		}
	}
	if d.mode&0o100 == 0 {
		return nil // without search permission, not even "." is accessible
	}
	return setTime(fd, ".", d.time)
}

// setTime sets the modification time of name in the directory fd, or of fd itself if
// name is empty. It does nothing for a time of zero.
func setTime(fd int, name string, t time.Time) error {
	if t.Unix() == 0 {
		return nil
	}
	ts, err := unix.TimeToTimespec(t)
	if err != nil {
		return wire.Failf(wire.FailInvalid, "the modification time is out of range")
	}
	times := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, ts}
	var p *byte // nil is fd itself
	if name != "" {
		if p, err = unix.BytePtrFromString(name); err != nil {
			return err
		}
	}
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&times)), 0, 0, 0)
	if errno == 0 || errno == unix.EPERM {
		return nil // EPERM: the user may write the file, but does not own it
	}
	return errno
}

// file writes a regular file.
func (x *extractor) file(name string, h *tar.Header, content io.Reader) error {
	if name == "." || strings.HasSuffix(h.Name, "/") {
		return unix.EISDIR
	}
	dir, base, err := x.t.parent(name)
	if err != nil {
		return err
	}
	mode := permissions(h)
	fd, created, err := openForWriting(dir, base, mode)
	if err == unix.ELOOP {
		if dir, base, err = x.t.target(name); err != nil {
			return err
		}
		defer unix.Close(dir)
		fd, created, err = openForWriting(dir, base, mode)
	}
	if err != nil {
		return err
	}
	if err = x.fill(fd, content); err == nil {
		err = setAttributes(fd, h)
	}
	if err == nil {
		err = x.finishFile(fd, mode, h.ModTime)
	}
	if e := unix.Close(fd); err == nil {
		err = e
	}
	if err != nil && created {
		_ = unix.Unlinkat(dir, base, 0) // an incomplete file is worse than none
	}
	return err
}

// openForWriting creates a regular file, or opens and truncates an existing one. It
// returns ELOOP for a symbolic link.
func openForWriting(dir int, base string, mode uint32) (fd int, created bool, err error) {
	const flags = unix.O_WRONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err = openRetry(dir, base, flags|unix.O_CREAT|unix.O_EXCL, mode)
	if err != unix.EEXIST {
		return fd, err == nil, err
	}
	fd, err = openRetry(dir, base, flags, 0)
	switch err {
	case nil:
	case unix.ETXTBSY:
		// The file is a running program. Leave it to the program, and create a new
		// one under the name.
		if err = unix.Unlinkat(dir, base, 0); err != nil {
			return -1, false, err
		}
		fd, err = openRetry(dir, base, flags|unix.O_CREAT|unix.O_EXCL, mode)
		return fd, err == nil, err
	case unix.ENXIO:
		return -1, false, wire.Failf(wire.FailNotRegular, "exists and is not a regular file")
	default:
		return -1, false, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = wire.Failf(wire.FailNotRegular, "exists and is not a regular file")
	}
	if err == nil {
		err = unix.Ftruncate(fd, 0)
	}
	if err != nil {
		unix.Close(fd)
		return -1, false, err
	}
	return fd, false, nil
}

// finishFile sets the mode and time of a file. The mode may differ because of the umask,
// or because the file existed.
func (x *extractor) finishFile(fd int, mode uint32, t time.Time) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&0o777 != mode {
		if err := unix.Fchmod(fd, mode); err != nil {
			return err
		}
	}
	return setTime(fd, "", t)
}

// symlink creates a symbolic link. It replaces an existing file. The target is not
// checked: only writes through the link are.
func (x *extractor) symlink(name, target string) error {
	return x.link(name, func(dir int, base string) error {
		return unix.Symlinkat(target, dir, base)
	})
}

// hardLink adds a name to a file in the tree.
func (x *extractor) hardLink(name, target string) error {
	target, err := entryName(target)
	if err != nil {
		return about("target of the hard link", err)
	}
	from, fromBase, err := x.t.target(target)
	if err != nil {
		return about("target of the hard link", err)
	}
	defer unix.Close(from)
	return x.link(name, func(dir int, base string) error {
		return unix.Linkat(from, fromBase, dir, base, 0)
	})
}

// link creates a file with make. It replaces an existing file of that name.
func (x *extractor) link(name string, make func(dir int, base string) error) error {
	if name == "." {
		return unix.EISDIR
	}
	dir, base, err := x.t.parent(name)
	if err != nil {
		return err
	}
	// The replaced name may have been a link on the way to the kept parent.
	defer x.t.forget()
	err = make(dir, base)
	if err != unix.EEXIST {
		return err
	}
	if err := unix.Unlinkat(dir, base, 0); err != nil {
		return err
	}
	return make(dir, base)
}

// fifo creates a FIFO. It replaces an existing file.
func (x *extractor) fifo(name string, h *tar.Header) error {
	mode := permissions(h)
	return x.link(name, func(dir int, base string) error {
		return unix.Mkfifoat(dir, base, mode)
	})
}
