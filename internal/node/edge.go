package node

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/output"
)

// edge is deferred by every method of nodeapi.Node: only errors that are allowed
// there leave the node.
func edge(ctx context.Context, err *error) { *err = nodeapi.Narrow(ctx, *err) }

// streamEdge is edge for an error of a stream; ctx is that of the call which
// returned the stream.
func streamEdge(ctx context.Context, err *error) {
	switch {
	case errors.Is(*err, io.EOF), errors.Is(*err, io.ErrClosedPipe), errors.Is(*err, os.ErrClosed):
	default:
		edge(ctx, err)
	}
}

// commandOutput is the output of a command, on its way out of the node.
type commandOutput struct {
	skerry.OutputReader
	// done ends the use of the session.
	done func()
}

// follow follows a log. done is called when the reader is closed, or has read all.
func follow(log *output.Log, done func()) skerry.OutputReader {
	return commandOutput{log.Follow(), done}
}

// Next implements skerry.OutputReader.
func (o commandOutput) Next() (_ skerry.Output, err error) {
	defer streamEdge(context.Background(), &err)
	out, err := o.OutputReader.Next()
	if err != nil {
		o.done()
	}
	return out, err
}

// Close implements skerry.OutputReader.
func (o commandOutput) Close() error {
	o.done()
	return o.OutputReader.Close()
}
