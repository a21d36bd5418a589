package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/skerry-dev/skerry"
)

// CreateTeam writes a team. A slug that is taken is CodeConflict.
func (s *Store) CreateTeam(ctx context.Context, team skerry.Team) error {
	err := s.update(ctx, func(ctx context.Context, t tx) error { return insertTeam(ctx, t, team) })
	return wrap(s.unlessWritten(ctx, err, "teams", team.ID), "create team")
}

func insertTeam(ctx context.Context, t tx, team skerry.Team) error {
	if err := atMost(ctx, t, skerry.MaxTeams, "the installation", "teams", "SELECT count(*) FROM teams"); err != nil {
		return err
	}
	_, err := t.exec(ctx, "INSERT INTO teams (id, slug, name, created_at, updated_at) VALUES (?, ?, ?, ?, ?)",
		team.ID, team.Slug, team.Name, team.CreatedAt.Millis(), team.UpdatedAt.Millis())
	return takenBy(err, "slug", "a team with the slug %q exists", team.Slug)
}

// atMost is CodeConflict if a query counts as many as there may be.
func atMost(ctx context.Context, t tx, limit int, whose, what, query string, args ...any) error {
	var n int
	if err := t.row(ctx, query, args...).Scan(&n); err != nil {
		return err
	}
	if n >= limit {
		return &skerry.Error{Code: skerry.CodeConflict, Field: what, Message: fmt.Sprintf("%s has %d %s, which is the limit", whose, limit, what)}
	}
	return nil
}

// takenBy makes the error of a name that another row has.
func takenBy(err error, field, format string, name string) error {
	if isUnique(err) {
		return taken{&skerry.Error{Code: skerry.CodeConflict, Field: field, Message: fmt.Sprintf(format, name)}}
	}
	return err
}

const teamColumns = "teams.id, teams.slug, teams.name, teams.created_at, teams.updated_at"

func scanTeam(row scanner) (team skerry.Team, err error) {
	var created, updated int64
	err = row.Scan(&team.ID, &team.Slug, &team.Name, &created, &updated)
	team.CreatedAt, team.UpdatedAt = skerry.FromMillis(created), skerry.FromMillis(updated)
	return team, err
}

// Team returns a team by its id or slug, or CodeNotFound.
func (s *Store) Team(ctx context.Context, ref string) (*skerry.Team, error) {
	team, err := one(ctx, &s.engine, scanTeam, "SELECT "+teamColumns+" FROM teams WHERE id = ? OR slug = ?", ref, ref)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, noTeam(ref)
	}
	return &team, wrap(err, "read team")
}

func noTeam(ref string) error {
	return skerry.Errorf(skerry.CodeNotFound, "there is no team %q", ref).About(skerry.ResourceTeam)
}

// Teams returns one page of the teams and the next cursor.
func (s *Store) Teams(ctx context.Context, page skerry.Page) ([]skerry.Team, string, error) {
	l := &listing{key: "slug", text: true, page: page, where: []string{"1 = 1"}}
	return readPage(ctx, l, "teams", func(ctx context.Context, tail string, args ...any) ([]skerry.Team, error) {
		all, err := list(ctx, &s.engine, scanTeam, "SELECT "+teamColumns+" FROM teams "+tail, args...)
		return all, wrap(err, "list teams")
	}, func(t *skerry.Team) (any, string) { return t.Slug, t.ID })
}

// SetTeam writes the slug and the name of a team.
func (s *Store) SetTeam(ctx context.Context, team skerry.Team) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		err := changed(t.exec(ctx, "UPDATE teams SET slug = ?, name = ?, updated_at = ? WHERE id = ?", team.Slug, team.Name, team.UpdatedAt.Millis(), team.ID))
		if errors.Is(err, errChanged) {
			return noTeam(team.ID)
		}
		return takenBy(err, "slug", "a team with the slug %q exists", team.Slug)
	}), "change team")
}

