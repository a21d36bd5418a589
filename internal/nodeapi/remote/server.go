package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/tracing"
)

// ServerConfig configures a Server.
type ServerConfig struct {
	Node      nodeapi.Node // required
	Images    nodeapi.Images
	Collector nodeapi.Collector
	// Keys returns the public keys of the node's tokens, as a JWKS document.
	Keys func(context.Context) ([]byte, error)
	// Hello is what the server says of its node; Protocol is filled in.
	Hello Hello
	Log   *slog.Logger // required
	// Tracer continues the traces of calls; nil for not at all.
	Tracer *tracing.Tracer

	timing timing // the constants, but in tests
}

// Server serves a node to Clients. Whoever can connect to it has the node.
type Server struct {
	cfg  ServerConfig
	http *http.Server

	mu    sync.Mutex
	calls map[string]context.CancelFunc
	conns map[string]chargeable
	// closed is true once no more calls are taken; work counts those that run.
	closed bool
	work   sync.WaitGroup
}

// NewServer returns a server. Serve runs it.
func NewServer(cfg ServerConfig) *Server {
	if cfg.timing == (timing{}) {
		cfg.timing = defaultTiming
	}
	cfg.Hello.Protocol = Protocol
	s := &Server{cfg: cfg, calls: map[string]context.CancelFunc{}, conns: map[string]chargeable{}}
	s.http = &http.Server{
		Handler:   s,
		Protocols: http2Only(),
		HTTP2:     http2Config(cfg.timing),
		// For who connects and says nothing.
		ReadHeaderTimeout: cfg.timing.pingAfter,
		ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelWarn),
	}
	return s
}

// Serve serves the connections of a listener until Close.
func (s *Server) Serve(ln net.Listener) error {
	if err := s.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the node: %w", err)
	}
	return nil
}

// Close cuts all connections, and returns when all calls have ended. Their contexts
// end at once.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	err := s.http.Close()
	s.work.Wait()
	return err
}

// begin counts a call, unless the server is closed.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.work.Add(1)
	return true
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.begin() {
		http.Error(w, "the node is closing", http.StatusServiceUnavailable)
		return
	}
	defer s.work.Done()
	name, ok := strings.CutPrefix(r.URL.Path, pathPrefix)
	if !ok || r.Method != http.MethodPost {
		s.refuse(w)
		return
	}
	c, err := s.take(w, r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	defer c.end()
	if !known(name) {
		s.refuse(w)
		return
	}
	var span tracing.Span
	c.ctx, span = s.cfg.Tracer.Call(c.ctx, "remote."+name, r.Header.Get(tracing.Header))
	defer span.End(nil)
	if m, ok := calls[name]; ok {
		c.answer(m)
	} else {
		streams[name](c)
	}
}

// known reports whether there is such a method.
func known(name string) bool { return calls[name].run != nil || streams[name] != nil }

func (s *Server) refuse(w http.ResponseWriter) {
	http.Error(w, fmt.Sprintf("this node speaks version %d of the protocol", Protocol), http.StatusNotFound)
}

// serverCall is a call that a server executes.
type serverCall struct {
	s *Server
	w http.ResponseWriter
	r *http.Request
	// ctx is that of the call. It ends with the caller's.
	ctx context.Context
	end context.CancelFunc
}

// take makes the context of a call, with the caller's deadline.
func (s *Server) take(w http.ResponseWriter, r *http.Request) (*serverCall, error) {
	ctx, cancel := context.WithCancel(r.Context())
	end := cancel
	if left := r.Header.Get(headerTimeout); left != "" {
		ns, err := strconv.ParseInt(left, 10, 64)
		if err != nil {
			cancel()
			return nil, fmt.Errorf("%s: %w", headerTimeout, err)
		}
		var drop context.CancelFunc
		ctx, drop = context.WithTimeout(ctx, time.Duration(ns))
		end = func() { drop(); cancel() }
	}
	if id := r.Header.Get(headerCall); id != "" {
		s.mu.Lock()
		s.calls[id] = cancel
		s.mu.Unlock()
		inner := end
		end = func() {
			s.mu.Lock()
			delete(s.calls, id)
			s.mu.Unlock()
			inner()
		}
	}
	return &serverCall{s: s, w: w, r: r, ctx: ctx, end: end}, nil
}

// call is a method whose request and answer are one document each.
type call struct {
	max int64
	run func(c *serverCall, args []byte) (any, error)
}

