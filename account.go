package skerry

import (
	"slices"
	"strings"
	"time"
)

// Team owns projects; Slug is its unique name.
type Team struct {
	ID        string `json:"id"`
	Slug      string `json:"slug"`
	Name      string `json:"name"`
	CreatedAt Time   `json:"createdAt"`
	UpdatedAt Time   `json:"updatedAt"`
}

// Project owns sandboxes; Name is unique within its team.
type Project struct {
	ID        string `json:"id"`
	TeamID    string `json:"accountId"`
	Name      string `json:"name"`
	CreatedAt Time   `json:"createdAt"`
	UpdatedAt Time   `json:"updatedAt"`
}

// Role is what a member or a token may do. Each role includes those before it.
type Role string

const (
	// RoleViewer sees what there is, and the output of commands. It starts and changes nothing.
	RoleViewer Role = "viewer"
	// RoleDeveloper does everything with sandboxes, snapshots and drives.
	RoleDeveloper Role = "developer"
	// RoleOwner also manages projects, members and tokens.
	RoleOwner Role = "owner"
)

// RoleAdmin is that of tokens which manage teams with their projects, members and tokens, and see
// nothing of what is in the projects. It is no role of members.
const RoleAdmin Role = "admin"

// Roles are the roles, from the one that may do least.
var Roles = []Role{RoleViewer, RoleDeveloper, RoleOwner}

// Includes reports whether a role may do what another one may.
func (r Role) Includes(other Role) bool {
	if r == RoleAdmin {
		return true
	}
	have, want := slices.Index(Roles, r), slices.Index(Roles, other)
	return have >= 0 && want >= 0 && have >= want
}

// User is a person. A user exists as long as they are a member of a team.
type User struct {
	ID string `json:"id"`
	// Name is unique in the installation: a login name or an e-mail address.
	Name      string `json:"name"`
	CreatedAt Time   `json:"createdAt"`
}

// Member is a user in a team.
type Member struct {
	User      User `json:"user"`
	Role      Role `json:"role"`
	CreatedAt Time `json:"createdAt"`
	UpdatedAt Time `json:"updatedAt"`
}

// AccessToken is what is known of an access token: not the token itself.
type AccessToken struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	// TeamID is "" if the token is a user's, who may do with it what their memberships allow, or
	// an administrator's.
	TeamID string `json:"teamId,omitempty"`
	// ProjectID is "" if the token is for all projects of the team.
	ProjectID string `json:"projectId,omitempty"`
	UserID    string `json:"userId,omitempty"`
	// Role limits the roles of a user's memberships.
	Role       Role `json:"role"`
	CreatedAt  Time `json:"createdAt"`
	ExpiresAt  Time `json:"expiresAt,omitzero"`
	LastUsedAt Time `json:"lastUsedAt,omitzero"`
}

// TokenParams are the parameters of a new access token. Exactly one of UserID and TeamID is set,
// and neither with RoleAdmin.
type TokenParams struct {
	Name string
	// TeamID and ProjectID are what the token is for; ProjectID is "" for all projects.
	TeamID, ProjectID string
	UserID            string
	Role              Role
	// ExpiresAt is zero for a token that does not expire.
	ExpiresAt Time
}

// Grant is a role in a team, or in one project of it.
type Grant struct {
	Team Team
	// Project is nil if the role is for all projects.
	Project *Project
	Role    Role
	// TeamAlias and ProjectAlias are other ids by which the caller knows them: a client with a
	// token of another issuer names the team and the project that the token's claims name.
	TeamAlias, ProjectAlias string
}

// In reports whether the grant is for a team, given by id, slug or alias.
func (g *Grant) In(team string) bool {
	return team == g.Team.ID || team == g.Team.Slug || g.TeamAlias != "" && team == g.TeamAlias
}

// For reports whether the grant is for one project, and that is given by id, name or alias.
func (g *Grant) For(project string) bool {
	return g.Project != nil && (project == g.Project.ID || project == g.Project.Name || g.ProjectAlias != "" && project == g.ProjectAlias)
}

// Identity is the caller of a request: what its token grants.
type Identity struct {
	TokenID, TokenName string
	// Admin is true for a token with RoleAdmin, which has no grants.
	Admin bool
	// User is nil if the token is not a user's.
	User   *User
	Grants []Grant
	// ExpiresAt is the end of the token, zero if it has none. Rule is the digest of the rule that
	// admitted a token of another issuer.
	ExpiresAt Time
	Rule      string
	// Development is true for a development token, which was made with the access token that
	// has the TokenID. Key is the id of the key that has signed it.
	Development bool
	Key         string
}

