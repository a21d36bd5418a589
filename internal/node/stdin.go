package node

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest"
)

// stdinWait is the maximum time that a call waits for the command to read. Clients
// repeat a call that has made progress.
const stdinWait = 10 * time.Second

// WriteStdin implements nodeapi.Node.
func (n *Node) WriteStdin(ctx context.Context, sessionID, id string, p skerry.StdinParams) (_ int64, err error) {
	defer edge(ctx, &err)
	s, c, err := n.command(ctx, sessionID, id)
	if err != nil {
		return 0, err
	}
	in := c.proc.Stdin()
	if in == nil {
		return 0, skerry.Errorf(skerry.CodeStdinUnavailable,
			"the command has no standard input: it was started without attachStdin, or the server was restarted since, which closes standard input")
	}
	done, err := s.use(ctx)
	if err != nil {
		return 0, err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, n.stdinWait)
	defer cancel()
	select {
	case c.input <- struct{}{}:
		defer func() { <-c.input }()
	case <-ctx.Done():
		return 0, stdinTimeout(in)
	}
	data, err := unwritten(in.Sent(), p)
	if err != nil {
		return 0, err
	}
	if c.over() {
		return 0, stdinClosed()
	}
	_, err = in.WriteContext(ctx, data)
	if err == nil && p.Close {
		err = in.Close()
	}
	switch {
	case errors.Is(err, io.ErrClosedPipe):
		return 0, stdinClosed()
	case ctx.Err() != nil:
		return 0, stdinTimeout(in)
	case err != nil:
		return 0, s.failure(err)
	}
	return in.Sent(), nil
}

// unwritten returns the part of the data that is not among the first sent bytes.
func unwritten(sent int64, p skerry.StdinParams) ([]byte, error) {
	if p.Offset == nil {
		return p.Data, nil
	}
	if *p.Offset > sent {
		return nil, skerry.Invalid("offset", "must be at most %d, the number of bytes written so far; is %d", sent, *p.Offset)
	}
	return p.Data[min(sent-*p.Offset, int64(len(p.Data))):], nil
}

func stdinClosed() error {
	return skerry.Errorf(skerry.CodeStdinUnavailable, "the command has ended, or its standard input is closed")
}

func stdinTimeout(in *guest.Stdin) error {
	err := skerry.Errorf(skerry.CodeStdinTimeout, "the command does not read its standard input")
	sent := in.Sent()
	err.BytesWritten = &sent
	return err
}