// method makes a call of a function of the node. In and Out are what crosses.
func method[In, Out any](f func(ctx context.Context, s *Server, in In) (Out, error)) call {
	return call{max: maxHead, run: func(c *serverCall, args []byte) (any, error) {
		var in In
		if err := json.Unmarshal(args, &in); err != nil {
			return nil, &skerry.Error{Code: skerry.CodeInternal, Message: "internal error", Err: fmt.Errorf("arguments: %w", err)}
		}
		out, err := f(c.ctx, c.s, in)
		return answer[Out]{Error: failureOf(c.ctx, err), Result: out}, nil
	}}
}

// listing is a method whose arguments grow with the number of sessions, drives or
// snapshots.
func listing[In, Out any](f func(ctx context.Context, s *Server, in In) (Out, error)) call {
	m := method(f)
	m.max = maxList
	return m
}

// act is a method without a result.
func act[In any](f func(ctx context.Context, n nodeapi.Node, in In) error) call {
	return method(func(ctx context.Context, s *Server, in In) (nothing, error) { return nothing{}, f(ctx, s.cfg.Node, in) })
}

// answer executes a call with one document as its answer.
func (c *serverCall) answer(m call) {
	args, err := io.ReadAll(io.LimitReader(c.r.Body, m.max+1))
	var out any
	switch {
	case err != nil:
		return // whoever called has gone
	case int64(len(args)) > m.max:
		err = tooLarge(len(args), int(m.max))
	default:
		out, err = m.run(c, args)
	}
	if err != nil {
		out = answer[nothing]{Error: failureOf(c.ctx, err)}
	}
	doc, err := json.Marshal(out)
	if err != nil {
		// Nothing that crosses has such values.
		c.s.cfg.Log.Error("cannot encode an answer", "method", c.r.URL.Path, "error", err)
		panic(http.ErrAbortHandler)
	}
	c.w.Header().Set("Content-Type", "application/json")
	_, _ = c.w.Write(doc) // whoever called has gone
}

// calls are the methods with one document as the request and one as the answer.
var calls map[string]call

