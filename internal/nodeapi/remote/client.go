package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/tracing"
)

// ClientConfig configures a Client.
type ClientConfig struct {
	// Dial connects to the server.
	Dial func(ctx context.Context) (net.Conn, error)

	timing timing // the constants, but in tests
}

// Client is a node in another process. It connects when it is first called, and
// again after its connection broke. It implements nodeapi.Node, nodeapi.Images and
// nodeapi.Collector.
type Client struct {
	transport *http.Transport
	// ctx ends with the client; work counts the goroutines that end with it.
	ctx    context.Context
	cancel context.CancelFunc

	// dialing is held while a connection is chosen or made.
	dialing chan struct{}

	mu     sync.Mutex
	conns  []*http.ClientConn
	closed bool
	work   sync.WaitGroup
}

// dialWait bounds how long it takes to connect.
const dialWait = 5 * time.Second

// After the end of its context, a call is cancelled, and its answer still waited for:
// cancelWait, or releaseWait for Start, which leaves nothing behind when it returns.
const (
	cancelWait  = 2 * time.Second
	releaseWait = 75 * time.Second
)

// NewClient returns a client. It does not connect yet.
func NewClient(cfg ClientConfig) *Client {
	if cfg.timing == (timing{}) {
		cfg.timing = defaultTiming
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Client{ctx: ctx, cancel: cancel, dialing: make(chan struct{}, 1), transport: &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return cfg.Dial(ctx) },
		Protocols:          http2Only(),
		HTTP2:              http2Config(cfg.timing),
		DisableCompression: true,
	}}
}

// DialUnix returns the Dial of a ClientConfig for a Unix socket.
func DialUnix(path string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", path) }
}

// Close cuts all connections: calls in progress fail, streams end. It returns when
// the client's goroutines have ended.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	conns := c.conns
	c.conns = nil
	c.mu.Unlock()
	c.cancel()
	var errs []error
	for _, cc := range conns {
		errs = append(errs, cc.Close())
	}
	c.work.Wait()
	return errors.Join(errs...)
}

// spawn runs f, which must end with the client, unless that is closed.
func (c *Client) spawn(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.work.Go(f)
	return true
}

var errClosed = errors.New("the client is closed")

// reserve returns a connection with room for one more stream.
func (c *Client) reserve(ctx context.Context) (*http.ClientConn, error) {
	select {
	case c.dialing <- struct{}{}:
		defer func() { <-c.dialing }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if cc, err := c.free(); cc != nil || err != nil {
		return cc, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialWait)
	defer cancel()
	cc, err := c.transport.NewClientConn(ctx, "http", "node:80")
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errors.Join(errClosed, cc.Close())
	}
	c.conns = append(c.conns, cc)
	return cc, cc.Reserve()
}

// free returns an open connection with room, nil if there is none.
func (c *Client) free() (*http.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errClosed
	}
	c.conns = slices.DeleteFunc(c.conns, func(cc *http.ClientConn) bool {
		if cc.Err() == nil {
			return false
		}
		_ = cc.Close() // it is broken
		return true
	})
	for _, cc := range c.conns {
		if cc.Reserve() == nil {
			return cc, nil
		}
	}
	return nil, nil
}

// flight is a call in progress.
type flight struct {
	c    *Client
	name string
	id   string
	// caller is the caller's context, ctx that of the exchange, which end ends.
	caller context.Context
	ctx    context.Context
	end    context.CancelFunc
	// answered is closed when the answer is there.
	answered func()
	unwatch  func() bool
}

// begin begins a call. It is to be ended.
func (c *Client) begin(caller context.Context, name string) *flight {
	ctx, end := context.WithCancel(context.WithoutCancel(caller))
	answered, done := context.WithCancel(c.ctx)
	f := &flight{c: c, name: name, id: skerry.NewID("call_"), caller: caller, ctx: ctx, answered: done}
	stop := context.AfterFunc(c.ctx, end)
	f.end = func() {
		stop()
		done()
		end()
	}
	wait := cancelWait
	if name == "start" {
		wait = releaseWait
	}
	f.unwatch = context.AfterFunc(caller, func() {
		if name == "cancel" || !c.spawn(func() { f.abandon(answered, wait) }) {
			end()
		}
	})
	return f
}

// abandon ends a call whose caller's context has ended: by asking, and then by
// force.
func (f *flight) abandon(answered context.Context, wait time.Duration) {
	ctx, cancel := context.WithTimeout(answered, wait)
	defer cancel()
	if _, err := invoke[nothing](ctx, f.c, "cancel", idArgs{f.id}, maxHead); err == nil {
		<-ctx.Done()
	}
	if answered.Err() == nil {
		f.end()
	}
}

// settled is called when the answer is there: from now on the stream does not depend
// on the caller's context. It reports false if that has ended already.
func (f *flight) settled() bool {
	in := f.unwatch()
	f.answered()
	return in
}

