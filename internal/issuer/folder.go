package issuer

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/skerry-dev/skerry/internal/atomicfile"
	"github.com/skerry-dev/skerry/internal/keyfile"
)

// Folder keeps keys in a folder: a PEM file with mode 0600 for each.
type Folder string

const (
	keySuffix = ".pem"
	// createdHeader is when a key was made, in its file.
	createdHeader = "Created"
)

// Keys implements Keeper.
func (f Folder) Keys(context.Context) ([]StoredKey, error) {
	if err := os.MkdirAll(string(f), 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(string(f))
	if err != nil {
		return nil, err
	}
	var all []StoredKey
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), keySuffix)
		if !ok {
			continue // a file that a crash has left
		}
		path := filepath.Join(string(f), e.Name())
		b, err := keyfile.Read(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		block, _ := pem.Decode(b)
		if block == nil {
			return nil, fmt.Errorf("%s: there is no private key in it", path)
		}
		created, err := time.Parse(time.RFC3339Nano, block.Headers[createdHeader])
		if err != nil {
			return nil, fmt.Errorf("%s: it does not say when it was made", path)
		}
		all = append(all, StoredKey{ID: id, Created: created, PEM: b})
	}
	return all, nil
}

// Add implements Keeper.
func (f Folder) Add(_ context.Context, k StoredKey) error {
	block, _ := pem.Decode(k.PEM)
	if block == nil {
		return errors.New("there is no private key in it")
	}
	block.Headers = map[string]string{createdHeader: k.Created.UTC().Format(time.RFC3339Nano)}
	if err := os.MkdirAll(string(f), 0o700); err != nil {
		return err
	}
	err := atomicfile.CreateDurable(f.path(k.ID), pem.EncodeToMemory(block))
	if errors.Is(err, fs.ErrExist) {
		return nil // the same key: its id is made of it
	}
	return err
}

// Remove implements Keeper.
func (f Folder) Remove(_ context.Context, id string) error {
	err := os.Remove(f.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (f Folder) path(id string) string { return filepath.Join(string(f), id+keySuffix) }

// Adopt takes over the key of a file of before, which had one for all time: it signs
// on until it is rotated.
func (f Folder) Adopt(ctx context.Context, path string) error {
	b, err := keyfile.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	private, err := parsePrivate(b)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	id, err := thumbprint(private)
	if err != nil {
		return err
	}
	if err := f.Add(ctx, StoredKey{ID: id, Created: time.Now().Add(-PublishedBefore), PEM: b}); err != nil {
		return err
	}
	return os.Remove(path)
}
