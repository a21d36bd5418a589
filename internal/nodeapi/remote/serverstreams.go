package remote

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// streams are the methods with frames in the request, the response, or both.
var streams = map[string]func(*serverCall){
	"exec/follow": (*serverCall).exec,
	"output":      (*serverCall).output,
	"read":        (*serverCall).read,
	"write":       (*serverCall).write,
	"terminal":    (*serverCall).terminal,
	"dial":        (*serverCall).dial,
}

// document reads the arguments of a method without frames in its request.
func (c *serverCall) document(v any) error {
	args, err := io.ReadAll(io.LimitReader(c.r.Body, maxHead+1))
	if err != nil {
		return err
	}
	if len(args) > maxHead {
		return tooLarge(len(args), maxHead)
	}
	return arguments(args, v)
}

func arguments(args []byte, v any) error {
	if err := json.Unmarshal(args, v); err != nil {
		return &skerry.Error{Code: skerry.CodeInternal, Message: "internal error", Err: fmt.Errorf("arguments: %w", err)}
	}
	return nil
}

// head reads the first frame of a request.
func (c *serverCall) head(v any) (*frameReader, error) {
	f := &frameReader{r: c.r.Body}
	kind, args, err := f.next()
	if err == nil && kind != frameHead {
		err = errProtocol("a request does not begin with its arguments")
	}
	if err != nil {
		return nil, err
	}
	return f, arguments(args, v)
}

// send sends a frame with a document.
func (c *serverCall) send(kind byte, v any) error {
	frame, err := jsonFrame(kind, v, maxAnswer)
	if err != nil {
		return err
	}
	return c.write1(frame, nil)
}

// write1 sends a frame in two pieces.
func (c *serverCall) write1(head, data []byte) error {
	if _, err := c.w.Write(head); err != nil {
		return err
	}
	if len(data) > 0 {
		if _, err := c.w.Write(data); err != nil {
			return err
		}
	}
	return http.NewResponseController(c.w).Flush()
}

// fail answers with an error, and reports whether there was one.
func (c *serverCall) fail(err error) bool {
	if err == nil {
		return false
	}
	_ = c.send(frameAnswer, answer[nothing]{Error: failureOf(c.ctx, err)}) // or whoever called has gone
	return true
}

// finish tells how a stream ended. The call's context may have ended long before.
func (c *serverCall) finish(f *failure, result any) {
	_ = c.send(frameEnd, answer[any]{Error: f, Result: result})
}

func (c *serverCall) exec() {
	var in execArgs
	if c.fail(c.document(&in)) {
		return
	}
	r, err := c.s.cfg.Node.Exec(c.ctx, in.Session, in.spec(), true)
	c.follow(r, err)
}

func (c *serverCall) output() {
	var in commandArgs
	if c.fail(c.document(&in)) {
		return
	}
	r, err := c.s.cfg.Node.Output(c.ctx, in.Session, in.ID)
	c.follow(r, err)
}

// follow passes on a command's output until its end. A client that does not read
// stops it through the stream's window.
func (c *serverCall) follow(r skerry.OutputReader, err error) {
	if c.fail(err) {
		return
	}
	defer r.Close()
	// The output does not depend on the context of the call that returned it.
	c.end()
	gone := c.r.Context()
	defer context.AfterFunc(gone, func() { _ = r.Close() })()
	if c.send(frameAnswer, answer[nothing]{}) != nil {
		return
	}
	var head [frameHeader + outputHeader]byte
	for {
		o, err := r.Next()
		if errors.Is(err, io.EOF) {
			c.finish(nil, nothing{})
			return
		}
		if err != nil {
			c.finish(failureOf(gone, err), nothing{})
			return
		}
		for first := true; first || len(o.Data) > 0; first = false {
			piece := o.Data[:min(len(o.Data), maxData)]
			b := appendFrame(head[:0], frameOutput, outputHeader+len(piece))
			b = append(b, streamByte(o.Stream))
			b = binary.BigEndian.AppendUint64(b, uint64(o.Offset))
			if c.write1(b, piece) != nil {
				return
			}
			o.Data = o.Data[len(piece):]
			o.Offset += int64(len(piece))
		}
	}
}

func streamByte(s skerry.Stream) byte {
	if s == skerry.Stderr {
		return 2
	}
	return 1
}

func (c *serverCall) read() {
	var in pathArgs
	if c.fail(c.document(&in)) {
		return
	}
	r, err := c.s.cfg.Node.ReadFile(c.ctx, in.Session, string(in.Cwd), string(in.Path))
	if c.fail(err) {
		return
	}
	defer r.Close()
	size := int64(-1)
	if sized, ok := r.(interface{ Size() int64 }); ok {
		size = sized.Size()
	}
	if c.send(frameAnswer, answer[fileResult]{Result: fileResult{size}}) == nil {
		c.copyOut(c.ctx, r, func(err error) { c.finish(failureOf(c.ctx, err), nothing{}) })
	}
}

// copyOut sends what r returns, and has end tell how it ended.
func (c *serverCall) copyOut(ctx context.Context, r io.Reader, end func(error)) {
	buf := make([]byte, frameHeader+maxData)
	for {
		n, err := r.Read(buf[frameHeader:])
		if n > 0 {
			appendFrame(buf[:0], frameData, n)
			if c.write1(buf[:frameHeader+n], nil) != nil {
				return
			}
		}
		if errors.Is(err, io.EOF) {
			end(nil)
			return
		}
		if err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			end(err)
			return
		}
	}
}

// errCutOff is what the node reads if the client's source fails.
var errCutOff = errors.New("the data was cut off")

