package api

import (
	"fmt"

	"github.com/coder/websocket"

	"github.com/skerry-dev/skerry"
)

// openInteractive sends the URL and the token for the WebSocket of a terminal.
func (s *Server) openInteractive(c *call) error {
	session := c.path("session")
	if err := s.service.CheckSession(c.r.Context(), c.scope, session); err != nil {
		return err
	}
	token, err := s.tickets.issue(c.caller, session)
	if err != nil {
		return err
	}
	u := c.origin()
	u.Scheme = map[string]string{"http": "ws", "https": "wss"}[u.Scheme]
	u = *u.JoinPath("v2/sandboxes/sessions", session, "interactive")
	return c.reply(interactiveResponse{URL: u.String(), Token: token})
}

// serveTerminal serves the WebSocket of a terminal. The token is the only credential;
// there are no cookies. The door has checked the origin.
func (s *Server) serveTerminal(c *call) error {
	var q terminalQuery
	if err := c.query(&q); err != nil {
		return err
	}
	if c.r.Header.Get("Upgrade") == "" {
		return skerry.Invalid("", "this endpoint must be opened as a WebSocket")
	}
	t, ok := s.tickets.redeem(q.Token, c.path("session"))
	if !ok {
		return skerry.Errorf(skerry.CodeUnauthorized, "the terminal token is not valid, was used already, or has expired; ask for a new one")
	}
	c.caller = t.caller
	if ended, err := s.ended(c.r.Context(), c.access()); err != nil {
		return fmt.Errorf("authenticate: %w", err)
	} else if ended {
		return errRevoked
	}
	introduced(c.r.Context())
	ctx, leave, err := s.streamContext(c)
	if err != nil {
		return err
	}
	defer leave()
	s.terminals.Add(1)
	defer s.terminals.Done()
	conn, err := websocket.Accept(c.w, c.r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		if !c.w.begun() {
			return skerry.Errorf(skerry.CodeBadRequest, "the WebSocket could not be opened: %w", err)
		}
		c.log.Debug("opening a WebSocket", "err", err)
		return nil
	}
	c.w.switched()
	link := &terminalLink{conn: conn, log: c.log, requestID: c.requestID, stall: s.stall}
	link.serve(ctx, func(p skerry.TerminalParams) (skerry.Terminal, error) {
		c.act.runs(p.Name)
		return s.service.OpenTerminal(ctx, c.scope, t.session, p)
	})
	return nil
}
