package remote

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/socketpair"
)

// stream is the response of a call that goes on after its answer.
type stream struct {
	f    *flight
	body io.ReadCloser
	in   frameReader
	// closed is set by Close; err is how the stream ended.
	closed atomic.Bool
	err    error
}

// open sends a request and reads the answer. The flight ends with an error, or with
// the stream.
func open[Out any](f *flight, body io.Reader) (_ *stream, out Out, err error) {
	defer func() {
		if err != nil {
			f.unwatch()
			f.end()
		}
	}()
	res, err := f.roundTrip(http.MethodPost, body)
	if err != nil {
		return nil, out, err
	}
	s := &stream{f: f, body: res.Body, in: frameReader{r: res.Body}}
	kind, payload, err := s.in.next()
	var a answer[Out]
	switch {
	case err != nil:
		err = f.lost(err)
	case kind != frameAnswer:
		err = f.lost(errProtocol("a response does not begin with an answer"))
	default:
		if err = json.Unmarshal(payload, &a); err != nil {
			err = f.lost(errProtocol(err.Error()))
		} else {
			err = a.Error.err(f.caller)
		}
	}
	if err != nil {
		_ = res.Body.Close()
		return nil, out, err
	}
	return s, a.Result, nil
}

// next returns the next frame. At the end of the stream it is the frameEnd's error,
// or io.EOF, from then on.
func (s *stream) next() (kind byte, payload []byte, end *json.RawMessage, err error) {
	if s.err != nil {
		return 0, nil, nil, s.err
	}
	kind, payload, err = s.in.next()
	switch {
	case err != nil && s.closed.Load():
		err = os.ErrClosed
	case err != nil:
		err = s.f.lost(err)
	case kind == frameEnd:
		var a answer[json.RawMessage]
		if err = json.Unmarshal(payload, &a); err != nil {
			err = s.f.lost(errProtocol(err.Error()))
		} else if a.Error == nil {
			err, end = io.EOF, &a.Result
		} else if a.Error.Kind == kindReset {
			err = unix.ECONNRESET
		} else {
			err = a.Error.err(s.f.caller)
		}
	}
	s.err = err
	return kind, payload, end, err
}

// Close gives the stream up. It may be called during next.
func (s *stream) Close() error {
	s.closed.Store(true)
	s.f.unwatch()
	s.f.end()
	_ = s.body.Close()
	return nil
}

func document(v any) (io.Reader, error) {
	args, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if len(args) > maxHead {
		return nil, tooLarge(len(args), maxHead)
	}
	return bytes.NewReader(args), nil
}

// Exec implements nodeapi.Node.
func (c *Client) Exec(ctx context.Context, sessionID string, spec nodeapi.CommandSpec, attach bool) (skerry.OutputReader, error) {
	in := execArgs{
		Session: sessionID, ID: spec.ID, Name: text(spec.Name), Args: texts(spec.Args), Cwd: text(spec.Cwd), Env: textMap(spec.Env),
		Sudo: spec.Sudo, Stdin: spec.Stdin, Timeout: spec.Timeout.Std(),
	}
	if !attach {
		return nil, c.do(ctx, "exec", in)
	}
	return c.follow(ctx, "exec/follow", in)
}

// Output implements nodeapi.Node.
func (c *Client) Output(ctx context.Context, sessionID, id string) (skerry.OutputReader, error) {
	return c.follow(ctx, "output", commandArgs{Session: sessionID, ID: id})
}

func (c *Client) follow(ctx context.Context, name string, in any) (skerry.OutputReader, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	body, err := document(in)
	if err != nil {
		return nil, nodeapi.Narrow(ctx, err)
	}
	s, _, err := open[nothing](c.begin(ctx, name), body)
	if err != nil {
		return nil, err
	}
	if err := s.settle(); err != nil {
		return nil, err
	}
	return (*outputStream)(s), nil
}

// settle has the stream outlive the context of the call that returned it, unless
// that has ended already.
func (s *stream) settle() error {
	if !s.f.settled() {
		_ = s.Close()
		return s.f.caller.Err()
	}
	s.f.caller = context.WithoutCancel(s.f.caller)
	return nil
}

