package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// Setup makes a fresh sandbox ready for its first command.
type Setup struct {
	// Hostname is a DNS label.
	Hostname string
	// User runs the commands that are not run as root; the zero value is
	// skerry.DefaultUser. An image that knows the name has its own ids.
	User User
	// WorkDir is skerry.WorkDir when empty.
	WorkDir string
	// Env is the environment of every command, below the command's own.
	Env map[string]string
	// Xattrs are extended attributes to set, by the path of the file and by
	// their name.
	Xattrs map[string]map[string][]byte
	// Resolv is the lines of /etc/resolv.conf; none leaves the image's alone.
	Resolv []string
	// Processes, when positive, bounds the sandbox's processes and threads:
	// beyond it fork fails, inside.
	Processes int
}

// User is an account in a sandbox.
type User = wire.User

// Info is what the agent says of itself.
type Info = wire.Info

// ResumePoint is how much of a process's output the caller has stored.
type ResumePoint = wire.ResumePoint

// ProcessState describes a process that the agent has.
type ProcessState = wire.ProcessState

// Client is one connection to an agent. Its methods may be called at the same
// time. They fail with an Unavailable error once the connection has ended.
type Client struct {
	link     *wire.Link
	received chan struct{} // closed when the receiving goroutine has ended

	mu     sync.Mutex
	nextID uint32
	calls  map[uint32]*call
	procs  map[uint32]*Process
	// resumed says that the processes of an earlier connection are known; on
	// a first connection there are none.
	resumed bool
}

// call is a request without its Reply yet, or an upload or download in
// progress. Its parts are nil where the request has no use for them.
type call struct {
	reply chan wire.Reply // holds one
	// listing says that a Listing answers the request, and nothing else does.
	listing bool
	gate    *wire.Gate  // what an upload may send
	in      *wire.Inbox // what a download receives
}

// Connect sets a fresh sandbox up over its first connection, which the Client
// owns from then on, also when Connect fails.
func Connect(ctx context.Context, conn io.ReadWriteCloser, setup Setup) (*Client, Info, error) {
	return setUp(ctx, conn, setup, wire.TypeSetup)
}

// Renew makes a sandbox that was restored from a snapshot of its memory another
// one, over a new connection. From then on it is as after Connect: what it runs goes on, but the
// Client knows nothing of it.
func Renew(ctx context.Context, conn io.ReadWriteCloser, setup Setup) (*Client, Info, error) {
	return setUp(ctx, conn, setup, wire.TypeRenew)
}

func setUp(ctx context.Context, conn io.ReadWriteCloser, setup Setup, how wire.Type) (*Client, Info, error) {
	if setup.User == (User{}) {
		setup.User = User{Name: skerry.DefaultUser, UID: skerry.DefaultUID, GID: skerry.DefaultGID}
	}
	if setup.WorkDir == "" {
		setup.WorkDir = skerry.WorkDir
	}
	c := newClient(conn, true)
	req := wire.Setup{
		Version: wire.Version, Hostname: setup.Hostname, User: setup.User, WorkDir: setup.WorkDir,
		Env: setup.Env, Xattrs: setup.Xattrs, Resolv: setup.Resolv, Processes: setup.Processes,
	}
	err := req.Validate()
	var r wire.Reply
	if err == nil {
		r, err = c.request(ctx, how, &req)
	}
	if err == nil && (r.Info == nil || r.Info.Version != wire.Version) {
		err = errors.New("the agent speaks another version of the protocol")
	}
	if err != nil {
		c.Close()
		return nil, Info{}, fmt.Errorf("setting a sandbox up: %w", err)
	}
	return c, *r.Info, nil
}

// Reconnect goes on with a sandbox over a new connection, which the Client
// owns from then on, also when Reconnect fails. It returns all processes that
// the agent has; output of those that resume names goes on where resume says,
// of the others from the last acknowledged byte. A process of resume that is
// not returned is not known to the agent.
func Reconnect(ctx context.Context, conn io.ReadWriteCloser, resume []ResumePoint) (*Client, []*Process, error) {
	c := newClient(conn, false)
	procs, err := c.resume(ctx, resume)
	if err != nil {
		c.Close()
		return nil, nil, fmt.Errorf("going on with a sandbox: %w", err)
	}
	return c, procs, nil
}

func newClient(conn io.ReadWriteCloser, first bool) *Client {
	c := &Client{
		link:     wire.NewLink(transport{conn}),
		received: make(chan struct{}),
		calls:    make(map[uint32]*call),
		procs:    make(map[uint32]*Process),
		resumed:  first,
	}
	go c.receive()
	return c
}

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.link.Done() }

