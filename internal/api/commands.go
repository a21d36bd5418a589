package api

import (
	"context"
	"encoding/base64"
	"errors"
	"io"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/audit"
)

func (s *Server) runCommand(c *call) error {
	var q outputQuery
	var req runRequest
	if err := c.query(&q); err != nil {
		return err
	}
	if err := c.body(&req); err != nil {
		return err
	}
	p, err := req.params()
	if err != nil {
		return err
	}
	// The output reader ends with ctx, which also ends with the server. The command does
	// not.
	ctx, leave, err := s.streamContext(c)
	if err != nil {
		return err
	}
	defer leave()
	session := c.path("session")
	c.act.runs(p.Name)
	cmd, out, err := s.service.RunCommand(ctx, c.scope, session, p, req.Wait && req.Logs)
	if err != nil {
		return s.explainAbort(ctx, c, err)
	}
	c.act.on(audit.TargetCommand, cmd.ID, "")
	if !req.Wait {
		return c.reply(commandResponse{Command: wireCommand(cmd)})
	}
	st := newNDJSON(c)
	st.offsets = q.Offsets
	started := wireCommand(cmd)
	started.ExitCode, started.Duration = nil, 0
	if err := st.line(commandResponse{Command: started}); err != nil {
		if out != nil {
			err = errors.Join(err, out.Close())
		}
		return err
	}
	if out != nil {
		if err := s.copyOutput(ctx, st, out); err != nil {
			return s.endStream(ctx, c, st, err)
		}
	}
	done, err := s.service.WaitCommand(ctx, c.scope, session, cmd.ID)
	if err == nil && !done.Finished() {
		err = errors.New("the service returned from waiting for a command that has not finished")
	}
	if err != nil {
		return s.endStream(ctx, c, st, err)
	}
	return st.line(commandResponse{Command: wireCommand(done)})
}

func (s *Server) commandLogs(c *call) error {
	var q logsQuery
	if err := c.query(&q); err != nil {
		return err
	}
	ctx, leave, err := s.streamContext(c)
	if err != nil {
		return err
	}
	defer leave()
	out, err := s.service.CommandOutput(ctx, c.scope, c.path("session"), c.path("command"))
	if err != nil {
		return s.explainAbort(ctx, c, err)
	}
	st := newNDJSON(c)
	st.offsets = q.Offsets
	st.from = map[skerry.Stream]int64{skerry.Stdout: q.StdoutOffset, skerry.Stderr: q.StderrOffset}
	if err := st.begin(); err != nil {
		return errors.Join(err, out.Close())
	}
	if err := s.copyOutput(ctx, st, out); err != nil {
		return s.endStream(ctx, c, st, err)
	}
	return nil
}

func (s *Server) getCommand(c *call) error {
	var q getCommandQuery
	if err := c.query(&q); err != nil {
		return err
	}
	if !q.Wait {
		cmd, err := s.service.GetCommand(c.r.Context(), c.scope, c.path("session"), c.path("command"))
		if err != nil {
			return err
		}
		return c.reply(commandResponse{Command: wireCommand(cmd)})
	}
	ctx, leave, err := s.streamContext(c)
	if err != nil {
		return err
	}
	defer leave()
	// From here on only the end of the server can make the call fail.
	c.w.beatDocument(s.heartbeat, s.heartbeat)
	cmd, err := s.service.WaitCommand(ctx, c.scope, c.path("session"), c.path("command"))
	if err != nil {
		return s.explainEnd(ctx, c, err)
	}
	return c.reply(commandResponse{Command: wireCommand(cmd)})
}

func (s *Server) listCommands(c *call) error {
	var q listCommandsQuery
	if err := c.query(&q); err != nil {
		return err
	}
	page := skerry.Page{Limit: q.Limit, Cursor: q.Cursor, Ascending: q.SortOrder != "desc"}
	list, next, err := s.service.ListCommands(c.r.Context(), c.scope, c.path("session"), page)
	if err != nil {
		return err
	}
	commands := make([]skerry.Command, len(list))
	for i := range list {
		commands[i] = wireCommand(&list[i])
	}
	return c.reply(commandsResponse{Commands: commands, Pagination: pageOf(len(list), next)})
}