// DeleteTeam removes a team with its projects, members and tokens. If a project has
// something in it, it is CodeConflict.
func (s *Store) DeleteTeam(ctx context.Context, id string) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		if err := t.row(ctx, "SELECT id FROM teams WHERE id = ?"+t.forUpdate, id).Scan(new(string)); errors.Is(err, sql.ErrNoRows) {
			return noTeam(id)
		} else if err != nil {
			return err
		}
		projects, err := lockProjects(ctx, t, "team_id = ?", id)
		if err != nil {
			return err
		}
		for _, p := range projects {
			if err := mustBeEmpty(ctx, t, p); err != nil {
				return err
			}
		}
		for _, query := range []string{
			"DELETE FROM access_tokens WHERE team_id = ?", "DELETE FROM quotas WHERE team_id = ?", "DELETE FROM projects WHERE team_id = ?",
			"DELETE FROM members WHERE team_id = ?", "DELETE FROM teams WHERE id = ?",
		} {
			if _, err := t.exec(ctx, query, id); err != nil {
				return err
			}
		}
		return dropUsers(ctx, t)
	}), "delete team")
}

// dropUsers removes the users who are no team's members. They are locked before, so that one
// who becomes a member meanwhile is seen.
func dropUsers(ctx context.Context, t tx) error {
	rows, err := t.QueryContext(ctx, "SELECT id FROM users WHERE NOT EXISTS (SELECT 1 FROM members WHERE user_id = users.id)"+t.forUpdate)
	if err != nil {
		return err
	}
	if _, err := scanAll(rows, column[string]); err != nil {
		return err
	}
	_, err = t.exec(ctx, "DELETE FROM users WHERE NOT EXISTS (SELECT 1 FROM members WHERE user_id = users.id)")
	return err
}

// CreateProject writes a project. A name that is taken is CodeConflict.
func (s *Store) CreateProject(ctx context.Context, p skerry.Project) error {
	err := s.update(ctx, func(ctx context.Context, t tx) error { return insertProject(ctx, t, p) })
	return wrap(s.unlessWritten(ctx, err, "projects", p.ID), "create project")
}

func insertProject(ctx context.Context, t tx, p skerry.Project) error {
	if err := t.row(ctx, "SELECT id FROM teams WHERE id = ?"+t.forUpdate, p.TeamID).Scan(new(string)); errors.Is(err, sql.ErrNoRows) {
		return noTeam(p.TeamID)
	} else if err != nil {
		return err
	}
	if err := atMost(ctx, t, skerry.MaxProjects, "the team", "projects", "SELECT count(*) FROM projects WHERE team_id = ?", p.TeamID); err != nil {
		return err
	}
	_, err := t.exec(ctx, "INSERT INTO projects (id, team_id, name, created_at, updated_at) VALUES (?, ?, ?, ?, ?)",
		p.ID, p.TeamID, p.Name, p.CreatedAt.Millis(), p.UpdatedAt.Millis())
	return takenBy(err, "name", "the team has a project named %q", p.Name)
}

// CreateAccount writes a team and a project in it.
func (s *Store) CreateAccount(ctx context.Context, team skerry.Team, p skerry.Project) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		if err := insertTeam(ctx, t, team); err != nil {
			return err
		}
		return insertProject(ctx, t, p)
	}), "create account")
}

const projectColumns = "projects.id, projects.team_id, projects.name, projects.created_at, projects.updated_at"

func scanProject(row scanner) (p skerry.Project, err error) {
	var created, updated int64
	err = row.Scan(&p.ID, &p.TeamID, &p.Name, &created, &updated)
	p.CreatedAt, p.UpdatedAt = skerry.FromMillis(created), skerry.FromMillis(updated)
	return p, err
}

// FirstProject returns the oldest project, or CodeNotFound in an empty store.
func (s *Store) FirstProject(ctx context.Context) (*skerry.Project, error) {
	p, err := one(ctx, &s.engine, scanProject, "SELECT "+projectColumns+" FROM projects ORDER BY created_at, id LIMIT 1")
	if errors.Is(err, sql.ErrNoRows) {
		return nil, skerry.Errorf(skerry.CodeNotFound, "there is no project yet").About(skerry.ResourceProject)
	}
	return &p, wrap(err, "read project")
}

