package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// session is the agent's side of one connection.
type session struct {
	a *Agent
	l *wire.Link
	// ready is set by the first frame: Setup, Resume or Renew. Only the receiving
	// goroutine uses it.
	ready bool

	// received is closed when the receiving goroutine has ended.
	received chan struct{}
	resuming sync.WaitGroup

	mu    sync.Mutex
	calls map[uint32]*call // the requests in progress
}

// call is a request in progress.
type call struct {
	ctx    context.Context
	cancel context.CancelFunc
	in     *wire.Inbox // of an upload
	gate   *wire.Gate  // of a download
}

var errProtocol = errors.New("protocol violation")

// run receives frames until the connection ends. It returns the reason.
func (s *session) run() error {
	for {
		h, err := s.l.Receive()
		if err != nil {
			return err
		}
		if !s.ready && !opening(h.Type) {
			return fmt.Errorf("%w: the first frame is of type %d", errProtocol, h.Type)
		}
		if err := s.frame(h); err != nil {
			return err
		}
	}
}

// opening reports whether a frame may be the first of a connection.
func opening(t wire.Type) bool {
	return t == wire.TypeSetup || t == wire.TypeResume || t == wire.TypeRenew
}

// end cancels the requests of the connection and closes its inputs. The processes
// continue.
func (s *session) end() {
	err := s.l.Err()
	s.mu.Lock()
	for _, c := range s.calls {
		c.cancel()
	}
	s.mu.Unlock()
	s.a.mu.Lock()
	if s.a.link == s.l {
		s.a.link = nil // from now on, no process can start on this connection
	}
	procs := s.a.processes()
	s.a.mu.Unlock()
	for _, p := range procs {
		if p.stdin != nil && p.stdin.link == s.l && !p.tty {
			p.stdin.in.Close(err)
		}
	}
	s.resuming.Wait()
}

// frame handles one frame. It waits only for the connection.
func (s *session) frame(h wire.Header) error {
	switch h.Type {
	case wire.TypeSetup:
		return decode(s, h, s.setup)
	case wire.TypeResume:
		return decode(s, h, s.resume)
	case wire.TypeRenew:
		return decode(s, h, s.renew)
	case wire.TypeIdentify:
		return decode(s, h, s.identify)
	case wire.TypeToken:
		return decode(s, h, func(id uint32, req *wire.Token) error {
			return s.begin(id, req.Validate(), nil, func() error {
				return s.reply(id, wire.Reply{}, s.a.setToken(req))
			})
		})
	case wire.TypeStart:
		return decode(s, h, func(id uint32, req *wire.Start) error {
			return s.begin(id, req.Validate(), nil, func() error { return s.a.start(s.l, id, req) })
		})
	case wire.TypeWriteTar:
		return decode(s, h, s.writeTar)
	case wire.TypeReadFile:
		return decode(s, h, s.readFile)
	case wire.TypeMkdir:
		return decode(s, h, func(id uint32, req *wire.PathRequest) error {
			return s.begin(id, req.Validate(), nil, func() error { return s.reply(id, wire.Reply{}, s.a.mkdir(req)) })
		})
	case wire.TypePing:
		return s.reply(h.ID, wire.Reply{}, nil)
	case wire.TypeRelieve:
		return s.begin(h.ID, nil, nil, func() error {
			victim, err := s.a.relieve()
			return s.reply(h.ID, wire.Reply{Victim: victim}, err)
		})
	case wire.TypeList:
		return s.l.SendJSON(wire.TypeListing, h.ID, s.list(nil))
	case wire.TypeShutdown:
		return decode(s, h, s.shutdown)
	case wire.TypeData:
		return s.data(h)
	case wire.TypeEOF, wire.TypeAck:
		return s.offset(h)
	case wire.TypeSignal, wire.TypeResize:
		return s.control(h)
	case wire.TypeForget:
		s.a.forget(h.ID)
		return nil
	case wire.TypeCancel:
		if c := s.call(h.ID); c != nil {
			c.cancel()
		}
		return nil
	default:
		return fmt.Errorf("%w: the host must not send type %d", errProtocol, h.Type)
	}
}

// decode reads a JSON payload and calls handle with it.
func decode[T any](s *session, h wire.Header, handle func(uint32, *T) error) error {
	req := new(T)
	if err := s.l.ReadJSON(h, req); err != nil {
		return err
	}
	return handle(h.ID, req)
}

// reply answers a request with r, or with a Failure if err is not nil.
func (s *session) reply(id uint32, r wire.Reply, err error) error {
	if err != nil {
		r = wire.Reply{Failure: failure(err)}
	}
	return s.l.SendJSON(wire.TypeReply, id, r)
}

