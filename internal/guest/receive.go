package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest/wire"
)

var errProtocol = errors.New("the agent broke the protocol")

// receive takes frames in until the connection ends. It never waits for a
// consumer and never sends.
func (c *Client) receive() {
	defer close(c.received)
	err := c.frames()
	if err == io.EOF {
		err = errors.New("the agent closed the connection")
	}
	c.link.Fail(err)
	err = c.lost(c.link.Err())
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, cl := range c.calls {
		cl.end(err)
	}
	for _, p := range c.procs {
		p.lose(err)
	}
}

func (cl *call) end(err error) {
	if cl.gate != nil {
		cl.gate.Close(err)
	}
	if cl.in != nil {
		cl.in.Close(err)
	}
}

func (c *Client) frames() error {
	for {
		h, err := c.link.Receive()
		if err != nil {
			return err
		}
		if err := c.frame(h); err != nil {
			return err
		}
	}
}

func (c *Client) frame(h wire.Header) error {
	c.mu.Lock()
	cl, p := c.calls[h.ID], c.procs[h.ID]
	c.mu.Unlock()
	switch h.Type {
	case wire.TypeReply, wire.TypeListing:
		return c.reply(h, cl)
	case wire.TypeData:
		switch {
		case p != nil:
			return p.in.Fill(c.link, h)
		case cl != nil && cl.in != nil:
			return cl.in.Fill(c.link, h)
		}
		return c.link.Discard(h.Length)
	case wire.TypeEOF, wire.TypeAck:
		return c.offset(h, cl, p)
	case wire.TypeExit:
		if p == nil {
			return c.link.Discard(h.Length)
		}
		var exit wire.Exit
		if err := c.link.ReadJSON(h, &exit); err != nil {
			return err
		}
		return p.exited(exit)
	case wire.TypeAbort:
		if cl == nil || cl.in == nil {
			return c.link.Discard(h.Length)
		}
		var f wire.Failure
		if err := c.link.ReadJSON(h, &f); err != nil {
			return err
		}
		cl.in.Close(failure(&f))
		return nil
	}
	return fmt.Errorf("%w: type %d is not the agent's to send", errProtocol, h.Type)
}

func (c *Client) reply(h wire.Header, cl *call) error {
	if cl == nil {
		// Nobody waits any more. It is not decoded either: an agent that
		// answers what nobody asked must not cost more than the reading.
		return c.link.Discard(h.Length)
	}
	if cl.listing != (h.Type == wire.TypeListing) {
		return fmt.Errorf("%w: an answer of type %d to another request", errProtocol, h.Type)
	}
	var r wire.Reply
	if err := c.link.ReadJSON(h, &r); err != nil {
		return err
	}
	if h.Type == wire.TypeListing {
		if err := c.adopt(&r); err != nil {
			return err
		}
	}
	select {
	case cl.reply <- r:
	default:
		return fmt.Errorf("%w: a second Reply", errProtocol)
	}
	if cl.gate != nil {
		cl.gate.Close(errReplied)
	}
	return nil
}

// errReplied ends an upload whose Reply has come.
var errReplied = errors.New("the upload is answered")

func (c *Client) offset(h wire.Header, cl *call, p *Process) error {
	offset, err := c.link.ReadOffset()
	if err != nil {
		return err
	}
	switch {
	case h.Type == wire.TypeEOF:
		if cl != nil && cl.in != nil {
			return cl.in.End(h.Stream, offset)
		}
	case p != nil && p.stdin != nil:
		return p.stdin.gate.Ack(offset)
	case cl != nil && cl.gate != nil:
		return cl.gate.Ack(offset)
	}
	return nil
}

// failureCodes says what a client sees of each kind of failure.
var failureCodes = map[wire.FailureCode]skerry.Code{
	wire.FailInvalid:       skerry.CodeBadRequest,
	wire.FailNotFound:      skerry.CodeNotFound,
	wire.FailParentMissing: skerry.CodeNotFound,
	wire.FailExists:        skerry.CodeConflict,
	wire.FailPermission:    skerry.CodeBadRequest,
	wire.FailIsDirectory:   skerry.CodeBadRequest,
	wire.FailNotDirectory:  skerry.CodeBadRequest,
	wire.FailNotRegular:    skerry.CodeBadRequest,
	wire.FailUnsafe:        skerry.CodeBadRequest,
	wire.FailDiskFull:      skerry.CodeDiskFull,
	wire.FailBusy:          skerry.CodeRateLimited,
}

// Failure is why the agent could not do something, as it told. It is in the
// chain of the *skerry.Error that a method returns, for callers that need to
// tell more apart than a client does.
type Failure = wire.Failure

// failure turns what the agent says into an error for the client. The message
// comes from the sandbox, so it is made fit to be shown.
func failure(f *wire.Failure) error {
	f = &Failure{Code: f.Code, Message: printable(f.Message)}
	if f.Code == wire.FailCancelled {
		return fmt.Errorf("in the sandbox: %w", context.Canceled)
	}
	code, ok := failureCodes[f.Code]
	if !ok {
		return fmt.Errorf("in the sandbox: %w", f)
	}
	return &skerry.Error{Code: code, Message: f.Message, Err: f}
}

// printable bounds a message and drops what would confuse a terminal.
func printable(s string) string {
	const longest = 1 << 10
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	if len(s) > longest {
		s = strings.ToValidUTF8(s[:longest], "") + "…"
	}
	return s
}

func badRequest(err error) error {
	return &skerry.Error{Code: skerry.CodeBadRequest, Message: err.Error()}
}