// Project returns a project of a team by its id or name, or CodeNotFound.
func (s *Store) Project(ctx context.Context, teamID, ref string) (*skerry.Project, error) {
	p, err := one(ctx, &s.engine, scanProject, "SELECT "+projectColumns+" FROM projects WHERE team_id = ? AND (id = ? OR name = ?)", teamID, ref, ref)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, noProject(ref)
	}
	return &p, wrap(err, "read project")
}

func noProject(ref string) error {
	return skerry.Errorf(skerry.CodeNotFound, "there is no project %q in this team", ref).About(skerry.ResourceProject)
}

// Projects returns one page of a team's projects and the next cursor.
func (s *Store) Projects(ctx context.Context, teamID string, page skerry.Page) ([]skerry.Project, string, error) {
	l := &listing{key: "name", text: true, page: page}
	l.and("projects.team_id = ?", teamID)
	return readPage(ctx, l, "projects", func(ctx context.Context, tail string, args ...any) ([]skerry.Project, error) {
		all, err := list(ctx, &s.engine, scanProject, "SELECT "+projectColumns+" FROM projects "+tail, args...)
		return all, wrap(err, "list projects")
	}, func(p *skerry.Project) (any, string) { return p.Name, p.ID })
}

// SetProject writes the name of a project.
func (s *Store) SetProject(ctx context.Context, p skerry.Project) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		err := changed(t.exec(ctx, "UPDATE projects SET name = ?, updated_at = ? WHERE id = ? AND team_id = ?", p.Name, p.UpdatedAt.Millis(), p.ID, p.TeamID))
		if errors.Is(err, errChanged) {
			return noProject(p.ID)
		}
		return takenBy(err, "name", "the team has a project named %q", p.Name)
	}), "change project")
}

// DeleteProject removes a project with its tokens. If there is something in it, it is
// CodeConflict.
func (s *Store) DeleteProject(ctx context.Context, teamID, id string) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		projects, err := lockProjects(ctx, t, "team_id = ? AND id = ?", teamID, id)
		if err != nil {
			return err
		}
		if len(projects) == 0 {
			return noProject(id)
		}
		if err := mustBeEmpty(ctx, t, projects[0]); err != nil {
			return err
		}
		for _, query := range []string{"DELETE FROM access_tokens WHERE project_id = ?", "DELETE FROM quotas WHERE project_id = ?"} {
			if _, err := t.exec(ctx, query, id); err != nil {
				return err
			}
		}
		_, err = t.exec(ctx, "DELETE FROM projects WHERE id = ?", id)
		return err
	}), "delete project")
}

// lockProjects reads projects, in which nothing begins until the transaction ends.
func lockProjects(ctx context.Context, t tx, where string, args ...any) ([]skerry.Project, error) {
	rows, err := t.QueryContext(ctx, t.bind("SELECT "+projectColumns+" FROM projects WHERE "+where+t.forUpdate), args...)
	if err != nil {
		return nil, err
	}
	return scanAll(rows, scanProject)
}

// mustBeEmpty returns CodeConflict for a project that something is in. Snapshots that were
// deleted do not count; they go with the project.
func mustBeEmpty(ctx context.Context, t tx, p skerry.Project) error {
	for _, in := range []struct{ what, where string }{
		{"sandboxes", "FROM sandboxes WHERE project_id = ?"},
		{"snapshots", "FROM snapshots WHERE project_id = ? AND status <> 'deleted'"},
		{"drives", "FROM drives WHERE project_id = ?"},
	} {
		var n int
		if err := t.row(ctx, "SELECT count(*) "+in.where, p.ID).Scan(&n); err != nil {
			return err
		}
		if n > 0 {
			return skerry.Errorf(skerry.CodeConflict, "project %q has %s (%d); delete them first", p.Name, in.what, n).About(skerry.ResourceProject)
		}
	}
	_, err := t.exec(ctx, "DELETE FROM snapshots WHERE project_id = ?", p.ID)
	return err
}

