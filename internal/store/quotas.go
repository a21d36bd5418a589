package store

import (
	"context"
	"database/sql"
	"errors"
)

// Quota is the quota of a team, if ProjectID is "", or of a project. That of the team "" is
// the default of all teams. The document is the caller's.
type Quota struct{ TeamID, ProjectID, Document string }

// Quotas returns the default quota, the quota of a team and those of its projects.
func (s *Store) Quotas(ctx context.Context, teamID string) ([]Quota, error) {
	all, err := list(ctx, &s.engine, func(row scanner) (q Quota, err error) {
		return q, row.Scan(&q.TeamID, &q.ProjectID, &q.Document)
	}, "SELECT team_id, project_id, document FROM quotas WHERE team_id = '' OR team_id = ? ORDER BY team_id, project_id", teamID)
	return all, wrap(err, "list quotas")
}

// SetQuota writes a quota, or removes it if the document is "". The team and the project must
// exist.
func (s *Store) SetQuota(ctx context.Context, q Quota) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		if q.TeamID != "" {
			err := t.row(ctx, "SELECT id FROM teams WHERE id = ?"+t.forUpdate, q.TeamID).Scan(new(string))
			if errors.Is(err, sql.ErrNoRows) {
				return noTeam(q.TeamID)
			} else if err != nil {
				return err
			}
		}
		if q.ProjectID != "" {
			projects, err := lockProjects(ctx, t, "team_id = ? AND id = ?", q.TeamID, q.ProjectID)
			if err != nil {
				return err
			}
			if len(projects) == 0 {
				return noProject(q.ProjectID)
			}
		}
		if q.Document == "" {
			_, err := t.exec(ctx, "DELETE FROM quotas WHERE team_id = ? AND project_id = ?", q.TeamID, q.ProjectID)
			return err
		}
		_, err := t.exec(ctx, "INSERT INTO quotas (team_id, project_id, document) VALUES (?, ?, ?) ON CONFLICT (team_id, project_id) DO UPDATE SET document = excluded.document",
			q.TeamID, q.ProjectID, q.Document)
		return err
	}), "write quota")
}
