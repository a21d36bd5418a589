package client

import (
	"archive/tar"
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

// untar extracts a tar stream that a sandbox made into root, and nothing
// outside it: names that lead out of root, or through a link out of it, are an
// error. Entries that could not be harmless here are left out and returned:
// devices, pipes, and symbolic links whose target is outside.
//
// strip is the first element of the names, which as takes the place of.
func untar(ctx context.Context, r io.Reader, root *os.Root, strip, as string) (skipped []string, err error) {
	x := extraction{root: root, strip: strip, as: as, real: map[string]bool{".": true}}
	tr := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return x.skipped, err
		}
		hdr, err := tr.Next()
		if err == io.EOF {
			return x.skipped, x.finishDirs()
		}
		if err != nil {
			return x.skipped, fmt.Errorf("read the tar stream: %w", err)
		}
		if err := x.entry(hdr, tr); err != nil {
			return x.skipped, fmt.Errorf("extract %q: %w", hdr.Name, err)
		}
	}
}

type extraction struct {
	root      *os.Root
	strip, as string
	skipped   []string
	dirs      []dirMode
	// real holds the directories seen to be no links. They stay so: nothing
	// that is extracted takes the place of a directory.
	real map[string]bool
}

// dirMode is a directory's final mode, set after everything in it is written.
type dirMode struct {
	name string
	mode fs.FileMode
	time time.Time
}

func (x *extraction) entry(hdr *tar.Header, content io.Reader) error {
	if isSparse(hdr) { // a few bytes that say they are a terabyte
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
	x.skipped = append(x.skipped, hdr.Name)
	return nil
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

// localName turns a name in the stream into one below the root. An absolute
// name, or one with "..", is not one that tar -C DIR -c NAME makes.
func (x *extraction) localName(name string) (string, error) {
	if name == "" || path.IsAbs(name) || slices.Contains(strings.Split(name, "/"), "..") {
		return "", errors.New("the name leads out of the directory")
	}
	name = path.Clean(name)
	rest := name
	if x.strip != "." {
		var ok bool
		if rest, ok = strings.CutPrefix(name, x.strip); !ok || (rest != "" && rest[0] != '/') {
			return "", errors.New("the name is not below what was asked for")
		}
	}
	local, err := filepath.Localize(path.Join(x.as, rest))
	if err != nil {
		return "", errors.New("the name is not possible on this system")
	}
	return local, nil
}

// parent makes the directories above an entry. None of them may be a link:
// tar never makes such a stream, and what a relative link points to could not
// be told from its name any more.
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
		if err == nil { // a file or a link in its place
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

// file writes a new file; setuid and its like are dropped. What was there
// before is removed, not written into: it may be a link to something else.
func (x *extraction) file(name string, hdr *tar.Header, content io.Reader) error {
	if err := x.makeRoom(name); err != nil {
		return err
	}
	f, err := x.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, hdr.FileInfo().Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return x.root.Chtimes(name, hdr.ModTime, hdr.ModTime)
}

// symlink makes a link whose target stays in the copy. Whoever walks the copy
// later must not be led to his own files by a link from a sandbox.
func (x *extraction) symlink(name string, hdr *tar.Header) error {
	if !x.inside(path.Dir(filepath.ToSlash(name)), hdr.Linkname) {
		x.skipped = append(x.skipped, hdr.Name)
		return nil
	}
	if err := x.makeRoom(name); err != nil {
		return err
	}
	return x.root.Symlink(filepath.FromSlash(hdr.Linkname), name)
}

// inside reports whether a link in dir to target leads to a place in the copy.
// The name alone tells, as dir is free of links and ".." is accepted only at
// the start of the target, before any other link is followed.
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
		return fmt.Errorf("link to %q: it is not a file", hdr.Linkname)
	}
	if err := x.makeRoom(name); err != nil {
		return err
	}
	return x.root.Link(target, name)
}

// makeRoom removes a file or link of that name.
func (x *extraction) makeRoom(name string) error {
	info, err := x.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.IsDir() {
		return errors.New("a directory is in its place")
	}
	return x.root.Remove(name)
}

// finishDirs sets the modes of the directories, the deepest first, so that one
// that may not be written could be filled.
func (x *extraction) finishDirs() error {
	for i := len(x.dirs) - 1; i >= 0; i-- {
		d := x.dirs[i]
		info, err := x.root.Lstat(d.name)
		if err != nil {
			return err
		}
		if !info.IsDir() { // a later entry took its place
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
