-- +goose Up
-- See SQLite's migration 012.
CREATE TABLE users (
    id         TEXT COLLATE "C" PRIMARY KEY,
    name       TEXT COLLATE "C" NOT NULL UNIQUE,
    created_at BIGINT NOT NULL
);

CREATE TABLE members (
    team_id    TEXT COLLATE "C" NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    user_id    TEXT COLLATE "C" NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    role       TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (team_id, user_id)
);
CREATE INDEX members_user ON members (user_id);

CREATE TABLE access_tokens (
    id           TEXT COLLATE "C" PRIMARY KEY,
    hash         BYTEA NOT NULL UNIQUE,
    name         TEXT COLLATE "C" NOT NULL,
    team_id      TEXT COLLATE "C" REFERENCES teams (id) ON DELETE CASCADE,
    project_id   TEXT COLLATE "C" REFERENCES projects (id) ON DELETE CASCADE,
    user_id      TEXT COLLATE "C" REFERENCES users (id) ON DELETE CASCADE,
    role         TEXT COLLATE "C" NOT NULL,
    created_at   BIGINT NOT NULL,
    expires_at   BIGINT NOT NULL,
    last_used_at BIGINT NOT NULL
);
INSERT INTO access_tokens (id, hash, name, team_id, project_id, role, created_at, expires_at, last_used_at)
    SELECT tokens.id, hash, tokens.name, projects.team_id, project_id, 'owner', tokens.created_at, expires_at, last_used_at
    FROM tokens JOIN projects ON projects.id = project_id;
DROP TABLE tokens;
CREATE INDEX access_tokens_team ON access_tokens (team_id);
CREATE INDEX access_tokens_project ON access_tokens (project_id);
CREATE INDEX access_tokens_user ON access_tokens (user_id);
