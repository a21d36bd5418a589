package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
)

//go:embed migrations/sqlite/*.sql migrations/postgres/*.sql
var migrations embed.FS

// migrate applies the migrations that a database has not seen, each in a
// transaction unless it says that it cannot be in one: then it is done again if
// it is cut off.
func migrate(ctx context.Context, db *sql.DB, dialect goose.Dialect, folder string, opts ...goose.ProviderOption) error {
	files, err := fs.Sub(migrations, "migrations/"+folder)
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(dialect, db, files, append(opts, goose.WithDisableGlobalRegistry(true))...)
	if err != nil {
		return fmt.Errorf("read the migrations: %w", err)
	}
	have, want, err := p.GetVersions(ctx)
	if err != nil {
		return wrap(err, "read the database's version")
	}
	if have > want {
		return fmt.Errorf("the database has version %d, which is newer than this program's version %d", have, want)
	}
	_, err = p.Up(ctx)
	if partial, ok := errors.AsType[*goose.PartialError](err); ok {
		err = fmt.Errorf("version %d: %w", partial.Failed.Source.Version, partial.Err)
	}
	return wrap(err, "migrate the database")
}

// migrateSQLite migrates an SQLite database. key is what commands are sealed
// with, which versions before the seventh had in the clear.
func migrateSQLite(ctx context.Context, db *sql.DB, key []byte) error {
	seal, err := newSealer(key)
	if err != nil {
		return err
	}
	sealCommands := goose.NewGoMigration(7, &goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
		return sealCommands(ctx, tx, seal)
	}}, nil)
	return migrate(ctx, db, goose.DialectCustom, "sqlite", goose.WithStore(userVersion{}), goose.WithGoMigrations(sealCommands))
}

// sealCommands seals the commands that earlier versions wrote in the clear, one
// at a time: a command may have a megabyte of arguments.
func sealCommands(ctx context.Context, tx *sql.Tx, seal *sealer) error {
	if _, err := tx.ExecContext(ctx, "ALTER TABLE commands ADD COLUMN sealed BLOB"); err != nil {
		return err
	}
	for last := ""; ; {
		var id, document string
		err := tx.QueryRowContext(ctx, "SELECT id, document FROM commands WHERE id > ? ORDER BY id LIMIT 1", last).Scan(&id, &document)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err == nil {
			_, err = tx.ExecContext(ctx, "UPDATE commands SET document = '', sealed = ? WHERE id = ?", seal.seal([]byte(document), id), id)
		}
		if err != nil {
			return err
		}
		last = id
	}
}

// userVersion keeps the version of an SQLite database where every version of
// this program looks for it, those before it had a library too.
type userVersion struct{}

var _ database.Store = userVersion{}

func (userVersion) Tablename() string { return "pragma user_version" }

func (userVersion) CreateVersionTable(context.Context, database.DBTxConn) error { return nil }

func (userVersion) Insert(ctx context.Context, db database.DBTxConn, req database.InsertRequest) error {
	_, err := db.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", req.Version))
	return err
}

func (userVersion) Delete(context.Context, database.DBTxConn, int64) error {
	return errors.New("there is no way back to an earlier version")
}

func (v userVersion) GetMigration(ctx context.Context, db database.DBTxConn, version int64) (*database.GetMigrationResult, error) {
	latest, err := v.GetLatestVersion(ctx, db)
	if err == nil && version > latest {
		err = database.ErrVersionNotFound
	}
	if err != nil {
		return nil, err
	}
	return &database.GetMigrationResult{IsApplied: true}, nil
}

func (userVersion) GetLatestVersion(ctx context.Context, db database.DBTxConn) (version int64, err error) {
	err = db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version)
	return version, err
}

func (v userVersion) ListMigrations(ctx context.Context, db database.DBTxConn) (list []*database.ListMigrationsResult, err error) {
	latest, err := v.GetLatestVersion(ctx, db)
	for n := latest; n >= 0; n-- {
		list = append(list, &database.ListMigrationsResult{Version: n, IsApplied: true})
	}
	return list, err
}
