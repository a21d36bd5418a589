package api

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/auth"
	"github.com/skerry-dev/skerry/internal/controller"
	"github.com/skerry-dev/skerry/internal/controller/controllertest"
	"github.com/skerry-dev/skerry/internal/ingress"
)

// world is a server with two teams. The first has two projects; the first of these has one of
// everything.
type world struct {
	*harness
	accounts *auth.Auth
	// values are those of the names in paths, for what the first project has.
	values map[string]string
	// tokens by whose they are.
	tokens map[string]string
}

func newWorld(t *testing.T) *world {
	in, err := ingress.New(ingress.Config{Log: slog.New(slog.DiscardHandler), FirstPort: 51000, LastPort: 59999})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	})
	service := controllertest.New(t, func(c *controller.Config) { c.Ingress = in })
	accounts := auth.New(service.Store)
	if err := accounts.OpenIssuer(t.Context(), "https://skerry.example.com", slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	w := &world{accounts: accounts, tokens: map[string]string{}, values: map[string]string{}}
	w.harness = serve(t, service, func(o *Options) { o.Accounts = accounts })
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	own, team := controllertest.Project.ID, controllertest.Team.ID
	other, err := accounts.CreateProject(ctx, team, "other")
	must(err)
	stranger, err := accounts.CreateTeam(ctx, "strangers", "")
	must(err)
	strange, err := accounts.CreateProject(ctx, stranger.ID, "theirs")
	must(err)
	alice, err := accounts.AddMember(ctx, team, "alice", skerry.RoleDeveloper)
	must(err)
	mallory, err := accounts.AddMember(ctx, stranger.ID, "mallory", skerry.RoleOwner)
	must(err)
	id := func(name string, p skerry.TokenParams) string {
		p.Name = name
		secret, token, err := accounts.CreateToken(ctx, p)
		must(err)
		w.tokens[name] = secret
		return token.ID
	}
	id("admin", skerry.TokenParams{Role: skerry.RoleAdmin})
	id("team owner", skerry.TokenParams{TeamID: team, Role: skerry.RoleOwner})
	id("developer", skerry.TokenParams{TeamID: team, ProjectID: own, Role: skerry.RoleDeveloper})
	id("viewer", skerry.TokenParams{TeamID: team, ProjectID: own, Role: skerry.RoleViewer})
	id("team viewer", skerry.TokenParams{TeamID: team, Role: skerry.RoleViewer})
	id("alice", skerry.TokenParams{UserID: alice.User.ID, Role: skerry.RoleOwner})
	id("other project", skerry.TokenParams{TeamID: team, ProjectID: other.ID, Role: skerry.RoleOwner})
	id("strangers", skerry.TokenParams{TeamID: stranger.ID, Role: skerry.RoleOwner})
	id("strange project", skerry.TokenParams{TeamID: stranger.ID, ProjectID: strange.ID, Role: skerry.RoleOwner})
	id("mallory", skerry.TokenParams{UserID: mallory.User.ID, Role: skerry.RoleOwner})
	develop := func(name, team, project string) {
		id, err := accounts.Authenticate(ctx, w.tokens[name])
		must(err)
		w.tokens["development of "+name], _, err = accounts.DevelopmentToken(ctx, id, team, project)
		must(err)
	}
	revoked := id("revoked", skerry.TokenParams{TeamID: team, Role: skerry.RoleOwner})
	develop("revoked", team, own)
	develop("viewer", team, own)
	develop("strangers", stranger.ID, strange.ID)
	develop("team owner", team, other.ID)
	_, err = accounts.RevokeToken(ctx, revoked)
	must(err)
	id("expired", skerry.TokenParams{TeamID: team, Role: skerry.RoleOwner, ExpiresAt: skerry.At(time.Now().Add(20 * time.Millisecond))})
	w.tokens["unknown"], w.tokens["none"] = "skerry_"+strings.Repeat("A", 46), ""

	w.values["team"], w.values["project"], w.values["user"] = team, own, alice.User.ID
	w.values["token"] = id("victim", skerry.TokenParams{TeamID: team, ProjectID: own, Role: skerry.RoleViewer})
	with := "?teamId=" + team + "&projectId=" + own
	saved := as[runResponse](w, "developer", "POST", "/v3/sandboxes"+with, `{"name":"saved"}`)
	stopped := as[stopResponse](w, "developer", "POST", sessionsPath+"/"+saved.Session.ID+"/stop"+with, "")
	w.values["snapshot"] = stopped.Snapshot.ID
	run := as[runResponse](w, "developer", "POST", "/v3/sandboxes"+with, `{"name":"box","ports":[3000],"privatePorts":[3000]}`)
	w.values["name"], w.values["session"] = "box", run.Session.ID
	cmd := as[commandResponse](w, "developer", "POST", sessionsPath+"/"+run.Session.ID+"/cmd"+with, `{"command":"cat","attachStdin":true}`)
	w.values["command"] = cmd.Command.ID
	as[emptyResponse](w, "developer", "POST", sessionsPath+"/"+run.Session.ID+"/fs/write"+with, archive(t, "present"))
	drive := as[driveResponse](w, "developer", "POST", drivesPath+"/data"+with, `{}`)
	w.values["drive"] = drive.Drive.Name
	w.values["driveId"], w.values["port"] = drive.Drive.ID, "3000"
	time.Sleep(20 * time.Millisecond) // until the token has expired
	return w
}

