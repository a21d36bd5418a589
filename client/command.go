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
	// maxOutput limits what Output, CombinedOutput and ReadFile keep in memory.
	maxOutput = 256 << 20
	// maxErrorOutput is how much of the end of standard error an ExitError has.
	maxErrorOutput = 32 << 10
	// killWait limits the call that kills a command after its context has ended.
	killWait = 5 * time.Second
)

// Signal is a Linux signal number, because sandboxes run Linux.
type Signal int

// Common signals.
const (
	SIGHUP  Signal = 1
	SIGINT  Signal = 2
	SIGQUIT Signal = 3
	SIGKILL Signal = 9
	SIGTERM Signal = 15
)

// Cmd is a command to run in a sandbox, similar to that of os/exec. Create it with
// [Sandbox.Command], set its fields, and run it once.
type Cmd struct {
	Name string
	Args []string
	// Dir is the working directory, relative to the sandbox's working directory; ""
	// is the latter.
	Dir string
	// Env is added to the sandbox's environment.
	Env map[string]string
	// Sudo runs the command as root.
	Sudo bool
	// Timeout is the time, with millisecond precision, after which the server kills
	// the command with SIGKILL; 0 is never.
	Timeout time.Duration
	// Detached lets the command outlive the context and this process. The server
	// keeps its output, see [Cmd.Logs] and [Sandbox.FindCommand].
	Detached bool
	// Stdout and Stderr receive the output during Wait; nil discards it. The output
	// is transferred as text: bytes that are not UTF-8 arrive as U+FFFD. Copy
	// binary data in files.
	Stdout, Stderr io.Writer
	// Reconnect, if set, is called during Wait with an error when a connection
	// broke, and with nil when it is restored. In between the command keeps
	// running.
	Reconnect func(err error)

	sb  *Sandbox
	ctx context.Context
	// id and session are set when the command has started, and do not change.
	id, session string
	body        io.ReadCloser // the stream of an attached command
	events      *eventReader
	at          position
	started     bool
	waited      bool
	broken      bool // Reconnect was called with an error

	mu   sync.Mutex // guards info, which Wait changes while others read it
	info skerry.Command
}

// set records the server's description of the command.
func (c *Cmd) set(info skerry.Command) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.info = info
}

// begun records the server's first description of the command.
func (c *Cmd) begun(info skerry.Command) {
	c.id, c.session = info.ID, info.SessionID
	c.set(info)
}

// ExitError reports that a command ended with an exit code other than 0.
type ExitError struct {
	// Code is the exit code: 128 plus the signal's number if a signal ended it,
	// 126 if it cannot be run.
	Code    int
	Command skerry.Command
	// Stderr is the end of standard error, if [Cmd.Output] collected it.
	Stderr []byte
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("%s: exit code %d", e.Command.Name, e.Code)
}

// Command returns a Cmd that runs name with args. Unless the command is detached,
// it is killed when ctx ends before it, or when Stdout or Stderr fails. It is not
// killed when the connection breaks: Wait reconnects and continues where the output
// stopped. See [Options].Reattach.
func (sb *Sandbox) Command(ctx context.Context, name string, args ...string) *Cmd {
	return &Cmd{Name: name, Args: args, sb: sb, ctx: ctx}
}

// FindCommand returns a command of the current session that was started earlier,
// possibly by another process. The result is a detached Cmd, which can be waited
// for, killed and read.
func (sb *Sandbox) FindCommand(ctx context.Context, id string) (*Cmd, error) {
	c := &Cmd{Detached: true, started: true, sb: sb, ctx: ctx, id: id, session: sb.Session().ID}
	info, err := c.refresh(ctx, false)
	if err != nil {
		return nil, err
	}
	c.Name, c.Args, c.Dir = info.Name, info.Args, info.Cwd
	return c, nil
}

// Commands returns the commands of the current session, the oldest first.
func (sb *Sandbox) Commands(ctx context.Context) ([]skerry.Command, error) {
	var all []skerry.Command
	session := sb.Session().ID
	commands := pages("", func(cursor string) (Page[skerry.Command], error) {
		var answer struct {
			Commands   []skerry.Command `json:"commands"`
			Pagination pagination       `json:"pagination"`
		}
		r := request{method: http.MethodGet, path: sessionPath(session) + "/cmd", query: sb.c.scope("")}
		pageQuery(r.query, skerry.MaxPageSize, cursor, true)
		err := sb.c.call(ctx, r, &answer)
		return Page[skerry.Command]{Items: answer.Commands, Next: answer.Pagination.cursor()}, err
	})
	for cmd, err := range commands {
		if err != nil {
			return nil, err
		}
		all = append(all, cmd)
	}
	return all, nil
}

// Info returns the last known description of the command.
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

// Start starts the command and returns when it runs. If there is no such program,
// [IsExecutableNotFound] reports true for the error. For a command that is not
// detached, call Wait afterwards; its output is blocked until then.
func (c *Cmd) Start() error {
	if c.started {
		return errors.New("the command was started already")
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
		q := c.sb.c.scope("")
		q.Set("offsets", "true")
		r := request{method: http.MethodPost, path: sessionPath(sessionID) + "/cmd", query: q, json: body}
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
		err = errors.New("the server's response does not begin with the command")
	}
	if err != nil {
		resp.Body.Close()
		return c.notBegun(err)
	}
	c.body, c.events = resp.Body, events
	c.begun(*ev.command)
	return nil
}

