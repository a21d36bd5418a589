package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/skerry-dev/skerry"
)

const (
	// maxFrame limits a frame from the client. A start frame with a large environment
	// and a paste are large.
	maxFrame = 1 << 20
	// startTimeout is the time that a client has to send the start frame.
	startTimeout = 15 * time.Second
	// pingEvery is the interval of pings, pongWithin the time for the response. Pings
	// keep proxies from closing an idle connection, and detect clients that are gone.
	pingEvery  = 30 * time.Second
	pongWithin = 30 * time.Second
	// terminalRead is the size of the buffer for a terminal's output.
	terminalRead = 32 << 10
	// defaultCols and defaultRows are the size of a VT100.
	defaultCols, defaultRows = 80, 24
)

// terminalLink is a terminal over a WebSocket. Binary frames are bytes of the terminal,
// text frames are control messages in JSON.
type terminalLink struct {
	conn      *websocket.Conn
	log       *slog.Logger
	requestID string
	stall     time.Duration
	// typing is set while a write to the terminal blocks. Pongs are not read then, so a
	// missing pong does not mean that the client is gone.
	typing atomic.Bool
}

type startFrame struct {
	Type    string   `json:"type" required:"true" enum:"start"`
	Command string   `json:"command" required:"true"`
	Args    []string `json:"args,omitempty"`
	Env     []string `json:"env,omitempty"`
	Cwd     string   `json:"cwd,omitempty"`
	Sudo    bool     `json:"sudo,omitempty"`
	Cols    int      `json:"cols,omitempty" min:"0" max:"4096"`
	Rows    int      `json:"rows,omitempty" min:"0" max:"4096"`
}

type controlFrame struct {
	Type string `json:"type" required:"true"`
	Cols int    `json:"cols,omitempty" min:"0" max:"4096"`
	Rows int    `json:"rows,omitempty" min:"0" max:"4096"`
}

// exitFrame is the last frame to the client.
type exitFrame struct {
	Type string `json:"type"`
	Code int    `json:"code"`
}

// errorFrame precedes the exit frame if the terminal ended because of an error.
type errorFrame struct {
	Type string `json:"type"`
	errorBody
}

// serve serves one terminal from its start frame to its end, and closes the connection.
// open starts the terminal.
func (l *terminalLink) serve(parent context.Context, open func(skerry.TerminalParams) (skerry.Terminal, error)) {
	// A read closes the connection when its context ends. The client must be told before
	// that.
	ctx, cancel := context.WithCancel(context.WithoutCancel(parent))
	defer cancel()
	defer context.AfterFunc(parent, func() {
		if revoked(parent) {
			l.sayRevoked()
		}
		cancel()
	})()
	l.conn.SetReadLimit(maxFrame)
	// A read from a connection that is not closed would never end.
	defer func() { _ = l.conn.CloseNow() }()
	p, err := l.readStart(ctx)
	if err != nil {
		l.fail(ctx, err)
		return
	}
	term, err := open(p)
	if err != nil {
		l.fail(ctx, err)
		return
	}
	typed := make(chan struct{})
	go func() {
		defer close(typed)
		l.keys(ctx, term)
		cancel()
	}()
	pinged := make(chan struct{})
	go func() {
		defer close(pinged)
		l.ping(ctx)
		cancel()
	}()
	// If the client is gone, hanging up unblocks the copying.
	hungUp := make(chan struct{})
	context.AfterFunc(ctx, func() {
		defer close(hungUp)
		l.hangUp(term)
	})
	l.show(ctx, term)
	cancel()
	_ = l.conn.CloseNow()
	<-hungUp
	<-typed
	<-pinged
}

// readStart waits for the start frame.
func (l *terminalLink) readStart(ctx context.Context) (p skerry.TerminalParams, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	kind, data, err := l.conn.Read(ctx)
	if err != nil {
		// The client is gone, has sent too much, or nothing.
		return p, skerry.Errorf(skerry.CodeBadRequest, "the start message did not arrive: %w", err)
	}
	if kind != websocket.MessageText {
		return p, skerry.Invalid("", "the first frame must be a start message")
	}
	tree, err := parseTree(data)
	if err != nil {
		return p, err
	}
	var f startFrame
	if err := bindBody(tree, &f); err != nil {
		return p, err
	}
	return f.params(), nil
}

func (f *startFrame) params() skerry.TerminalParams {
	// A client without a window sends no size.
	return skerry.TerminalParams{
		Name: f.Command, Args: f.Args, Cwd: f.Cwd, Env: f.Env, Sudo: f.Sudo,
		Cols: uint16(cmp.Or(f.Cols, defaultCols)), Rows: uint16(cmp.Or(f.Rows, defaultRows)),
	}
}