// ask makes a call with a token.
func (w *world) ask(token, method, path, body string) *answer {
	w.Helper()
	req := w.request(method, path, body)
	req.Header.Set("Authorization", "Bearer "+w.tokens[token])
	if w.tokens[token] == "" {
		req.Header.Del("Authorization")
	}
	return w.send(req)
}

// as makes a call that succeeds.
func as[T any](w *world, token, method, path, body string) (v T) {
	w.Helper()
	a := w.ask(token, method, path, body)
	if a.status >= 300 {
		w.Fatalf("%s %s as %s: %d %s", method, path, token, a.status, a.body)
	}
	if err := json.Unmarshal(a.body, &v); err != nil {
		w.Fatal(err)
	}
	return v
}

// state is all of the first project, and what the team has.
func (w *world) state() string {
	w.Helper()
	with := "?teamId=" + w.values["team"] + "&projectId=" + w.values["project"]
	var all strings.Builder
	for _, path := range []string{
		sandboxesPath, sessionsPath, snapshotsPath, drivesPath, sessionsPath + "/" + w.values["session"] + "/cmd",
	} {
		a := w.ask("developer", "GET", path+with, "")
		if a.status != http.StatusOK {
			w.Fatalf("%s: %d %s", path, a.status, a.body)
		}
		fmt.Fprintf(&all, "%s\n%s\n", path, a.body)
	}
	files := w.ask("developer", "POST", sessionsPath+"/"+w.values["session"]+"/fs/read"+with, `{"path":"written"}`)
	fmt.Fprintf(&all, "a file: %d\n", files.status)
	team, err := w.accounts.Team(w.Context(), w.values["team"])
	if err != nil {
		w.Fatal(err)
	}
	members, _, err := w.accounts.Members(w.Context(), team.ID, skerry.Page{})
	if err != nil {
		w.Fatal(err)
	}
	projects, _, err := w.accounts.Projects(w.Context(), team.ID, skerry.Page{})
	if err != nil {
		w.Fatal(err)
	}
	tokens, _, err := w.accounts.Tokens(w.Context(), team.ID, "", skerry.Page{})
	if err != nil {
		w.Fatal(err)
	}
	for i := range tokens {
		tokens[i].LastUsedAt = skerry.Time{}
	}
	fmt.Fprintln(&all, team, members, projects, tokens)
	return all.String()
}

// revoke revokes the tokens of a name.
func (w *world) revoke(name string) {
	w.Helper()
	tokens, _, err := w.accounts.Tokens(w.Context(), w.values["team"], "", skerry.Page{Limit: skerry.MaxPageSize})
	if err != nil {
		w.Fatal(err)
	}
	for _, t := range tokens {
		if t.Name == name {
			if _, err := w.accounts.RevokeToken(w.Context(), t.ID); err != nil {
				w.Fatal(err)
			}
		}
	}
}