// Grant returns what the identity may do in a team, given by id or slug, and nil if that is
// nothing. For "" it is the first team.
func (id *Identity) Grant(team string) *Grant {
	for i := range id.Grants {
		if g := &id.Grants[i]; team == "" || g.In(team) {
			return g
		}
	}
	return nil
}

// Access is what a call needs: a credential, what it is used for, and the role that takes.
type Access struct {
	TokenID string
	Scope   Scope
	Role    Role
	// Rule is that of a token of another issuer, Key that of a development token. ExpiresAt is the end of the credential, in
	// milliseconds, 0 if it has none.
	Rule, Key string
	ExpiresAt int64
}

// Allows reports whether the identity has an access.
func (id *Identity) Allows(a Access) bool {
	if id.TokenID != a.TokenID {
		return false
	}
	if id.Admin {
		return true
	}
	return slices.ContainsFunc(id.Grants, func(g Grant) bool {
		return g.Team.ID == a.Scope.TeamID && (g.Project == nil || g.Project.ID == a.Scope.ProjectID) && g.Role.Includes(a.Role)
	})
}

// Limits of accounts.
const (
	// MaxTeams, MaxProjects, MaxMembers and MaxTokens limit the teams of an installation, and the
	// projects, members and tokens of a team. A user has MaxTokens of their own too.
	MaxTeams    = 10_000
	MaxProjects = 1_000
	MaxMembers  = 1_000
	MaxTokens   = 1_000
	// MaxProjectTokens limits those that are for one project, so that its owners leave some to others.
	MaxProjectTokens = 250
	// MaxSlug limits the slug of a team, in bytes; MaxProjectName the name of a project. MaxUserName
	// is that of an e-mail address (RFC 5321).
	MaxSlug        = 48
	MaxProjectName = 100
	MaxUserName    = 254
)

// ValidateSlug checks the slug of a team.
func ValidateSlug(field, slug string) error {
	if len(slug) == 0 || len(slug) > MaxSlug || strings.Trim(slug, slugChars) != "" || slug[0] == '-' || slug[len(slug)-1] == '-' {
		return Invalid(field, "must have from 1 to %d lower-case letters, digits and hyphens, with no hyphen at its ends", MaxSlug)
	}
	return notAnID(field, slug)
}

const slugChars = "abcdefghijklmnopqrstuvwxyz0123456789-"

// ValidateProjectName checks the name of a project.
func ValidateProjectName(field, name string) error {
	if len(name) == 0 || len(name) > MaxProjectName || strings.Trim(name, slugChars+"._") != "" {
		return Invalid(field, "must have from 1 to %d lower-case letters, digits, hyphens, dots and underscores", MaxProjectName)
	}
	return notAnID(field, name)
}

// notAnID refuses names that look like ids, as either may be given in a request.
func notAnID(field, name string) error {
	for _, prefix := range []string{PrefixTeam, PrefixProject} {
		if strings.HasPrefix(name, prefix) {
			return Invalid(field, "must not begin with %q, as ids do", prefix)
		}
	}
	return nil
}

// ValidateUserName checks the name of a user.
func ValidateUserName(field, name string) error {
	if len(name) == 0 || len(name) > MaxUserName || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f }) || strings.HasPrefix(name, PrefixUser) {
		return Invalid(field, "must be a login name or an e-mail address, with from 1 to %d characters of ASCII and no spaces", MaxUserName)
	}
	return nil
}

// ValidateRole checks a role.
func ValidateRole(field string, r Role) error {
	if !slices.Contains(Roles, r) {
		return Invalid(field, "is %q, want viewer, developer or owner", r)
	}
	return nil
}

// Validate checks what can be known without the teams.
func (p *TokenParams) Validate() error {
	if err := ValidateTokenName("name", p.Name); err != nil {
		return err
	}
	if p.Role == RoleAdmin {
		if p.TeamID+p.ProjectID+p.UserID != "" {
			return Invalid("role", "is admin, which is for no team, project or user")
		}
	} else if err := ValidateRole("role", p.Role); err != nil {
		return err
	}
	// A second is for the way of a request for a token of a very short life.
	if !p.ExpiresAt.IsZero() && !p.ExpiresAt.After(time.Now().Add(-time.Second)) {
		return Invalid("expiresAt", "is in the past")
	}
	if p.Role != RoleAdmin && (p.TeamID == "") == (p.UserID == "") || p.UserID != "" && p.ProjectID != "" {
		return Invalid("teamId", "a token is for a team, for a project of it, or for a user")
	}
	return nil
}
