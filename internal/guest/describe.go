package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// Attrs is what a snapshot wants to know of a file.
type Attrs = wire.Attrs

// Describer asks for the attributes of files. It is a process in the sandbox,
// in the hands of whoever is root there: what it says is believed of the
// sandbox's own files and of nothing else.
type Describer struct {
	ctx  context.Context
	proc *Process
	out  *bufio.Reader
}

// PrefixDescribe begins the ids of the processes of Describers.
const PrefixDescribe = "describe_"

// Describe starts a Describer, which must be closed. The context is for its
// whole life.
func (c *Client) Describe(ctx context.Context) (*Describer, error) {
	proc, err := c.Start(ctx, StartSpec{
		ID: skerry.NewID(PrefixDescribe), Name: "/proc/1/exe", Args: []string{"describe"}, Cwd: "/", Root: true, Stdin: true,
	})
	if err != nil {
		return nil, fmt.Errorf("describe files: %w", err)
	}
	d := &Describer{ctx: ctx, proc: proc}
	d.out = bufio.NewReaderSize(&processOutput{ctx: ctx, p: proc}, 64<<10)
	return d, nil
}

// Attrs returns the attributes of the files at paths, in their order. Symbolic
// links are not followed.
func (d *Describer) Attrs(paths []string) ([]Attrs, error) {
	var b strings.Builder
	for _, p := range paths {
		if strings.ContainsRune(p, 0) {
			return nil, fmt.Errorf("describe files: %q is no path", p)
		}
		b.WriteString(p)
		b.WriteByte(0)
	}
	// Beside the reading: both directions have a window, and the answers may
	// fill theirs before the last path is out.
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(d.proc.Stdin(), b.String())
		sent <- err
	}()
	attrs := make([]Attrs, 0, len(paths))
	var err error
	for len(attrs) < len(paths) && err == nil {
		var a Attrs
		if a, err = wire.ReadAttrs(d.out); err == nil {
			attrs = append(attrs, a)
		}
	}
	if err != nil {
		// It has ended or is not to be understood; a Write in progress ends too.
		_ = d.proc.Signal(syscall.SIGKILL)
		_ = d.proc.Stdin().Close()
	}
	if err := errors.Join(err, <-sent); err != nil {
		return nil, fmt.Errorf("describe files: %w", err)
	}
	return attrs, nil
}

// Close ends the process.
func (d *Describer) Close() error {
	// Errors mean that the connection has ended, and the process's use with it.
	_ = d.proc.Stdin().Close()
	_ = d.proc.Signal(syscall.SIGKILL)
	for {
		chunk, err := d.proc.Next(d.ctx)
		if err != nil {
			break
		}
		_ = d.proc.Ack(chunk.Stream, chunk.End())
	}
	if _, err := d.proc.Wait(d.ctx); err != nil {
		return err
	}
	return d.proc.Forget()
}

// processOutput reads a process's standard output; what is on its standard
// error is dropped.
type processOutput struct {
	ctx  context.Context
	p    *Process
	rest []byte
	last Chunk
}

func (o *processOutput) Read(b []byte) (int, error) {
	for len(o.rest) == 0 {
		chunk, err := o.p.Next(o.ctx)
		if err != nil {
			return 0, err
		}
		if chunk.Stream == skerry.Stdout {
			o.rest = chunk.Data
		}
		o.last = chunk
		if len(o.rest) == 0 {
			if err := o.p.Ack(chunk.Stream, chunk.End()); err != nil {
				return 0, err
			}
		}
	}
	n := copy(b, o.rest)
	if o.rest = o.rest[n:]; len(o.rest) == 0 {
		return n, o.p.Ack(o.last.Stream, o.last.End())
	}
	return n, nil
}
