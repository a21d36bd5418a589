-- +goose Up
-- Quotas of teams, and of projects. Those of the team '' are the defaults of all teams; those
-- of the project '' are the team's. See internal/auth/quotas.go for the document.
CREATE TABLE quotas (
    team_id    TEXT NOT NULL,
    project_id TEXT NOT NULL,
    document   TEXT NOT NULL,
    PRIMARY KEY (team_id, project_id)
) STRICT, WITHOUT ROWID;