// keys copies keystrokes to the terminal, until the connection or the terminal ends.
func (l *terminalLink) keys(ctx context.Context, term skerry.Terminal) {
	for {
		kind, data, err := l.conn.Read(ctx)
		if err != nil {
			return
		}
		if kind == websocket.MessageText {
			l.control(data, term)
			continue
		}
		l.typing.Store(true)
		_, err = term.Write(data)
		l.typing.Store(false)
		if err != nil {
			// The command has ended or does not read any more. Its remaining output is
			// still sent.
			l.discard(ctx, term)
			return
		}
	}
}

// discard keeps reading from a connection whose terminal accepts no more input, so that
// pings are answered and the end of the connection is noticed.
func (l *terminalLink) discard(ctx context.Context, term skerry.Terminal) {
	for {
		kind, data, err := l.conn.Read(ctx)
		if err != nil {
			return
		}
		if kind == websocket.MessageText {
			l.control(data, term)
		}
	}
}

// control handles a control message. It ignores unknown messages, so that clients can be
// newer than the server.
func (l *terminalLink) control(data []byte, term skerry.Terminal) {
	tree, err := parseTree(data)
	if err != nil {
		return
	}
	var f controlFrame
	if bindBody(tree, &f) != nil || f.Type != "resize" || f.Cols == 0 || f.Rows == 0 {
		return
	}
	if err := term.Resize(uint16(f.Cols), uint16(f.Rows)); err != nil {
		l.log.Debug("resizing a terminal", "err", err)
	}
}

// show sends the output of the terminal, and at its end the exit code.
func (l *terminalLink) show(ctx context.Context, term skerry.Terminal) {
	buf := make([]byte, terminalRead)
	for {
		n, err := term.Read(buf)
		if n > 0 {
			if sendErr := l.send(ctx, websocket.MessageBinary, buf[:n]); sendErr != nil {
				return
			}
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, io.EOF) {
			l.fail(ctx, fmt.Errorf("read from a terminal: %w", err))
			return
		}
		break
	}
	code, err := term.Wait()
	if err != nil {
		l.fail(ctx, err)
		return
	}
	l.exit(ctx, code)
}

// ping sends pings until the connection ends or the client does not respond.
func (l *terminalLink) ping(ctx context.Context) {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		try, cancel := context.WithTimeout(ctx, pongWithin)
		err := l.conn.Ping(try)
		cancel()
		if err != nil && !(l.typing.Load() && errors.Is(err, context.DeadlineExceeded)) {
			return
		}
	}
}

func (l *terminalLink) send(ctx context.Context, kind websocket.MessageType, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, l.stall)
	defer cancel()
	return l.conn.Write(ctx, kind, data)
}

func (l *terminalLink) sendJSON(ctx context.Context, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode a control frame: %w", err)
	}
	return l.send(ctx, websocket.MessageText, data)
}

func (l *terminalLink) exit(ctx context.Context, code int) {
	if err := l.sendJSON(ctx, exitFrame{Type: "exit", Code: code}); err != nil {
		return
	}
	_ = l.conn.Close(websocket.StatusNormalClosure, "") // the client may have closed first
}

// fail sends the reason why a terminal did not start or has ended: as a message for
// programs, and as output for people, because the public clients show only that.
func (l *terminalLink) fail(ctx context.Context, cause error) {
	if ctx.Err() != nil || websocket.CloseStatus(cause) != -1 {
		return // the client is gone
	}
	status, body := visible(cause, l.requestID)
	logFailure(ctx, l.log, cause, status)
	if l.sendJSON(ctx, errorFrame{Type: "error", errorBody: body}) != nil {
		return
	}
	if l.send(ctx, websocket.MessageBinary, []byte("sandbox: "+body.Message+"\r\n")) != nil {
		return
	}
	l.exit(ctx, 1)
}

// sayRevoked tells the client that its token was revoked, if it reads that in time.
func (l *terminalLink) sayRevoked() {
	ctx, cancel := context.WithTimeout(context.Background(), goodbye)
	defer cancel()
	_, body := visible(errRevoked, l.requestID)
	_ = l.sendJSON(ctx, errorFrame{Type: "error", errorBody: body})
}

func (l *terminalLink) hangUp(term skerry.Terminal) {
	if err := term.Close(); err != nil {
		l.log.Debug("closing a terminal", "err", err)
	}
}
