-- +goose Up
-- session_id is the session that has, or had, the drive for writing: one that
-- has ended has let go of it.
CREATE TABLE drives (
    id         TEXT PRIMARY KEY,
    team_id    TEXT NOT NULL,
    project_id TEXT NOT NULL,
    name       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    session_id TEXT NOT NULL DEFAULT '',
    document   TEXT NOT NULL,
    UNIQUE (project_id, name)
) STRICT;
CREATE INDEX drives_created ON drives (project_id, created_at, id);
CREATE INDEX drives_updated ON drives (project_id, updated_at, id);
