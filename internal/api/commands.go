package api

import (
	"context"
	"encoding/base64"
	"errors"
	"io"

	"github.com/skerry-dev/skerry"
)

func (s *Server) runCommand(c *call) error {
	var req runRequest
	if err := c.body(&req); err != nil {
		return err
	}
	p, err := req.params()
	if err != nil {
		return err
	}
	// The output reader lives as long as ctx, which also ends with the
	// server; the command does not.
	ctx, leave, err := s.streamContext(c)
	if err != nil {
		return err
	}
	defer leave()
	session := c.path("session")
	cmd, out, err := s.service.RunCommand(ctx, c.scope, session, p, req.Wait && req.Logs)
	if err != nil {
		return err
	}
	if !req.Wait {
		return c.reply(commandResponse{Command: wireCommand(cmd)})
	}
	st := newNDJSON(c)
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
			return s.endStream(c, st, err)
		}
	}
	done, err := s.service.WaitCommand(ctx, c.scope, session, cmd.ID)
	if err == nil && !done.Finished() {
		err = errors.New("the service returned from waiting for a command that has not finished")
	}
	if err != nil {
		return s.endStream(c, st, err)
	}
	return st.line(commandResponse{Command: wireCommand(done)})
}

func (s *Server) commandLogs(c *call) error {
	ctx, leave, err := s.streamContext(c)
	if err != nil {
		return err
	}
	defer leave()
	out, err := s.service.CommandOutput(ctx, c.scope, c.path("session"), c.path("command"))
	if err != nil {
		return err
	}
	st := newNDJSON(c)
	if err := st.begin(); err != nil {
		return errors.Join(err, out.Close())
	}
	if err := s.copyOutput(ctx, st, out); err != nil {
		return s.endStream(c, st, err)
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
	cmd, err := s.service.WaitCommand(ctx, c.scope, c.path("session"), c.path("command"))
	if err != nil {
		return s.explainEnd(c, err)
	}
	return c.reply(commandResponse{Command: wireCommand(cmd)})
}

func (s *Server) listCommands(c *call) error {
	list, err := s.service.ListCommands(c.r.Context(), c.scope, c.path("session"))
	if err != nil {
		return err
	}
	commands := make([]skerry.Command, len(list))
	for i := range list {
		commands[i] = wireCommand(&list[i])
	}
	return c.reply(commandsResponse{Commands: commands})
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
		return skerry.Invalid("data", "is not base64: %v", err)
	}
	written, err := s.service.WriteStdin(c.r.Context(), c.scope, c.path("session"), c.path("command"),
		skerry.StdinParams{Data: data, Offset: req.Offset, Close: req.Close})
	if err != nil {
		return err
	}
	return c.reply(stdinResponse{BytesWritten: written})
}

func (r *runRequest) params() (p skerry.CommandParams, err error) {
	switch {
	case r.Command == "":
		return p, skerry.Invalid("command", "must not be empty")
	case len(r.Cwd) > skerry.MaxPathLength:
		return p, skerry.Invalid("cwd", "is longer than %d bytes", skerry.MaxPathLength)
	}
	if err := checkEnv("env", r.Env); err != nil {
		return p, err
	}
	if err := checkTimeout("timeout", r.Timeout); err != nil {
		return p, err
	}
	p = skerry.CommandParams{Name: r.Command, Args: r.Args, Cwd: r.Cwd, Env: r.Env, Sudo: r.Sudo, Stdin: r.AttachStdin}
	if r.Timeout != nil {
		p.Timeout = *r.Timeout
	}
	return p, nil
}

// wireCommand returns a copy whose lists are never null.
func wireCommand(cmd *skerry.Command) skerry.Command {
	w := *cmd
	w.Args = notNil(w.Args)
	return w
}

// explainEnd replaces an error that only the server's end caused.
func (s *Server) explainEnd(c *call, err error) error {
	if s.draining.Err() != nil && c.r.Context().Err() == nil {
		return &skerry.Error{Code: codeStreamClosed, Message: "the server is restarting; the command runs on", Err: err}
	}
	return err
}

// endStream tells the client why a stream ends before its time. If it cannot
// be told, the connection is cut, which is the other way to say so.
func (s *Server) endStream(c *call, st *ndjson, cause error) error {
	if c.r.Context().Err() != nil {
		return nil // it has gone; nobody is left to tell
	}
	cause = s.explainEnd(c, cause)
	status, body := visible(cause, c.requestID)
	logFailure(c.r.Context(), c.log, cause, status)
	return st.line(errorLine{Stream: "error", Data: body})
}

// copyOutput sends what a command writes, and closes out.
func (s *Server) copyOutput(ctx context.Context, st *ndjson, out skerry.OutputReader) error {
	// Both the end of ctx and a client that takes nothing must wake a Next
	// that waits for a silent command.
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