// upload is the body of a request that is written while the call goes on. Close
// ends both sides of it.
type upload struct {
	io.Reader
	pipe *io.PipeReader
}

func newUpload(head []byte) (*upload, *io.PipeWriter) {
	r, w := io.Pipe()
	return &upload{Reader: io.MultiReader(bytes.NewReader(head), r), pipe: r}, w
}

// Close implements io.Closer.
func (u *upload) Close() error { return u.pipe.CloseWithError(io.ErrClosedPipe) }

// outputStream is the output of a command.
type outputStream stream

// Next implements skerry.OutputReader.
func (o *outputStream) Next() (skerry.Output, error) {
	s := (*stream)(o)
	kind, p, _, err := s.next()
	if err != nil {
		return skerry.Output{}, err
	}
	if kind != frameOutput || len(p) < outputHeader || p[0] != 1 && p[0] != 2 {
		s.err = s.f.lost(errProtocol("there is no output in a frame"))
		return skerry.Output{}, s.err
	}
	out := skerry.Output{Stream: skerry.Stdout, Offset: int64(binary.BigEndian.Uint64(p[1:])), Data: p[outputHeader:]}
	if p[0] == 2 {
		out.Stream = skerry.Stderr
	}
	return out, nil
}

// Close implements skerry.OutputReader.
func (o *outputStream) Close() error { return (*stream)(o).Close() }

// ReadFile implements nodeapi.Node. The context bounds the reading, too.
func (c *Client) ReadFile(ctx context.Context, sessionID, cwd, path string) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	body, err := document(pathArgs{Session: sessionID, Cwd: text(cwd), Path: text(path)})
	if err != nil {
		return nil, nodeapi.Narrow(ctx, err)
	}
	s, found, err := open[fileResult](c.begin(ctx, "read"), body)
	if err != nil {
		return nil, err
	}
	return &fileStream{stream: s, ctx: ctx, size: found.Size}, nil
}

// fileStream is the content of a file.
type fileStream struct {
	*stream
	ctx  context.Context
	size int64
	rest []byte
}

// Size returns the length of the file, or -1 if it is known only at its end.
func (r *fileStream) Size() int64 { return r.size }

// Read implements io.Reader.
func (r *fileStream) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil { // which the stream learns of a little later
		return 0, err
	}
	for len(r.rest) == 0 {
		data, err := r.data()
		if err != nil {
			return 0, err
		}
		r.rest = data
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// data returns the data of the next frame.
func (s *stream) data() ([]byte, error) {
	kind, p, _, err := s.next()
	if err == nil && kind != frameData {
		s.err = s.f.lost(errProtocol(fmt.Sprintf("a frame of kind %q among data", kind)))
		err = s.err
	}
	return p, err
}

// WriteFiles implements nodeapi.Node. It reads nothing after it has returned.
func (c *Client) WriteFiles(ctx context.Context, sessionID, dir string, tar io.Reader) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	head, err := jsonFrame(frameHead, pathArgs{Session: sessionID, Path: text(dir)}, maxHead)
	if err != nil {
		return nodeapi.Narrow(ctx, err)
	}
	body, w := io.Pipe()
	var broken error // of tar
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		defer w.Close()
		broken = copyIn(w, head, tar)
	}()
	s, _, err := open[nothing](c.begin(ctx, "write"), body)
	_ = body.CloseWithError(io.ErrClosedPipe) // the answer says all
	<-sent
	if err == nil {
		err = s.Close()
	}
	if broken != nil && ctx.Err() == nil {
		return nodeapi.Narrow(ctx, fmt.Errorf("write files: %w", broken))
	}
	return err
}

// copyIn writes the body of a request: its head, and what src returns. An error is
// that of src, which the server is told of.
func copyIn(w *io.PipeWriter, head []byte, src io.Reader) error {
	if _, err := w.Write(head); err != nil {
		return nil // the answer has come already, or will not come
	}
	buf := make([]byte, frameHeader+maxData)
	for {
		n, err := src.Read(buf[frameHeader:])
		if n > 0 {
			appendFrame(buf[:0], frameData, n)
			if _, err := w.Write(buf[:frameHeader+n]); err != nil {
				return nil
			}
		}
		if err != nil {
			var end answer[nothing]
			if errors.Is(err, io.EOF) {
				err = nil
			} else {
				end.Error = &failure{Kind: kindReset}
			}
			frame, _ := jsonFrame(frameEnd, end, maxHead) // it has no value that JSON does not have
			if _, werr := w.Write(frame); werr != nil {
				return nil
			}
			return err
		}
	}
}

