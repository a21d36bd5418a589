-- +goose Up
-- version counts the changes of a row. Who changes a row from what it read
-- compares it, so that no change is lost: see update.go.
ALTER TABLE sandboxes ADD COLUMN version INTEGER NOT NULL DEFAULT 1;
ALTER TABLE sessions ADD COLUMN version INTEGER NOT NULL DEFAULT 1;
ALTER TABLE snapshots ADD COLUMN version INTEGER NOT NULL DEFAULT 1;
ALTER TABLE drives ADD COLUMN version INTEGER NOT NULL DEFAULT 1;
