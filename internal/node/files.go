package node

import (
	"context"
	"io"
	"path"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest"
)

// WriteFiles implements controller.Node.
func (n *Node) WriteFiles(ctx context.Context, sessionID, dir string, tar io.Reader) error {
	s, err := n.running(sessionID)
	if err != nil {
		return err
	}
	if err := s.guest.WriteTar(ctx, dir, tar); err != nil {
		return s.failure(err)
	}
	return nil
}

// file is a file on its way out, whose size may be known.
type file struct {
	io.ReadCloser
	size int64
}

// Size returns the file's length, -1 if only its end tells it.
func (f *file) Size() int64 { return f.size }

// ReadFile implements controller.Node.
func (n *Node) ReadFile(ctx context.Context, sessionID, cwd, name string) (io.ReadCloser, error) {
	s, err := n.running(sessionID)
	if err != nil {
		return nil, err
	}
	r, size, err := s.guest.ReadFile(ctx, cwd, name)
	if err != nil {
		return nil, s.failure(err)
	}
	return &file{ReadCloser: r, size: size}, nil
}

// MakeDir implements controller.Node.
func (n *Node) MakeDir(ctx context.Context, sessionID, cwd, name string, recursive bool) error {
	s, err := n.running(sessionID)
	if err != nil {
		return err
	}
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

// makeAll makes a directory, its parents first where they are missing.
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
