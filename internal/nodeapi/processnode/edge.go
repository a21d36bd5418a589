package processnode

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/output"
)

// edge holds the errors of a method of nodeapi.Node to their contract.
func edge(ctx context.Context, err *error) { *err = nodeapi.Narrow(ctx, *err) }

// streamEdge is edge for an error of a stream.
func streamEdge(err *error) {
	switch {
	case errors.Is(*err, io.EOF), errors.Is(*err, io.ErrClosedPipe), errors.Is(*err, os.ErrClosed):
	default:
		edge(context.Background(), err)
	}
}

type commandOutput struct{ skerry.OutputReader }

func follow(log *output.Log) skerry.OutputReader { return commandOutput{log.Follow()} }

// Next implements skerry.OutputReader.
func (o commandOutput) Next() (_ skerry.Output, err error) {
	defer streamEdge(&err)
	return o.OutputReader.Next()
}
