-- +goose Up
-- See SQLite's migration 015.
CREATE TABLE quotas (
    team_id    TEXT COLLATE "C" NOT NULL,
    project_id TEXT COLLATE "C" NOT NULL,
    document   TEXT NOT NULL,
    PRIMARY KEY (team_id, project_id)
);
