package store

import (
	"context"
	"time"

	"github.com/skerry-dev/skerry"
)

// SigningKey is a private key that signs tokens. PEM is sealed in the database.
type SigningKey struct {
	ID      string
	Created time.Time
	PEM     []byte
}

// SigningKeys returns all keys, the oldest first.
func (s *Store) SigningKeys(ctx context.Context) ([]SigningKey, error) {
	all, err := list(ctx, &s.engine, func(row scanner) (k SigningKey, err error) {
		var created int64
		var sealed []byte
		if err := row.Scan(&k.ID, &created, &sealed); err != nil {
			return k, err
		}
		k.Created = skerry.FromMillis(created).Time
		k.PEM, err = s.seal.open(sealed, k.ID)
		return k, err
	}, "SELECT id, created_at, sealed FROM signing_keys ORDER BY created_at, id")
	return all, wrap(err, "read signing keys")
}

// AddSigningKey writes one more key. It is durable when it returns: a key that signs must
// not be lost.
func (s *Store) AddSigningKey(ctx context.Context, k SigningKey) error {
	return wrap(s.updateDurably(ctx, func(ctx context.Context, t tx) error {
		_, err := t.exec(ctx, "INSERT INTO signing_keys (id, created_at, sealed) VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING",
			k.ID, skerry.At(k.Created).Millis(), s.seal.seal(k.PEM, k.ID))
		return err
	}), "write signing key")
}

// DeleteSigningKey removes a key, if there is one with this id.
func (s *Store) DeleteSigningKey(ctx context.Context, id string) error {
	return wrap(s.updateDurably(ctx, func(ctx context.Context, t tx) error {
		_, err := t.exec(ctx, "DELETE FROM signing_keys WHERE id = ?", id)
		return err
	}), "delete signing key")
}
