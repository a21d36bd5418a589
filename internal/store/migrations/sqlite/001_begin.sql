-- +goose Up
CREATE TABLE teams (
    id         TEXT PRIMARY KEY,
    slug       TEXT NOT NULL UNIQUE,
    name       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;

CREATE TABLE projects (
    id         TEXT PRIMARY KEY,
    team_id    TEXT NOT NULL REFERENCES teams (id),
    name       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    UNIQUE (team_id, name)
) STRICT;

-- hash is the SHA-256 of the token, which is kept nowhere.
CREATE TABLE tokens (
    id           TEXT PRIMARY KEY,
    hash         BLOB NOT NULL UNIQUE,
    name         TEXT NOT NULL,
    project_id   TEXT NOT NULL REFERENCES projects (id),
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL DEFAULT 0,
    last_used_at INTEGER NOT NULL DEFAULT 0
) STRICT;

-- status and its time are the current session's, kept here to be sorted by.
CREATE TABLE sandboxes (
    id                TEXT PRIMARY KEY,
    team_id           TEXT NOT NULL,
    project_id        TEXT NOT NULL,
    name              TEXT NOT NULL,
    created_at        INTEGER NOT NULL,
    status_updated_at INTEGER NOT NULL,
    document          TEXT NOT NULL,
    secrets           BLOB NOT NULL,
    UNIQUE (project_id, name)
) STRICT;
CREATE INDEX sandboxes_created ON sandboxes (project_id, created_at, id);
CREATE INDEX sandboxes_status ON sandboxes (project_id, status_updated_at, id);

CREATE TABLE tags (
    sandbox_id TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    name       TEXT NOT NULL,
    value      TEXT NOT NULL,
    PRIMARY KEY (sandbox_id, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX tags_value ON tags (name, value);

CREATE TABLE sessions (
    id         TEXT PRIMARY KEY,
    sandbox_id TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    project_id TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    ended      INTEGER NOT NULL,
    document   TEXT NOT NULL
) STRICT;
CREATE INDEX sessions_sandbox ON sessions (sandbox_id, created_at, id);
CREATE INDEX sessions_created ON sessions (project_id, created_at, id);
CREATE INDEX sessions_live ON sessions (ended) WHERE ended = 0;

CREATE TABLE commands (
    id         TEXT PRIMARY KEY,
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    started_at INTEGER NOT NULL,
    document   TEXT NOT NULL
) STRICT;
CREATE INDEX commands_session ON commands (session_id, started_at, id);