// mustHaveProject returns CodeNotFound unless a project exists. It stays until the
// transaction ends.
func mustHaveProject(ctx context.Context, t tx, scope skerry.Scope) error {
	err := t.row(ctx, "SELECT id FROM projects WHERE id = ? AND team_id = ?"+t.forKeyShare, scope.ProjectID, scope.TeamID).Scan(new(string))
	if errors.Is(err, sql.ErrNoRows) {
		return noProject(scope.ProjectID)
	}
	return err
}

// AddMember makes a user a member of a team; the user is made if there is none of that name.
// It returns the member. One who is a member already is CodeConflict.
func (s *Store) AddMember(ctx context.Context, teamID string, m skerry.Member) (*skerry.Member, error) {
	err := s.update(ctx, func(ctx context.Context, t tx) error {
		if err := t.row(ctx, "SELECT id FROM teams WHERE id = ?"+t.forUpdate, teamID).Scan(new(string)); errors.Is(err, sql.ErrNoRows) {
			return noTeam(teamID)
		} else if err != nil {
			return err
		}
		if err := atMost(ctx, t, skerry.MaxMembers, "the team", "members", "SELECT count(*) FROM members WHERE team_id = ?", teamID); err != nil {
			return err
		}
		_, err := t.exec(ctx, "INSERT INTO users (id, name, created_at) VALUES (?, ?, ?) ON CONFLICT (name) DO NOTHING",
			m.User.ID, m.User.Name, m.User.CreatedAt.Millis())
		if err != nil {
			return err
		}
		var created int64
		if err := t.row(ctx, "SELECT id, created_at FROM users WHERE name = ?"+t.forKeyShare, m.User.Name).Scan(&m.User.ID, &created); errors.Is(err, sql.ErrNoRows) {
			return skerry.Errorf(skerry.CodeConflict, "the user %s is being removed from their last team; try again", m.User.Name).About(skerry.ResourceUser)
		} else if err != nil {
			return err
		}
		m.User.CreatedAt = skerry.FromMillis(created)
		_, err = t.exec(ctx, "INSERT INTO members (team_id, user_id, role, created_at, updated_at) VALUES (?, ?, ?, ?, ?)",
			teamID, m.User.ID, string(m.Role), m.CreatedAt.Millis(), m.UpdatedAt.Millis())
		return takenBy(err, "user", "%s is a member of the team", m.User.Name)
	})
	return &m, wrap(err, "add member")
}

const memberColumns = "users.id, users.name, users.created_at, members.role, members.created_at, members.updated_at"

func scanMember(row scanner) (m skerry.Member, err error) {
	var user, created, updated int64
	err = row.Scan(&m.User.ID, &m.User.Name, &user, &m.Role, &created, &updated)
	m.User.CreatedAt, m.CreatedAt, m.UpdatedAt = skerry.FromMillis(user), skerry.FromMillis(created), skerry.FromMillis(updated)
	return m, err
}

// Members returns one page of a team's members and the next cursor.
func (s *Store) Members(ctx context.Context, teamID string, page skerry.Page) ([]skerry.Member, string, error) {
	l := &listing{key: "name", text: true, page: page}
	l.and("members.team_id = ?", teamID)
	return readPage(ctx, l, "users", func(ctx context.Context, tail string, args ...any) ([]skerry.Member, error) {
		all, err := list(ctx, &s.engine, scanMember, "SELECT "+memberColumns+" FROM members JOIN users ON users.id = members.user_id "+tail, args...)
		return all, wrap(err, "list members")
	}, func(m *skerry.Member) (any, string) { return m.User.Name, m.User.ID })
}

// Member returns a member of a team, given by the id or the name of the user, or CodeNotFound.
func (s *Store) Member(ctx context.Context, teamID, user string) (*skerry.Member, error) {
	m, err := one(ctx, &s.engine, scanMember, "SELECT "+memberColumns+` FROM members JOIN users ON users.id = members.user_id
		WHERE members.team_id = ? AND (users.id = ? OR users.name = ?)`, teamID, user, user)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, noMember(user)
	}
	return &m, wrap(err, "read member")
}

