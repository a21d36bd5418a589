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

var errProtocol = errors.New("the agent violated the protocol")

// receive receives the frames of a connection until it ends. It never waits for a
// consumer and never sends.
func (c *Client) receive(k *connection) {
	defer close(k.received)
	err := c.frames()
	if err == io.EOF {
		err = errors.New("the agent closed the connection")
	}
	k.link.Fail(err)
	k.link.Received()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.suspended || k.link.Err() != errSuspended {
		c.end()
		return
	}
	err = c.lost(errSuspended)
	for _, cl := range c.calls {
		cl.end(err)
	}
	clear(c.calls)
}

// end ends all waits after the last connection has ended. mu is held.
func (c *Client) end() {
	if c.ended {
		return
	}
	c.ended, c.suspended = true, false
	close(c.done)
	err := c.lost(c.link().Err())
	for _, cl := range c.calls {
		cl.end(err)
	}
	for _, p := range c.procs {
		p.lose(err)
	}
	// A Client may be kept long after its end. It must not hold the received output,
	// which only readers need.
	clear(c.calls)
	clear(c.procs)
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
		h, err := c.link().Receive()
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
			return p.in.Fill(c.link(), h)
		case cl != nil && cl.in != nil:
			return cl.in.Fill(c.link(), h)
		}
		return c.link().Discard(h.Length)
	case wire.TypeEOF, wire.TypeAck:
		return c.offset(h, cl, p)
	case wire.TypeExit:
		if p == nil || p.again {
			return c.link().Discard(h.Length)
		}
		var exit wire.Exit
		if err := c.link().ReadJSON(h, &exit); err != nil {
			return err
		}
		return p.exited(exit)
	case wire.TypeAbort:
		if cl == nil || cl.in == nil {
			return c.link().Discard(h.Length)
		}
		var f wire.Failure
		if err := c.link().ReadJSON(h, &f); err != nil {
			return err
		}
		cl.in.Close(failure(&f))
		return nil
	}
	return fmt.Errorf("%w: the agent must not send type %d", errProtocol, h.Type)
}

func (c *Client) reply(h wire.Header, cl *call) error {
	if cl == nil {
		// The request has ended, or there was none. Decoding would let a hostile
		// agent take CPU time with unsolicited answers.
		return c.link().Discard(h.Length)
	}
	if cl.listing != (h.Type == wire.TypeListing) {
		return fmt.Errorf("%w: type %d does not answer this request", errProtocol, h.Type)
	}
	var r wire.Reply
	if err := c.link().ReadJSON(h, &r); err != nil {
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

// errReplied ends an upload when its Reply has arrived.
var errReplied = errors.New("the upload has a reply")

func (c *Client) offset(h wire.Header, cl *call, p *Process) error {
	offset, err := c.link().ReadOffset()
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

// failureCodes maps the agent's failures to the codes that clients see.
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
	wire.FailNoExecutable:  skerry.CodeExecutableNotFound,
}

// Failure is a failure that the agent reported. The *skerry.Error of a method wraps it,
// for callers that need more detail than a client.
type Failure = wire.Failure

// failure turns a failure of the agent into an error for the client. The sandbox
// controls its text, so it is made safe to print.
func failure(f *wire.Failure) error {
	f = &Failure{Code: wire.FailureCode(printable(string(f.Code))), Message: printable(f.Message)}
	if f.Code == wire.FailCancelled {
		return fmt.Errorf("in the sandbox: %w", context.Canceled)
	}
	code, ok := failureCodes[f.Code]
	if !ok {
		return fmt.Errorf("in the sandbox: %w", f)
	}
	return &skerry.Error{Code: code, Message: f.Message, Err: f}
}

// printable limits the length of a message and replaces characters that a terminal
// could interpret.
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
