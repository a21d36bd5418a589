package store

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/skerry-dev/skerry"
)

func TestAccounts(t *testing.T) { onEach(t, testAccounts) }

func testAccounts(t *testing.T, openIn opener) {
	s := openIn(t, t.TempDir())
	ctx := t.Context()
	code := func(what string, err error, want skerry.Code) {
		t.Helper()
		if skerry.CodeOf(err) != want || err == nil && want != "" {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	ok := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	red := skerry.Team{ID: "team_red", Slug: "red", Name: "Red", CreatedAt: at(1), UpdatedAt: at(1)}
	ok("create a team", s.CreateTeam(ctx, red))
	ok("create it again", s.CreateTeam(ctx, red))
	code("a slug that is taken", s.CreateTeam(ctx, skerry.Team{ID: "team_other", Slug: "red"}), skerry.CodeConflict)
	for _, ref := range []string{"team_red", "red"} {
		if got, err := s.Team(ctx, ref); err != nil || *got != red {
			t.Errorf("Team(%s) = %+v, %v", ref, got, err)
		}
	}
	_, err := s.Team(ctx, "blue")
	code("no team", err, skerry.CodeNotFound)

	web := skerry.Project{ID: "prj_web", TeamID: red.ID, Name: "web", CreatedAt: at(2), UpdatedAt: at(2)}
	ok("create a project", s.CreateProject(ctx, web))
	code("a name that is taken", s.CreateProject(ctx, skerry.Project{ID: "prj_other", TeamID: red.ID, Name: "web"}), skerry.CodeConflict)
	code("a project of no team", s.CreateProject(ctx, skerry.Project{ID: "prj_other", TeamID: "team_none", Name: "web"}), skerry.CodeNotFound)
	if got, err := s.Project(ctx, red.ID, "web"); err != nil || *got != web {
		t.Errorf("Project() = %+v, %v", got, err)
	}
	_, err = s.Project(ctx, scope.TeamID, web.ID)
	code("a project of another team", err, skerry.CodeNotFound)

	alice, err := s.AddMember(ctx, red.ID, skerry.Member{User: skerry.User{ID: "user_1", Name: "alice", CreatedAt: at(3)}, Role: skerry.RoleOwner, CreatedAt: at(3), UpdatedAt: at(3)})
	ok("add a member", err)
	same, err := s.AddMember(ctx, scope.TeamID, skerry.Member{User: skerry.User{ID: "user_2", Name: "alice", CreatedAt: at(4)}, Role: skerry.RoleViewer, CreatedAt: at(4), UpdatedAt: at(4)})
	ok("add her to another team", err)
	if same.User != alice.User {
		t.Errorf("the user is %+v in one team and %+v in the other", alice.User, same.User)
	}
	_, err = s.AddMember(ctx, red.ID, skerry.Member{User: skerry.User{ID: "user_3", Name: "alice"}, Role: skerry.RoleViewer})
	code("a member twice", err, skerry.CodeConflict)
	bob, err := s.AddMember(ctx, red.ID, skerry.Member{User: skerry.User{ID: "user_4", Name: "bob", CreatedAt: at(4)}, Role: skerry.RoleViewer, CreatedAt: at(4), UpdatedAt: at(4)})
	ok("add another one", err)
	viewer := *alice
	viewer.Role = skerry.RoleViewer
	code("the only owner becomes a viewer", s.SetMember(ctx, red.ID, viewer), skerry.CodeConflict)
	code("the only owner is removed", s.RemoveMember(ctx, red.ID, alice.User.ID), skerry.CodeConflict)
	bob.Role = skerry.RoleOwner
	ok("make another owner", s.SetMember(ctx, red.ID, *bob))
	ok("now she may become a viewer", s.SetMember(ctx, red.ID, viewer))
	ok("and an owner again", s.SetMember(ctx, red.ID, *alice))
	ok("the other one may go", s.RemoveMember(ctx, red.ID, bob.User.ID))
	_, err = s.Member(ctx, fullScope.TeamID, "alice")
	code("no member of this team", err, skerry.CodeNotFound)

	grants := func(hash string) []string {
		t.Helper()
		_, id, err := s.TokenByHash(ctx, []byte(hash))
		ok("read the token "+hash, err)
		var all []string
		for _, g := range id.Grants {
			project := "*"
			if g.Project != nil {
				project = g.Project.Name
			}
			all = append(all, fmt.Sprint(g.Team.Slug, " ", project, " ", g.Role))
		}
		return all
	}
	for _, token := range []skerry.AccessToken{
		{ID: "tok_team", TeamID: red.ID, Role: skerry.RoleOwner, CreatedAt: at(1)},
		{ID: "tok_project", TeamID: red.ID, ProjectID: web.ID, Role: skerry.RoleViewer, CreatedAt: at(2)},
		{ID: "tok_user", UserID: alice.User.ID, Role: skerry.RoleDeveloper, CreatedAt: at(3)},
	} {
		ok("create a token", s.CreateToken(ctx, token, []byte(token.ID)))
	}
	code("a token for a project of another team", s.CreateToken(ctx, skerry.AccessToken{ID: "tok_bad", TeamID: scope.TeamID, ProjectID: web.ID}, []byte("bad")), skerry.CodeNotFound)
	for hash, want := range map[string][]string{
		"tok_team": {"red * owner"}, "tok_project": {"red web viewer"}, "tok_user": {"red * developer", "team0 * viewer"},
	} {
		if got := grants(hash); !slices.Equal(got, want) {
			t.Errorf("%s grants %q, want %q", hash, got, want)
		}
	}
	list, next, err := s.Tokens(ctx, TokenFilter{TeamID: red.ID, Page: skerry.Page{Limit: 1}})
	if err != nil || len(list) != 1 || list[0].ID != "tok_project" || next == "" {
		t.Errorf("the first page of tokens: %+v, %q, %v", list, next, err)
	}
	if list, _, err := s.Tokens(ctx, TokenFilter{TeamID: red.ID, ProjectID: web.ID}); err != nil || len(list) != 1 || list[0].ID != "tok_project" {
		t.Errorf("the tokens of a project: %+v, %v", list, err)
	}

	// A project with something in it stays.
	box, run := (&clock{}).box("one")
	box.Scope = skerry.Scope{TeamID: red.ID, ProjectID: web.ID}
	run.Scope = box.Scope
	ok("create a sandbox", s.CreateSandbox(ctx, box, run))
	code("delete a project with a sandbox", s.DeleteProject(ctx, red.ID, web.ID), skerry.CodeConflict)
	code("delete its team", s.DeleteTeam(ctx, red.ID), skerry.CodeConflict)
	if got := grants("tok_project"); len(got) != 1 {
		t.Errorf("a deletion that failed has removed a grant: %q", got)
	}
	ok("delete the sandbox", s.DeleteSandbox(ctx, box.ID))
	code("delete a project of another team", s.DeleteProject(ctx, scope.TeamID, web.ID), skerry.CodeNotFound)
	ok("delete the project", s.DeleteProject(ctx, red.ID, web.ID))
	_, _, err = s.TokenByHash(ctx, []byte("tok_project"))
	code("a token of a deleted project", err, skerry.CodeNotFound)
	code("a sandbox in a deleted project", s.CreateSandbox(ctx, box, run), skerry.CodeNotFound)

	ok("delete the team", s.DeleteTeam(ctx, red.ID))
	if got := grants("tok_user"); !slices.Equal(got, []string{"team0 * viewer"}) {
		t.Errorf("afterwards the user's token grants %q", got)
	}
	ok("remove the last membership", s.RemoveMember(ctx, scope.TeamID, alice.User.ID))
	_, err = s.User(ctx, "alice")
	code("a user without a team", err, skerry.CodeNotFound)
	_, _, err = s.TokenByHash(ctx, []byte("tok_user"))
	code("the token of a user who is gone", err, skerry.CodeNotFound)
}

// TestProjectIsDeletedOrUsed has sandboxes created in a project while it is deleted: one or
// the other.
func TestProjectIsDeletedOrUsed(t *testing.T) { onEach(t, testProjectIsDeletedOrUsed) }

func testProjectIsDeletedOrUsed(t *testing.T, openIn opener) {
	s := openIn(t, t.TempDir())
	ctx := t.Context()
	for i := range 20 {
		p := skerry.Project{ID: fmt.Sprint("prj_", i, "x"), TeamID: scope.TeamID, Name: fmt.Sprint("p", i)}
		if err := s.CreateProject(ctx, p); err != nil {
			t.Fatal(err)
		}
		box, run := (&clock{ms: int64(i)}).box("one")
		box.Scope.ProjectID, run.Scope.ProjectID = p.ID, p.ID
		var createErr, deleteErr error
		var wg sync.WaitGroup
		wg.Go(func() { createErr = s.CreateSandbox(ctx, box, run) })
		wg.Go(func() { deleteErr = s.DeleteProject(ctx, p.TeamID, p.ID) })
		wg.Wait()
		switch {
		case createErr == nil && skerry.CodeOf(deleteErr) == skerry.CodeConflict:
		case deleteErr == nil && skerry.CodeOf(createErr) == skerry.CodeNotFound:
		default:
			t.Errorf("create: %v, delete: %v", createErr, deleteErr)
		}
	}
}

// TestLimitsOfAccounts fills an installation up to its limits.
func TestLimitsOfAccounts(t *testing.T) {
	s := openIn(t, t.TempDir())
	ctx := t.Context()
	fill := func(query string, n int, args ...any) {
		t.Helper()
		for i := range n {
			if _, err := s.write.ExecContext(ctx, fmt.Sprintf(query, i), args...); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := s.write.ExecContext(ctx, "PRAGMA synchronous = OFF"); err != nil {
		t.Fatal(err)
	}
	last := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("the last of the %s: %v", what, err)
		}
	}
	full := func(what string, err error) {
		t.Helper()
		if e, ok := errors.AsType[*skerry.Error](err); !ok || e.Code != skerry.CodeConflict || e.Field != what {
			t.Errorf("one of the %s too many: %v", what, err)
		}
	}
	fill("INSERT INTO projects (id, team_id, name, created_at, updated_at) VALUES ('p%[1]d', ?, 'p%[1]d', 0, 0)", skerry.MaxProjects-3, scope.TeamID)
	last("projects", s.CreateProject(ctx, skerry.Project{ID: "prj_last", TeamID: scope.TeamID, Name: "last"}))
	full("projects", s.CreateProject(ctx, skerry.Project{ID: "prj_more", TeamID: scope.TeamID, Name: "more"}))
	last("projects", s.CreateProject(ctx, skerry.Project{ID: "prj_more", TeamID: fullScope.TeamID, Name: "more"}))

	fill("INSERT INTO users (id, name, created_at) VALUES ('u%[1]d', 'u%[1]d', 0)", skerry.MaxMembers-1)
	fill("INSERT INTO members (team_id, user_id, role, created_at, updated_at) VALUES (?, 'u%[1]d', 'viewer', 0, 0)", skerry.MaxMembers-1, scope.TeamID)
	add := func(name string) error {
		_, err := s.AddMember(ctx, scope.TeamID, skerry.Member{User: skerry.User{ID: "user_" + name, Name: name}, Role: skerry.RoleViewer})
		return err
	}
	last("members", add("last"))
	full("members", add("more"))
	if _, err := s.User(ctx, "more"); skerry.CodeOf(err) != skerry.CodeNotFound {
		t.Errorf("the user that did not fit: %v", err)
	}

	fill("INSERT INTO access_tokens (id, hash, name, team_id, role, created_at, expires_at, last_used_at) VALUES ('t%[1]d', CAST('h%[1]d' AS BLOB), 't', ?, 'viewer', 0, 0, 0)", skerry.MaxTokens-1, scope.TeamID)
	token := func(id string) error {
		return s.CreateToken(ctx, skerry.AccessToken{ID: id, TeamID: scope.TeamID, Role: skerry.RoleViewer}, []byte(id))
	}
	last("tokens", token("tok_last"))
	full("tokens", token("tok_more"))

	// Those that have expired make room.
	exec := func(query string, args ...any) {
		t.Helper()
		if _, err := s.write.ExecContext(ctx, query, args...); err != nil {
			t.Fatal(err)
		}
	}
	exec("UPDATE access_tokens SET expires_at = 1 WHERE id <> 'tok_last'")
	later := func(id, project string) error {
		return s.CreateToken(ctx, skerry.AccessToken{ID: id, TeamID: scope.TeamID, ProjectID: project, Role: skerry.RoleViewer, CreatedAt: skerry.FromMillis(1 + keepExpired.Milliseconds() + 1)}, []byte(id))
	}
	last("tokens after some have expired", later("tok_later", ""))
	if list, _, err := s.Tokens(ctx, TokenFilter{TeamID: scope.TeamID}); err != nil || len(list) != 2 {
		t.Errorf("%d tokens are left, %v", len(list), err)
	}
	for i := range skerry.MaxProjectTokens {
		last("tokens of a project", later(fmt.Sprint("tok_p", i), scope.ProjectID))
	}
	full("tokens", later("tok_pmore", scope.ProjectID))
	last("tokens of the team", later("tok_team", ""))

	fill("INSERT INTO teams (id, slug, name, created_at, updated_at) VALUES ('t%[1]d', 't%[1]d', '', 0, 0)", skerry.MaxTeams-4)
	last("teams", s.CreateTeam(ctx, skerry.Team{ID: "team_last", Slug: "last"}))
	full("teams", s.CreateTeam(ctx, skerry.Team{ID: "team_more", Slug: "more"}))
}
