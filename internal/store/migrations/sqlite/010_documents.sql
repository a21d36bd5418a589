-- +goose Up
-- What queries look for is in columns: documents are read by the program alone.
-- Their form is in documents.go.
ALTER TABLE sandboxes ADD COLUMN image TEXT NOT NULL DEFAULT '';
UPDATE sandboxes SET image = coalesce(json_extract(document, '$.image'), '') WHERE json_valid(document);
ALTER TABLE sessions ADD COLUMN image_digest TEXT NOT NULL DEFAULT '';
UPDATE sessions SET image_digest = coalesce(json_extract(document, '$.imageDigest'), '') WHERE json_valid(document);
ALTER TABLE snapshots ADD COLUMN updated_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE snapshots ADD COLUMN last_used_at INTEGER NOT NULL DEFAULT 0;
UPDATE snapshots SET updated_at = coalesce(json_extract(document, '$.updatedAt'), 0),
    last_used_at = coalesce(json_extract(document, '$.lastUsedAt'), 0) WHERE json_valid(document);
ALTER TABLE commands DROP COLUMN document;

-- The database itself, in one row. id is its own, key_check a known text that is
-- sealed with its key. generation is for databases that several machines reach.
CREATE TABLE installation (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    id         TEXT NOT NULL,
    generation INTEGER NOT NULL,
    key_check  BLOB NOT NULL
) STRICT;