func noMember(user string) error {
	return skerry.Errorf(skerry.CodeNotFound, "the team has no member %q", user).About(skerry.ResourceUser)
}

// mustKeepOwner returns CodeConflict if a member is the only owner of a team. It stays so until the transaction ends.
func mustKeepOwner(ctx context.Context, t tx, teamID, userID string) error {
	if err := t.row(ctx, "SELECT id FROM teams WHERE id = ?"+t.forUpdate, teamID).Scan(new(string)); errors.Is(err, sql.ErrNoRows) {
		return noTeam(teamID)
	} else if err != nil {
		return err
	}
	var own, others, members int
	err := t.row(ctx, `SELECT coalesce(sum(CASE WHEN user_id = ? AND role = 'owner' THEN 1 ELSE 0 END), 0),
		coalesce(sum(CASE WHEN user_id <> ? AND role = 'owner' THEN 1 ELSE 0 END), 0), count(*) FROM members WHERE team_id = ?`,
		userID, userID, teamID).Scan(&own, &others, &members)
	if err == nil && own == 1 && others == 0 && members > 1 {
		return skerry.Errorf(skerry.CodeConflict, "this is the team's only owner; make another member an owner first").About(skerry.ResourceUser)
	}
	return err
}

// SetMember writes the role of a member. The only owner of several members keeps it.
func (s *Store) SetMember(ctx context.Context, teamID string, m skerry.Member) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		if m.Role != skerry.RoleOwner {
			if err := mustKeepOwner(ctx, t, teamID, m.User.ID); err != nil {
				return err
			}
		}
		err := changed(t.exec(ctx, "UPDATE members SET role = ?, updated_at = ? WHERE team_id = ? AND user_id = ?",
			string(m.Role), m.UpdatedAt.Millis(), teamID, m.User.ID))
		if errors.Is(err, errChanged) {
			return noMember(m.User.Name)
		}
		return err
	}), "change member")
}

// RemoveMember ends a membership, but not that of the only owner of several members. The user
// goes with their last one.
func (s *Store) RemoveMember(ctx context.Context, teamID, userID string) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		if err := mustKeepOwner(ctx, t, teamID, userID); err != nil {
			return err
		}
		err := changed(t.exec(ctx, "DELETE FROM members WHERE team_id = ? AND user_id = ?", teamID, userID))
		if errors.Is(err, errChanged) {
			return noMember(userID)
		}
		if err != nil {
			return err
		}
		return dropUsers(ctx, t)
	}), "remove member")
}

// User returns a user by id or name, or CodeNotFound.
func (s *Store) User(ctx context.Context, ref string) (*skerry.User, error) {
	u, err := one(ctx, &s.engine, func(row scanner) (u skerry.User, err error) {
		var created int64
		err = row.Scan(&u.ID, &u.Name, &created)
		u.CreatedAt = skerry.FromMillis(created)
		return u, err
	}, "SELECT id, name, created_at FROM users WHERE id = ? OR name = ?", ref, ref)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, skerry.Errorf(skerry.CodeNotFound, "there is no user %q", ref).About(skerry.ResourceUser)
	}
	return &u, wrap(err, "read user")
}

// keepExpired is how long a token is listed after its end, if others are made.
const keepExpired = 24 * time.Hour