// bodies are those of calls that need one, by operation.
var bodies = map[string]string{
	"createSandbox": `{"name":"new"}`, "createSandboxWithRuntime": `{"name":"new"}`, "forkSandbox": `{"name":"new"}`, "updateSandbox": `{"tags":{"a":"b"}}`,
	"createRouteToken": `{"port":3000}`, "forkDrive": `{"name":"new"}`, "extendTimeout": `{"duration":1000}`, "setNetworkPolicy": `{"mode":"deny-all"}`,
	"runCommand": `{"command":"true"}`, "writeStdin": `{"data":"","close":true}`, "killCommand": `{"signal":9}`, "readFile": `{"path":"present"}`,
	"makeDir": `{"path":"new"}`, "createTeam": `{"slug":"new"}`, "updateTeam": `{"name":"New"}`, "createProject": `{"name":"new"}`, "updateProject": `{"name":"new"}`,
	"addMember": `{"user":"bob","role":"viewer"}`, "updateMember": `{"role":"viewer"}`, "createToken": `{"name":"new","role":"viewer"}`,
}

// mayDo says for each operation that is not in the list what it takes: to read, a viewer,
// and for all else a developer.
var mayDo = map[string]string{
	"createTeam": "admin", "deleteTeam": "admin", "updateTeam": "team owner", "createProject": "team owner", "updateProject": "team owner", "deleteProject": "team owner",
	"addMember": "team owner", "updateMember": "team owner", "removeMember": "team owner", "listMembers": "team owner",
	"listTokens": "team owner", "createToken": "team owner", "revokeToken": "team owner",
}

// ofTheCaller are calls that tell of the caller alone, or make something of the caller's.
var ofTheCaller = []string{"getUser", "listTeams"}

// TestEveryCallIsScoped makes every call of the OpenAPI document, for what one project has,
// with the tokens of others. Nothing of it may be told or changed.
func TestEveryCallIsScoped(t *testing.T) {
	w := newWorld(t)
	var document struct {
		Paths map[string]map[string]struct {
			OperationID string          `json:"operationId"`
			Security    *[]any          `json:"security"`
			RequestBody json.RawMessage `json:"requestBody"`
		} `json:"paths"`
	}
	if err := json.Unmarshal(w.srv.document, &document); err != nil {
		t.Fatal(err)
	}
	calls := 0
	for _, path := range slices.Sorted(maps.Keys(document.Paths)) {
		for method, op := range document.Paths[path] {
			if op.Security != nil { // public
				continue
			}
			calls++
			t.Run(op.OperationID, func(t *testing.T) {
				t.Parallel()
				method := strings.ToUpper(method)
				body, ok := bodies[op.OperationID]
				switch {
				case ok:
				case op.OperationID == "writeFiles":
					body = archive(t, "written")
				case strings.Contains(string(op.RequestBody), `"required": true`):
					t.Fatal("the test has no body for this call")
				}
				tryCall(t, op.OperationID, method, path, body)
			})
		}
	}
	if calls < 50 {
		t.Errorf("the document has %d calls that need a token", calls)
	}
}