// Err returns why the connection ended, nil while it has not.
func (c *Client) Err() error { return c.link.Err() }

// Close ends the connection; the sandbox's processes live on.
func (c *Client) Close() error {
	c.link.Close()
	<-c.received
	return nil
}

// Ping returns once the agent has answered.
func (c *Client) Ping(ctx context.Context) error {
	_, err := c.request(ctx, wire.TypePing, nil)
	return err
}

// Processes lists the processes that the agent has.
func (c *Client) Processes(ctx context.Context) ([]ProcessState, error) {
	r, err := c.request(ctx, wire.TypeList, nil)
	return r.Processes, err
}

// Shutdown ends all processes of the sandbox: SIGTERM, and SIGKILL for those
// that are left after grace (at most a minute). The agent stays.
func (c *Client) Shutdown(ctx context.Context, grace time.Duration) error {
	_, err := c.request(ctx, wire.TypeShutdown, &wire.Shutdown{GraceMillis: grace.Milliseconds()})
	return err
}

// Mkdir makes one directory as the default user. A relative path starts from
// cwd, a relative or empty cwd from the working directory.
func (c *Client) Mkdir(ctx context.Context, cwd, path string) error {
	req := &wire.PathRequest{Path: path, Cwd: cwd}
	if err := req.Validate(); err != nil {
		return badRequest(err)
	}
	_, err := c.request(ctx, wire.TypeMkdir, req)
	return err
}

// request sends a request and waits for its Reply.
func (c *Client) request(ctx context.Context, t wire.Type, req any) (wire.Reply, error) {
	cl := &call{reply: make(chan wire.Reply, 1), listing: t == wire.TypeResume || t == wire.TypeList}
	id := c.open(cl, nil)
	defer c.close(id)
	if err := c.send(t, id, req); err != nil {
		return wire.Reply{}, err
	}
	return c.await(ctx, cl)
}

// open gives a call an id, under which p is known too if there is one.
func (c *Client) open(cl *call, p *Process) uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nextID++
	c.calls[c.nextID] = cl
	if p != nil {
		p.id = c.nextID
		c.procs[p.id] = p
	}
	return c.nextID
}

func (c *Client) close(id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.calls, id)
}

func (c *Client) send(t wire.Type, id uint32, req any) error {
	var err error
	if req == nil {
		err = c.link.Send(t, 0, id, nil, nil)
	} else {
		err = c.link.SendJSON(t, id, req)
	}
	if errors.Is(err, wire.ErrTooLong) {
		return skerry.Errorf(skerry.CodeTooLarge, "the request is longer than %d bytes", t.MaxPayload())
	}
	return c.lost(err)
}

// await waits for the Reply of a call.
func (c *Client) await(ctx context.Context, cl *call) (wire.Reply, error) {
	select {
	case r := <-cl.reply:
		if r.Failure != nil {
			return r, failure(r.Failure)
		}
		return r, nil
	case <-ctx.Done():
		return wire.Reply{}, ctx.Err()
	case <-c.link.Done():
		// A Reply that came just before the end counts.
		select {
		case r := <-cl.reply:
			if r.Failure == nil {
				return r, nil
			}
			return r, failure(r.Failure)
		default:
		}
		return wire.Reply{}, c.lost(c.link.Err())
	}
}

// lost says of an error of the connection what it means to a caller.
func (c *Client) lost(err error) error {
	if err == nil {
		return nil
	}
	return &skerry.Error{Code: skerry.CodeUnavailable, Message: "the connection to the sandbox was lost", Err: err}
}

// writeTimeout is how long the agent may leave the socket full. It always
// reads, so one that does not has stopped.
const writeTimeout = 30 * time.Second

// transport carries frames over any connection, best over one that writes
// several buffers at once.
type transport struct{ io.ReadWriteCloser }

// WriteVec implements wire.Transport.
func (t transport) WriteVec(bufs [][]byte) error {
	if d, ok := t.ReadWriteCloser.(interface{ SetWriteDeadline(time.Time) error }); ok {
		if err := d.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return err
		}
	}
	if v, ok := t.ReadWriteCloser.(interface{ WriteVec([][]byte) error }); ok {
		return v.WriteVec(bufs)
	}
	for _, b := range bufs {
		if _, err := t.Write(b); err != nil {
			return err
		}
	}
	return nil
}
