package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// Setup prepares a new sandbox for its first command.
type Setup struct {
	// Hostname is a DNS label.
	Hostname string
	// User runs the commands that do not run as root. The default is
	// skerry.DefaultUser. If the image has an account of that name, its ids are used.
	User User
	// WorkDir is the working directory. The default is skerry.WorkDir.
	WorkDir string
	// Env is the environment of every command. A command's own variables override it.
	Env map[string]string
	// Authorities are certificate authorities for the sandbox to trust.
	Authorities []Authority
	// Xattrs are extended attributes to set, by path and name.
	Xattrs wire.Xattrs
	// Resolv is the lines of /etc/resolv.conf. If empty, the image's file stays.
	Resolv []string
	// Processes, if positive, limits the processes and threads in the sandbox. At
	// the limit, fork fails inside.
	Processes int
	// Token is the workload token, "" for none. Info.Tokens says whether the agent knows it.
	Token string
}

// User is an account in a sandbox.
type User = wire.User

// Authority is a certificate authority.
type Authority = wire.Authority

// Info describes the agent.
type Info = wire.Info

// ResumePoint tells how much of a process's output the caller has stored.
type ResumePoint = wire.ResumePoint

// ProcessState describes a process of the agent.
type ProcessState = wire.ProcessState

// Client is one connection to an agent, or several, one after the other; see Suspend. It
// is safe for concurrent use. Its methods fail with CodeUnavailable after the connection
// has ended.
type Client struct {
	conn atomic.Pointer[connection] // the last one
	done chan struct{}              // closed when ended is true
	// work is the goroutines that wait for the end of abandoned processes.
	work sync.WaitGroup

	mu        sync.Mutex
	ended     bool // nothing more is received, and no goroutine joins work
	suspended bool // there is no connection, but Resume can make a new one
	nextID    uint32
	calls     map[uint32]*call
	procs     map[uint32]*Process
	// resumed is set when the processes of earlier connections are known. A first
	// connection has none. stray are those that the agent has and the Client has not.
	resumed bool
	stray   []uint32
}

// connection is a connection of a Client.
type connection struct {
	link     *wire.Link
	received chan struct{} // closed when the receiving goroutine has ended
}

// link returns the link of the last connection.
func (c *Client) link() *wire.Link { return c.conn.Load().link }

// call is a request that waits for its Reply, or an upload or download in progress.
// Fields that the request does not need are nil.
type call struct {
	reply chan wire.Reply // has room for one
	// listing is set if the answer must be a Listing instead of a Reply.
	listing bool
	gate    *wire.Gate  // limits what an upload sends
	in      *wire.Inbox // receives a download
}

// Connect sets up a new sandbox over its first connection. The Client owns the
// connection, and Connect closes it on error.
func Connect(ctx context.Context, conn io.ReadWriteCloser, setup Setup) (*Client, Info, error) {
	return setUp(ctx, conn, setup, wire.TypeSetup)
}

// Renew gives a sandbox that was restored from a memory snapshot the identity of a new
// session, over a new connection. The rest is as with Connect. The processes of the
// snapshot continue, but the Client does not know them.
func Renew(ctx context.Context, conn io.ReadWriteCloser, setup Setup) (*Client, Info, error) {
	return setUp(ctx, conn, setup, wire.TypeRenew)
}

// Identity is what Identify gives to a sandbox.
type Identity = wire.Identity

// Identify gives a sandbox that Connect has set up in advance its own name and environment,
// which replace the earlier ones. No command may be running.
func (c *Client) Identify(ctx context.Context, identity Identity) (Info, error) {
	if err := identity.Validate(); err != nil {
		return Info{}, badRequest(err)
	}
	r, err := c.request(ctx, wire.TypeIdentify, &identity)
	if err == nil && r.Info == nil {
		err = errors.New("the agent answered without its description")
	}
	if err != nil {
		return Info{}, fmt.Errorf("give the sandbox its name: %w", err)
	}
	return *r.Info, nil
}

// SetToken replaces the sandbox's workload token.
func (c *Client) SetToken(ctx context.Context, token string) error {
	req := &wire.Token{Token: token, Number: time.Now().UnixMilli()}
	if err := req.Validate(); err != nil {
		return badRequest(err)
	}
	_, err := c.request(ctx, wire.TypeToken, req)
	return err
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
		Env: setup.Env, Xattrs: setup.Xattrs, Authorities: setup.Authorities, Resolv: setup.Resolv, Processes: setup.Processes, Token: setup.Token,
	}
	err := req.Validate()
	var r wire.Reply
	if err == nil {
		r, err = c.request(ctx, how, &req)
	}
	if err == nil && (r.Info == nil || r.Info.Version != wire.Version) {
		err = errors.New("the agent has another version of the protocol")
	}
	if err != nil {
		c.Close()
		return nil, Info{}, fmt.Errorf("set up the sandbox: %w", err)
	}
	return c, *r.Info, nil
}

