package api

import (
	"fmt"
	"net/http"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/share"
)

// count counts a request in the quotas of its team and, as far as it is known before the body
// is read, of its project.
func (c *call) count() error {
	if c.scope.TeamID == "" {
		return nil // an administrator's
	}
	quotas, err := c.srv.accounts.Quotas(c.r.Context(), c.scope)
	if err != nil {
		return fmt.Errorf("read the quotas: %w", err)
	}
	var rates []share.Rate[string]
	var whose []string
	for _, of := range quotas.In(c.scope) {
		if n, limited := skerry.LimitOf(of.Quota.RequestsPerMinute); limited {
			rates, whose = append(rates, share.Rate[string]{Holder: of.ID, PerMinute: n}), append(whose, of.Whose)
		}
	}
	if len(rates) == 0 {
		return nil
	}
	if wait, n := c.srv.requests.Take(time.Now(), rates...); wait > 0 {
		return &skerry.Error{
			Code: skerry.CodeRateLimited, RetryAfter: wait,
			Message: fmt.Sprintf("the %s's quota is %d requests in a minute; try again later", whose[n], rates[n].PerMinute),
		}
	}
	return nil
}

func (s *Server) quotaRoutes() []route {
	return []route{{
		accounts: true, method: http.MethodGet, path: "/v2/quotas", id: "getQuotas", summary: "Get the quotas of a team and a project, and what is used of them",
		detail:   "An addition to the public API. Without projectId it is the team alone. The operator sets quotas; an absent limit means no limit.",
		response: quotasResponse{}, handle: s.getQuotas, errors: []skerry.Code{skerry.CodeNotFound},
	}}
}

// quotasResponse has the quotas that are in force.
type quotasResponse struct {
	Team    quotaView  `json:"team" doc:"Quota of the team."`
	Project *quotaView `json:"project,omitempty" doc:"Quota of the project, if the request names one or the token is for one."`
}

type quotaView struct {
	Limits skerry.Quota `json:"limits" doc:"The limits; an absent one means no limit."`
	Used   skerry.Use   `json:"used" doc:"What running sandboxes use."`
}

func (s *Server) getQuotas(c *call) error {
	team, err := c.team()
	if err != nil {
		return err
	}
	scope := skerry.Scope{TeamID: team, ProjectID: c.scope.ProjectID}
	quotas, err := s.accounts.Quotas(c.r.Context(), scope)
	if err != nil {
		return err
	}
	response := quotasResponse{Team: quotaView{quotas.Team.Shown(), s.service.Used(skerry.Scope{TeamID: team})}}
	if scope.ProjectID != "" {
		response.Project = &quotaView{quotas.Project.Shown(), s.service.Used(scope)}
	}
	return c.reply(response)
}
