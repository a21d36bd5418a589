-- +goose Up
-- published is how many ports the sandbox publishes; which, and their keys, are
-- among its secrets.
ALTER TABLE sandboxes ADD COLUMN published INTEGER NOT NULL DEFAULT 0;
CREATE INDEX sandboxes_published ON sandboxes (id) WHERE published > 0;