// Reconnect resumes the work with a sandbox over a new connection. The Client owns the
// connection, and Reconnect closes it on error. It returns all processes of the agent.
// The output of a process in resume continues at the offsets there, the output of any
// other after the last acknowledged byte. If a process in resume is not returned, the
// agent does not know it.
func Reconnect(ctx context.Context, conn io.ReadWriteCloser, resume []ResumePoint) (*Client, []*Process, error) {
	c := newClient(conn, false)
	procs, err := c.resume(ctx, resume)
	if err != nil {
		c.Close()
		return nil, nil, fmt.Errorf("reconnect to the sandbox: %w", err)
	}
	return c, procs, nil
}

func newClient(conn io.ReadWriteCloser, first bool) *Client {
	c := &Client{
		done:    make(chan struct{}),
		calls:   make(map[uint32]*call),
		procs:   make(map[uint32]*Process),
		resumed: first,
	}
	c.open(conn)
	return c
}

// open begins a connection.
func (c *Client) open(conn io.ReadWriteCloser) {
	k := &connection{link: wire.NewLink(transport{conn}), received: make(chan struct{})}
	c.conn.Store(k)
	go c.receive(k)
}

// Done is closed when the connection has ended. Suspend does not count as its end.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns why the connection ended. It is nil before the end.
func (c *Client) Err() error {
	select {
	case <-c.done:
		return c.link().Err()
	default:
		return nil
	}
}

// Close ends the connection. The processes in the sandbox continue.
func (c *Client) Close() error {
	k := c.conn.Load()
	k.link.Close()
	<-k.received
	c.mu.Lock()
	c.end()
	c.mu.Unlock()
	c.work.Wait()
	return nil
}

// Ping waits for an answer of the agent.
func (c *Client) Ping(ctx context.Context) error {
	_, err := c.request(ctx, wire.TypePing, nil)
	return err
}

// Victim is a process that was killed to free memory. The sandbox reports it.
type Victim = wire.Victim

// Relieve lets the agent kill the process that uses the most memory. It returns nil if
// no process uses much.
func (c *Client) Relieve(ctx context.Context) (*Victim, error) {
	r, err := c.request(ctx, wire.TypeRelieve, nil)
	return r.Victim, err
}

// Processes lists the processes of the agent.
func (c *Client) Processes(ctx context.Context) ([]ProcessState, error) {
	r, err := c.request(ctx, wire.TypeList, nil)
	return r.Processes, err
}

// Shutdown ends all processes in the sandbox with SIGTERM, and after grace with
// SIGKILL. grace is at most a minute. The agent keeps running.
func (c *Client) Shutdown(ctx context.Context, grace time.Duration) error {
	_, err := c.request(ctx, wire.TypeShutdown, &wire.Shutdown{GraceMillis: grace.Milliseconds()})
	return err
}

// Mkdir creates one directory as the default user. A relative path is relative to cwd.
// A relative or empty cwd is relative to the working directory.
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
	id := c.begin(cl, nil)
	defer c.close(id)
	if err := c.send(t, id, req); err != nil {
		return wire.Reply{}, err
	}
	return c.await(ctx, cl)
}

// begin registers a call, and p if it is not nil, under a new id. It returns 0 at the
// limit of processes. An agent that never reports their ends must not fill the host's
// memory.
func (c *Client) begin(cl *call, p *Process) uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p != nil && len(c.procs) >= wire.MaxProcesses {
		return 0
	}
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
		err = c.link().Send(t, 0, id, nil, nil)
	} else {
		err = c.link().SendJSON(t, id, req)
	}
	if errors.Is(err, wire.ErrTooLong) {
		return skerry.Errorf(skerry.CodeTooLarge, "the request is longer than %d bytes", t.MaxPayload())
	}
	return c.broken(err)
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
	case <-c.link().Done():
		// A Reply that came just before the end counts.
		select {
		case r := <-cl.reply:
			if r.Failure == nil {
				return r, nil
			}
			return r, failure(r.Failure)
		default:
		}
		return wire.Reply{}, c.broken(c.link().Err())
	}
}

// broken is lost for a caller of the Client. When it returns, Done is closed too, unless
// Suspend ended the connection: whoever hears of the loss can ask whether it is final.
func (c *Client) broken(err error) error {
	if err == nil {
		return nil
	}
	k := c.conn.Load()
	select {
	case <-k.link.Done():
		<-k.received
	default:
	}
	return c.lost(err)
}

// lost turns an error of the connection into an error for the caller.
func (c *Client) lost(err error) error {
	if err == nil {
		return nil
	}
	return &skerry.Error{Code: skerry.CodeUnavailable, Message: "the connection to the sandbox was lost", Err: err}
}

// writeTimeout is how long a write may block. A working agent always reads, so one
// that does not is stuck.
const writeTimeout = 30 * time.Second

// transport sends frames over any connection. It uses WriteVec and write deadlines if
// the connection has them.
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
