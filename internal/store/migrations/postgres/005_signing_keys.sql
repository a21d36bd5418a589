-- +goose Up
-- See SQLite's migration 014.
CREATE TABLE signing_keys (
    id         TEXT COLLATE "C" PRIMARY KEY,
    created_at BIGINT NOT NULL,
    sealed     BYTEA NOT NULL
);
