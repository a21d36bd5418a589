package node

import (
	"context"
	"io"
	"path"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest"
)

// WriteFiles implements nodeapi.Node.
func (n *Node) WriteFiles(ctx context.Context, sessionID, dir string, tar io.Reader) (err error) {
	defer edge(ctx, &err)
	s, done, err := n.use(ctx, sessionID)
	if err != nil {
		return err
	}
	defer done()
	if err := s.guest.WriteTar(ctx, dir, tar); err != nil {
		return s.failure(err)
	}
	return nil
}

// file is a file that is being read, whose size may be known.
type file struct {
	io.ReadCloser
	ctx  context.Context
	size int64
	// done ends the use of the session.
	done func()
}

// Read implements io.Reader.
func (f *file) Read(p []byte) (n int, err error) {
	defer streamEdge(f.ctx, &err)
	return f.ReadCloser.Read(p)
}

// Close implements io.Closer.
func (f *file) Close() error {
	f.done()
	return f.ReadCloser.Close()
}

// Size returns the length of the file, or -1 if it is known only at its end.
func (f *file) Size() int64 { return f.size }

// ReadFile implements nodeapi.Node.
func (n *Node) ReadFile(ctx context.Context, sessionID, cwd, name string) (_ io.ReadCloser, err error) {
	defer edge(ctx, &err)
	s, done, err := n.use(ctx, sessionID)
	if err != nil {
		return nil, err
	}
	r, size, err := s.guest.ReadFile(ctx, cwd, name)
	if err != nil {
		done()
		return nil, s.failure(err)
	}
	return &file{ReadCloser: r, ctx: ctx, size: size, done: done}, nil
}

// MakeDir implements nodeapi.Node.
func (n *Node) MakeDir(ctx context.Context, sessionID, cwd, name string, recursive bool) (err error) {
	defer edge(ctx, &err)
	s, done, err := n.use(ctx, sessionID)
	if err != nil {
		return err
	}
	defer done()
	if recursive {
		err = makeAll(ctx, s.guest, cwd, path.Clean(name))
	} else {
		err = s.guest.Mkdir(ctx, cwd, name)
	}
	if err != nil {
		return s.failure(err)
	}
	return nil
}

// makeAll creates a directory, and first its missing parents.
func makeAll(ctx context.Context, g *guest.Client, cwd, name string) error {
	err := g.Mkdir(ctx, cwd, name)
	if err == nil || skerry.CodeOf(err) == skerry.CodeConflict {
		return nil
	}
	parent := path.Dir(name)
	if skerry.CodeOf(err) != skerry.CodeNotFound || parent == name || parent == "." {
		return err
	}
	if err := makeAll(ctx, g, cwd, parent); err != nil {
		return err
	}
	if err := g.Mkdir(ctx, cwd, name); err != nil && skerry.CodeOf(err) != skerry.CodeConflict {
		return err
	}
	return nil
}
