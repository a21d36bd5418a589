package nodetest

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// checked is a node whose errors are held to the contract.
type checked struct {
	nodeapi.Node
	t *testing.T
}

// error reports an error that may not cross.
func (c *checked) error(ctx context.Context, call string, err error) {
	if err == nil || ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return
	}
	if _, ok := errors.AsType[*skerry.Error](err); !ok {
		c.t.Errorf("%s: the error is neither a *skerry.Error nor unreachable: %v (%T)", call, err, err)
	}
}

func (c *checked) stream(call string, err error) {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, os.ErrClosed) || errors.Is(err, context.Canceled) {
		return
	}
	c.error(context.Background(), call, err)
}

// Start implements nodeapi.Node, as do the others.
func (c *checked) Start(ctx context.Context, spec nodeapi.SessionSpec) error {
	err := c.Node.Start(ctx, spec)
	c.error(ctx, "Start", err)
	return err
}

func (c *checked) Stop(ctx context.Context, id string) (nodeapi.Usage, error) {
	u, err := c.Node.Stop(ctx, id)
	c.error(ctx, "Stop", err)
	return u, err
}

func (c *checked) Forget(ctx context.Context, id string) error {
	err := c.Node.Forget(ctx, id)
	c.error(ctx, "Forget", err)
	return err
}

func (c *checked) Pause(ctx context.Context, id string) error {
	err := c.Node.Pause(ctx, id)
	c.error(ctx, "Pause", err)
	return err
}

func (c *checked) Resume(ctx context.Context, id string) error {
	err := c.Node.Resume(ctx, id)
	c.error(ctx, "Resume", err)
	return err
}

func (c *checked) Meters(ctx context.Context) (map[string]nodeapi.Meter, error) {
	m, err := c.Node.Meters(ctx)
	c.error(ctx, "Meters", err)
	return m, err
}

func (c *checked) SetIdle(ctx context.Context, id string, mode skerry.IdleMode) error {
	err := c.Node.SetIdle(ctx, id, mode)
	c.error(ctx, "SetIdle", err)
	return err
}

func (c *checked) SetDeadline(ctx context.Context, id string, left time.Duration) error {
	err := c.Node.SetDeadline(ctx, id, left)
	c.error(ctx, "SetDeadline", err)
	return err
}

func (c *checked) Recover(ctx context.Context, keep map[string]nodeapi.NetworkSpec) ([]string, error) {
	ids, err := c.Node.Recover(ctx, keep)
	c.error(ctx, "Recover", err)
	return ids, err
}

func (c *checked) Retain(ctx context.Context, ids []string) error {
	err := c.Node.Retain(ctx, ids)
	c.error(ctx, "Retain", err)
	return err
}

func (c *checked) SetNetwork(ctx context.Context, id string, network nodeapi.NetworkSpec) error {
	err := c.Node.SetNetwork(ctx, id, network)
	c.error(ctx, "SetNetwork", err)
	return err
}

func (c *checked) NetworkEvents(ctx context.Context, id string, limit int) ([]skerry.NetworkEvent, error) {
	events, err := c.Node.NetworkEvents(ctx, id, limit)
	c.error(ctx, "NetworkEvents", err)
	return events, err
}

func (c *checked) Snapshot(ctx context.Context, id string, how nodeapi.Saving) (nodeapi.SavedFiles, error) {
	saved, err := c.Node.Snapshot(ctx, id, how)
	c.error(ctx, "Snapshot", err)
	return saved, err
}

func (c *checked) Capture(ctx context.Context, id, capture string) error {
	err := c.Node.Capture(ctx, id, capture)
	c.error(ctx, "Capture", err)
	return err
}

func (c *checked) Keep(ctx context.Context, id, lease string) (nodeapi.SavedFiles, error) {
	saved, err := c.Node.Keep(ctx, id, lease)
	c.error(ctx, "Keep", err)
	return saved, err
}

