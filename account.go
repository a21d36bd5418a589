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

// Identity is who makes a call: the team and project that a token is bound
// to.
type Identity struct {
	TokenID string
	Team    Team
	Project Project
}

// Scope returns the scope of everything the identity may touch.
func (id *Identity) Scope() Scope {
	return Scope{TeamID: id.Team.ID, ProjectID: id.Project.ID}
}
