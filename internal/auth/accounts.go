package auth

import (
	"cmp"
	"context"
	"strings"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/store"
)

// CreateTeam makes a team. Its name is its slug, unless it has one.
func (a *Auth) CreateTeam(ctx context.Context, slug, name string) (*skerry.Team, error) {
	name = cmp.Or(name, slug)
	if err := checkTeam(slug, name); err != nil {
		return nil, err
	}
	now := skerry.At(time.Now())
	t := skerry.Team{ID: skerry.NewID(skerry.PrefixTeam), Slug: slug, Name: name, CreatedAt: now, UpdatedAt: now}
	return &t, a.store.CreateTeam(ctx, t)
}

func checkTeam(slug, name string) error {
	if err := skerry.ValidateSlug("slug", slug); err != nil {
		return err
	}
	return skerry.ValidateTokenName("name", name) // any text for people
}

// Team returns a team by its id or slug.
func (a *Auth) Team(ctx context.Context, ref string) (*skerry.Team, error) {
	return a.store.Team(ctx, ref)
}

// Teams lists the teams by slug.
func (a *Auth) Teams(ctx context.Context) ([]skerry.Team, error) { return All(ctx, a.store.Teams) }

// UpdateTeam changes the slug and the name of a team; "" changes nothing.
func (a *Auth) UpdateTeam(ctx context.Context, ref, slug, name string) (*skerry.Team, error) {
	t, err := a.store.Team(ctx, ref)
	if err != nil {
		return nil, err
	}
	t.Slug, t.Name, t.UpdatedAt = cmp.Or(slug, t.Slug), cmp.Or(name, t.Name), skerry.At(time.Now())
	if err := checkTeam(t.Slug, t.Name); err != nil {
		return nil, err
	}
	defer a.forget()
	return t, a.store.SetTeam(ctx, *t)
}