func init() { // the server's own methods are among them
	calls = map[string]call{
		"hello":  method(func(_ context.Context, s *Server, _ nothing) (Hello, error) { return s.cfg.Hello, nil }),
		"keys":   method(func(ctx context.Context, s *Server, _ nothing) (json.RawMessage, error) { return s.cfg.Keys(ctx) }),
		"cancel": method(func(_ context.Context, s *Server, in idArgs) (nothing, error) { s.cancel(in.ID); return nothing{}, nil }),

		"start": act(func(ctx context.Context, n nodeapi.Node, in sessionArgs) error {
			in.SessionSpec.Env = stringMap(in.Env)
			return n.Start(ctx, in.SessionSpec)
		}),
		"stop": method(func(ctx context.Context, s *Server, in idArgs) (nodeapi.Usage, error) {
			return s.cfg.Node.Stop(ctx, in.ID)
		}),
		"forget": act(func(ctx context.Context, n nodeapi.Node, in idArgs) error { return n.Forget(ctx, in.ID) }),
		"pause":  act(func(ctx context.Context, n nodeapi.Node, in idArgs) error { return n.Pause(ctx, in.ID) }),
		"resume": act(func(ctx context.Context, n nodeapi.Node, in idArgs) error { return n.Resume(ctx, in.ID) }),
		"deadline": act(func(ctx context.Context, n nodeapi.Node, in deadlineArgs) error {
			return n.SetDeadline(ctx, in.ID, in.Left)
		}),
		"meters": method(func(ctx context.Context, s *Server, _ nothing) (map[string]nodeapi.Meter, error) {
			return s.cfg.Node.Meters(ctx)
		}),
		"idle": act(func(ctx context.Context, n nodeapi.Node, in idleArgs) error { return n.SetIdle(ctx, in.ID, in.Mode) }),
		"recover": listing(func(ctx context.Context, s *Server, in keepArgs) ([]string, error) {
			return s.cfg.Node.Recover(ctx, in.Keep)
		}),
		"retain": listing(func(ctx context.Context, s *Server, in idsArgs) (nothing, error) {
			return nothing{}, s.cfg.Node.Retain(ctx, in.IDs)
		}),
		"network": act(func(ctx context.Context, n nodeapi.Node, in networkArgs) error {
			return n.SetNetwork(ctx, in.ID, in.Network)
		}),
		"network/events": method(func(ctx context.Context, s *Server, in eventsArgs) ([]skerry.NetworkEvent, error) {
			return s.cfg.Node.NetworkEvents(ctx, in.ID, in.Limit)
		}),

		"snapshot": method(func(ctx context.Context, s *Server, in snapshotArgs) (nodeapi.SavedFiles, error) {
			return s.cfg.Node.Snapshot(ctx, in.ID, in.How)
		}),
		"capture": act(func(ctx context.Context, n nodeapi.Node, in captureArgs) error {
			return n.Capture(ctx, in.ID, in.Capture)
		}),
		"keep": method(func(ctx context.Context, s *Server, in keepCaptureArgs) (nodeapi.SavedFiles, error) {
			return s.cfg.Node.Keep(ctx, in.ID, in.Lease)
		}),
		"discard": act(func(ctx context.Context, n nodeapi.Node, in idArgs) error { return n.Discard(ctx, in.ID) }),
		"collect": listing(func(ctx context.Context, s *Server, known nodeapi.Records) (nodeapi.Collected, error) {
			if s.cfg.Collector == nil {
				return nodeapi.Collected{}, skerry.Errorf(skerry.CodeNotImplemented, "this node collects no saved files")
			}
			return s.cfg.Collector.Collect(ctx, known)
		}),

		"drive/create": act(func(ctx context.Context, n nodeapi.Node, in driveArgs) error {
			return n.CreateDrive(ctx, in.ID, in.Size)
		}),
		"drive/fork":   act(func(ctx context.Context, n nodeapi.Node, in driveArgs) error { return n.ForkDrive(ctx, in.ID, in.From) }),
		"drive/delete": act(func(ctx context.Context, n nodeapi.Node, in driveArgs) error { return n.DeleteDrive(ctx, in.ID) }),
		"drive/retain": listing(func(ctx context.Context, s *Server, in idsArgs) (nothing, error) {
			return nothing{}, s.cfg.Node.RetainDrives(ctx, in.IDs)
		}),

		"exec": method(func(ctx context.Context, s *Server, in execArgs) (nothing, error) {
			_, err := s.cfg.Node.Exec(ctx, in.Session, in.spec(), false)
			return nothing{}, err
		}),
		"stdin": method(func(ctx context.Context, s *Server, in stdinArgs) (int64, error) {
			return s.cfg.Node.WriteStdin(ctx, in.Session, in.ID, in.Params)
		}),
		"drop": act(func(ctx context.Context, n nodeapi.Node, in commandArgs) error { return n.Drop(ctx, in.Session, in.ID) }),
		"signal": act(func(ctx context.Context, n nodeapi.Node, in commandArgs) error {
			return n.Signal(ctx, in.Session, in.ID, in.Signal)
		}),
		"mkdir": act(func(ctx context.Context, n nodeapi.Node, in pathArgs) error {
			return n.MakeDir(ctx, in.Session, string(in.Cwd), string(in.Path), in.Recursive)
		}),

		"events": method(func(ctx context.Context, s *Server, in cursorArgs) (nodeapi.Batch, error) {
			return s.cfg.Node.Events(ctx, in.After)
		}),
		"image": method(func(ctx context.Context, s *Server, in idArgs) (nodeapi.Image, error) {
			if s.cfg.Images == nil {
				return nodeapi.Image{}, skerry.Errorf(skerry.CodeNotImplemented, "this node resolves no images")
			}
			return s.cfg.Images.Resolve(ctx, in.ID)
		}),
		"charge": method(func(_ context.Context, s *Server, in chargeArgs) (bool, error) { return s.charge(in) }),
		"wanted": method(func(_ context.Context, s *Server, in chargeArgs) (bool, error) {
			c := s.chargeable(in.Conn)
			return c != nil && c.Wanted(), nil
		}),
	}
}

// cancel ends the context of a call. One that has ended, or is not there yet, is
// left: its stream is reset a little later.
func (s *Server) cancel(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cancel := s.calls[id]; cancel != nil {
		cancel()
	}
}

func (a *execArgs) spec() nodeapi.CommandSpec {
	return nodeapi.CommandSpec{ID: a.ID, CommandParams: skerry.CommandParams{
		Name: string(a.Name), Args: stringsOf(a.Args), Cwd: string(a.Cwd), Env: stringMap(a.Env),
		Sudo: a.Sudo, Timeout: skerry.Duration(a.Timeout), Stdin: a.Stdin,
	}}
}
