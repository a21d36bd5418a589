-- +goose Up
-- policy is what a session that has not ended may reach, sealed: it holds
-- secrets. Absent for sessions of earlier versions, which could reach all.
ALTER TABLE sessions ADD COLUMN policy BLOB;