// Terminal implements nodeapi.Node.
func (c *Client) Terminal(ctx context.Context, sessionID string, p skerry.TerminalParams) (skerry.Terminal, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	head, err := jsonFrame(frameHead, terminalArgs{
		Session: sessionID, Name: text(p.Name), Args: texts(p.Args), Cwd: text(p.Cwd), Env: texts(p.Env), Sudo: p.Sudo, Cols: p.Cols, Rows: p.Rows,
	}, maxHead)
	if err != nil {
		return nil, nodeapi.Narrow(ctx, err)
	}
	body, w := newUpload(head)
	s, _, err := open[nothing](c.begin(ctx, "terminal"), body)
	if err == nil {
		err = s.settle()
	}
	if err != nil {
		_ = body.Close()
		return nil, err
	}
	return &terminal{fileStream: fileStream{stream: s}, body: body, w: w, over: make(chan struct{})}, nil
}

// terminal is an interactive command.
type terminal struct {
	fileStream
	body *upload
	w    *io.PipeWriter

	once sync.Once
	// over is closed when the command has ended and its output has been read, or when
	// the terminal is closed; code and err are set before.
	over chan struct{}
	code int
	err  error
}

// Read implements io.Reader.
func (t *terminal) Read(p []byte) (int, error) {
	for len(t.rest) == 0 {
		kind, data, end, err := t.stream.next()
		if err == nil && kind != frameData {
			t.stream.err = t.f.lost(errProtocol(fmt.Sprintf("a frame of kind %q from a terminal", kind)))
			err = t.stream.err
		}
		if err != nil {
			t.ended(end, err)
			return 0, err
		}
		t.rest = data
	}
	n := copy(p, t.rest)
	t.rest = t.rest[n:]
	return n, nil
}

// ended notes how the command ended, once.
func (t *terminal) ended(end *json.RawMessage, err error) {
	t.once.Do(func() {
		var result exitResult
		if end != nil {
			if err = json.Unmarshal(*end, &result); err != nil {
				err = t.f.lost(errProtocol(err.Error()))
			}
		}
		t.code, t.err = result.Code, err
		_ = t.body.Close()
		close(t.over)
	})
}

// Write implements io.Writer.
func (t *terminal) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		piece := p[:min(len(p), maxData)]
		frame := append(appendFrame(make([]byte, 0, frameHeader+len(piece)), frameData, len(piece)), piece...)
		if _, err := t.w.Write(frame); err != nil {
			return written, io.ErrClosedPipe
		}
		written += len(piece)
		p = p[len(piece):]
	}
	return written, nil
}

// Resize implements skerry.Terminal.
func (t *terminal) Resize(cols, rows uint16) error {
	frame := appendFrame(nil, frameResize, 4)
	frame = binary.BigEndian.AppendUint16(frame, cols)
	frame = binary.BigEndian.AppendUint16(frame, rows)
	if _, err := t.w.Write(frame); err != nil {
		return io.ErrClosedPipe
	}
	return nil
}

// Wait implements skerry.Terminal.
func (t *terminal) Wait() (int, error) {
	<-t.over
	return t.code, t.err
}

// Close implements skerry.Terminal.
func (t *terminal) Close() error {
	t.ended(nil, os.ErrClosed)
	return t.stream.Close()
}

