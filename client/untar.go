package client

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// untar extracts a tar stream from a sandbox into root. Names that lead out of root, also
// through a link, are an error. Devices, pipes and symbolic links with a target outside
// are left out and returned, because they could do harm here.
//
// strip is the first element of the names. It is replaced by as. length is the size of
// the contents of all files.
func untar(ctx context.Context, r io.Reader, root *os.Root, strip, as string) (length int64, left []string, err error) {
	x := extraction{root: root, strip: strip, as: as, real: map[string]bool{".": true}}
	tr := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return length, x.skipped.list(), err
		}
		hdr, err := tr.Next()
		if err == io.EOF {
			return length, x.skipped.list(), x.finishDirs()
		}
		if err != nil {
			return length, x.skipped.list(), fmt.Errorf("read the tar stream: %w", err)
		}
		if err := x.entry(hdr, tr); err != nil {
			return length, x.skipped.list(), fmt.Errorf("extract %q: %w", hdr.Name, err)
		}
		if hdr.Typeflag == tar.TypeReg {
			length += hdr.Size
		}
	}
}

// Limits of the extended attributes of one file. A sandbox accepts no more.
const (
	maxAttributes     = 128
	maxAttributeBytes = 256 << 10
)

// attributePrefix starts the keys of the tar records that hold attributes.
const attributePrefix = "SCHILY.xattr."

// maxSkipped limits the names of what a copy leaves out, because a sandbox can send any
// number of names of any length.
const maxSkipped, maxSkippedName = 1000, 4096

// skipped are the names of what a copy has left out.
type skipped struct {
	names []string
	more  int
}

func (s *skipped) add(names ...string) {
	for _, name := range names {
		if len(s.names) == maxSkipped {
			s.more++
			continue
		}
		if len(name) > maxSkippedName {
			name = name[:maxSkippedName] + "…"
		}
		s.names = append(s.names, name)
	}
}

func (s *skipped) list() []string {
	if s.more == 0 {
		return s.names
	}
	return append(s.names, fmt.Sprintf("and %d more", s.more))
}

type extraction struct {
	root      *os.Root
	strip, as string
	skipped   skipped
	dirs      []dirMode
	// real are directories that are not links. Extracting never replaces a directory, so
	// they stay directories.
	real map[string]bool
}

// dirMode is the final mode of a directory. It is set after the directory's files are
// written.
type dirMode struct {
	name string
	mode fs.FileMode
	time time.Time
}

func (x *extraction) entry(hdr *tar.Header, content io.Reader) error {
	if isSparse(hdr) { // a few bytes can claim to be a terabyte
		return errors.New("sparse files are not accepted")
	}
	name, err := x.localName(hdr.Name)
	if err != nil {
		return err
	}
	if err := x.parent(filepath.Dir(name)); err != nil {
		return err
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
		return x.dir(name, hdr)
	case tar.TypeReg:
		return x.file(name, hdr, content)
	case tar.TypeSymlink:
		return x.symlink(name, hdr)
	case tar.TypeLink:
		return x.hardlink(name, hdr)
	}
	x.skipped.add(leftOut(hdr))
	return nil
}

// leftOut records an entry that is not copied, with the reason.
func leftOut(hdr *tar.Header) string {
	why := "not a kind of file that can be copied"
	switch hdr.Typeflag {
	case tar.TypeFifo:
		why = "a pipe"
	case tar.TypeChar, tar.TypeBlock:
		why = "a device"
	case tar.TypeSymlink:
		why = "a symbolic link that leads out of the directory: " + hdr.Linkname
	}
	return hdr.Name + " (" + why + ")"
}

func isSparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// localName returns the name below the root for a name in the stream.
func (x *extraction) localName(name string) (string, error) {
	rest, err := below(name, x.strip)
	if err != nil {
		return "", err
	}
	local, err := filepath.Localize(path.Join(x.as, rest))
	if err != nil {
		return "", errors.New("the path is not valid on this system")
	}
	return local, nil
}

// below returns the part of a name after strip. tar -C DIR -c NAME creates no absolute
// names, and none with "..".
func below(name, strip string) (string, error) {
	if name == "" || path.IsAbs(name) || slices.Contains(strings.Split(name, "/"), "..") {
		return "", errors.New("the path leads out of the directory")
	}
	rest := path.Clean(name)
	if strip != "." {
		var ok bool
		if rest, ok = strings.CutPrefix(rest, strip); !ok || (rest != "" && rest[0] != '/') {
			return "", errors.New("the path is not below the requested one")
		}
	}
	return rest, nil
}

// parent creates the directories above an entry. None of them may be a link: tar never
// creates such a stream, and the target of a relative link would then not follow from its
// name.
func (x *extraction) parent(dir string) error {
	if x.real[dir] {
		return nil
	}
	if err := x.parent(filepath.Dir(dir)); err != nil {
		return err
	}
	info, err := x.root.Lstat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = x.root.Mkdir(dir, 0o777)
	case err == nil && !info.IsDir():
		err = fmt.Errorf("%s is not a directory", filepath.ToSlash(dir))
	}
	if err == nil {
		x.real[dir] = true
	}
	return err
}

