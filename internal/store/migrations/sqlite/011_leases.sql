-- +goose Up
-- A lease is that of a save in progress, or of one that has ended (1) without a
-- snapshot: what it has left is to be removed. See collect.go.
CREATE TABLE leases (
    id         TEXT PRIMARY KEY,
    expires_at INTEGER NOT NULL,
    ended      INTEGER NOT NULL
) STRICT;

-- chunks are the parts of the storage that a manifest uses, in a form of its
-- collector; NULL if they are not known. unknown_since is 0 unless a collection has
-- found the manifest and no snapshot named it.
CREATE TABLE manifests (
    name          TEXT PRIMARY KEY,
    created_at    INTEGER NOT NULL,
    unknown_since INTEGER NOT NULL,
    chunks        BLOB
) STRICT;
CREATE INDEX snapshots_manifest ON snapshots (manifest);
