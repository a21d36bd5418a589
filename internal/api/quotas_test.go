package api

import (
	"net/http"
	"strconv"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller/controllertest"
)

func TestQuotaOfRequests(t *testing.T) {
	w := newWorld(t)
	limit := func(n int) *int { return &n }
	scope := skerry.Scope{TeamID: controllertest.Team.ID, ProjectID: controllertest.Project.ID}
	set := func(scope skerry.Scope, q skerry.Quota) {
		t.Helper()
		if _, err := w.accounts.SetQuota(t.Context(), scope, q, false); err != nil {
			t.Fatal(err)
		}
	}
	// Another team's requests, and those of an administrator, are not counted.
	uncounted := func() {
		t.Helper()
		for token, path := range map[string]string{"strangers": "/v2/user", "admin": "/v2/teams"} {
			if a := w.ask(token, http.MethodGet, path, ""); a.status != http.StatusOK {
				t.Errorf("%s: %d %s", token, a.status, a.body)
			}
		}
	}
	uncounted()
	for name, of := range map[string]skerry.Scope{"project": scope, "team": {TeamID: scope.TeamID}} {
		set(of, skerry.Quota{RequestsPerMinute: limit(3)})
		for range 3 {
			if a := w.ask("developer", http.MethodGet, sandboxesPath, ""); a.status != http.StatusOK {
				t.Fatalf("within the %s's quota: %d %s", name, a.status, a.body)
			}
		}
		a := w.ask("developer", http.MethodGet, sandboxesPath, "")
		wait, err := strconv.Atoi(a.header.Get("Retry-After"))
		if e := a.error(t); a.status != http.StatusTooManyRequests || e.Code != skerry.CodeRateLimited || err != nil || wait < 2 || wait > maxRetryAfter {
			t.Errorf("beyond the %s's quota: %d %s, Retry-After %q", name, a.status, a.body, a.header.Get("Retry-After"))
		}
		uncounted()
		set(of, skerry.Quota{RequestsPerMinute: limit(skerry.Unlimited)})
		if a := w.ask("developer", http.MethodGet, sandboxesPath, ""); a.status != http.StatusOK {
			t.Errorf("without the %s's quota: %d %s", name, a.status, a.body)
		}
	}

	set(skerry.Scope{}, skerry.Quota{Sandboxes: limit(50)})
	set(scope, skerry.Quota{VCPUs: limit(40)})
	all := as[quotasResponse](w, "viewer", http.MethodGet, "/v2/quotas", "")
	if *all.Team.Limits.Sandboxes != 50 || all.Team.Limits.RequestsPerMinute != nil || *all.Project.Limits.VCPUs != 40 || all.Project.Used.Sandboxes != 1 || all.Team.Used != all.Project.Used {
		t.Errorf("the quotas are %+v, %+v", all.Team, all.Project)
	}
	if team := as[quotasResponse](w, "team viewer", http.MethodGet, "/v2/quotas", ""); team.Project != nil || *team.Team.Limits.Sandboxes != 50 {
		t.Errorf("the quotas of the team are %+v", team)
	}
}
