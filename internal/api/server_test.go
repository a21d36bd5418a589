package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller/controllertest"
)

func TestEveryCodeHasItsStatus(t *testing.T) {
	svc := &stub{}
	h := serve(t, svc)
	for code, status := range statusOf {
		svc.err = fmt.Errorf("wrapped: %w", &skerry.Error{Code: code, Message: "why", Field: "f", Resource: skerry.ResourceDrive, Err: errors.New("the secret cause")})
		req := h.request("GET", "/v2/sandboxes/a", "")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var e errorResponse
		if err := json.NewDecoder(resp.Body).Decode(&e); err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != status || e.Error.Code != code || e.Error.Field != "f" || e.Error.Resource != skerry.ResourceDrive || e.Error.Message != "f: why" {
			t.Errorf("%s: %d %+v, want %d", code, resp.StatusCode, e, status)
		}
		if wait := resp.Header.Get("Retry-After"); (wait != "") != (status == 429 || status == 503) {
			t.Errorf("%s: Retry-After %q", code, wait)
		}
		if (e.Error.RequestID != "") != (status >= 500 && status != 501) {
			t.Errorf("%s: request id %q in the body", code, e.Error.RequestID)
		}
	}
}

func TestUnknownErrorsAndPanicsStayInside(t *testing.T) {
	svc := &stub{err: errors.New("password hunter2")}
	h := serve(t, svc)
	check := func(a *answer) {
		t.Helper()
		e := a.error(t)
		if a.status != 500 || e.Code != skerry.CodeInternal || e.Message != "internal error" {
			t.Errorf("%d %+v", a.status, e)
		}
		id := a.header.Get("X-Request-Id")
		if id == "" || e.RequestID != id || !strings.Contains(h.logs.String(), id) {
			t.Errorf("request id %q in the header, %q in the body; log:\n%s", id, e.RequestID, h.logs)
		}
	}
	check(h.call("GET", "/v2/sandboxes/a", ""))
	if !strings.Contains(h.logs.String(), "hunter2") {
		t.Error("the log does not have the whole error")
	}
	// The embedded nil Service panics in a call that the stub has not.
	check(h.call("GET", "/v2/sandboxes/sessions/s/cmd", ""))
	if !strings.Contains(h.logs.String(), "nil pointer") {
		t.Error("the log does not have the panic")
	}
}

func TestAuthentication(t *testing.T) {
	h := serve(t, controllertest.New(t))
	for _, header := range []string{"", "Bearer", "Bearer ", "Basic " + testToken, testToken, "Bearer wrong", "Bearer " + testToken + "x"} {
		req := h.request("GET", "/v2/sandboxes", "")
		req.Header.Set("Authorization", header)
		a := h.send(req)
		e := a.error(t)
		if a.status != 401 || e.Code != skerry.CodeUnauthorized || e.Message != "the access token is missing or not valid" {
			t.Errorf("Authorization %q: %d %+v", header, a.status, e)
		}
		if a.header.Get("WWW-Authenticate") != "Bearer" {
			t.Errorf("Authorization %q: no WWW-Authenticate", header)
		}
	}
	req := h.request("GET", "/v2/sandboxes", "")
	req.Header.Set("Authorization", "bearer "+testToken)
	if a := h.send(req); a.status != 200 {
		t.Errorf("the scheme is not case-insensitive: %d", a.status)
	}
	req.Header.Set("Authorization", "Bearer breaks")
	if a := h.send(req); a.status != 500 {
		t.Errorf("an authenticator that fails: %d", a.status)
	}
	for _, path := range []string{"/healthz", "/health", "/openapi.json", "/api/openapi.json"} {
		req := h.request("GET", path, "")
		req.Header.Del("Authorization")
		if a := h.send(req); a.status != 200 {
			t.Errorf("GET %s without a token: %d", path, a.status)
		}
	}
}

func TestScopeMustBeTheTokens(t *testing.T) {
	h := serve(t, controllertest.New(t))
	for _, q := range []string{
		"teamId=team_1", "teamId=islanders", "slug=islanders", "projectId=prj_1", "project=rocks",
		"project=vercel-sandbox-default-project", "teamId=", "teamId=team_1&project=prj_1",
	} {
		if a := h.call("GET", "/v2/sandboxes?"+q, ""); a.status != 200 {
			t.Errorf("%s: %d %s", q, a.status, a.body)
		}
	}
	for q, field := range map[string]string{
		"teamId=team_2": "teamId", "slug=others": "slug", "projectId=prj_2": "projectId", "project=pebbles": "project",
		"teamId=team_1&teamId=team_2": "teamId",
	} {
		h.refused("GET", "/v2/sandboxes?"+q, "", 403, skerry.CodeForbidden, field)
	}
	h.refused("POST", "/v3/sandboxes", `{"projectId":"prj_2"}`, 403, skerry.CodeForbidden, "projectId")
	h.refused("POST", "/v3/sandboxes", `{"teamId":"team_2"}`, 403, skerry.CodeForbidden, "teamId")
	if a := h.call("POST", "/v3/sandboxes", `{"projectId":"rocks"}`); a.status != 200 {
		t.Errorf("own project in a body: %d %s", a.status, a.body)
	}
}

