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

// extractor writes the entries of an archive into a tree. It runs with the
// credentials of the user whose files they become.
//
// What exists is overwritten, as a client's "write this file" means it: a
// regular file in place (it keeps its owner and its other names), a symbolic
// link at its target where that is in the tree. Modes are the archive's
// permission bits; a time of zero means that the client gave none.
type extractor struct {
	t    *tree
	buf  []byte
	dirs []dirMeta
}

// dirMeta is what a directory gets when all is written: its mode might forbid
// the writing, and its time would not outlast it.
type dirMeta struct {
	name string
	mode uint32
	time time.Time
}

// maxDirs bounds the directories whose modes and times wait for the end. Those
// beyond keep the defaults.
const maxDirs = 1 << 16

func newExtractor(dir string) (*extractor, error) {
	t, err := openTree(dir)
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
			return entryError(h.Name, err)
		}
	}
	// Backwards: a directory's mode may close the way to those below it.
	for i := len(x.dirs) - 1; i >= 0; i-- {
		if err := x.finishDir(x.dirs[i]); err != nil {
			return entryError(x.dirs[i].name, err)
		}
	}
	// Archives are padded beyond their end.
	if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{r}, x.buf); err != nil {
		return archiveError(err)
	}
	return nil
}

// archiveError keeps the connection's errors apart from the archive's.
func archiveError(err error) error {
	switch {
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong):
		return wire.Failf(wire.FailInvalid, "not a tar archive: %v", err)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return wire.Failf(wire.FailInvalid, "the tar archive is cut short")
	}
	return err
}

// entryError names the entry and keeps the kind of failure.
func entryError(name string, err error) error {
	const longest = 256 // of a name in a message
	if len(name) > longest {
		name = name[:longest] + "…"
	}
	return about(name, err)
}

// about says what an error is about and keeps its kind.
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
		return wire.Failf(wire.FailUnsafe, "is a device")
	case tar.TypeFifo:
		return wire.Failf(wire.FailUnsafe, "is a FIFO")
	}
	return wire.Failf(wire.FailUnsafe, "is of unknown type %q", h.Typeflag)
}

// entryName returns the clean relative form of a name, "." for the directory
// itself. It refuses what leads out of it.
func entryName(name string) (string, error) {
	switch {
	case name == "":
		return "", wire.Failf(wire.FailInvalid, "the name is empty")
	case strings.HasPrefix(name, "/"):
		return "", wire.Failf(wire.FailUnsafe, "the name is absolute")
	case strings.ContainsRune(name, 0):
		return "", wire.Failf(wire.FailUnsafe, "the name holds a NUL byte")
	case len(name) >= unix.PathMax:
		return "", unix.ENAMETOOLONG
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", wire.Failf(wire.FailUnsafe, `the name holds ".."`)
		}
	}
	return path.Clean(name), nil
}

// dir makes a directory; one that exists is taken as it is until the end.
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

// finishDir gives a directory its mode and time. One that the user does not
// own, and has only written into, keeps its own.
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
		return nil // nothing can be reached in it any more, its "." neither
	}
	return setTime(fd, ".", d.time)
}

// setTime sets the modification time of name in the directory fd, of fd itself
// if name is empty, unless the archive had none.
func setTime(fd int, name string, t time.Time) error {
	if t.Unix() == 0 {
		return nil
	}
	ts, err := unix.TimeToTimespec(t)
	if err != nil {
		return wire.Failf(wire.FailInvalid, "the modification time is out of range")
	}
	times := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, ts}
	var p *byte // nil stands for fd itself
	if name != "" {
		if p, err = unix.BytePtrFromString(name); err != nil {
			return err
		}
	}
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&times)), 0, 0, 0)
	if errno == 0 || errno == unix.EPERM {
		return nil // EPERM: somebody else's file, which the user may only write
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
		err = x.finishFile(fd, mode, h.ModTime)
	}
	if e := unix.Close(fd); err == nil {
		err = e
	}
	if err != nil && created {
		_ = unix.Unlinkat(dir, base, 0) // a half of a file is worse than none
	}
	return err
}

// openForWriting opens a new or existing regular file, empty. ELOOP says that
// the name is a symbolic link.
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
		// A program that runs keeps its file; its name gets a new one.
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

// fill writes the content.
func (x *extractor) fill(fd int, content io.Reader) error {
	for {
		n, err := content.Read(x.buf)
		if e := writeFull(fd, x.buf[:n]); e != nil {
			return e
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return archiveError(err)
		}
	}
}

func writeFull(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// finishFile gives a file its mode, which the umask or an earlier file may
// have made another, and its time.
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

// symlink makes a symbolic link in the place of any file of that name. Its
// target may be anything: it is the writing through it that is checked.
func (x *extractor) symlink(name, target string) error {
	return x.link(name, func(dir int, base string) error {
		return unix.Symlinkat(target, dir, base)
	})
}

// hardLink gives a file of the tree another name.
func (x *extractor) hardLink(name, target string) error {
	target, err := entryName(target)
	if err != nil {
		return about("its target", err)
	}
	from, fromBase, err := x.t.target(target)
	if err != nil {
		return about("its target", err)
	}
	defer unix.Close(from)
	return x.link(name, func(dir int, base string) error {
		return unix.Linkat(from, fromBase, dir, base, 0)
	})
}

// link makes a link, removing a file that has its name.
func (x *extractor) link(name string, make func(dir int, base string) error) error {
	if name == "." {
		return unix.EISDIR
	}
	dir, base, err := x.t.parent(name)
	if err != nil {
		return err
	}
	// The link may change where names lead.
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