func archive(t *testing.T, name string) string {
	var b bytes.Buffer
	z := tar.NewWriter(&b)
	if err := z.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func tryCall(t *testing.T, id, method, path, body string) {
	w := newWorld(t)
	full := path
	for name, value := range w.values {
		full = strings.ReplaceAll(full, "{"+name+"}", value)
	}
	if strings.Contains(full, "{") {
		t.Fatalf("the test has no value for %s", full)
	}
	inProject := "projectId=" + w.values["project"]
	inTeam := "teamId=" + w.values["team"]
	tree := ""
	if id == "snapshotTree" {
		tree = "&snapshotId=" + w.values["snapshot"]
	}
	if id == "commandLogs" { // which follow a command that runs
		at := strings.TrimSuffix(full, "/logs")
		as[commandResponse](w, "developer", "POST", at+"/kill", `{"signal":9}`)
		as[commandResponse](w, "developer", "GET", at+"?wait=true", "")
	}
	before := w.state()
	unchanged := func(what string) {
		t.Helper()
		if after := w.state(); after != before {
			t.Fatalf("%s has changed something:\n%s\nand before:\n%s", what, after, before)
		}
	}
	tellsNothing := func(what string, a *answer, ids ...string) {
		t.Helper()
		for _, name := range ids {
			if id := w.values[name]; bytes.Contains(a.body, []byte(`"`+id+`"`)) {
				t.Errorf("%s tells of %s %s: %s", what, name, id, a.body)
			}
		}
	}
	secrets := []string{"session", "snapshot", "command", "driveId", "token"}

	for _, bad := range []string{"none", "unknown", "revoked", "expired", "development of revoked"} {
		a := w.ask(bad, method, full+"?"+inTeam+"&"+inProject+tree, body)
		if a.status != http.StatusUnauthorized || a.error(t).Code != skerry.CodeUnauthorized {
			t.Errorf("with the token %q: %d %s", bad, a.status, a.body)
		}
	}
	for _, stranger := range []string{"strangers", "strange project", "mallory", "other project", "development of strangers", "development of team owner"} {
		for _, query := range []string{"?", "?" + inTeam, "?" + inProject, "?slug=" + controllertest.Team.Slug + "&project=" + controllertest.Project.Name} {
			what := stranger + " with " + query
			ours := stranger == "other project" || stranger == "development of team owner"
			a := w.ask(stranger, method, full+query+tree, body)
			// Names are those of the caller's own project, in which there may be the same.
			if own := query == "?" && a.status < 300; own {
				ofOthers := strings.Contains(path, "{") && !strings.HasSuffix(path, "{drive}") && !(id == "getTeam" && ours)
				if ofOthers {
					t.Errorf("%s: %d %s", what, a.status, a.body)
				}
			} else if a.status < 300 && !slices.Contains(ofTheCaller, id) {
				// The team is their own, and so all that may be shown is their project.
				if !ours || strings.Contains(query, "project") {
					t.Errorf("%s: %d %s", what, a.status, a.body)
				}
			}
			if a.status >= 500 {
				t.Errorf("%s: %d %s", what, a.status, a.body)
			}
			tellsNothing(what, a, secrets...)
			if !ours {
				tellsNothing(what, a, "team", "project", "user")
			}
		}
	}
	if id == "createToken" { // one for another project of the team
		w.revoke("new")
	}
	unchanged("a stranger")

	need := mayDo[id]
	viewers := need == "" && method == http.MethodGet
	for _, viewer := range []string{"viewer", "team viewer", "development of viewer"} {
		a := w.ask(viewer, method, full+"?"+inTeam+"&"+inProject+tree, body)
		want := http.StatusForbidden
		if viewers || id == "listMembers" && viewer == "team viewer" {
			want = http.StatusOK
		}
		if a.status != want {
			t.Errorf("as a %s: %d %s", viewer, a.status, a.body)
		}
	}
	if id == "getSandbox" {
		if a := w.ask("viewer", method, "/v2/sandboxes/saved?resume=true", ""); a.status != http.StatusForbidden {
			t.Errorf("a viewer has resumed a sandbox: %d %s", a.status, a.body)
		}
	}
	if need != "" && need != "admin" {
		a := w.ask("developer", method, full+"?"+inTeam, body)
		if a.status != http.StatusForbidden {
			t.Errorf("as a developer: %d %s", a.status, a.body)
		}
	}
	if need == "" {
		if a := w.ask("admin", method, full+"?"+inTeam+"&"+inProject+tree, body); a.status != http.StatusForbidden && !slices.Contains([]string{"getUser", "listTeams", "getTeam", "listProjects", "getProject", "getQuotas"}, id) {
			t.Errorf("as an administrator: %d %s", a.status, a.body)
		}
	}
	unchanged("a caller without the role")

	// Who may does it, so what failed above has failed for the right reason.
	who, query := "developer", "?"+tree
	switch {
	case need != "":
		who, query = need, "?"+inTeam
	case id == "runCommand":
	case strings.Contains(path, "{session}") || strings.Contains(path, "{snapshot}"):
		who = "alice" // a token for all projects finds them by their ids
	}
	if id == "deleteProject" || id == "deleteTeam" {
		if a := w.ask(who, method, full+query, body); a.status != http.StatusConflict {
			t.Errorf("as %s: %d %s", who, a.status, a.body)
		}
		return
	}
	if a := w.ask(who, method, full+query, body); a.status >= 300 {
		t.Errorf("as %s: %d %s", who, a.status, a.body)
	}
}

// TestRevokedWhileTheBodyComes holds back the end of a body until the token is revoked.
func TestRevokedWhileTheBodyComes(t *testing.T) {
	w := newWorld(t)
	body, end := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "POST", w.url+"/v2/tokens", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.tokens["team owner"])
	answered := make(chan *http.Response, 1)
	go func() {
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Error(err)
		}
		answered <- resp
	}()
	if _, err := io.WriteString(end, `{"name":"back`); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * slowBody)
	id, err := w.accounts.Authenticate(t.Context(), w.tokens["team owner"])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.accounts.RevokeToken(t.Context(), id.TokenID); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(end, ` door"}`); err != nil {
		t.Fatal(err)
	}
	if err := end.Close(); err != nil {
		t.Fatal(err)
	}
	resp := <-answered
	if resp == nil {
		t.Fatal("no answer")
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a revoked token has made another one: %d", resp.StatusCode)
	}
}