func (x *extraction) dir(name string, hdr *tar.Header) error {
	info, err := x.root.Lstat(name)
	if err != nil || !info.IsDir() {
		if err == nil { // there is a file or a link
			if err := x.root.Remove(name); err != nil {
				return err
			}
		}
		if err := x.root.Mkdir(name, 0o700); err != nil {
			return err
		}
	}
	x.real[name] = true
	x.dirs = append(x.dirs, dirMode{name, hdr.FileInfo().Mode().Perm(), hdr.ModTime})
	return nil
}

// file writes a new file, without setuid, setgid and sticky bits. An existing file is
// removed and not overwritten, because it may be a link.
func (x *extraction) file(name string, hdr *tar.Header, content io.Reader) error {
	if err := x.makeRoom(name); err != nil {
		return err
	}
	f, err := x.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, hdr.FileInfo().Mode().Perm())
	if err != nil {
		return err
	}
	if _, err = copyHoles(f, content); err == nil {
		err = x.attributes(f, hdr)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return x.root.Chtimes(name, hdr.ModTime, hdr.ModTime)
}

// symlink creates a link whose target is in the copy. A link from a sandbox must not lead
// to other files of this machine.
func (x *extraction) symlink(name string, hdr *tar.Header) error {
	if !x.inside(path.Dir(filepath.ToSlash(name)), hdr.Linkname) {
		x.skipped.add(leftOut(hdr))
		return nil
	}
	if err := x.makeRoom(name); err != nil {
		return err
	}
	return x.root.Symlink(filepath.FromSlash(hdr.Linkname), name)
}

// inside reports whether the target of a link in dir is in the copy. The names are
// enough to decide: dir contains no links, and ".." is accepted only at the beginning of
// the target, before another link is followed.
func (x *extraction) inside(dir, target string) bool {
	if target == "" || path.IsAbs(target) || !filepath.IsLocal(filepath.FromSlash(path.Join(dir, target))) {
		return false
	}
	down := target
	for down == ".." || strings.HasPrefix(down, "../") {
		down = strings.TrimLeft(strings.TrimPrefix(down, ".."), "/")
	}
	if slices.Contains(strings.Split(down, "/"), "..") {
		return false
	}
	end := path.Join(dir, target)
	return end == x.as || strings.HasPrefix(end, x.as+"/")
}

func (x *extraction) hardlink(name string, hdr *tar.Header) error {
	target, err := x.localName(hdr.Linkname)
	if err != nil {
		return fmt.Errorf("link to %q: %w", hdr.Linkname, err)
	}
	info, err := x.root.Lstat(target)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("link to %q: the target is not a file", hdr.Linkname)
	}
	if err := x.makeRoom(name); err != nil {
		return err
	}
	return x.root.Link(target, name)
}

// makeRoom removes a file or link.
func (x *extraction) makeRoom(name string) error {
	info, err := x.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.IsDir() {
		return errors.New("a directory is at the same path")
	}
	return x.root.Remove(name)
}

// finishDirs sets the modes of the directories, the deepest first. Directories without
// write permission could not be filled before.
func (x *extraction) finishDirs() error {
	for i := len(x.dirs) - 1; i >= 0; i-- {
		d := x.dirs[i]
		info, err := x.root.Lstat(d.name)
		if err != nil {
			return err
		}
		if !info.IsDir() { // a later entry has replaced it
			continue
		}
		if err := x.root.Chmod(d.name, d.mode); err != nil {
			return err
		}
		if err := x.root.Chtimes(d.name, d.time, d.time); err != nil {
			return err
		}
	}
	return nil
}

// copyHoles copies r to a new file. Blocks of zeros become holes.
func copyHoles(f *os.File, r io.Reader) (size int64, err error) {
	buf := make([]byte, 64<<10)
	zeros := make([]byte, len(buf))
	for {
		n, err := r.Read(buf)
		if !bytes.Equal(buf[:n], zeros[:n]) {
			if _, err := f.WriteAt(buf[:n], size); err != nil {
				return size, err
			}
		}
		size += int64(n)
		if err == io.EOF {
			return size, f.Truncate(size)
		}
		if err != nil {
			return size, err
		}
	}
}

// attributes sets the user attributes of a new file. Attributes of other namespaces, and
// those that the filesystem refuses, are left out.
func (x *extraction) attributes(f *os.File, hdr *tar.Header) error {
	records, left, err := userAttributes(hdr)
	if err != nil {
		return err
	}
	x.skipped.add(left...)
	for key, value := range records {
		name := strings.TrimPrefix(key, attributePrefix)
		if setAttribute(f, name, value) != nil {
			x.skipped.add(fmt.Sprintf("%s (attribute %s)", hdr.Name, name))
		}
	}
	return nil
}
