-- +goose Up
-- The keys with which the server signs tokens; see internal/issuer. The private key is sealed.
CREATE TABLE signing_keys (
    id         TEXT PRIMARY KEY,
    created_at INTEGER NOT NULL,
    sealed     BLOB NOT NULL
) STRICT;
