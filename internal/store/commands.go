package store

import (
	"context"
	"database/sql"
	"errors"

	"github.com/skerry-dev/skerry"
)

// SaveCommands writes commands, new ones and ones that are there.
func (s *Store) SaveCommands(ctx context.Context, commands []skerry.Command) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		known := map[string]bool{}
		for i := range commands {
			c := &commands[i]
			there, seen := known[c.SessionID]
			if !seen {
				err := t.row(ctx, "SELECT id FROM sessions WHERE id = ?"+t.forKeyShare, c.SessionID).Scan(new(string))
				if err != nil && !errors.Is(err, sql.ErrNoRows) {
					return err
				}
				there = err == nil
				known[c.SessionID] = there
			}
			if !there { // it was deleted meanwhile, and takes its commands along
				continue
			}
			document, err := encode(documentOfCommand(c))
			if err != nil {
				return err
			}
			_, err = t.exec(ctx, `INSERT INTO commands (id, session_id, started_at, sealed) VALUES (?, ?, ?, ?)
				ON CONFLICT (id) DO UPDATE SET sealed = excluded.sealed`,
				c.ID, c.SessionID, c.StartedAt.Millis(), s.seal.seal(document, c.ID))
			if err != nil {
				return err
			}
		}
		return nil
	}), "save commands")
}

// Command returns a command of a session, or CodeNotFound.
func (s *Store) Command(ctx context.Context, sessionID, id string) (*skerry.Command, error) {
	c, err := one(ctx, &s.engine, s.scanCommand, commandQuery+"WHERE session_id = ? AND id = ?", sessionID, id)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, skerry.Errorf(skerry.CodeNotFound, "there is no command %q in session %q", id, sessionID).About(skerry.ResourceCommand)
	}
	return c, wrap(err, "read command")
}

// ListCommands returns one page of a session's commands, ordered by their start,
// and the next cursor.
func (s *Store) ListCommands(ctx context.Context, sessionID string, page skerry.Page) ([]skerry.Command, string, error) {
	l := &listing{page: page, key: "started_at"}
	l.and("commands.session_id = ?", sessionID)
	return readPage(ctx, l, "commands", func(ctx context.Context, tail string, args ...any) ([]skerry.Command, error) {
		all, err := list(ctx, &s.engine, values(s.scanCommand), commandQuery+tail, args...)
		return all, wrap(err, "list commands")
	}, func(c *skerry.Command) (any, string) { return c.StartedAt.Millis(), c.ID })
}

// commandQuery is what scanCommand reads.
const commandQuery = "SELECT id, session_id, started_at, sealed FROM commands "

func (s *Store) scanCommand(row scanner) (*skerry.Command, error) {
	c := &skerry.Command{}
	var started int64
	var sealed []byte
	if err := row.Scan(&c.ID, &c.SessionID, &started, &sealed); err != nil {
		return nil, err
	}
	c.StartedAt = skerry.FromMillis(started)
	plain, err := s.seal.open(sealed, c.ID)
	if err != nil {
		return nil, err
	}
	var d commandDocument
	if err := decode(plain, &d); err != nil {
		return nil, damaged("command", c.ID, err)
	}
	d.into(c)
	kept := c.Kept() // earlier versions kept all
	return &kept, nil
}

// DeleteCommands removes commands.
func (s *Store) DeleteCommands(ctx context.Context, ids []string) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		for _, id := range ids {
			if _, err := t.exec(ctx, "DELETE FROM commands WHERE id = ?", id); err != nil {
				return err
			}
		}
		return nil
	}), "delete commands")
}