// streamOf checks that a response is a stream of events.
func streamOf(resp *http.Response) (*eventReader, error) {
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if kind != "application/x-ndjson" {
		return nil, fmt.Errorf("the server responded with %q instead of a stream", resp.Header.Get("Content-Type"))
	}
	return newEventReader(resp.Body), nil
}

// notBegun returns the error for a stream that ended before its first line.
func (c *Cmd) notBegun(err error) error {
	if c.ctx.Err() != nil {
		return c.ctx.Err()
	}
	if _, ok := errors.AsType[*Error](err); ok {
		return err
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("the connection broke before the server confirmed that the command runs: %w", err)
}

// Wait passes on the output and returns when the command has ended. It returns nil
// if the exit code is 0, and an [*ExitError] otherwise. If the connection breaks,
// Wait reconnects, and returns a [*LostError] if it cannot.
func (c *Cmd) Wait() error {
	switch {
	case !c.started || c.id == "":
		return errors.New("the command was not started")
	case c.waited:
		return errors.New("Wait was called already")
	}
	c.waited = true
	var err error
	if c.Detached {
		err = c.waitDetached()
	} else {
		err = c.waitAttached()
	}
	if err != nil {
		return err
	}
	if info := c.Info(); *info.ExitCode != 0 {
		return &ExitError{Code: *info.ExitCode, Command: info}
	}
	return nil
}

// waitAttached waits for a command that is not detached. It kills the command if the
// context ends, or if its output cannot be written.
func (c *Cmd) waitAttached() error {
	err := c.drain(c.events)
	c.body.Close()
	if err != nil && c.ctx.Err() == nil && mayReturn(err) {
		if c.sb.c.reattach < 0 {
			return &LostError{Command: c.Info(), Err: err}
		}
		c.reconnected(err)
		if err = c.waitDetached(); err == nil {
			c.reconnected(nil)
		}
	}
	_, mine := errors.AsType[passError](err)
	switch {
	case err == nil:
		return nil
	case c.ctx.Err() != nil:
		err = c.ctx.Err()
	case !mine:
		return err
	}
	killErr := c.kill()
	if _, refused := errors.AsType[*Error](killErr); killErr != nil && !refused {
		return &LostError{Command: c.Info(), Err: err}
	}
	return err
}

// drain writes the output of an attached command until its end.
func (c *Cmd) drain(events *eventReader) error {
	for {
		ev, err := events.next()
		switch {
		case err == io.EOF:
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		case ev.command == nil:
			if err := c.at.take(ev, c.write); err != nil {
				return err
			}
		case ev.command.ExitCode != nil:
			c.set(*ev.command)
			return nil
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
		return passError{fmt.Errorf("write the command's %s: %w", ev.stream, err)}
	}
	return nil
}

func (c *Cmd) waitDetached() error {
	if c.Stdout != nil || c.Stderr != nil {
		if err := c.follow(c.ctx, &c.at, c.write); err != nil {
			return err
		}
	}
	return c.await(c.ctx)
}

// path of the command; its session may not be the sandbox's current one.
func (c *Cmd) path() string {
	return sessionPath(c.session) + "/cmd/" + url.PathEscape(c.id)
}

// refresh fetches the state of the command. With wait it waits for the command's end.
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
		return info, errors.New("the server reports that the command has ended, but no exit code")
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

// kill kills a command whose caller has stopped waiting.
func (c *Cmd) kill() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), killWait)
	defer cancel()
	return c.Kill(ctx, SIGKILL)
}

// Log is a piece of a command's output.
type Log struct {
	Stream skerry.Stream
	Data   []byte
}

// Logs iterates over the command's output, from the oldest that the server has
// kept, and follows it until the command ends. If the connection breaks, it
// reconnects and continues at the same offset. It may be called while another
// goroutine is in Wait. The data of a Log is valid until the next iteration. An
// error ends the sequence.
func (c *Cmd) Logs(ctx context.Context) iter.Seq2[Log, error] {
	return func(yield func(Log, error) bool) {
		follower := &Cmd{sb: c.sb, id: c.id, session: c.session, info: c.Info()}
		enough := passError{errors.New("the caller has stopped")}
		err := follower.follow(ctx, &position{late: true}, func(ev event) error {
			if !yield(Log{ev.stream, ev.data}, nil) {
				return enough
			}
			return nil
		})
		if err != nil && !errors.Is(err, enough) {
			yield(Log{}, err)
		}
	}
}

// Output runs the command and returns its standard output. If Stderr is nil, an
// ExitError contains the end of standard error.
func (c *Cmd) Output() ([]byte, error) {
	if c.Stdout != nil {
		return nil, errors.New("standard output is set already")
	}
	out := &boundedBuffer{most: c.sb.c.maxOutput}
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
	out := &boundedBuffer{most: c.sb.c.maxOutput}
	c.Stdout, c.Stderr = out, out
	err := c.Run()
	return out.b.Bytes(), err
}

// boundedBuffer is a buffer of limited size.
type boundedBuffer struct {
	b    bytes.Buffer
	most int
}

func (w *boundedBuffer) Write(p []byte) (int, error) {
	if w.b.Len()+len(p) > w.most {
		return 0, fmt.Errorf("the output is longer than %d bytes; set Stdout to read it as a stream", w.most)
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
