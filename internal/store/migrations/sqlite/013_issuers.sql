-- +goose Up
-- Issuers of tokens that are accepted, with their rules; see internal/auth/federated.go
-- for the document.
CREATE TABLE issuers (
    id       TEXT PRIMARY KEY,
    document TEXT NOT NULL
) STRICT;