// CreateToken writes a token, of which only the hash is kept. It removes those of the same
// owner that have expired long ago.
func (s *Store) CreateToken(ctx context.Context, token skerry.AccessToken, hash []byte) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		whose, table, owner := "the team", "teams", token.TeamID
		of := "team_id = ?"
		switch {
		case token.UserID != "":
			whose, table, owner, of = "the user", "users", token.UserID, "user_id = ?"
		case token.TeamID == "":
			whose, of = "the installation", "role = ?"
		}
		args := []any{owner}
		if owner == "" {
			args[0] = string(skerry.RoleAdmin)
		} else if err := t.row(ctx, "SELECT id FROM "+table+" WHERE id = ?"+t.forUpdate, owner).Scan(new(string)); errors.Is(err, sql.ErrNoRows) {
			return skerry.Errorf(skerry.CodeNotFound, "%s %q does not exist any more", whose, owner)
		} else if err != nil {
			return err
		}
		if token.ProjectID != "" {
			if err := mustHaveProject(ctx, t, skerry.Scope{TeamID: token.TeamID, ProjectID: token.ProjectID}); err != nil {
				return err
			}
		}
		if _, err := t.exec(ctx, "DELETE FROM access_tokens WHERE expires_at > 0 AND expires_at < ? AND "+of, append([]any{token.CreatedAt.Millis() - keepExpired.Milliseconds()}, args...)...); err != nil {
			return err
		}
		if token.ProjectID != "" {
			if err := atMost(ctx, t, skerry.MaxProjectTokens, "the project", "tokens", "SELECT count(*) FROM access_tokens WHERE project_id = ?", token.ProjectID); err != nil {
				return err
			}
		}
		if err := atMost(ctx, t, skerry.MaxTokens, whose, "tokens", "SELECT count(*) FROM access_tokens WHERE "+of, args...); err != nil {
			return err
		}
		_, err := t.exec(ctx, `INSERT INTO access_tokens (id, hash, name, team_id, project_id, user_id, role, created_at, expires_at, last_used_at)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0)`,
			token.ID, hash, token.Name, null(token.TeamID), null(token.ProjectID), null(token.UserID), string(token.Role),
			token.CreatedAt.Millis(), token.ExpiresAt.Millis())
		return err
	}), "create token")
}

// null is NULL for "".
func null(s string) sql.NullString { return sql.NullString{String: s, Valid: s != ""} }

const tokenColumns = `access_tokens.id, access_tokens.name, coalesce(access_tokens.team_id, ''), coalesce(access_tokens.project_id, ''),
	coalesce(access_tokens.user_id, ''), access_tokens.role, access_tokens.created_at, access_tokens.expires_at, access_tokens.last_used_at`

func scanToken(row scanner) (t skerry.AccessToken, err error) {
	var created, expires, used int64
	err = row.Scan(&t.ID, &t.Name, &t.TeamID, &t.ProjectID, &t.UserID, &t.Role, &created, &expires, &used)
	t.CreatedAt, t.ExpiresAt, t.LastUsedAt = skerry.FromMillis(created), skerry.FromMillis(expires), skerry.FromMillis(used)
	return t, err
}

// TokenByHash returns a token with what it grants, or CodeNotFound.
func (s *Store) TokenByHash(ctx context.Context, hash []byte) (*skerry.AccessToken, *skerry.Identity, error) {
	return s.token(ctx, "hash = ?", hash)
}

// TokenByID returns a token with what it grants, or CodeNotFound.
func (s *Store) TokenByID(ctx context.Context, id string) (*skerry.AccessToken, *skerry.Identity, error) {
	return s.token(ctx, "id = ?", id)
}

func (s *Store) token(ctx context.Context, where string, arg any) (*skerry.AccessToken, *skerry.Identity, error) {
	token, err := one(ctx, &s.engine, scanToken, "SELECT "+tokenColumns+" FROM access_tokens WHERE access_tokens."+where, arg)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil, skerry.Errorf(skerry.CodeNotFound, "there is no such token").About(skerry.ResourceToken)
	}
	if err != nil {
		return nil, nil, wrap(err, "read token")
	}
	id := &skerry.Identity{TokenID: token.ID, TokenName: token.Name}
	if token.Role == skerry.RoleAdmin {
		id.Admin = true
		return &token, id, nil
	}
	if token.UserID != "" {
		if id.User, err = s.User(ctx, token.UserID); err != nil {
			return nil, nil, err
		}
		id.Grants, err = s.memberships(ctx, token.UserID)
		for i := range id.Grants {
			if g := &id.Grants[i]; !token.Role.Includes(g.Role) {
				g.Role = token.Role
			}
		}
		return &token, id, wrap(err, "read memberships")
	}
	team, err := s.Team(ctx, token.TeamID)
	if err != nil {
		return nil, nil, err
	}
	grant := skerry.Grant{Team: *team, Role: token.Role}
	if token.ProjectID != "" {
		if grant.Project, err = s.Project(ctx, token.TeamID, token.ProjectID); err != nil {
			return nil, nil, err
		}
	}
	id.Grants = []skerry.Grant{grant}
	return &token, id, nil
}

