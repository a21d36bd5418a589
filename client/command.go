package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
)

const (
	// maxOutput bounds what Output and CombinedOutput hold in memory.
	maxOutput = 256 << 20
	// maxErrorOutput is how much of the end of standard error an ExitError
	// keeps.
	maxErrorOutput = 32 << 10
	// killWait bounds the call that kills a command whose context has ended.
	killWait = 5 * time.Second
)

// Signal is the number of a signal on Linux, which is what runs in a sandbox.
type Signal int

// The signals one usually sends.
const (
	SIGHUP  Signal = 1
	SIGINT  Signal = 2
	SIGQUIT Signal = 3
	SIGKILL Signal = 9
	SIGTERM Signal = 15
)

// Cmd is a command to run in a sandbox, in the manner of os/exec. Make one
// with [Sandbox.Command], set its fields, and run it once.
type Cmd struct {
	Name string
	Args []string
	// Dir is relative to the sandbox's working directory; "" is that.
	Dir string
	// Env is added to the sandbox's environment.
	Env map[string]string
	// Sudo runs the command as root.
	Sudo bool
	// Timeout makes the server kill the command with SIGKILL after that time,
	// counted in milliseconds; 0 is never.
	Timeout time.Duration
	// Detached lets the command outlive the context and this process. Its
	// output is kept by the server, see [Cmd.Logs] and [Sandbox.FindCommand].
	Detached bool
	// Stdout and Stderr take the output during Wait; nil discards it. The
	// wire carries text: bytes that are not UTF-8 arrive as U+FFFD. Move
	// binary data in files.
	Stdout, Stderr io.Writer

	sb  *Sandbox
	ctx context.Context
	// id and session are set when the command has started, and stay.
	id, session string
	body        io.ReadCloser // the stream of an attached command
	events      *eventReader
	started     bool
	waited      bool

	mu   sync.Mutex // guards info, which Wait changes while others read it
	info skerry.Command
}

// set takes what the server says of the command.
func (c *Cmd) set(info skerry.Command) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.info = info
}

// begun takes the first that the server says of it.
func (c *Cmd) begun(info skerry.Command) {
	c.id, c.session = info.ID, info.SessionID
	c.set(info)
}

// ExitError is a command that ended with another code than 0.
type ExitError struct {
	// Code is the exit code: 128 plus the signal's number if a signal ended it,
	// 127 if there is no such program, 126 if it cannot be run.
	Code    int
	Command skerry.Command
	// Stderr is the end of standard error, if [Cmd.Output] gathered it.
	Stderr []byte
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("%s: exit code %d", e.Command.Name, e.Code)
}

// Command returns a Cmd that runs name with args. When ctx ends before the
// command, the command is killed unless it is detached.
func (sb *Sandbox) Command(ctx context.Context, name string, args ...string) *Cmd {
	return &Cmd{Name: name, Args: args, sb: sb, ctx: ctx}
}

// FindCommand returns a command of the current session that was started
// earlier, perhaps by another process, as a detached Cmd that can be waited for,
// killed and read.
func (sb *Sandbox) FindCommand(ctx context.Context, id string) (*Cmd, error) {
	c := &Cmd{Detached: true, started: true, sb: sb, ctx: ctx, id: id, session: sb.Session().ID}
	info, err := c.refresh(ctx, false)
	if err != nil {
		return nil, err
	}
	c.Name, c.Args, c.Dir = info.Name, info.Args, info.Cwd
	return c, nil
}

// Info returns the command as the server last described it.
func (c *Cmd) Info() skerry.Command {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.info
}

// ID returns the command's id once it has started.
func (c *Cmd) ID() string { return c.id }

// Run starts the command and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

type commandBody struct {
	Command string            `json:"command"`
	Args    []string          `json:"args"`
	Cwd     string            `json:"cwd,omitempty"`
	Env     map[string]string `json:"env,omitempty"`
	Sudo    bool              `json:"sudo,omitempty"`
	Wait    bool              `json:"wait,omitempty"`
	Logs    bool              `json:"logs,omitempty"`
	Timeout skerry.Duration   `json:"timeout,omitempty"`
}

