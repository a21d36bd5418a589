package api

import (
	"net/http"

	"github.com/coder/websocket"

	"github.com/skerry-dev/skerry"
)

// openInteractive answers with where to open a terminal's WebSocket and the
// token that opens it.
func (s *Server) openInteractive(c *call) error {
	session := c.path("session")
	if err := s.service.CheckSession(c.r.Context(), c.scope, session); err != nil {
		return err
	}
	token, err := s.tickets.issue(c.identity, session)
	if err != nil {
		return err
	}
	u := c.origin()
	u.Scheme = map[string]string{"http": "ws", "https": "wss"}[u.Scheme]
	u = *u.JoinPath("v2/sandboxes/sessions", session, "interactive")
	return c.reply(interactiveResponse{URL: u.String(), Token: token})
}

// serveTerminal opens the WebSocket that a token was given out for. The token
// is the only credential, never a cookie, so a page of any origin may connect:
// it can do no more than what its own token allows.
func (s *Server) serveTerminal(c *call) error {
	var q terminalQuery
	if err := c.query(&q); err != nil {
		return err
	}
	if c.r.Header.Get("Upgrade") == "" {
		return skerry.Invalid("", "this endpoint is a WebSocket")
	}
	t, ok := s.tickets.redeem(q.Token, c.path("session"))
	if !ok {
		return skerry.Errorf(skerry.CodeUnauthorized, "the terminal's token is not valid, was used, or has expired")
	}
	c.identity, c.scope = t.identity, t.identity.Scope()
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
	c.w.status = http.StatusSwitchingProtocols
	link := &terminalLink{conn: conn, log: c.log, requestID: c.requestID, stall: s.stall}
	link.serve(ctx, func(p skerry.TerminalParams) (skerry.Terminal, error) {
		return s.service.OpenTerminal(ctx, c.scope, t.session, p)
	})
	return nil
}