// Dial implements nodeapi.Node.
func (c *Client) Dial(ctx context.Context, sessionID string, port int, client netip.Addr) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	head, err := jsonFrame(frameHead, dialArgs{sessionID, port, addrText(client)}, maxHead)
	if err != nil {
		return nil, nodeapi.Narrow(ctx, err)
	}
	body, w := newUpload(head)
	s, made, err := open[dialResult](c.begin(ctx, "dial"), body)
	if err == nil {
		err = s.settle()
	}
	if err != nil {
		_ = body.Close()
		return nil, err
	}
	inner, outer, err := socketpair.New()
	if err != nil {
		_ = body.Close()
		return nil, errors.Join(nodeapi.Narrow(ctx, err), s.Close())
	}
	conn := &connection{UnixConn: outer, s: s, closed: make(chan struct{})}
	if !c.spawn(func() { conn.carry(inner, body, w) }) {
		_ = body.Close()
		_, _, _ = inner.Close(), outer.Close(), s.Close()
		return nil, nodeapi.Unreachable(errClosed)
	}
	if made.Conn != "" {
		return &limited{connection: conn, c: c, id: made.Conn}, nil
	}
	return conn, nil
}

// connection is a connection to a port of a session: one end of a socket pair, whose
// other end is carried over the stream. So it has deadlines, and the kernel's
// buffers.
type connection struct {
	*net.UnixConn
	s *stream
	// whole is true when the other side has ended its direction, and all of that is
	// in the socket.
	whole atomic.Bool
	// closed is closed by Close.
	closed chan struct{}

	mu sync.Mutex
	// late gives up the stream some time after Close.
	late *time.Timer
}

// carry copies in both directions, until both have ended or the connection is not
// used any more.
func (c *connection) carry(inner *net.UnixConn, body *upload, w *io.PipeWriter) {
	defer inner.Close()
	defer context.AfterFunc(c.s.f.ctx, func() {
		_ = body.Close()
		_ = inner.Close()
	})()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		defer w.Close()
		c.send(inner, w)
	}()
	if err := c.receive(inner); errors.Is(err, io.EOF) {
		c.whole.Store(true)
		_ = inner.CloseWrite()
		<-sent
		_, _, _ = c.s.in.next() // the server has taken what was sent, or the stream is given up
	}
	_ = c.s.Close()
	<-sent
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.late != nil {
		c.late.Stop()
	}
}

// send passes on the caller's data, its end, and the end of the connection.
func (c *connection) send(inner *net.UnixConn, w *io.PipeWriter) {
	if copyIn(w, nil, inner) != nil {
		return
	}
	select {
	case <-c.closed:
		_, _ = w.Write(appendFrame(nil, frameClose, 0)) // or the stream has ended
	case <-c.s.f.ctx.Done():
	}
}

// closeWait is how long a connection that was closed may take to deliver what was
// written to it.
const closeWait = 2 * time.Second

// receive passes on the other side's data. It returns io.EOF at its end.
func (c *connection) receive(inner *net.UnixConn) error {
	unread := false
	for {
		data, err := c.s.data()
		if err != nil {
			return err
		}
		if !unread {
			// Who has closed the connection reads nothing, but has perhaps written.
			_, err = inner.Write(data)
			unread = err != nil
		}
	}
}

// Read implements net.Conn. If the connection ends but the other side did not end
// its direction, Read returns an error, so that half a response is not taken for a
// complete one.
func (c *connection) Read(p []byte) (int, error) {
	n, err := c.UnixConn.Read(p)
	if errors.Is(err, io.EOF) && !c.whole.Load() {
		err = unix.ECONNRESET
	}
	return n, err
}

// Close implements net.Conn.
func (c *connection) Close() error {
	err := c.UnixConn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.late == nil {
		c.late = time.AfterFunc(closeWait, func() { _ = c.s.Close() })
		close(c.closed)
	}
	return err
}

// limited is a connection of which a client may have only some.
type limited struct {
	*connection
	c  *Client
	id string
}

// chargeWait bounds how long a request to a port waits for the node's word about a
// kept connection.
const chargeWait = 2 * time.Second

func (l *limited) ask(name string, client netip.Addr) bool {
	ctx, cancel := context.WithTimeout(l.c.ctx, chargeWait)
	defer cancel()
	yes, err := invoke[bool](ctx, l.c, name, chargeArgs{l.id, addrText(client)}, maxHead)
	return err == nil && yes
}

// ChargeTo implements ingress.Chargeable.
func (l *limited) ChargeTo(client netip.Addr) bool { return l.ask("charge", client) }

// Wanted implements ingress.Chargeable.
func (l *limited) Wanted() bool { return l.ask("wanted", netip.Addr{}) }
