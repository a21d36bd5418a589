package processnode

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

	"github.com/skerry-dev/skerry"
)

// path returns where a path of a sandbox is on this machine. A command knows its
// files by the machine's paths, and may have told one: that stays as it is.
func (s *session) path(cwd, name string) string {
	at := absolute(cwd, name)
	if at == s.root || strings.HasPrefix(at, s.root+"/") {
		return at
	}
	return filepath.Join(s.root, at)
}

// absolute returns the path in the sandbox that name is in cwd.
func absolute(cwd, name string) string {
	if !path.IsAbs(cwd) {
		cwd = path.Join(skerry.WorkDir, cwd)
	}
	if !path.IsAbs(name) {
		name = path.Join(cwd, name)
	}
	return path.Clean(name)
}

// failure turns an error of the file system into the one for clients, as the guest
// agent does; name is the file's in the sandbox.
func failure(name string, err error) error {
	if e := (*skerry.Error)(nil); errors.As(err, &e) {
		return err
	}
	code := skerry.CodeBadRequest
	switch {
	case errors.Is(err, fs.ErrNotExist):
		code = skerry.CodeNotFound
	case errors.Is(err, fs.ErrExist):
		code = skerry.CodeConflict
	}
	if e := (*fs.PathError)(nil); errors.As(err, &e) {
		err = e.Err
	}
	return skerry.Errorf(code, "%s: %w", name, err)
}

// MakeDir implements nodeapi.Files.
func (n *Node) MakeDir(ctx context.Context, id, cwd, name string, recursive bool) (err error) {
	defer edge(ctx, &err)
	s, err := n.session(id)
	if err != nil {
		return err
	}
	if recursive {
		if err := os.MkdirAll(s.path(cwd, name), 0o777); err != nil {
			return failure(absolute(cwd, name), err)
		}
		return nil
	}
	err = os.Mkdir(s.path(cwd, name), 0o777)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return skerry.Errorf(skerry.CodeNotFound, "%s: the parent directory does not exist", absolute(cwd, name))
	case err != nil:
		return failure(absolute(cwd, name), err)
	}
	return nil
}

// file is a file that is being read. Its size is -1 if only its end tells it.
type file struct {
	io.Reader
	io.Closer
	size int64
}

// Size returns the length of the file, or -1 if it is known only at its end.
func (f *file) Size() int64 { return f.size }

// ReadFile implements nodeapi.Files.
func (n *Node) ReadFile(ctx context.Context, id, cwd, name string) (_ io.ReadCloser, err error) {
	defer edge(ctx, &err)
	s, err := n.session(id)
	if err != nil {
		return nil, err
	}
	at := s.path(cwd, name)
	name = absolute(cwd, name)
	info, err := os.Stat(at)
	switch {
	case err != nil:
		return nil, failure(name, err)
	case info.IsDir():
		return nil, skerry.Errorf(skerry.CodeBadRequest, "%s: is a directory", name)
	case !info.Mode().IsRegular():
		return nil, skerry.Errorf(skerry.CodeBadRequest, "%s: not a regular file", name)
	}
	f, err := os.Open(at)
	if err != nil {
		return nil, failure(name, err)
	}
	// The size of a file of /proc is whatever reading it yields.
	start := make([]byte, 64<<10)
	got, err := io.ReadFull(f, start)
	size := info.Size()
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		size = int64(got)
	case err != nil:
		f.Close()
		return nil, failure(name, err)
	case size < int64(got):
		size = -1
	}
	return &file{whileIn{ctx, io.MultiReader(bytes.NewReader(start[:got]), f)}, f, size}, nil
}

// whileIn is a reader that ends with a context.
type whileIn struct {
	ctx context.Context
	io.Reader
}

// Read implements io.Reader.
func (r whileIn) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

// WriteFiles implements nodeapi.Files.
func (n *Node) WriteFiles(ctx context.Context, id, dir string, r io.Reader) (err error) {
	defer edge(ctx, &err)
	s, err := n.session(id)
	if err != nil {
		return err
	}
	x := extractor{s: s, dir: dir}
	if err := os.MkdirAll(s.path(dir, "."), 0o755); err != nil {
		return failure(absolute(dir, "."), err)
	}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		switch {
		case errors.Is(err, io.EOF):
			if err := x.finish(); err != nil {
				return err
			}
			_, err := io.Copy(io.Discard, r) // archives are padded beyond their end
			return err
		case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong):
			return skerry.Errorf(skerry.CodeBadRequest, "not a tar archive: %w", err)
		case errors.Is(err, io.ErrUnexpectedEOF):
			return skerry.Errorf(skerry.CodeBadRequest, "the tar archive is cut short")
		case err != nil:
			return err
		}
		if err := x.entry(h, tr); err != nil {
			return failure(absolute(dir, h.Name), err)
		}
	}
}

// extractor writes the entries of an archive into a folder of a session.
type extractor struct {
	s    *session
	dir  string
	dirs []*tar.Header
}

// finish gives directories their modes and times, the deepest first.
func (x *extractor) finish() error {
	for _, h := range slices.Backward(x.dirs) {
		if err := finishFile(x.s.path(x.dir, h.Name), h); err != nil {
			return failure(absolute(x.dir, h.Name), err)
		}
	}
	return nil
}

// finishFile gives a file its mode, and its time if the archive has one.
func finishFile(at string, h *tar.Header) error {
	if err := os.Chmod(at, fs.FileMode(h.Mode).Perm()); err != nil {
		return err
	}
	if h.ModTime.Unix() == 0 {
		return nil
	}
	return os.Chtimes(at, time.Time{}, h.ModTime)
}

func (x *extractor) entry(h *tar.Header, content io.Reader) error {
	unsafe := func(why string) error { return skerry.Errorf(skerry.CodeBadRequest, "%s: %s", h.Name, why) }
	switch {
	case h.Name == "":
		return unsafe("the name is empty")
	case strings.HasPrefix(h.Name, "/"):
		return unsafe("the name is absolute")
	case slices.Contains(strings.Split(h.Name, "/"), ".."):
		return unsafe(`the name holds ".."`)
	}
	at := x.s.path(x.dir, h.Name)
	if h.Typeflag == tar.TypeDir {
		x.dirs = append(x.dirs, h)
		return os.MkdirAll(at, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg {
		if err := os.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeReg:
		f, err := os.OpenFile(at, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o666)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, content)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		return finishFile(at, h)
	case tar.TypeSymlink:
		return os.Symlink(h.Linkname, at)
	case tar.TypeLink:
		return os.Link(x.s.path(x.dir, h.Linkname), at)
	case tar.TypeFifo:
		if err := makeFIFO(at); err != nil {
			return err
		}
		return finishFile(at, h)
	}
	return unsafe(fmt.Sprintf("is of type %q", h.Typeflag))
}