// roundTrip sends a request and returns the head of the response.
func (f *flight) roundTrip(method string, body io.Reader) (*http.Response, error) {
	cc, err := f.c.reserve(f.ctx)
	if err != nil {
		return nil, f.lost(err)
	}
	req, err := http.NewRequestWithContext(f.ctx, method, "http://node"+pathPrefix+f.name, body)
	if err != nil {
		cc.Release()
		return nil, f.lost(err)
	}
	req.Header.Set(headerCall, f.id)
	if span := tracing.Traceparent(f.caller); span != "" {
		req.Header.Set(tracing.Header, span)
	}
	if d, ok := f.caller.Deadline(); ok {
		req.Header.Set(headerTimeout, strconv.FormatInt(int64(time.Until(d)), 10))
	}
	res, err := cc.RoundTrip(req)
	if err != nil {
		return nil, f.lost(err)
	}
	if res.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(res.Body, 1024))
		_ = res.Body.Close()
		return nil, f.lost(fmt.Errorf("%s: %s", res.Status, bytes.TrimSpace(said)))
	}
	return res, nil
}

// lost is the error of a call whose answer cannot be read.
func (f *flight) lost(err error) error {
	if cerr := f.caller.Err(); cerr != nil {
		return cerr
	}
	if f.c.ctx.Err() != nil {
		err = errClosed
	}
	return nodeapi.Unreachable(fmt.Errorf("%s: %w", f.name, err))
}

// invoke calls a method with one document as its request and one as its answer.
func invoke[Out any](ctx context.Context, c *Client, name string, in any, most int) (out Out, err error) {
	if err := ctx.Err(); err != nil {
		return out, err
	}
	args, err := json.Marshal(in)
	if err != nil {
		return out, nodeapi.Narrow(ctx, err)
	}
	if len(args) > most {
		return out, tooLarge(len(args), most)
	}
	f := c.begin(ctx, name)
	defer f.end()
	defer f.unwatch()
	res, err := f.roundTrip(http.MethodPost, bytes.NewReader(args))
	if err != nil {
		return out, err
	}
	defer res.Body.Close()
	doc, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return out, f.lost(err)
	}
	if len(doc) > maxAnswer {
		return out, f.lost(errProtocol("the answer is too long"))
	}
	var a answer[Out]
	if err := json.Unmarshal(doc, &a); err != nil {
		return out, f.lost(errProtocol(err.Error()))
	}
	return a.Result, a.Error.err(ctx)
}

// do calls a method without a result.
func (c *Client) do(ctx context.Context, name string, in any) error {
	_, err := invoke[nothing](ctx, c, name, in, maxHead)
	return err
}

// Hello asks the server what its node is. It fails if the server speaks another
// version of the protocol.
func (c *Client) Hello(ctx context.Context) (Hello, error) {
	h, err := invoke[Hello](ctx, c, "hello", nothing{}, maxHead)
	if err == nil && h.Protocol != Protocol {
		err = nodeapi.Unreachable(fmt.Errorf("the node speaks version %d of the protocol, not %d", h.Protocol, Protocol))
	}
	return h, err
}

// Start implements nodeapi.Node.
func (c *Client) Start(ctx context.Context, spec nodeapi.SessionSpec) error {
	return c.do(ctx, "start", sessionArgs{SessionSpec: spec, Env: textMap(spec.Env)})
}

// Stop implements nodeapi.Node.
func (c *Client) Stop(ctx context.Context, id string) (nodeapi.Usage, error) {
	return invoke[nodeapi.Usage](ctx, c, "stop", idArgs{id}, maxHead)
}

// Forget implements nodeapi.Node.
func (c *Client) Forget(ctx context.Context, id string) error {
	return c.do(ctx, "forget", idArgs{id})
}

// Pause implements nodeapi.Node.
func (c *Client) Pause(ctx context.Context, id string) error { return c.do(ctx, "pause", idArgs{id}) }

// Resume implements nodeapi.Node.
func (c *Client) Resume(ctx context.Context, id string) error {
	return c.do(ctx, "resume", idArgs{id})
}

// SetDeadline implements nodeapi.Node.
func (c *Client) SetDeadline(ctx context.Context, id string, left time.Duration) error {
	return c.do(ctx, "deadline", deadlineArgs{id, left})
}

// Meters implements nodeapi.Node.
func (c *Client) Meters(ctx context.Context) (map[string]nodeapi.Meter, error) {
	return invoke[map[string]nodeapi.Meter](ctx, c, "meters", nothing{}, maxHead)
}

// SetIdle implements nodeapi.Node.
func (c *Client) SetIdle(ctx context.Context, id string, mode skerry.IdleMode) error {
	return c.do(ctx, "idle", idleArgs{id, mode})
}

// Recover implements nodeapi.Node.
func (c *Client) Recover(ctx context.Context, keep map[string]nodeapi.NetworkSpec) ([]string, error) {
	return invoke[[]string](ctx, c, "recover", keepArgs{keep}, maxList)
}