// memberships returns what a user may do, the oldest membership first.
func (s *Store) memberships(ctx context.Context, userID string) ([]skerry.Grant, error) {
	return list(ctx, &s.engine, func(row scanner) (g skerry.Grant, err error) {
		var created, updated int64
		err = row.Scan(&g.Role, &g.Team.ID, &g.Team.Slug, &g.Team.Name, &created, &updated)
		g.Team.CreatedAt, g.Team.UpdatedAt = skerry.FromMillis(created), skerry.FromMillis(updated)
		return g, err
	}, "SELECT members.role, "+teamColumns+` FROM members JOIN teams ON teams.id = members.team_id
		WHERE members.user_id = ? ORDER BY members.created_at, teams.id`, userID)
}

// TokenFilter selects tokens; an empty field selects all.
type TokenFilter struct {
	TeamID, ProjectID string
	Page              skerry.Page
}

// Tokens returns one page of the tokens, the newest first, and the next cursor. With a
// team, those of its members are not among them.
func (s *Store) Tokens(ctx context.Context, f TokenFilter) ([]skerry.AccessToken, string, error) {
	l := &listing{key: "created_at", page: f.Page, where: []string{"1 = 1"}}
	if f.TeamID != "" {
		l.and("access_tokens.team_id = ?", f.TeamID)
	}
	if f.ProjectID != "" {
		l.and("access_tokens.project_id = ?", f.ProjectID)
	}
	return readPage(ctx, l, "access_tokens", func(ctx context.Context, tail string, args ...any) ([]skerry.AccessToken, error) {
		all, err := list(ctx, &s.engine, scanToken, "SELECT "+tokenColumns+" FROM access_tokens "+tail, args...)
		return all, wrap(err, "list tokens")
	}, func(t *skerry.AccessToken) (any, string) { return t.CreatedAt.Millis(), t.ID })
}

// DeleteToken removes a token by id.
func (s *Store) DeleteToken(ctx context.Context, id string) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		err := changed(t.exec(ctx, "DELETE FROM access_tokens WHERE id = ?", id))
		if errors.Is(err, errChanged) {
			return skerry.Errorf(skerry.CodeNotFound, "there is no token %q", id).About(skerry.ResourceToken)
		}
		return err
	}), "delete token")
}

// TouchToken notes when a token was last used.
func (s *Store) TouchToken(ctx context.Context, id string, at skerry.Time) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		_, err := t.exec(ctx, "UPDATE access_tokens SET last_used_at = ? WHERE id = ?", at.Millis(), id)
		return err
	}), "touch token")
}

// Issuer is an issuer of tokens that are accepted. The document is the caller's.
type Issuer struct{ ID, Document string }

// Issuers returns all issuers by id.
func (s *Store) Issuers(ctx context.Context) ([]Issuer, error) {
	all, err := list(ctx, &s.engine, func(row scanner) (i Issuer, err error) {
		return i, row.Scan(&i.ID, &i.Document)
	}, "SELECT id, document FROM issuers ORDER BY id")
	return all, wrap(err, "list issuers")
}

// SetIssuer writes an issuer, over the one with its id if there is one.
func (s *Store) SetIssuer(ctx context.Context, i Issuer) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		_, err := t.exec(ctx, "INSERT INTO issuers (id, document) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET document = excluded.document", i.ID, i.Document)
		return err
	}), "write issuer")
}

// DeleteIssuer removes an issuer.
func (s *Store) DeleteIssuer(ctx context.Context, id string) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		err := changed(t.exec(ctx, "DELETE FROM issuers WHERE id = ?", id))
		if errors.Is(err, errChanged) {
			return skerry.Errorf(skerry.CodeNotFound, "there is no issuer %q", id)
		}
		return err
	}), "delete issuer")
}