// begin handles a request in a new goroutine. work sends the reply itself, unless it
// returns an error. Until work returns, the id belongs to c, the call of an upload or
// download. c is nil for a request without a stream.
func (s *session) begin(id uint32, invalid error, c *call, work func() error) error {
	if err := s.claim(id); err != nil {
		return err
	}
	if invalid != nil {
		return s.reply(id, wire.Reply{}, wire.Failf(wire.FailInvalid, "%v", invalid))
	}
	select {
	case s.a.requests <- struct{}{}:
	default:
		return s.reply(id, wire.Reply{}, wire.Failf(wire.FailBusy, "limit of %d concurrent requests in the sandbox reached", maxRequests))
	}
	if c == nil {
		c = new(call) // keeps the id in use
	}
	s.open(id, c)
	s.a.work.Go(func() {
		defer func() { <-s.a.requests }()
		err := work()
		s.close(id)
		if err != nil {
			_ = s.reply(id, wire.Reply{}, err) // a failed send has ended the connection
		}
	})
	return nil
}

// claim checks that an id is free for a new call, and records it.
func (s *session) claim(id uint32) error {
	used := s.call(id) != nil
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	if used || s.a.procs[id] != nil {
		return fmt.Errorf("%w: id %d is in use", errProtocol, id)
	}
	s.a.lastID = max(s.a.lastID, id)
	return nil
}

// setup prepares a new sandbox.
func (s *session) setup(id uint32, req *wire.Setup) error {
	if _, known := s.a.config(); s.ready || known.name != "" {
		return fmt.Errorf("%w: a second Setup", errProtocol)
	}
	if err := s.claim(id); err != nil {
		return err
	}
	if err := req.Validate(); err != nil {
		return s.reply(id, wire.Reply{}, wire.Failf(wire.FailInvalid, "%v", err))
	}
	return s.prepare(id, req, newPreparer(s.a.platform))
}

// renew gives a restored sandbox its new identity.
func (s *session) renew(id uint32, req *wire.Setup) error {
	if setup, _ := s.a.config(); setup == nil || s.ready {
		return fmt.Errorf("%w: unexpected Renew", errProtocol)
	}
	s.a.disown()
	if err := s.claim(id); err != nil {
		return err
	}
	if err := req.Validate(); err != nil {
		return s.reply(id, wire.Reply{}, wire.Failf(wire.FailInvalid, "%v", err))
	}
	p := newPreparer(s.a.platform)
	p.again = true
	return s.prepare(id, req, p)
}

// identify gives a sandbox that was set up in advance its name and environment. No command
// may be running.
func (s *session) identify(id uint32, req *wire.Identity) error {
	if err := s.claim(id); err != nil {
		return err
	}
	if err := req.Validate(); err != nil {
		return s.reply(id, wire.Reply{}, wire.Failf(wire.FailInvalid, "%v", err))
	}
	setup, user := s.a.config()
	if s.a.busy() {
		return s.reply(id, wire.Reply{}, wire.Failf(wire.FailBusy, "commands run already"))
	}
	p := newPreparer(s.a.platform)
	if err := p.identify(*req); err != nil {
		return s.reply(id, wire.Reply{}, err)
	}
	p.warn("token", p.token(user, req.Token))
	next := *setup
	next.Hostname, next.Env, next.Resolv = req.Hostname, req.Env, req.Resolv
	s.a.mu.Lock()
	s.a.setup = &next
	s.a.mu.Unlock()
	return s.reply(id, wire.Reply{Info: info(user, p.warnings)}, nil)
}

// info describes the agent after it was set up.
func info(user account, warnings []string) *wire.Info {
	return &wire.Info{
		Version: wire.Version,
		PID:     os.Getpid(),
		User:    wire.User{Name: user.name, UID: user.uid, GID: user.gid}, Tokens: true, Warnings: warnings,
	}
}

// prepare applies a Setup and replies.
func (s *session) prepare(id uint32, req *wire.Setup, p *preparer) error {
	user, err := p.prepare(req)
	if err != nil {
		return s.reply(id, wire.Reply{}, err)
	}
	s.a.tokens.Lock()
	s.a.lastToken = 0 // the numbers in a memory snapshot may be of another clock
	s.a.tokens.Unlock()
	s.a.mu.Lock()
	s.a.setup, s.a.user = req, user
	s.a.mu.Unlock()
	s.ready = true
	return s.reply(id, wire.Reply{Info: info(user, p.warnings)}, nil)
}

