package skerry

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

// Identity is the caller of a request: the team and project of its token.
type Identity struct {
	TokenID string
	Team    Team
	Project Project
}

// Scope returns the scope of everything that the identity may access.
func (id *Identity) Scope() Scope {
	return Scope{TeamID: id.Team.ID, ProjectID: id.Project.ID}
}
