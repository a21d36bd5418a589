-- +goose NO TRANSACTION
-- +goose Up
-- The database is written anew, so that no commands are left in the clear where
-- they were before they were sealed.
VACUUM;
PRAGMA wal_checkpoint(TRUNCATE);
