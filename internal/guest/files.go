package guest

import (
	"context"
	"errors"
	"io"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest/wire"
	"github.com/skerry-dev/skerry/internal/tracing"
)

// WriteTar extracts an uncompressed tar stream in dir as the default user. It creates
// dir if it is missing. A relative dir is relative to the working directory. WriteTar
// reads r to its end, or until an error.
//
// It extracts regular files, directories, FIFOs, symbolic links and hard links, with
// their permission bits and times. Any other entry is a bad_request that names the
// entry. So is an entry whose name is absolute or contains "..", or whose path leads
// out of dir through a symbolic link. The entries before it stay.
func (c *Client) WriteTar(ctx context.Context, dir string, r io.Reader) (err error) {
	ctx, span := tracing.Start(ctx, tracing.AgentWrite)
	defer span.Done(&err)
	if dir == "" {
		dir = "."
	}
	req := &wire.PathRequest{Path: dir}
	if err := req.Validate(); err != nil {
		return badRequest(err)
	}
	cl := &call{reply: make(chan wire.Reply, 1), gate: wire.NewGate()}
	id := c.begin(cl, nil)
	defer c.close(id)
	if err := c.send(wire.TypeWriteTar, id, req); err != nil {
		return err
	}
	err = c.upload(ctx, cl, id, r)
	if err == nil || errors.Is(err, errReplied) {
		if _, err = c.await(ctx, cl); ctx.Err() == nil {
			return err
		}
	}
	// Tell the agent to stop. Its answer does not matter.
	_ = c.link().Send(wire.TypeCancel, 0, id, nil, nil)
	return err
}

// upload sends r on the stream of the call.
func (c *Client) upload(ctx context.Context, cl *call, id uint32, r io.Reader) error {
	buf := make([]byte, wire.MaxData)
	for {
		n, readErr := io.ReadFull(r, buf)
		for p := buf[:n]; len(p) > 0; {
			m, err := cl.gate.Reserve(ctx, len(p))
			if err != nil {
				return err
			}
			if err := c.link().Send(wire.TypeData, wire.StreamIn, id, p[:m], nil); err != nil {
				return c.broken(err)
			}
			p = p[m:]
		}
		switch readErr {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			return c.broken(c.link().SendOffset(wire.TypeEOF, wire.StreamIn, id, cl.gate.Sent()))
		default:
			return readErr
		}
	}
}

// ReadFile opens a regular file as the default user. size is -1 if it is not known
// before the end of the file. ctx also applies to reads. The caller must close the
// reader.
func (c *Client) ReadFile(ctx context.Context, cwd, path string) (r io.ReadCloser, size int64, err error) {
	asked, span := tracing.Start(ctx, tracing.AgentRead)
	defer span.Done(&err)
	req := &wire.PathRequest{Path: path, Cwd: cwd}
	if err := req.Validate(); err != nil {
		return nil, 0, badRequest(err)
	}
	cl := &call{reply: make(chan wire.Reply, 1), in: wire.NewInbox(wire.StreamOut)}
	id := c.begin(cl, nil)
	if err = c.send(wire.TypeReadFile, id, req); err == nil {
		var reply wire.Reply
		if reply, err = c.await(asked, cl); err == nil {
			d := &download{c: c, id: id, r: wire.Reader{Ctx: ctx, In: cl.in, Link: c.link(), ID: id, Stream: wire.StreamOut}}
			return d, max(reply.Size, -1), nil
		}
	}
	c.close(id)
	if ctx.Err() != nil {
		_ = c.link().Send(wire.TypeCancel, 0, id, nil, nil)
	}
	return nil, 0, err
}

// download reads a file from the sandbox.
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

// Close implements io.Closer. It cancels the rest of the download.
func (d *download) Close() error {
	d.c.close(d.id)
	if d.end == nil {
		// An error means that the connection has ended, and the download with it.
		_ = d.c.link().Send(wire.TypeCancel, 0, d.id, nil, nil)
	}
	d.end = &skerry.Error{Code: skerry.CodeInternal, Message: "the file was closed", Err: io.ErrClosedPipe}
	return nil
}