// resume sends a listing of the processes. After the listing it continues their output.
func (s *session) resume(id uint32, req *wire.Resume) error {
	if setup, _ := s.a.config(); setup == nil || s.ready || req.Version != wire.Version {
		return fmt.Errorf("%w: unexpected Resume, or of version %d", errProtocol, req.Version)
	}
	s.ready = true
	listing := s.list(req.Points)
	if err := s.l.SendJSON(wire.TypeListing, id, listing); err != nil {
		return err
	}
	for _, state := range listing.Processes {
		if p := s.a.process(state.ID); p != nil {
			s.resuming.Go(func() { p.resume(s.l, state) })
		}
	}
	return nil
}

// list returns a listing of all processes. points is the output that the host has.
func (s *session) list(points []wire.ResumePoint) wire.Reply {
	have := make(map[string]wire.ResumePoint, len(points))
	for _, pt := range points {
		have[pt.Key] = pt
	}
	s.a.mu.Lock()
	procs, last := s.a.processes(), s.a.lastID
	s.a.mu.Unlock()
	r := wire.Reply{LastID: last}
	for _, p := range procs {
		r.Processes = append(r.Processes, p.state(have[p.key]))
	}
	return r
}

func (s *session) shutdown(id uint32, req *wire.Shutdown) error {
	const maxGrace = 60_000
	grace := time.Duration(max(0, min(req.GraceMillis, maxGrace))) * time.Millisecond
	return s.begin(id, nil, nil, func() error {
		s.a.terminate(grace)
		return s.reply(id, wire.Reply{}, nil)
	})
}

// data handles input for a process or an upload. For any other id the input is late,
// and dropped.
func (s *session) data(h wire.Header) error {
	if in := s.inbox(h.ID); in != nil {
		return in.Fill(s.l, h)
	}
	return s.l.Discard(h.Length)
}

func (s *session) inbox(id uint32) *wire.Inbox {
	if c := s.call(id); c != nil && c.in != nil {
		return c.in
	}
	if p := s.a.process(id); p != nil && p.stdin != nil && p.stdin.link == s.l {
		return p.stdin.in
	}
	return nil
}

// offset handles an EOF of input or an Ack of output.
func (s *session) offset(h wire.Header) error {
	offset, err := s.l.ReadOffset()
	if err != nil {
		return err
	}
	if h.Type == wire.TypeEOF {
		if in := s.inbox(h.ID); in != nil {
			return in.End(h.Stream, offset)
		}
		return nil
	}
	if c := s.call(h.ID); c != nil && c.gate != nil {
		return c.gate.Ack(offset)
	}
	if p := s.a.process(h.ID); p != nil {
		if o := p.output(h.Stream); o != nil {
			o.ack(offset)
		}
	}
	return nil
}

// control passes a signal or a terminal size to a process.
func (s *session) control(h wire.Header) error {
	var b [4]byte
	if err := s.l.ReadFull(b[:]); err != nil {
		return err
	}
	p := s.a.process(h.ID)
	if p == nil {
		return nil
	}
	if h.Type == wire.TypeResize {
		p.resize(wire.TTY{Cols: binary.LittleEndian.Uint16(b[:]), Rows: binary.LittleEndian.Uint16(b[2:])})
		return nil
	}
	if n := binary.LittleEndian.Uint32(b[:]); n >= 1 && n <= 64 {
		p.signal(unix.Signal(n), false)
	}
	return nil
}

func (s *session) call(id uint32) *call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[id]
}

// open registers a request until close.
func (s *session) open(id uint32, c *call) {
	c.ctx, c.cancel = context.WithCancel(context.Background())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[id] = c
	if s.l.Err() != nil {
		c.cancel()
	}
}

func (s *session) close(id uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[id].cancel()
	delete(s.calls, id)
}

func (s *session) writeTar(id uint32, req *wire.PathRequest) error {
	c := &call{in: wire.NewInbox(wire.StreamIn)}
	return s.begin(id, req.Validate(), c, func() error {
		r := &wire.Reader{Ctx: c.ctx, In: c.in, Link: s.l, ID: id, Stream: wire.StreamIn}
		return s.reply(id, wire.Reply{}, s.a.writeTar(req, r))
	})
}

func (s *session) readFile(id uint32, req *wire.PathRequest) error {
	c := &call{gate: wire.NewGate()}
	return s.begin(id, req.Validate(), c, func() error {
		return s.a.readFile(c.ctx, s.l, c.gate, id, req)
	})
}
