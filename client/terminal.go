package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/coder/websocket"

	"github.com/skerry-dev/skerry"
)

// maxFrame limits a frame from the server.
const maxFrame = 4 << 20

// TerminalOptions describe an interactive command.
type TerminalOptions struct {
	// Command is the user's shell ($SHELL) when empty; bash or sh if there is none.
	Command string
	Args    []string
	// Dir is the working directory, relative to the sandbox's working directory; ""
	// is the latter.
	Dir string
	// Env is added to the sandbox's environment. TERM is xterm-256color unless Env
	// sets it.
	Env map[string]string
	// Sudo runs the command as root.
	Sudo bool
	// Cols and Rows are the size of the window; 80 by 24 if zero.
	Cols, Rows int
}

// Terminal is an interactive command on a pseudo-terminal in a sandbox. Read
// returns the terminal's output, and Write sends input. Only one goroutine at a
// time may read; Write, Resize and Close may be called concurrently with it.
type Terminal struct {
	ctx    context.Context
	conn   *websocket.Conn
	frame  io.Reader // the current binary frame, nil between frames
	exit   atomic.Pointer[int]
	failed atomic.Pointer[Error]
}

// start and resize are the text frames that a client sends.
type startFrame struct {
	Type    string   `json:"type"`
	Command string   `json:"command"`
	Args    []string `json:"args"`
	Env     []string `json:"env"`
	Cwd     string   `json:"cwd,omitempty"`
	Cols    int      `json:"cols"`
	Rows    int      `json:"rows"`
}

type resizeFrame struct {
	Type string `json:"type"`
	Cols int    `json:"cols"`
	Rows int    `json:"rows"`
}

// Terminal starts an interactive command. If ctx ends, the connection is closed, and the
// server hangs up the terminal.
func (sb *Sandbox) Terminal(ctx context.Context, opts TerminalOptions) (*Terminal, error) {
	var ticket struct {
		URL   string `json:"url"`
		Token string `json:"token"`
	}
	err := sb.withSession(ctx, func(id string) error {
		return sb.c.call(ctx, request{
			method: http.MethodPost, path: sessionPath(id) + "/interactive", query: sb.c.scope(""),
			json: struct{}{}, repeatable: true,
		}, &ticket)
	})
	if err != nil {
		return nil, err
	}
	target, err := url.Parse(ticket.URL)
	if err != nil {
		return nil, errors.New("the server sent an invalid address for the terminal")
	}
	q := target.Query()
	q.Set("token", ticket.Token)
	target.RawQuery = q.Encode()
	conn, _, err := websocket.Dial(ctx, target.String(), &websocket.DialOptions{HTTPClient: sb.c.http})
	if err != nil {
		// The error may quote the address, and with it the ticket.
		return nil, fmt.Errorf("connect to the terminal: %s", strings.ReplaceAll(err.Error(), url.QueryEscape(ticket.Token), "…"))
	}
	conn.SetReadLimit(maxFrame)
	t := &Terminal{ctx: ctx, conn: conn}
	if err := t.send(opts.frame()); err != nil {
		conn.CloseNow()
		return nil, fmt.Errorf("start the interactive command: %w", err)
	}
	return t, nil
}

// userShell executes the shell of the user. It is not a login shell, because in many
// images the profile replaces PATH, and with it the sandbox's runtime.
const userShell = `for s in "$SHELL" "$(command -v bash)"; do
	case $s in */nologin|*/false) continue; esac
	test -x "$s" && exec "$s" "$@"
done
exec sh "$@"`

func (o TerminalOptions) frame() startFrame {
	argv := append([]string{o.Command}, o.Args...)
	if o.Command == "" {
		argv = append([]string{"sh", "-c", userShell, "sh"}, o.Args...)
	}
	if o.Sudo {
		argv = append([]string{"sudo"}, argv...)
	}
	f := startFrame{Type: "start", Command: argv[0], Args: argv[1:], Cwd: o.Dir, Cols: o.Cols, Rows: o.Rows}
	if f.Cols <= 0 || f.Rows <= 0 {
		f.Cols, f.Rows = 80, 24
	}
	f.Env = []string{}
	if _, ok := o.Env["TERM"]; !ok {
		f.Env = append(f.Env, "TERM=xterm-256color")
	}
	for k, v := range o.Env {
		f.Env = append(f.Env, k+"="+v)
	}
	slices.Sort(f.Env)
	return f
}

func (t *Terminal) send(frame any) error {
	b, err := json.Marshal(frame)
	if err != nil {
		return err
	}
	return t.conn.Write(t.ctx, websocket.MessageText, b)
}

// Read returns io.EOF when the command has ended and its output has been read.
func (t *Terminal) Read(p []byte) (int, error) {
	for {
		if t.exit.Load() != nil {
			return 0, io.EOF
		}
		if t.frame == nil {
			if err := t.nextFrame(); err != nil {
				return 0, err
			}
			continue
		}
		n, err := t.frame.Read(p)
		if err == io.EOF {
			t.frame = nil
			err = nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// nextFrame waits for a frame and sets frame or exit.
func (t *Terminal) nextFrame() error {
	kind, r, err := t.conn.Reader(t.ctx)
	if err != nil {
		if t.ctx.Err() != nil {
			return t.ctx.Err()
		}
		return fmt.Errorf("the connection to the terminal broke: %w", err)
	}
	if kind == websocket.MessageBinary {
		t.frame = r
		return nil
	}
	var msg struct {
		Type string `json:"type"`
		Code int    `json:"code"`
	}
	var failed struct {
		Type    string      `json:"type"`
		Code    skerry.Code `json:"code"`
		Message string      `json:"message"`
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("the connection to the terminal broke: %w", err)
	}
	switch {
	case json.Unmarshal(b, &failed) == nil && failed.Type == "error":
		t.failed.Store(&Error{Code: failed.Code, Message: failed.Message})
	case json.Unmarshal(b, &msg) == nil && msg.Type == "exit":
		t.exit.Store(&msg.Code)
	}
	return nil // a text frame of a later version
}

// Write sends p as input to the terminal.
func (t *Terminal) Write(p []byte) (int, error) {
	if err := t.conn.Write(t.ctx, websocket.MessageBinary, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Resize changes the size of the terminal.
func (t *Terminal) Resize(cols, rows int) error {
	return t.send(resizeFrame{"resize", cols, rows})
}

// Wait discards the remaining output and returns the exit code. A code other than 0 is
// not an error. If the terminal ended for another reason, such as the end of the session,
// the error is an [*Error], which was also part of the output.
func (t *Terminal) Wait() (int, error) {
	_, err := io.Copy(io.Discard, t)
	if failed := t.failed.Load(); failed != nil {
		return 0, failed
	}
	if err != nil {
		return 0, err
	}
	return *t.exit.Load(), nil
}

// Close hangs up: a command that still runs gets SIGHUP.
func (t *Terminal) Close() error {
	if t.exit.Load() != nil {
		return t.conn.Close(websocket.StatusNormalClosure, "")
	}
	return t.conn.CloseNow()
}