func (c *checked) Discard(ctx context.Context, id string) error {
	err := c.Node.Discard(ctx, id)
	c.error(ctx, "Discard", err)
	return err
}

func (c *checked) CreateDrive(ctx context.Context, id string, size int64) error {
	err := c.Node.CreateDrive(ctx, id, size)
	c.error(ctx, "CreateDrive", err)
	return err
}

func (c *checked) ForkDrive(ctx context.Context, id, from string) error {
	err := c.Node.ForkDrive(ctx, id, from)
	c.error(ctx, "ForkDrive", err)
	return err
}

func (c *checked) DeleteDrive(ctx context.Context, id string) error {
	err := c.Node.DeleteDrive(ctx, id)
	c.error(ctx, "DeleteDrive", err)
	return err
}

func (c *checked) RetainDrives(ctx context.Context, ids []string) error {
	err := c.Node.RetainDrives(ctx, ids)
	c.error(ctx, "RetainDrives", err)
	return err
}

func (c *checked) Exec(ctx context.Context, session string, spec nodeapi.CommandSpec, attach bool) (skerry.OutputReader, error) {
	r, err := c.Node.Exec(ctx, session, spec, attach)
	c.error(ctx, "Exec", err)
	if err == nil && attach != (r != nil) {
		c.t.Errorf("Exec(attach %v) returns a reader: %v", attach, r != nil)
	}
	if r != nil {
		r = checkedOutput{r, c}
	}
	return r, err
}

func (c *checked) Output(ctx context.Context, session, id string) (skerry.OutputReader, error) {
	r, err := c.Node.Output(ctx, session, id)
	c.error(ctx, "Output", err)
	if r != nil {
		r = checkedOutput{r, c}
	}
	return r, err
}

type checkedOutput struct {
	skerry.OutputReader
	c *checked
}

func (o checkedOutput) Next() (skerry.Output, error) {
	out, err := o.OutputReader.Next()
	o.c.stream("Next", err)
	return out, err
}

func (c *checked) WriteStdin(ctx context.Context, session, id string, p skerry.StdinParams) (int64, error) {
	n, err := c.Node.WriteStdin(ctx, session, id, p)
	c.error(ctx, "WriteStdin", err)
	return n, err
}

func (c *checked) Drop(ctx context.Context, session, id string) error {
	err := c.Node.Drop(ctx, session, id)
	c.error(ctx, "Drop", err)
	return err
}

func (c *checked) Signal(ctx context.Context, session, id string, signal int) error {
	err := c.Node.Signal(ctx, session, id, signal)
	c.error(ctx, "Signal", err)
	return err
}

func (c *checked) Terminal(ctx context.Context, session string, p skerry.TerminalParams) (skerry.Terminal, error) {
	t, err := c.Node.Terminal(ctx, session, p)
	c.error(ctx, "Terminal", err)
	return t, err
}

func (c *checked) WriteFiles(ctx context.Context, session, dir string, tar io.Reader) error {
	err := c.Node.WriteFiles(ctx, session, dir, tar)
	c.error(ctx, "WriteFiles", err)
	return err
}

func (c *checked) ReadFile(ctx context.Context, session, cwd, path string) (io.ReadCloser, error) {
	r, err := c.Node.ReadFile(ctx, session, cwd, path)
	c.error(ctx, "ReadFile", err)
	return r, err
}

func (c *checked) MakeDir(ctx context.Context, session, cwd, path string, recursive bool) error {
	err := c.Node.MakeDir(ctx, session, cwd, path, recursive)
	c.error(ctx, "MakeDir", err)
	return err
}

func (c *checked) Events(ctx context.Context, after nodeapi.Cursor) (nodeapi.Batch, error) {
	b, err := c.Node.Events(ctx, after)
	c.error(ctx, "Events", err)
	return b, err
}

func (c *checked) Dial(ctx context.Context, session string, port int, client netip.Addr) (net.Conn, error) {
	conn, err := c.Node.Dial(ctx, session, port, client)
	c.error(ctx, "Dial", err)
	return conn, err
}
