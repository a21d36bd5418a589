-- +goose Up
-- Users are persons. name is a login name or an e-mail address.
CREATE TABLE users (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE members (
    team_id    TEXT NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    user_id    TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    role       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (team_id, user_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX members_user ON members (user_id);

-- A token is for a team (team_id), for one project of it (project_id too), for what a
-- user may do (user_id), or an administrator's (none of them). Tokens of before are for a project, with all that there was.
CREATE TABLE access_tokens (
    id           TEXT PRIMARY KEY,
    hash         BLOB NOT NULL UNIQUE,
    name         TEXT NOT NULL,
    team_id      TEXT REFERENCES teams (id) ON DELETE CASCADE,
    project_id   TEXT REFERENCES projects (id) ON DELETE CASCADE,
    user_id      TEXT REFERENCES users (id) ON DELETE CASCADE,
    role         TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL,
    last_used_at INTEGER NOT NULL
) STRICT;
INSERT INTO access_tokens (id, hash, name, team_id, project_id, role, created_at, expires_at, last_used_at)
    SELECT tokens.id, hash, tokens.name, projects.team_id, project_id, 'owner', tokens.created_at, expires_at, last_used_at
    FROM tokens JOIN projects ON projects.id = project_id;
DROP TABLE tokens;
CREATE INDEX access_tokens_team ON access_tokens (team_id);
CREATE INDEX access_tokens_project ON access_tokens (project_id);
CREATE INDEX access_tokens_user ON access_tokens (user_id);