// DeleteTeam removes a team whose projects are empty, with its members and tokens.
func (a *Auth) DeleteTeam(ctx context.Context, ref string) (*skerry.Team, error) {
	t, err := a.store.Team(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer a.forget()
	return t, a.store.DeleteTeam(ctx, t.ID)
}

// CreateProject makes a project in a team.
func (a *Auth) CreateProject(ctx context.Context, teamID, name string) (*skerry.Project, error) {
	if err := skerry.ValidateProjectName("name", name); err != nil {
		return nil, err
	}
	now := skerry.At(time.Now())
	p := skerry.Project{ID: skerry.NewID(skerry.PrefixProject), TeamID: teamID, Name: name, CreatedAt: now, UpdatedAt: now}
	return &p, a.store.CreateProject(ctx, p)
}

// Project returns a project of a team by its id or name. It is asked in every request that
// names a project.
func (a *Auth) Project(ctx context.Context, teamID, ref string) (*skerry.Project, error) {
	key, now := [2]string{teamID, ref}, time.Now()
	if p, ok := a.projects.get(key, now); ok {
		return &p, nil
	}
	p, err := a.store.Project(ctx, teamID, ref)
	if err != nil {
		a.projects.remove(key)
		return nil, err
	}
	a.projects.put(key, *p, now)
	return p, nil
}

// Projects returns one page of a team's projects, by name, and the cursor of the next.
func (a *Auth) Projects(ctx context.Context, teamID string, page skerry.Page) ([]skerry.Project, string, error) {
	return a.store.Projects(ctx, teamID, page)
}

// RenameProject changes the name of a project.
func (a *Auth) RenameProject(ctx context.Context, teamID, ref, name string) (*skerry.Project, error) {
	if err := skerry.ValidateProjectName("name", name); err != nil {
		return nil, err
	}
	p, err := a.store.Project(ctx, teamID, ref)
	if err != nil {
		return nil, err
	}
	p.Name, p.UpdatedAt = name, skerry.At(time.Now())
	defer a.forget()
	return p, a.store.SetProject(ctx, *p)
}

// DeleteProject removes an empty project with its tokens.
func (a *Auth) DeleteProject(ctx context.Context, teamID, ref string) (*skerry.Project, error) {
	p, err := a.store.Project(ctx, teamID, ref)
	if err != nil {
		return nil, err
	}
	defer a.forget()
	return p, a.store.DeleteProject(ctx, teamID, p.ID)
}

// AddMember makes a user a member of a team.
func (a *Auth) AddMember(ctx context.Context, teamID, user string, role skerry.Role) (*skerry.Member, error) {
	user = strings.ToLower(user) // e-mail addresses are compared so
	if err := skerry.ValidateUserName("user", user); err != nil {
		return nil, err
	}
	if err := skerry.ValidateRole("role", role); err != nil {
		return nil, err
	}
	now := skerry.At(time.Now())
	defer a.forget()
	return a.store.AddMember(ctx, teamID, skerry.Member{
		User: skerry.User{ID: skerry.NewID(skerry.PrefixUser), Name: user, CreatedAt: now}, Role: role, CreatedAt: now, UpdatedAt: now,
	})
}

// Members returns one page of a team's members, by name, and the cursor of the next.
func (a *Auth) Members(ctx context.Context, teamID string, page skerry.Page) ([]skerry.Member, string, error) {
	return a.store.Members(ctx, teamID, page)
}

// SetRole changes the role of a member.
func (a *Auth) SetRole(ctx context.Context, teamID, user string, role skerry.Role) (*skerry.Member, error) {
	if err := skerry.ValidateRole("role", role); err != nil {
		return nil, err
	}
	m, err := a.store.Member(ctx, teamID, strings.ToLower(user))
	if err != nil {
		return nil, err
	}
	m.Role, m.UpdatedAt = role, skerry.At(time.Now())
	defer a.forget()
	return m, a.store.SetMember(ctx, teamID, *m)
}

// RemoveMember ends a membership.
func (a *Auth) RemoveMember(ctx context.Context, teamID, user string) (*skerry.Member, error) {
	m, err := a.store.Member(ctx, teamID, strings.ToLower(user))
	if err != nil {
		return nil, err
	}
	defer a.forget()
	return m, a.store.RemoveMember(ctx, teamID, m.User.ID)
}

// User returns a user by id or name.
func (a *Auth) User(ctx context.Context, ref string) (*skerry.User, error) {
	return a.store.User(ctx, strings.ToLower(ref))
}

// CreateToken makes a token and returns it; it cannot be had again.
func (a *Auth) CreateToken(ctx context.Context, p skerry.TokenParams) (string, *skerry.AccessToken, error) {
	if err := p.Validate(); err != nil {
		return "", nil, err
	}
	secret := newToken()
	h := hash(secret)
	t := skerry.AccessToken{
		ID: skerry.NewID(skerry.PrefixToken), Name: p.Name, TeamID: p.TeamID, ProjectID: p.ProjectID, UserID: p.UserID, Role: p.Role,
		CreatedAt: skerry.At(time.Now()), ExpiresAt: p.ExpiresAt,
	}
	if err := a.store.CreateToken(ctx, t, h[:]); err != nil {
		return "", nil, err
	}
	return secret, &t, nil
}

// Tokens returns one page of the tokens of a team or of a project, or of all if both are "".
func (a *Auth) Tokens(ctx context.Context, teamID, projectID string, page skerry.Page) ([]skerry.AccessToken, string, error) {
	return a.store.Tokens(ctx, store.TokenFilter{TeamID: teamID, ProjectID: projectID, Page: page})
}

// Token returns a token by its id.
func (a *Auth) Token(ctx context.Context, id string) (*skerry.AccessToken, error) {
	t, _, err := a.store.TokenByID(ctx, id)
	return t, err
}

// RevokeToken ends a token at once in this process, and within cacheFor in
// others.
func (a *Auth) RevokeToken(ctx context.Context, id string) (*skerry.AccessToken, error) {
	t, err := a.Token(ctx, id)
	if err != nil {
		return nil, err
	}
	defer a.forget()
	return t, a.store.DeleteToken(ctx, id)
}
