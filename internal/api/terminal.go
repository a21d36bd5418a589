package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/skerry-dev/skerry"
)

const (
	// maxFrame bounds one frame from the client: a start frame with a large
	// environment, or a paste.
	maxFrame = 1 << 20
	// startTimeout is how long a client may take to say what to start.
	startTimeout = 15 * time.Second
	// pingEvery is how often a silent connection is tried, pongWithin how
	// long the answer may take. They keep proxies from closing the
	// connection, and find clients that have vanished.
	pingEvery  = 30 * time.Second
	pongWithin = 30 * time.Second
	// terminalRead is the size of the pieces that a terminal is read in.
	terminalRead = 32 << 10
	// defaultCols and defaultRows are the size of a VT100's screen.
	defaultCols, defaultRows = 80, 24
)

// terminalLink carries a terminal over a WebSocket: binary frames are bytes of
// the terminal, text frames are control messages in JSON.
type terminalLink struct {
	conn      *websocket.Conn
	log       *slog.Logger
	requestID string
	stall     time.Duration
	// typing is set while the terminal does not take what was typed. Pongs
	// are not read then, and their absence says nothing about the client.
	typing atomic.Bool
}

type startFrame struct {
	Type    string   `json:"type" required:"true" enum:"start"`
	Command string   `json:"command" required:"true"`
	Args    []string `json:"args,omitempty"`
	Env     []string `json:"env,omitempty"`
	Cwd     string   `json:"cwd,omitempty"`
	Sudo    bool     `json:"sudo,omitempty"`
	Cols    int      `json:"cols,omitempty" min:"0" max:"65535"`
	Rows    int      `json:"rows,omitempty" min:"0" max:"65535"`
}

type controlFrame struct {
	Type string `json:"type" required:"true"`
	Cols int    `json:"cols,omitempty" min:"0" max:"65535"`
	Rows int    `json:"rows,omitempty" min:"0" max:"65535"`
}

// exitFrame is the last that a client gets of a terminal.
type exitFrame struct {
	Type string `json:"type"`
	Code int    `json:"code"`
}

// errorFrame precedes an exit frame when it was not the command that ended.
type errorFrame struct {
	Type string `json:"type"`
	errorBody
}

// serve runs one terminal from its start frame to its end, and closes the
// connection. open starts the terminal.
func (l *terminalLink) serve(ctx context.Context, open func(skerry.TerminalParams) (skerry.Terminal, error)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.conn.SetReadLimit(maxFrame)
	// The reading of a connection that is not closed would never end.
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
	// Hanging up is what unblocks the copying when the client goes.
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

// readStart waits for the frame that says what to run.
func (l *terminalLink) readStart(ctx context.Context) (p skerry.TerminalParams, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	kind, data, err := l.conn.Read(ctx)
	if err != nil {
		return p, fmt.Errorf("reading the start frame: %w", err)
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
	return f.params()
}

func (f *startFrame) params() (p skerry.TerminalParams, err error) {
	switch {
	case f.Command == "":
		return p, skerry.Invalid("command", "must not be empty")
	case len(f.Cwd) > skerry.MaxPathLength:
		return p, skerry.Invalid("cwd", "is longer than %d bytes", skerry.MaxPathLength)
	}
	env := make(map[string]string, len(f.Env))
	for i, pair := range f.Env {
		name, value, ok := strings.Cut(pair, "=")
		if !ok {
			return p, skerry.Invalid(index("env", i), "must be NAME=value")
		}
		env[name] = value
	}
	if err := checkEnv("env", env); err != nil {
		return p, err
	}
	// A client without a window of its own names none.
	return skerry.TerminalParams{
		Name: f.Command, Args: f.Args, Cwd: f.Cwd, Env: f.Env, Sudo: f.Sudo,
		Cols: uint16(cmp.Or(f.Cols, defaultCols)), Rows: uint16(cmp.Or(f.Rows, defaultRows)),
	}, nil
}

// keys takes what the client types until the connection or the terminal ends.
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
			// The command has ended or takes nothing more; what it
			// still shows goes out all the same.
			l.discard(ctx, term)
			return
		}
	}
}

// discard keeps reading a connection whose terminal takes no more input, so
// that pings are answered and a client that goes is noticed.
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

// control obeys a message; one that it does not know is ignored, so that
// clients can be newer than the server.
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

// show sends what the terminal shows until it ends, and then how it ended.
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
			l.fail(ctx, fmt.Errorf("reading a terminal: %w", err))
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

// ping tries the connection until it ends or the client does not answer.
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
		return fmt.Errorf("encoding a control frame: %w", err)
	}
	return l.send(ctx, websocket.MessageText, data)
}

func (l *terminalLink) exit(ctx context.Context, code int) {
	if err := l.sendJSON(ctx, exitFrame{Type: "exit", Code: code}); err != nil {
		return
	}
	_ = l.conn.Close(websocket.StatusNormalClosure, "") // the client may have closed first
}

// fail tells a client why its terminal did not start or did not last: as a
// message for programs, and on the terminal for people, since the public
// clients show nothing else.
func (l *terminalLink) fail(ctx context.Context, cause error) {
	if ctx.Err() != nil || websocket.CloseStatus(cause) != -1 {
		return // the client has gone
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

func (l *terminalLink) hangUp(term skerry.Terminal) {
	if err := term.Close(); err != nil {
		l.log.Debug("closing a terminal", "err", err)
	}
}