func TestUnknownRoutes(t *testing.T) {
	h := serve(t, controllertest.New(t))
	for _, path := range []string{"/", "/v1/sandboxesque", "/v2/nothing", "/api"} {
		a := h.call("GET", path, "")
		if e := a.error(t); a.status != 404 || e.Code != skerry.CodeNotFound {
			t.Errorf("GET %s: %d %+v", path, a.status, e)
		}
	}
	if a := h.call("POST", "/v2/sandboxes/a/other", ""); a.status != 404 {
		t.Errorf("POST /v2/sandboxes/a/other: %d", a.status)
	}
	a := h.call("PUT", "/api/v2/sandboxes/a", "")
	if a.status != 405 || a.header.Get("Allow") != "GET, PATCH, DELETE" {
		t.Errorf("PUT: %d, Allow %q", a.status, a.header.Get("Allow"))
	}
	a.error(t)
}

func TestScopeEndpoints(t *testing.T) {
	h := serve(t, controllertest.New(t))
	if u := ok[userResponse](h, "GET", "/v2/user", "").User; u.DefaultTeamID == nil || *u.DefaultTeamID != "team_1" || u.Username != "islanders" {
		t.Errorf("user: %+v", u)
	}
	teams := ok[teamsResponse](h, "GET", "/api/v2/teams?limit=20", "")
	if len(teams.Teams) != 1 || teams.Teams[0].Slug != "islanders" || teams.Teams[0].Membership.Role != "OWNER" || teams.Pagination.Count != 1 {
		t.Errorf("teams: %+v", teams)
	}
	for _, id := range []string{"team_1", "islanders"} {
		if team := ok[teamView](h, "GET", "/v2/teams/"+id, ""); team.ID != "team_1" {
			t.Errorf("team %s: %+v", id, team)
		}
	}
	h.refused("GET", "/v2/teams/team_2", "", 403, skerry.CodeForbidden, "team")
	for _, id := range []string{"prj_1", "rocks", defaultProject} {
		if p := ok[skerry.Project](h, "GET", "/v2/projects/"+id+"?teamId=team_1", ""); p.ID != "prj_1" || p.Name != "rocks" {
			t.Errorf("project %s: %+v", id, p)
		}
	}
	h.refused("GET", "/v2/projects/pebbles", "", 404, skerry.CodeNotFound, "")
	if p := ok[skerry.Project](h, "POST", "/v11/projects?slug=islanders", `{"name":"vercel-sandbox-default-project"}`); p.ID != "prj_1" {
		t.Errorf("created project: %+v", p)
	}
	h.refused("POST", "/v11/projects", `{"name":"new"}`, 403, skerry.CodeForbidden, "name")
	h.refused("POST", "/v11/projects", `{}`, 400, skerry.CodeBadRequest, "name")
}

