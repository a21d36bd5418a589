package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/skerry-dev/skerry"
)

const (
	// DefaultReattach is the default of [Options].Reattach: longer than a restart
	// of the server takes.
	DefaultReattach = 5 * time.Minute
	// maxPause limits the pause between two attempts to reconnect.
	maxPause = 3 * time.Second
)

// codeStreamClosed is the code of a stream that ends because the server restarts.
const codeStreamClosed skerry.Code = "sandbox_stream_closed"

// LostError reports that the connection to a command was lost for good. The command
// was not killed and may still run. [Sandbox.FindCommand] finds it as long as its
// session exists.
type LostError struct {
	Command skerry.Command
	Err     error
}

func (e *LostError) Error() string {
	return fmt.Sprintf("the connection to command %s was lost, and the command may still run: %v", e.Command.ID, e.Err)
}

func (e *LostError) Unwrap() error { return e.Err }

// passError is an error of the caller's writer.
type passError struct{ error }

func (e passError) Unwrap() error { return e.error }

// malformedError is the error for an invalid response.
type malformedError struct{ error }

func (e malformedError) Unwrap() error { return e.error }

// mayReturn reports whether a stream that ended with err can be continued: the
// connection broke, or the server is restarting.
func mayReturn(err error) bool {
	if _, ok := errors.AsType[passError](err); ok {
		return false
	}
	if _, ok := errors.AsType[malformedError](err); ok {
		return false
	}
	if e, ok := errors.AsType[*Error](err); ok {
		switch {
		case e.Code == codeStreamClosed, e.Code == skerry.CodeUnavailable, e.Code == skerry.CodeInternal:
			return true
		}
		return e.Status == http.StatusTooManyRequests || e.Status >= 500 && e.Status != http.StatusNotImplemented
	}
	return true
}

// position is the number of bytes of each stream that were written so far.
type position struct {
	stdout, stderr int64
	// unknown is set if the server does not send offsets.
	unknown bool
	// late is set for a reader that begins with the oldest output that is kept.
	late bool
}

func (p *position) of(stream skerry.Stream) *int64 {
	if stream == skerry.Stderr {
		return &p.stderr
	}
	return &p.stdout
}

// take writes an event and advances p. It fails if output before the event is missing.
func (p *position) take(ev event, pass func(event) error) error {
	at := p.of(ev.stream)
	switch {
	case !ev.placed:
		p.unknown = true
	case ev.offset > *at && !(p.late && *at == 0):
		return malformedError{fmt.Errorf("bytes %[2]d to %[3]d of %[1]s are not kept any more", ev.stream, *at, ev.offset)}
	default:
		*at = ev.next
	}
	return pass(ev)
}

// follow writes the output of a command from a position to its end. It reconnects as
// often as necessary.
func (c *Cmd) follow(ctx context.Context, at *position, pass func(event) error) error {
	return c.persist(ctx, func() (progress bool, err error) {
		if at.unknown {
			return false, malformedError{errors.New("the server does not send the next offset")}
		}
		return c.followOnce(ctx, at, pass)
	})
}

func (c *Cmd) followOnce(ctx context.Context, at *position, pass func(event) error) (progress bool, err error) {
	q := c.sb.c.scope("")
	q.Set("offsets", "true")
	q.Set("stdoutOffset", strconv.FormatInt(at.stdout, 10))
	q.Set("stderrOffset", strconv.FormatInt(at.stderr, 10))
	resp, err := c.sb.c.send(ctx, request{method: http.MethodGet, path: c.path() + "/logs", query: q, once: true})
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	events, err := streamOf(resp)
	if err != nil {
		return false, err
	}
	c.reconnected(nil)
	for {
		ev, err := events.next()
		if err == io.EOF {
			return true, nil
		}
		if err == nil && ev.command == nil {
			progress = true
			err = at.take(ev, pass)
		}
		if err != nil {
			return progress, err
		}
	}
}

// await waits for the end of the command. It reconnects as often as necessary.
func (c *Cmd) await(ctx context.Context) error {
	return c.persist(ctx, func() (bool, error) {
		_, err := c.refresh(ctx, true)
		return false, err
	})
}

// persist repeats an attempt until it succeeds or a retry is pointless. It gives up if
// the server could not be reached for the time of Options.Reattach.
func (c *Cmd) persist(ctx context.Context, do func() (progress bool, err error)) error {
	patience := c.sb.c.reattach
	since, failures := time.Now(), 0
	for {
		progress, err := do()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case progress:
			since, failures = time.Now(), 0
		}
		if _, mine := errors.AsType[passError](err); mine {
			return err
		}
		if _, refused := errors.AsType[*Error](err); refused && !mayReturn(err) {
			return err
		}
		if !mayReturn(err) || time.Since(since) >= patience {
			return &LostError{Command: c.Info(), Err: err}
		}
		c.reconnected(err)
		failures++
		if err := pause(ctx, min(backoff(min(failures, 5)), maxPause)); err != nil {
			return err
		}
	}
}

// reconnected calls Reconnect when a connection broke, once, and when it is restored.
func (c *Cmd) reconnected(err error) {
	if broken := err != nil; broken != c.broken {
		c.broken = broken
		if c.Reconnect != nil {
			c.Reconnect(err)
		}
	}
}

// watched is the body of a response. If the server sends heartbeats, a read that waits
// much longer than their interval ends the request.
type watched struct {
	io.ReadCloser
	most   time.Duration // 0 is no limit
	cancel context.CancelCauseFunc
}

var errSilent = errors.New("the server sent nothing for too long")

func (w *watched) Read(p []byte) (int, error) {
	if w.most > 0 {
		timer := time.AfterFunc(w.most, func() { w.cancel(errSilent) })
		defer timer.Stop()
	}
	return w.ReadCloser.Read(p)
}

func (w *watched) Close() error {
	err := w.ReadCloser.Close()
	w.cancel(context.Canceled)
	return err
}

// maxSilence returns how long the server may be silent: 0, without limit, unless its
// response has the interval of heartbeats.
func maxSilence(resp *http.Response) time.Duration {
	ms, err := strconv.ParseInt(resp.Header.Get(headerHeartbeat), 10, 64)
	if err != nil || ms <= 0 || ms > int64(time.Hour/time.Millisecond) {
		return 0
	}
	return silentBeats*time.Duration(ms)*time.Millisecond + silentLeast
}

const (
	// headerHeartbeat requests heartbeats. In the response it is their interval, in
	// milliseconds.
	headerHeartbeat = "Skerry-Heartbeat"
	// A connection is given up when silentBeats heartbeats are missing, and not before
	// silentLeast, because they may be delayed.
	silentBeats = 4
	silentLeast = 15 * time.Second
)