// Start starts the command and returns once it runs. Wait must follow for a
// command that is not detached; until then its output waits.
func (c *Cmd) Start() error {
	if c.started {
		return errors.New("the command was started before")
	}
	c.started = true
	body := commandBody{
		Command: c.Name, Args: c.Args, Cwd: c.Dir, Env: c.Env, Sudo: c.Sudo,
		Timeout: skerry.Duration(c.Timeout),
		Wait:    !c.Detached,
		Logs:    !c.Detached && (c.Stdout != nil || c.Stderr != nil),
	}
	if body.Args == nil {
		body.Args = []string{}
	}
	return c.sb.withSession(c.ctx, func(sessionID string) error {
		r := request{method: http.MethodPost, path: sessionPath(sessionID) + "/cmd", query: c.sb.c.scope(""), json: body}
		if c.Detached {
			var info skerry.Command
			if err := c.sb.c.call(c.ctx, r, &commandAnswer{&info}); err != nil {
				return err
			}
			c.begun(info)
			return nil
		}
		return c.attach(r)
	})
}

type commandAnswer struct {
	Command *skerry.Command `json:"command"`
}

// attach sends the request of an attached command and reads the first line.
func (c *Cmd) attach(r request) error {
	resp, err := c.sb.c.send(c.ctx, r)
	if err != nil {
		return err
	}
	events, err := streamOf(resp)
	if err != nil {
		resp.Body.Close()
		return err
	}
	ev, err := events.next()
	if err == nil && ev.command == nil {
		err = errors.New("the server did not begin with the command")
	}
	if err != nil {
		resp.Body.Close()
		return c.streamFailed(err)
	}
	c.body, c.events = resp.Body, events
	c.begun(*ev.command)
	return nil
}

// streamOf checks that a response is a stream of events.
func streamOf(resp *http.Response) (*eventReader, error) {
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if kind != "application/x-ndjson" {
		return nil, fmt.Errorf("the server answered with %q in place of a stream", resp.Header.Get("Content-Type"))
	}
	return newEventReader(resp.Body), nil
}

// streamFailed says what the end of a stream before its last line means.
func (c *Cmd) streamFailed(err error) error {
	if c.ctx.Err() != nil {
		return c.ctx.Err()
	}
	if _, ok := errors.AsType[*Error](err); ok {
		return err
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("the connection broke while the command ran: %w", err)
}

// Wait passes on the output and returns once the command has ended: nil if
// its exit code is 0, an [*ExitError] if it is another.
func (c *Cmd) Wait() error {
	switch {
	case !c.started || c.id == "":
		return errors.New("the command was not started")
	case c.waited:
		return errors.New("the command was waited for before")
	}
	c.waited = true
	var err error
	if c.Detached {
		err = c.waitDetached()
	} else {
		err = c.drain(c.events)
		c.body.Close()
		if err != nil {
			c.killQuietly()
		}
	}
	if err != nil {
		return err
	}
	if info := c.Info(); *info.ExitCode != 0 {
		return &ExitError{Code: *info.ExitCode, Command: info}
	}
	return nil
}

// drain passes on the output of an attached command until its end.
func (c *Cmd) drain(events *eventReader) error {
	for {
		ev, err := events.next()
		if err != nil {
			return c.streamFailed(err)
		}
		if ev.command != nil {
			if ev.command.ExitCode == nil {
				continue
			}
			c.set(*ev.command)
			return nil
		}
		if err := c.write(ev); err != nil {
			return err
		}
	}
}

func (c *Cmd) write(ev event) error {
	w := c.Stdout
	if ev.stream == skerry.Stderr {
		w = c.Stderr
	}
	if w == nil {
		return nil
	}
	if _, err := w.Write(ev.data); err != nil {
		return fmt.Errorf("pass on the command's %s: %w", ev.stream, err)
	}
	return nil
}

func (c *Cmd) waitDetached() error {
	if c.Stdout != nil || c.Stderr != nil {
		for log, err := range c.Logs(c.ctx) {
			if err != nil {
				return err
			}
			if err := c.write(event{stream: log.Stream, data: log.Data}); err != nil {
				return err
			}
		}
	}
	_, err := c.refresh(c.ctx, true)
	return err
}

// path of the command; its session may not be the sandbox's current one.
func (c *Cmd) path() string {
	return sessionPath(c.session) + "/cmd/" + url.PathEscape(c.id)
}

// refresh asks for the state of the command, after its end if wait is set.
func (c *Cmd) refresh(ctx context.Context, wait bool) (info skerry.Command, err error) {
	q := c.sb.c.scope("")
	if wait {
		q.Set("wait", strconv.FormatBool(wait))
	}
	r := request{method: http.MethodGet, path: c.path(), query: q}
	if err := c.sb.c.call(ctx, r, &commandAnswer{&info}); err != nil {
		return info, err
	}
	if wait && info.ExitCode == nil {
		return info, errors.New("the server says that the command has ended, but not how")
	}
	c.set(info)
	return info, nil
}

// Kill sends a signal to the command and the processes of its group. It may
// be called while another goroutine is in Wait.
func (c *Cmd) Kill(ctx context.Context, sig Signal) error {
	if c.id == "" {
		return errors.New("the command was not started")
	}
	return c.sb.c.call(ctx, request{
		method: http.MethodPost, path: c.path() + "/kill", query: c.sb.c.scope(""),
		json: map[string]Signal{"signal": sig}, repeatable: true,
	}, nil)
}

// killQuietly ends a command that nobody listens to any more. That is all it
// can do: whoever waited is already told what went wrong.
func (c *Cmd) killQuietly() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), killWait)
	defer cancel()
	_ = c.Kill(ctx, SIGKILL)
}

