-- +goose Up
-- See SQLite's migration 013.
CREATE TABLE issuers (
    id       TEXT COLLATE "C" PRIMARY KEY,
    document TEXT NOT NULL
);