func (c *serverCall) write() {
	var in pathArgs
	f, err := c.head(&in)
	if err == nil {
		err = c.s.cfg.Node.WriteFiles(c.ctx, in.Session, string(in.Path), &dataReader{f: f})
	}
	_ = c.send(frameAnswer, answer[nothing]{Error: failureOf(c.ctx, err)})
}

// dataReader reads the data of a direction up to its frameEnd.
type dataReader struct {
	f    *frameReader
	rest []byte
	err  error
}

// Read implements io.Reader.
func (d *dataReader) Read(p []byte) (int, error) {
	for len(d.rest) == 0 && d.err == nil {
		kind, payload, err := d.f.next()
		switch {
		case err != nil:
			d.err = fmt.Errorf("%w: %w", errCutOff, err)
		case kind == frameData:
			d.rest = payload
		case kind == frameEnd:
			d.err = endOf(payload)
		default:
			d.err = errProtocol(fmt.Sprintf("a frame of kind %q among data", kind))
		}
	}
	if len(d.rest) == 0 {
		return 0, d.err
	}
	n := copy(p, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}

// endOf is io.EOF if a direction ended well.
func endOf(payload []byte) error {
	var end answer[nothing]
	if err := json.Unmarshal(payload, &end); err != nil {
		return errProtocol(err.Error())
	}
	if end.Error != nil {
		return errCutOff
	}
	return io.EOF
}

func (c *serverCall) terminal() {
	var in terminalArgs
	f, err := c.head(&in)
	if c.fail(err) {
		return
	}
	t, err := c.s.cfg.Node.Terminal(c.ctx, in.Session, skerry.TerminalParams{
		Name: string(in.Name), Args: stringsOf(in.Args), Cwd: string(in.Cwd), Env: stringsOf(in.Env), Sudo: in.Sudo, Cols: in.Cols, Rows: in.Rows,
	})
	if c.fail(err) {
		return
	}
	defer t.Close()
	c.end()
	gone := c.r.Context()
	defer context.AfterFunc(gone, func() { _ = t.Close() })()
	typed := make(chan struct{})
	go func() {
		defer close(typed)
		c.typeInto(t, f)
	}()
	defer func() {
		_ = t.Close()
		_ = c.r.Body.Close()
		<-typed
	}()
	if c.send(frameAnswer, answer[nothing]{}) != nil {
		return
	}
	c.copyOut(gone, t, func(err error) {
		var result exitResult
		if err == nil {
			result.Code, err = t.Wait()
		}
		c.finish(failureOf(gone, err), result)
	})
}

// typeInto passes on what the client types, and the size of its window. If the
// client keeps to nothing, the terminal is hung up.
func (c *serverCall) typeInto(t skerry.Terminal, f *frameReader) {
	for {
		kind, payload, err := f.next()
		if err != nil {
			return // the client has gone, or the command has ended
		}
		switch kind {
		case frameData:
			// A command that has ended takes nothing, and its end is on its way.
			_, _ = t.Write(payload)
		case frameResize:
			if len(payload) == 4 {
				_ = t.Resize(binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:]))
			}
		default:
			_ = t.Close()
			return
		}
	}
}

// chargeable is ingress.Chargeable.
type chargeable interface {
	ChargeTo(client netip.Addr) bool
	Wanted() bool
}

func (s *Server) chargeable(id string) chargeable {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns[id]
}

func (s *Server) charge(in chargeArgs) (bool, error) {
	client, err := parseAddr(in.Client)
	if err != nil {
		return false, err
	}
	c := s.chargeable(in.Conn)
	return c != nil && c.ChargeTo(client), nil
}

// parseAddr parses an address; "" is none.
func parseAddr(s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, skerry.Invalid("client", "%q is not an address", s)
	}
	return a, nil
}

func (c *serverCall) dial() {
	var in dialArgs
	var client netip.Addr
	f, err := c.head(&in)
	if err == nil {
		client, err = parseAddr(in.Client)
	}
	if c.fail(err) {
		return
	}
	conn, err := c.s.cfg.Node.Dial(c.ctx, in.Session, in.Port, client)
	if c.fail(err) {
		return
	}
	defer conn.Close()
	c.end()
	gone := c.r.Context()
	defer context.AfterFunc(gone, func() { _ = conn.Close() })()
	var result dialResult
	if limited, ok := conn.(chargeable); ok {
		result.Conn = skerry.NewID("conn_")
		c.s.mu.Lock()
		c.s.conns[result.Conn] = limited
		c.s.mu.Unlock()
		defer func() {
			c.s.mu.Lock()
			delete(c.s.conns, result.Conn)
			c.s.mu.Unlock()
		}()
	}
	if c.send(frameAnswer, answer[dialResult]{Result: result}) != nil {
		return
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		carryIn(conn, f)
	}()
	c.copyOut(gone, conn, func(err error) {
		if err == nil {
			c.finish(nil, nothing{})
			return
		}
		c.finish(&failure{Kind: kindReset, Detail: err.Error()}, nothing{})
		_ = conn.Close()
		_ = c.r.Body.Close()
	})
	// The other direction may go on after this one's end. It ends with the client.
	<-sent
}

// carryIn passes on what the client sends, and the end of that. The connection ends
// if the client closes it, after all data, or is cut off.
func carryIn(conn net.Conn, f *frameReader) {
	defer conn.Close()
	if _, err := io.Copy(writerOnly{conn}, &dataReader{f: f}); err != nil {
		return
	}
	if half, ok := conn.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		return
	}
	_, _, _ = f.next() // frameClose, or the client has gone
}

// writerOnly keeps io.Copy from a connection's own ReadFrom, which would copy all
// the same.
type writerOnly struct{ io.Writer }

var _ nodeapi.Node = (*Client)(nil)
