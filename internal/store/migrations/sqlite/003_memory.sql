-- +goose Up
-- memory is 1 for a snapshot that holds what ran too. Such a one starts only in
-- a machine of the same size: base_vcpus and base_memory_mb, 0 for the others.
ALTER TABLE snapshots ADD COLUMN memory INTEGER NOT NULL DEFAULT 0;
ALTER TABLE snapshots ADD COLUMN base_vcpus INTEGER NOT NULL DEFAULT 0;
ALTER TABLE snapshots ADD COLUMN base_memory_mb INTEGER NOT NULL DEFAULT 0;
