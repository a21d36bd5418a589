-- +goose Up
-- A snapshot outlives its sandbox and session, so it refers to neither by key.
-- manifest is where its bytes are, base_digest the image file that they are
-- the difference to; expires_at is 0 for never.
CREATE TABLE snapshots (
    id           TEXT PRIMARY KEY,
    team_id      TEXT NOT NULL,
    project_id   TEXT NOT NULL,
    sandbox_id   TEXT NOT NULL,
    sandbox_name TEXT NOT NULL,
    parent_id    TEXT NOT NULL,
    status       TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL,
    base_image   TEXT NOT NULL,
    base_digest  TEXT NOT NULL,
    base_runtime TEXT NOT NULL,
    manifest     TEXT NOT NULL,
    document     TEXT NOT NULL
) STRICT;
CREATE INDEX snapshots_created ON snapshots (project_id, created_at, id);
CREATE INDEX snapshots_sandbox ON snapshots (sandbox_id, created_at, id);
CREATE INDEX snapshots_parent ON snapshots (parent_id, created_at, id);
CREATE INDEX snapshots_expiry ON snapshots (expires_at) WHERE status = 'created' AND expires_at > 0;

-- What a sandbox's next session starts from: its current snapshot and the one
-- that it was created from. The second is inside its secrets otherwise.
ALTER TABLE sandboxes ADD COLUMN current_snapshot_id TEXT NOT NULL DEFAULT '';
ALTER TABLE sandboxes ADD COLUMN source_snapshot_id TEXT NOT NULL DEFAULT '';
CREATE INDEX sandboxes_current_snapshot ON sandboxes (current_snapshot_id) WHERE current_snapshot_id <> '';
CREATE INDEX sandboxes_source_snapshot ON sandboxes (source_snapshot_id) WHERE source_snapshot_id <> '';