func TestSandboxLife(t *testing.T) {
	h := serve(t, controllertest.New(t))
	for i, prefix := range []string{"", "/api"} {
		name := fmt.Sprintf("box%d", i)
		run := ok[runResponse](h, "POST", prefix+"/v3/sandboxes", fmt.Sprintf(`{
			"name":%q,"ports":[],"persistent":false,"networkPolicy":{"mode":"allow-all"},"mounts":{},"region":"local","failoverRegions":["local"],
			"timeout":60000,"resources":{"vcpus":2,"memory":4096},"env":{"A":"b"},"tags":{"k":"v:w"},"projectId":"rocks",
			"keepLastSnapshots":null,"snapshotExpiration":null,"__interactive":true,"unknown":[{}]}`, name))
		if run.Sandbox.Name != name || run.Session.Status != skerry.StatusRunning || run.Session.InteractivePort == 0 || run.Routes == nil {
			t.Fatalf("created: %+v", run)
		}
		if run.Session.ProjectID != "prj_1" || run.Session.SourceSandboxName != name {
			t.Errorf("session: %+v", run.Session)
		}
		h.refused("POST", prefix+"/v2/sandboxes", fmt.Sprintf(`{"name":%q}`, name), 409, skerry.CodeConflict, "name")
		box := prefix + "/v2/sandboxes/" + name
		session := prefix + "/v2/sandboxes/sessions/" + run.Session.ID
		if got := ok[runResponse](h, "GET", box+"?projectId=prj_1&resume=false&__includeSystemRoutes=true", ""); got.Resumed || got.Session.ID != run.Session.ID {
			t.Errorf("got: %+v", got)
		}
		if got := ok[sandboxResponse](h, "PATCH", box, `{"timeout":120000,"tags":{"x":"y"},"currentSnapshotId":null}`); got.Sandbox.Tags["x"] != "y" {
			t.Errorf("updated: %+v", got)
		}
		if got := ok[extendResponse](h, "POST", session+"/extend-timeout", `{"duration":1000}`); got.Session.Timeout.Millis() != 61000 {
			t.Errorf("extended: %+v", got)
		}
		h.refused("POST", session+"/extend-timeout", `{"duration":86400000}`, 400, skerry.CodeTimeoutInvalid, "duration")
		if got := ok[sessionsResponse](h, "GET", prefix+"/v2/sandboxes/sessions?name="+name+"&sortOrder=asc", ""); len(got.Sessions) != 1 {
			t.Errorf("sessions: %+v", got)
		}
		if got := ok[stopResponse](h, "POST", session+"/stop", ""); got.Session.Status != skerry.StatusStopped {
			t.Errorf("stopped: %+v", got)
		}
		h.refused("POST", session+"/interactive", "", 410, skerry.CodeSandboxStopped, "")
		h.refused("POST", session+"/cmd", `{"command":"true"}`, 410, skerry.CodeSandboxStopped, "")
		if got := ok[runResponse](h, "GET", box+"?resume=true", ""); !got.Resumed || got.Session.ID == run.Session.ID {
			t.Errorf("resumed: %+v", got)
		}
		if got := ok[sandboxResponse](h, "DELETE", box+"?deleteOrphanSnapshots=true", ""); got.Sandbox.Name != name {
			t.Errorf("deleted: %+v", got)
		}
		h.refused("GET", box, "", 404, skerry.CodeNotFound, "")
	}
}

func TestListPages(t *testing.T) {
	h := serve(t, controllertest.New(t))
	for _, name := range []string{"a1", "a2", "a3", "b1"} {
		ok[runResponse](h, "POST", "/v3/sandboxes", fmt.Sprintf(`{"name":%q,"tags":{"n":%q}}`, name, name))
	}
	var seen []string
	cursor := ""
	for {
		page := ok[sandboxesResponse](h, "GET", "/v2/sandboxes?limit=2&sortBy=name&sortOrder=asc&namePrefix=a&cursor="+url.QueryEscape(cursor), "")
		for _, s := range page.Sandboxes {
			seen = append(seen, s.Name)
		}
		if page.Pagination.Count != len(page.Sandboxes) {
			t.Errorf("count %d of %d", page.Pagination.Count, len(page.Sandboxes))
		}
		if page.Pagination.Next == nil {
			break
		}
		cursor = *page.Pagination.Next
	}
	if got := strings.Join(seen, " "); got != "a1 a2 a3" {
		t.Errorf("listed %s", got)
	}
	if page := ok[sandboxesResponse](h, "GET", "/v2/sandboxes?tags=n:b1", ""); len(page.Sandboxes) != 1 || page.Sandboxes[0].Name != "b1" {
		t.Errorf("by tag: %+v", page)
	}
	if a := h.call("GET", "/v2/sandboxes?namePrefix=zzz", ""); !strings.Contains(string(a.body), `"sandboxes":[]`) || !strings.Contains(string(a.body), `"next":null`) {
		t.Errorf("empty page: %s", a.body)
	}
}