// Retain implements nodeapi.Node.
func (c *Client) Retain(ctx context.Context, ids []string) error {
	_, err := invoke[nothing](ctx, c, "retain", idsArgs{ids}, maxList)
	return err
}

// SetNetwork implements nodeapi.Node.
func (c *Client) SetNetwork(ctx context.Context, id string, network nodeapi.NetworkSpec) error {
	return c.do(ctx, "network", networkArgs{id, network})
}

// NetworkEvents implements nodeapi.Node.
func (c *Client) NetworkEvents(ctx context.Context, id string, limit int) ([]skerry.NetworkEvent, error) {
	return invoke[[]skerry.NetworkEvent](ctx, c, "network/events", eventsArgs{id, limit}, maxHead)
}

// Snapshot implements nodeapi.Node.
func (c *Client) Snapshot(ctx context.Context, id string, how nodeapi.Saving) (nodeapi.SavedFiles, error) {
	return invoke[nodeapi.SavedFiles](ctx, c, "snapshot", snapshotArgs{id, how}, maxHead)
}

// Capture implements nodeapi.Node.
func (c *Client) Capture(ctx context.Context, id, captureID string) error {
	return c.do(ctx, "capture", captureArgs{id, captureID})
}

// Keep implements nodeapi.Node.
func (c *Client) Keep(ctx context.Context, captureID, lease string) (nodeapi.SavedFiles, error) {
	return invoke[nodeapi.SavedFiles](ctx, c, "keep", keepCaptureArgs{captureID, lease}, maxHead)
}

// Discard implements nodeapi.Node.
func (c *Client) Discard(ctx context.Context, captureID string) error {
	return c.do(ctx, "discard", idArgs{captureID})
}

// Collect implements nodeapi.Collector.
func (c *Client) Collect(ctx context.Context, known nodeapi.Records) (nodeapi.Collected, error) {
	return invoke[nodeapi.Collected](ctx, c, "collect", known, maxList)
}

// CreateDrive implements nodeapi.Node.
func (c *Client) CreateDrive(ctx context.Context, id string, size int64) error {
	return c.do(ctx, "drive/create", driveArgs{ID: id, Size: size})
}

// ForkDrive implements nodeapi.Node.
func (c *Client) ForkDrive(ctx context.Context, id, from string) error {
	return c.do(ctx, "drive/fork", driveArgs{ID: id, From: from})
}

// DeleteDrive implements nodeapi.Node.
func (c *Client) DeleteDrive(ctx context.Context, id string) error {
	return c.do(ctx, "drive/delete", driveArgs{ID: id})
}

// RetainDrives implements nodeapi.Node.
func (c *Client) RetainDrives(ctx context.Context, ids []string) error {
	_, err := invoke[nothing](ctx, c, "drive/retain", idsArgs{ids}, maxList)
	return err
}

// WriteStdin implements nodeapi.Node.
func (c *Client) WriteStdin(ctx context.Context, sessionID, id string, p skerry.StdinParams) (int64, error) {
	return invoke[int64](ctx, c, "stdin", stdinArgs{sessionID, id, p}, maxHead)
}

// Events implements nodeapi.Node. An answer that is overdue is not waited for.
func (c *Client) Events(ctx context.Context, after nodeapi.Cursor) (nodeapi.Batch, error) {
	if err := ctx.Err(); err != nil {
		return nodeapi.Batch{}, err
	}
	patient, cancel := context.WithTimeout(ctx, 2*nodeapi.EventsWait)
	defer cancel()
	batch, err := invoke[nodeapi.Batch](patient, c, "events", cursorArgs{after}, maxHead)
	if err != nil && patient.Err() != nil && ctx.Err() == nil {
		err = nodeapi.Unreachable(err)
	}
	return batch, err
}

// Drop implements nodeapi.Node.
func (c *Client) Drop(ctx context.Context, sessionID, id string) error {
	return c.do(ctx, "drop", commandArgs{Session: sessionID, ID: id})
}

// Signal implements nodeapi.Node.
func (c *Client) Signal(ctx context.Context, sessionID, id string, signal int) error {
	return c.do(ctx, "signal", commandArgs{sessionID, id, signal})
}

// MakeDir implements nodeapi.Node.
func (c *Client) MakeDir(ctx context.Context, sessionID, cwd, path string, recursive bool) error {
	return c.do(ctx, "mkdir", pathArgs{sessionID, text(cwd), text(path), recursive})
}

// Resolve implements nodeapi.Images.
func (c *Client) Resolve(ctx context.Context, ref string) (nodeapi.Image, error) {
	return invoke[nodeapi.Image](ctx, c, "image", idArgs{ref}, maxHead)
}

// Keys returns the public keys of the node's tokens, as a JWKS document.
func (c *Client) Keys(ctx context.Context) ([]byte, error) {
	return invoke[json.RawMessage](ctx, c, "keys", nothing{}, maxHead)
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
