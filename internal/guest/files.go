package guest

import (
	"context"
	"errors"
	"io"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// WriteTar extracts an uncompressed tar stream in dir as the default user. dir
// is made where it is missing, and is relative to the working directory when
// it is not absolute. r is read to its end unless an error comes before.
//
// Regular files, directories, symbolic and hard links are taken, with their
// permission bits and times. An entry that is anything else, whose name is
// absolute or has "..", or whose way leads out of dir by a symbolic link, is a
// bad_request that names it; what came before it stays.
func (c *Client) WriteTar(ctx context.Context, dir string, r io.Reader) error {
	if dir == "" {
		dir = "."
	}
	req := &wire.PathRequest{Path: dir}
	if err := req.Validate(); err != nil {
		return badRequest(err)
	}
	cl := &call{reply: make(chan wire.Reply, 1), gate: wire.NewGate()}
	id := c.open(cl, nil)
	defer c.close(id)
	if err := c.send(wire.TypeWriteTar, id, req); err != nil {
		return err
	}
	err := c.upload(ctx, cl, id, r)
	if err == nil || errors.Is(err, errReplied) {
		if _, err = c.await(ctx, cl); ctx.Err() == nil {
			return err
		}
	}
	// The agent is told to stop; what it answers does not matter.
	_ = c.link.Send(wire.TypeCancel, 0, id, nil, nil)
	return err
}

// upload sends r on the call's stream.
func (c *Client) upload(ctx context.Context, cl *call, id uint32, r io.Reader) error {
	buf := make([]byte, wire.MaxData)
	for {
		n, readErr := io.ReadFull(r, buf)
		for p := buf[:n]; len(p) > 0; {
			m, err := cl.gate.Reserve(ctx, len(p))
			if err != nil {
				return err
			}
			if err := c.link.Send(wire.TypeData, wire.StreamIn, id, p[:m], nil); err != nil {
				return c.lost(err)
			}
			p = p[m:]
		}
		switch readErr {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			return c.lost(c.link.SendOffset(wire.TypeEOF, wire.StreamIn, id, cl.gate.Sent()))
		default:
			return readErr
		}
	}
}

// ReadFile opens a regular file that the default user may read. size is -1
// when only the end of the file will tell it. The context is for the reading
// too, and the reader must be closed.
func (c *Client) ReadFile(ctx context.Context, cwd, path string) (r io.ReadCloser, size int64, err error) {
	req := &wire.PathRequest{Path: path, Cwd: cwd}
	if err := req.Validate(); err != nil {
		return nil, 0, badRequest(err)
	}
	cl := &call{reply: make(chan wire.Reply, 1), in: wire.NewInbox(wire.StreamOut)}
	id := c.open(cl, nil)
	if err = c.send(wire.TypeReadFile, id, req); err == nil {
		var reply wire.Reply
		if reply, err = c.await(ctx, cl); err == nil {
			d := &download{c: c, id: id, r: wire.Reader{Ctx: ctx, In: cl.in, Link: c.link, ID: id, Stream: wire.StreamOut}}
			return d, max(reply.Size, -1), nil
		}
	}
	c.close(id)
	if ctx.Err() != nil {
		_ = c.link.Send(wire.TypeCancel, 0, id, nil, nil)
	}
	return nil, 0, err
}

// download is a file on its way here.
type download struct {
	c   *Client
	id  uint32
	r   wire.Reader
	end error
}

// Read implements io.Reader.
func (d *download) Read(p []byte) (int, error) {
	if d.end != nil {
		return 0, d.end
	}
	n, err := d.r.Read(p)
	if err != nil {
		d.end = err
	}
	return n, err
}

// Close gives up what was not read.
func (d *download) Close() error {
	d.c.close(d.id)
	if d.end == nil {
		// If the connection has ended, so has the sending.
		_ = d.c.link.Send(wire.TypeCancel, 0, d.id, nil, nil)
	}
	d.end = &skerry.Error{Code: skerry.CodeInternal, Message: "the file was closed", Err: io.ErrClosedPipe}
	return nil
}
