package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
)

// A name that starts with whiteoutPrefix removes what earlier layers have
// under the rest of it; opaqueWhiteout removes all they have in its folder.
const (
	whiteoutPrefix = ".wh."
	opaqueWhiteout = ".wh..wh..opq"
	// whiteoutMeta starts names that old storage drivers kept for themselves.
	whiteoutMeta = ".wh..wh."
	xattrPrefix  = "SCHILY.xattr."
	maxSymlink   = 4095
	// maxID is the largest numeric owner; -1 means "none" to the kernel.
	maxID = 1<<32 - 2
)

// unpacker unpacks the layers of one image, in order, into one tree.
//
// What it keeps of an entry: type, contents, mode with set-user-ID and sticky
// bits, numeric owner, modification time, hard links, and the extended
// attributes "security.capability" and "user.*". Device nodes are left out:
// sandboxes have a /dev of their own.
type unpacker struct {
	tree    *tree
	limits  Limits
	bytes   int64
	entries int
	// layer names the layer in errors.
	layer string
}

// unpack unpacks a layer. It goes through the tar three times, since neither
// whiteouts nor the times of folders may depend on the order of entries:
// whiteouts are about earlier layers only, and a folder's time changes with
// every entry that is made in it.
func (u *unpacker) unpack(ctx context.Context, layer string, tarFile io.ReadSeeker) error {
	u.layer = layer
	var n int
	for _, apply := range []func(context.Context, *entry) error{u.whiteout, u.add, u.dirTime} {
		_, err := tarFile.Seek(0, io.SeekStart)
		if err != nil {
			return fmt.Errorf("unpacking layer %s: %w", layer, err)
		}
		if n, err = u.each(ctx, tarFile, apply); err != nil {
			return err
		}
	}
	u.entries += n
	return nil
}

// entry is one entry of a layer, with its name made clean.
type entry struct {
	*tar.Header
	path string
	body io.Reader
}

// each calls apply with every entry of a layer and returns how many there are.
func (u *unpacker) each(ctx context.Context, tarFile io.Reader, apply func(context.Context, *entry) error) (n int, err error) {
	for tr := tar.NewReader(tarFile); ; n++ {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, u.invalid("", fmt.Errorf("it is not a tar archive: %w", err))
		}
		if u.entries+n >= u.limits.Entries {
			return n, u.invalid("", fmt.Errorf("the image has more than %d entries", u.limits.Entries))
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		clean, err := cleanName(h.Name)
		if err != nil {
			return n, u.invalid(h.Name, err)
		}
		if err := apply(ctx, &entry{Header: h, path: clean, body: tr}); err != nil {
			return n, u.failed(ctx, h.Name, err)
		}
	}
}

// invalid is the error for a layer that breaks a rule.
func (u *unpacker) invalid(name string, err error) error {
	where := "layer " + u.layer
	if name != "" {
		where += fmt.Sprintf(", entry %.200q", name)
	}
	return &skerry.Error{Code: skerry.CodeImageInvalid, Field: "image", Message: fmt.Sprintf("%s: %v", where, err)}
}

// failed tells an error that the entry brought about from one of the machine.
func (u *unpacker) failed(ctx context.Context, name string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return skerry.Errorf(skerry.CodeDiskFull, "unpacking the image: %w", err)
	}
	var broken *brokenRule
	if errors.As(err, &broken) {
		return u.invalid(name, err)
	}
	for _, errno := range []error{
		unix.ENAMETOOLONG, unix.ENOTDIR, unix.EISDIR, unix.ELOOP, unix.EEXIST, unix.ENOENT, unix.EMLINK, unix.EXDEV,
		unix.EINVAL, unix.E2BIG, io.ErrUnexpectedEOF, tar.ErrHeader,
	} {
		if errors.Is(err, errno) {
			return u.invalid(name, err)
		}
	}
	return fmt.Errorf("unpacking layer %s, entry %.200q: %w", u.layer, name, err)
}

// brokenRule says what is wrong with an entry.
type brokenRule struct{ what string }

func (b *brokenRule) Error() string { return b.what }

func broken(format string, args ...any) error { return &brokenRule{fmt.Sprintf(format, args...)} }

func isWhiteout(e *entry) bool { return strings.HasPrefix(path.Base(e.path), whiteoutPrefix) }

// whiteout removes what an entry says is not in the image any more.
func (u *unpacker) whiteout(_ context.Context, e *entry) error {
	base := path.Base(e.path)
	if !isWhiteout(e) || (base != opaqueWhiteout && strings.HasPrefix(base, whiteoutMeta)) {
		return nil
	}
	p, err := u.tree.find(e.path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil // there is nothing to remove
	}
	if err != nil {
		return err
	}
	defer p.Close()
	if base == opaqueWhiteout {
		return removeContents(p)
	}
	p.name = strings.TrimPrefix(base, whiteoutPrefix)
	if p.name == "" || p.name == "." || p.name == ".." {
		return broken("a whiteout entry must name a file")
	}
	return p.remove()
}

