-- +goose Up
-- The tables of SQLite's migrations, which say what the columns are for. Texts
-- are ordered by their bytes, as there, in every locale. A truth value is 0 or 1.
CREATE TABLE installation (
    one        BIGINT PRIMARY KEY CHECK (one = 1),
    id         TEXT COLLATE "C" NOT NULL,
    generation BIGINT NOT NULL,
    key_check  BYTEA NOT NULL
);

CREATE TABLE teams (
    id         TEXT COLLATE "C" PRIMARY KEY,
    slug       TEXT COLLATE "C" NOT NULL UNIQUE,
    name       TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);

CREATE TABLE projects (
    id         TEXT COLLATE "C" PRIMARY KEY,
    team_id    TEXT COLLATE "C" NOT NULL REFERENCES teams (id),
    name       TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    UNIQUE (team_id, name)
);

CREATE TABLE tokens (
    id           TEXT COLLATE "C" PRIMARY KEY,
    hash         BYTEA NOT NULL UNIQUE,
    name         TEXT COLLATE "C" NOT NULL,
    project_id   TEXT COLLATE "C" NOT NULL REFERENCES projects (id),
    created_at   BIGINT NOT NULL,
    expires_at   BIGINT NOT NULL DEFAULT 0,
    last_used_at BIGINT NOT NULL DEFAULT 0
);

CREATE TABLE sandboxes (
    id                  TEXT COLLATE "C" PRIMARY KEY,
    version             BIGINT NOT NULL DEFAULT 1,
    team_id             TEXT COLLATE "C" NOT NULL,
    project_id          TEXT COLLATE "C" NOT NULL,
    name                TEXT COLLATE "C" NOT NULL,
    created_at          BIGINT NOT NULL,
    status_updated_at   BIGINT NOT NULL,
    current_snapshot_id TEXT COLLATE "C" NOT NULL,
    source_snapshot_id  TEXT COLLATE "C" NOT NULL,
    published           BIGINT NOT NULL,
    image               TEXT COLLATE "C" NOT NULL,
    document            TEXT NOT NULL,
    secrets             BYTEA NOT NULL,
    UNIQUE (project_id, name)
);
CREATE INDEX sandboxes_created ON sandboxes (project_id, created_at, id);
CREATE INDEX sandboxes_status ON sandboxes (project_id, status_updated_at, id);
CREATE INDEX sandboxes_current_snapshot ON sandboxes (current_snapshot_id) WHERE current_snapshot_id <> '';
CREATE INDEX sandboxes_source_snapshot ON sandboxes (source_snapshot_id) WHERE source_snapshot_id <> '';
CREATE INDEX sandboxes_published ON sandboxes (id) WHERE published > 0;

CREATE TABLE tags (
    sandbox_id TEXT COLLATE "C" NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    name       TEXT COLLATE "C" NOT NULL,
    value      TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (sandbox_id, name)
);
CREATE INDEX tags_value ON tags (name, value);

CREATE TABLE sessions (
    id           TEXT COLLATE "C" PRIMARY KEY,
    version      BIGINT NOT NULL DEFAULT 1,
    sandbox_id   TEXT COLLATE "C" NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    project_id   TEXT COLLATE "C" NOT NULL,
    created_at   BIGINT NOT NULL,
    ended        BIGINT NOT NULL,
    image_digest TEXT COLLATE "C" NOT NULL,
    document     TEXT NOT NULL,
    policy       BYTEA
);
CREATE INDEX sessions_sandbox ON sessions (sandbox_id, created_at, id);
CREATE INDEX sessions_created ON sessions (project_id, created_at, id);
CREATE INDEX sessions_live ON sessions (ended) WHERE ended = 0;

CREATE TABLE commands (
    id         TEXT COLLATE "C" PRIMARY KEY,
    session_id TEXT COLLATE "C" NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    started_at BIGINT NOT NULL,
    sealed     BYTEA NOT NULL
);
CREATE INDEX commands_session ON commands (session_id, started_at, id);

CREATE TABLE snapshots (
    id             TEXT COLLATE "C" PRIMARY KEY,
    version        BIGINT NOT NULL DEFAULT 1,
    team_id        TEXT COLLATE "C" NOT NULL,
    project_id     TEXT COLLATE "C" NOT NULL,
    sandbox_id     TEXT COLLATE "C" NOT NULL,
    sandbox_name   TEXT COLLATE "C" NOT NULL,
    parent_id      TEXT COLLATE "C" NOT NULL,
    status         TEXT COLLATE "C" NOT NULL,
    created_at     BIGINT NOT NULL,
    updated_at     BIGINT NOT NULL,
    expires_at     BIGINT NOT NULL,
    last_used_at   BIGINT NOT NULL,
    base_image     TEXT COLLATE "C" NOT NULL,
    base_digest    TEXT COLLATE "C" NOT NULL,
    base_runtime   TEXT COLLATE "C" NOT NULL,
    manifest       TEXT COLLATE "C" NOT NULL,
    memory         BIGINT NOT NULL,
    base_vcpus     BIGINT NOT NULL,
    base_memory_mb BIGINT NOT NULL,
    document       TEXT NOT NULL
);
CREATE INDEX snapshots_created ON snapshots (project_id, created_at, id);
CREATE INDEX snapshots_sandbox ON snapshots (sandbox_id, created_at, id);
CREATE INDEX snapshots_parent ON snapshots (parent_id, created_at, id);
CREATE INDEX snapshots_expiry ON snapshots (expires_at) WHERE status = 'created' AND expires_at > 0;

CREATE TABLE drives (
    id         TEXT COLLATE "C" PRIMARY KEY,
    version    BIGINT NOT NULL DEFAULT 1,
    team_id    TEXT COLLATE "C" NOT NULL,
    project_id TEXT COLLATE "C" NOT NULL,
    name       TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    session_id TEXT COLLATE "C" NOT NULL DEFAULT '',
    document   TEXT NOT NULL,
    UNIQUE (project_id, name)
);
CREATE INDEX drives_created ON drives (project_id, created_at, id);
CREATE INDEX drives_updated ON drives (project_id, updated_at, id);