// Log is a piece of what a command wrote.
type Log struct {
	Stream skerry.Stream
	Data   []byte
}

// Logs goes through the command's output from the start of what the server
// kept, and follows it until the command ends. It may be called while another
// goroutine is in Wait. The data of a Log is valid
// until the next. An error ends the sequence.
func (c *Cmd) Logs(ctx context.Context) iter.Seq2[Log, error] {
	return func(yield func(Log, error) bool) {
		resp, err := c.sb.c.send(ctx, request{method: http.MethodGet, path: c.path() + "/logs", query: c.sb.c.scope("")})
		if err != nil {
			yield(Log{}, err)
			return
		}
		defer resp.Body.Close()
		events, err := streamOf(resp)
		for err == nil {
			var ev event
			if ev, err = events.next(); err == nil && ev.command == nil && !yield(Log{ev.stream, ev.data}, nil) {
				return
			}
		}
		if err != io.EOF {
			yield(Log{}, err)
		}
	}
}

// Output runs the command and returns its standard output. If Stderr is nil,
// an ExitError has the end of standard error.
func (c *Cmd) Output() ([]byte, error) {
	if c.Stdout != nil {
		return nil, errors.New("standard output is set already")
	}
	out := &boundedBuffer{}
	c.Stdout = out
	var stderr *tailBuffer
	if c.Stderr == nil {
		stderr = &tailBuffer{}
		c.Stderr = stderr
	}
	err := c.Run()
	if exit, ok := errors.AsType[*ExitError](err); ok && stderr != nil {
		exit.Stderr = stderr.b
	}
	return out.b.Bytes(), err
}

// CombinedOutput runs the command and returns its standard output and
// standard error, in the order in which the server received them.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	if c.Stdout != nil || c.Stderr != nil {
		return nil, errors.New("standard output or error is set already")
	}
	out := &boundedBuffer{}
	c.Stdout, c.Stderr = out, out
	err := c.Run()
	return out.b.Bytes(), err
}

// boundedBuffer refuses to grow without end.
type boundedBuffer struct{ b bytes.Buffer }

func (w *boundedBuffer) Write(p []byte) (int, error) {
	if w.b.Len()+len(p) > maxOutput {
		return 0, fmt.Errorf("the output is longer than %d bytes; set Stdout to take it piece by piece", maxOutput)
	}
	return w.b.Write(p)
}

// tailBuffer keeps the last maxErrorOutput bytes.
type tailBuffer struct{ b []byte }

func (w *tailBuffer) Write(p []byte) (int, error) {
	w.b = append(w.b, p...)
	if over := len(w.b) - maxErrorOutput; over > 0 {
		w.b = append(w.b[:0], w.b[over:]...)
	}
	return len(p), nil
}