func removeContents(p place) error {
	dir, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", p.dir))
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := (place{dir: p.dir, name: name}).remove(); err != nil {
			return err
		}
	}
	return nil
}

// add makes an entry in the tree.
func (u *unpacker) add(ctx context.Context, e *entry) error {
	if isWhiteout(e) || e.Typeflag == tar.TypeChar || e.Typeflag == tar.TypeBlock {
		return nil
	}
	if e.path == "." && e.Typeflag != tar.TypeDir {
		return broken("the root of the image is not a folder")
	}
	p, err := u.tree.prepare(e.path)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := clear(p, e); err != nil {
		return err
	}
	if err := u.create(ctx, p, e); err != nil {
		return err
	}
	if e.Typeflag == tar.TypeLink {
		return nil // what it has is its target's
	}
	return setAttributes(p, e)
}

// clear removes what stands in an entry's way. A folder on a folder keeps what
// is in it.
func clear(p place, e *entry) error {
	st, err := p.lstat()
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR && e.Typeflag == tar.TypeDir {
		return nil
	}
	return p.remove()
}

func (u *unpacker) create(ctx context.Context, p place, e *entry) error {
	switch e.Typeflag {
	case tar.TypeDir:
		if err := unix.Mkdirat(p.dir, p.name, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		return nil
	case tar.TypeReg:
		return u.createFile(ctx, p, e)
	case tar.TypeSymlink:
		if e.Linkname == "" || len(e.Linkname) > maxSymlink {
			return broken("the target of the symbolic link is empty or longer than %d bytes", maxSymlink)
		}
		return unix.Symlinkat(e.Linkname, p.dir, p.name)
	case tar.TypeLink:
		return u.createLink(p, e)
	case tar.TypeFifo:
		return unix.Mknodat(p.dir, p.name, unix.S_IFIFO|0o600, 0)
	}
	return broken("it has the unknown type %q", e.Typeflag)
}

func (u *unpacker) createFile(ctx context.Context, p place, e *entry) error {
	if u.bytes += e.Size; u.bytes > u.limits.Bytes || e.Size < 0 {
		return broken("the image unpacks to more than %d bytes", u.limits.Bytes)
	}
	fd, err := unix.Openat(p.dir, p.name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), p.name)
	_, err = io.Copy(f, &contextReader{ctx, e.body})
	return errors.Join(err, f.Close())
}

// contextReader ends a copy when its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

func (u *unpacker) createLink(p place, e *entry) error {
	clean, err := cleanName(e.Linkname)
	if err != nil {
		return broken("hard link to %.200q: %v", e.Linkname, err)
	}
	target, err := u.tree.find(clean)
	if err != nil {
		return fmt.Errorf("hard link to %.200q: %w", e.Linkname, err)
	}
	defer target.Close()
	st, err := target.lstat()
	if err != nil {
		return fmt.Errorf("hard link to %.200q: %w", e.Linkname, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return broken("hard link to %.200q, which is a folder", e.Linkname)
	}
	return unix.Linkat(target.dir, target.name, p.dir, p.name, 0)
}

// setAttributes gives a new entry its owner, mode, extended attributes and
// time, in this order: each of the first two takes away some of the next.
func setAttributes(p place, e *entry) error {
	if e.Uid < 0 || e.Uid > maxID || e.Gid < 0 || e.Gid > maxID {
		return broken("its owner %d:%d is not valid", e.Uid, e.Gid)
	}
	if err := unix.Fchownat(p.dir, p.name, e.Uid, e.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("setting the owner: %w", err)
	}
	if e.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(p.dir, p.name, uint32(e.Mode)&0o7777, 0); err != nil {
			return fmt.Errorf("setting the mode: %w", err)
		}
	}
	if err := setXattrs(p, e); err != nil {
		return err
	}
	return setTime(p, e)
}

func setXattrs(p place, e *entry) error {
	for key, value := range e.PAXRecords {
		attr, ok := strings.CutPrefix(key, xattrPrefix)
		if !ok || !allowedXattr(attr) {
			continue
		}
		// Only files and folders may have attributes of users.
		if e.Typeflag != tar.TypeReg && e.Typeflag != tar.TypeDir {
			continue
		}
		if err := unix.Lsetxattr(p.procPath(), attr, []byte(value), 0); err != nil {
			return fmt.Errorf("setting the extended attribute %.100q: %w", attr, err)
		}
	}
	return nil
}

func setTime(p place, e *entry) error {
	at := unix.Timespec{Sec: e.ModTime.Unix(), Nsec: int64(e.ModTime.Nanosecond())}
	if err := unix.UtimesNanoAt(p.dir, p.name, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("setting the time: %w", err)
	}
	return nil
}

// dirTime sets the time of a folder, now that all that is in it has been made.
func (u *unpacker) dirTime(_ context.Context, e *entry) error {
	if e.Typeflag != tar.TypeDir || isWhiteout(e) {
		return nil
	}
	p, err := u.tree.find(e.path)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			return nil // a later entry of the layer took its place
		}
		return err
	}
	defer p.Close()
	st, err := p.lstat()
	if errors.Is(err, unix.ENOENT) || (err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	return setTime(p, e)
}
