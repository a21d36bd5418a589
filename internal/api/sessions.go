package api

import (
	"github.com/skerry-dev/skerry"
)

func (s *Server) listSessions(c *call) error {
	var q listSessionsQuery
	if err := c.query(&q); err != nil {
		return err
	}
	page, next, err := s.service.ListSessions(c.r.Context(), c.scope, skerry.SessionFilter{
		Page:        skerry.Page{Limit: q.Limit, Cursor: q.Cursor, Ascending: q.SortOrder == "asc"},
		SandboxName: q.Name,
	})
	if err != nil {
		return err
	}
	views := make([]sessionView, len(page))
	for i := range page {
		views[i] = c.session(&page[i])
	}
	return c.reply(sessionsResponse{Sessions: views, Pagination: pageOf(len(page), next)})
}

func (s *Server) getSession(c *call) error {
	run, err := s.service.GetSession(c.r.Context(), c.scope, c.path("session"))
	if err != nil {
		return err
	}
	return c.reply(sessionResponse{Session: c.session(&run.Session), Routes: notNil(run.Routes)})
}

func (s *Server) stopSession(c *call) error {
	var q stopQuery
	if err := c.query(&q); err != nil {
		return err
	}
	run, err := s.service.StopSession(c.r.Context(), c.scope, c.path("session"), skerry.StopParams{Force: q.Force})
	if err != nil {
		return err
	}
	return c.reply(stopResponse{Session: c.session(&run.Session), Sandbox: run.Sandbox, Snapshot: run.Snapshot})
}

func (s *Server) pauseSession(c *call) error {
	session, err := s.service.PauseSession(c.r.Context(), c.scope, c.path("session"))
	if err != nil {
		return err
	}
	return c.reply(pauseResponse{Session: c.session(session)})
}

func (s *Server) resumeSession(c *call) error {
	session, err := s.service.ResumeSession(c.r.Context(), c.scope, c.path("session"))
	if err != nil {
		return err
	}
	return c.reply(pauseResponse{Session: c.session(session)})
}

func (s *Server) extendTimeout(c *call) error {
	var req extendRequest
	if err := c.body(&req); err != nil {
		return err
	}
	session, err := s.service.ExtendTimeout(c.r.Context(), c.scope, c.path("session"), req.Duration)
	if err != nil {
		return err
	}
	return c.reply(extendResponse{Session: c.session(session)})
}