func TestParametersReachTheService(t *testing.T) {
	svc := &stub{err: skerry.Errorf(skerry.CodeBadRequest, "as far as the stub goes")}
	h := serve(t, svc)
	h.call("POST", "/v3/sandboxes", `{"name":"n","image":"i","timeout":5,"resources":{"vcpus":4},"env":{"A":"1"},"tags":{"t":"v"},
		"source":{"type":"git","url":"https://h/r","depth":1,"revision":"main","username":"u","password":"p"}}`)
	if p := svc.created; p.Name != "n" || p.Image != "i" || p.Timeout.Millis() != 5 || p.VCPUs != 4 || p.MemoryMB != 0 || p.Env["A"] != "1" ||
		p.Tags["t"] != "v" || *p.Source != (skerry.Source{Type: "git", URL: "https://h/r", Depth: 1, Revision: "main", Username: "u", Password: "p"}) {
		t.Errorf("created with %+v, source %+v", p, p.Source)
	}
	h.call("PATCH", "/v2/sandboxes/n", `{"timeout":7,"resources":{"vcpus":8,"memory":9},"tags":{}}`)
	if p := svc.updated; p.Timeout.Millis() != 7 || *p.VCPUs != 8 || *p.MemoryMB != 9 || p.Tags == nil || len(p.Tags) != 0 || p.Env != nil {
		t.Errorf("updated with %+v", p)
	}
	h.call("GET", "/v2/sandboxes?limit=7&cursor=c&sortBy=name&sortOrder=asc&namePrefix=p&tags=a:b:c&tags=d:", "")
	if f := svc.filter; f.Limit != 7 || f.Cursor != "c" || f.SortBy != "name" || !f.Ascending || f.NamePrefix != "p" || f.Tags["a"] != "b:c" || len(f.Tags) != 2 {
		t.Errorf("listed with %+v", f)
	}
	h.call("POST", "/v2/sandboxes/sessions/s/cmd", `{"command":"c","args":["a"],"cwd":"d","env":{"E":"f"},"sudo":true,"timeout":9}`)
	if p := svc.seen; p.Name != "c" || p.Args[0] != "a" || p.Cwd != "d" || p.Env["E"] != "f" || !p.Sudo || p.Timeout.Millis() != 9 {
		t.Errorf("ran with %+v", p)
	}
	for body, want := range map[string]int{`{"signal":9}`: 9, `{"signal":"SIGHUP"}`: 1, `{"signal":"kill"}`: 9, `{}`: 15, ``: 15} {
		if h.call("POST", "/v2/sandboxes/sessions/s/cmd/c/kill", body); svc.signal != want {
			t.Errorf("kill %s: signal %d", body, svc.signal)
		}
	}
}

func TestAccessLogHoldsNoSecrets(t *testing.T) {
	h := serve(t, controllertest.New(t))
	h.call("GET", "/v2/sandboxes/sessions/s/interactive?token=sesame", "")
	h.call("GET", "/v2/sandboxes?limit=1", "")
	logs := h.logs.String()
	for _, secret := range []string{"sesame", testToken} {
		if strings.Contains(logs, secret) {
			t.Errorf("the log holds %q:\n%s", secret, logs)
		}
	}
	for _, want := range []string{"route=/v2/sandboxes", "status=200", "project=prj_1", "token=tok_1", "session=s"} {
		if !strings.Contains(logs, want) {
			t.Errorf("the log lacks %q:\n%s", want, logs)
		}
	}
}

func TestNewChecksItsOptions(t *testing.T) {
	if _, err := New(Options{}); err == nil {
		t.Error("a server without a service")
	}
	h := serve(t, &stub{})
	for _, u := range []string{"example.com", "ftp://x", "http://"} {
		if _, err := New(Options{Service: &stub{}, Accounts: oneAccount{}, Log: h.srv.log, PublicURL: u}); err == nil {
			t.Errorf("public URL %q was accepted", u)
		}
	}
}

// TestRequestsAreObserved has requests that succeed, fail, match no route and have no
// token: each is told once, by its operation and never by its path.
func TestRequestsAreObserved(t *testing.T) {
	type seen struct {
		operation string
		status    int
		code      skerry.Code
	}
	told := make(chan seen, 10)
	svc := &stub{}
	h := serve(t, svc, func(o *Options) {
		o.Observe = func(operation string, status int, code skerry.Code, took time.Duration) {
			if took <= 0 {
				t.Errorf("%s took %v", operation, took)
			}
			told <- seen{operation, status, code}
		}
	})
	h.call("GET", "/healthz", "")
	svc.err = &skerry.Error{Code: skerry.CodeNotFound, Message: "why"}
	h.call("GET", "/v2/sandboxes/a-name", "")
	h.call("GET", "/no/such/path", "")
	resp, err := http.Get(h.url + "/v2/sandboxes/a-name")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	for _, want := range []seen{{"healthz", 200, ""}, {"getSandbox", 404, skerry.CodeNotFound}, {"none", 404, skerry.CodeNotFound}, {"getSandbox", 401, skerry.CodeUnauthorized}} {
		if got := <-told; got != want {
			t.Errorf("told %+v, want %+v", got, want)
		}
	}
	if len(told) > 0 {
		t.Errorf("told %+v, too", <-told)
	}
}