// TestSeveralTeams has a user who is a member of two: none of them is the default.
func TestSeveralTeams(t *testing.T) {
	w := newWorld(t)
	stranger, err := w.accounts.Team(t.Context(), "strangers")
	if err != nil {
		t.Fatal(err)
	}
	if u := as[userResponse](w, "alice", "GET", "/v2/user", ""); u.User.DefaultTeamID == nil || *u.User.DefaultTeamID != w.values["team"] {
		t.Errorf("with one team the user is %+v", u)
	}
	if _, err := w.accounts.AddMember(t.Context(), stranger.ID, "alice", skerry.RoleDeveloper); err != nil {
		t.Fatal(err)
	}
	if u := as[userResponse](w, "alice", "GET", "/v2/user", ""); u.User.DefaultTeamID != nil {
		t.Errorf("with two teams the user is %+v", u)
	}
	if a := w.ask("alice", "POST", "/v3/sandboxes", `{"name":"astray"}`); a.status != 400 || a.error(t).Field != "teamId" {
		t.Errorf("a create without a team: %d %s", a.status, a.body)
	}
	if a := w.ask("alice", "GET", sandboxesPath+"?slug="+controllertest.Team.Slug+"&project="+controllertest.Project.Name, ""); a.status != 200 {
		t.Errorf("with a team: %d %s", a.status, a.body)
	}
}

// TestTokensDoNotOutlive has tokens that end make others.
func TestTokensDoNotOutlive(t *testing.T) {
	w := newWorld(t)
	end := skerry.At(time.Now().Add(time.Hour))
	secret, _, err := w.accounts.CreateToken(t.Context(), skerry.TokenParams{Name: "short", TeamID: w.values["team"], Role: skerry.RoleOwner, ExpiresAt: end})
	if err != nil {
		t.Fatal(err)
	}
	w.tokens["short"] = secret
	for _, body := range []string{`{"name":"a"}`, fmt.Sprintf(`{"name":"b","expiresAt":%d}`, end.Add(time.Hour).UnixMilli())} {
		made := as[createTokenResponse](w, "short", "POST", "/v2/tokens", body)
		if made.Token.ExpiresAt.Millis() != end.Millis() {
			t.Errorf("%s ends %v, and its maker %v", body, made.Token.ExpiresAt, end)
		}
	}
}