func (s *Server) killCommand(c *call) error {
	var req killRequest
	if err := c.body(&req); err != nil {
		return err
	}
	cmd, err := s.service.KillCommand(c.r.Context(), c.scope, c.path("session"), c.path("command"), req.Signal.orTerminate())
	if err != nil {
		return err
	}
	return c.reply(commandResponse{Command: wireCommand(cmd)})
}

func (s *Server) writeStdin(c *call) error {
	var req stdinRequest
	if err := c.body(&req); err != nil {
		return err
	}
	data, err := base64.StdEncoding.DecodeString(req.Data)
	if err != nil {
		return skerry.Invalid("data", "must be base64: %v", err)
	}
	written, err := s.service.WriteStdin(c.r.Context(), c.scope, c.path("session"), c.path("command"),
		skerry.StdinParams{Data: data, Offset: req.Offset, Close: req.Close})
	if err != nil {
		return err
	}
	return c.reply(stdinResponse{BytesWritten: written})
}

func (r *runRequest) params() (p skerry.CommandParams, err error) {
	if err := given("timeout", r.Timeout); err != nil {
		return p, err
	}
	p = skerry.CommandParams{Name: r.Command, Args: r.Args, Cwd: r.Cwd, Env: r.Env, Sudo: r.Sudo, Stdin: r.AttachStdin}
	if r.Timeout != nil {
		p.Timeout = *r.Timeout
	}
	return p, nil
}

// wireCommand returns a copy without nil lists.
func wireCommand(cmd *skerry.Command) skerry.Command {
	w := *cmd
	w.Args = notNil(w.Args)
	return w
}

// explainEnd replaces an error that was caused by the end of the server or of the
// token.
func (s *Server) explainEnd(ctx context.Context, c *call, err error) error {
	if revoked(ctx) {
		return errRevoked
	}
	if s.draining.Err() != nil && c.r.Context().Err() == nil && !s.sessionEnded(c) {
		return &skerry.Error{Code: codeStreamClosed, Message: "the server is restarting; the command keeps running", Err: err}
	}
	return err
}

// explainAbort replaces the error of a call that the end of the server or of the token has
// aborted before there was anything to answer.
func (s *Server) explainAbort(ctx context.Context, c *call, err error) error {
	switch {
	case !errors.Is(err, context.Canceled) || c.r.Context().Err() != nil:
		return err
	case revoked(ctx):
		return errRevoked
	case s.draining.Err() != nil:
		return &skerry.Error{Code: skerry.CodeUnavailable, Message: "the server is restarting; try again", Err: err}
	}
	return err
}

// endStream sends the reason why a stream ends early. If that fails, the connection is
// cut.
func (s *Server) endStream(ctx context.Context, c *call, st *ndjson, cause error) error {
	if c.r.Context().Err() != nil {
		return nil // the client is gone
	}
	cause = s.explainEnd(ctx, c, cause)
	status, body := visible(cause, c.requestID)
	logFailure(c.r.Context(), c.log, cause, status)
	return st.line(errorLine{Stream: "error", Data: body})
}

// copyOutput sends the output of a command, and closes out.
func (s *Server) copyOutput(ctx context.Context, st *ndjson, out skerry.OutputReader) error {
	// A Next that waits for a silent command must return when ctx ends, and when the
	// client reads nothing.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	closed := make(chan error, 1)
	context.AfterFunc(ctx, func() { closed <- out.Close() })
	pumped := make(chan error, 1)
	go func() {
		pumped <- st.pump(out)
	}()
	sendErr := st.send()
	cancel()
	pumpErr := <-pumped
	closeErr := <-closed
	if sendErr != nil {
		return sendErr
	}
	if pumpErr != nil && !errors.Is(pumpErr, io.EOF) {
		return pumpErr
	}
	return closeErr
}
