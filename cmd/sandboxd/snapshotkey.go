package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/skerry-dev/skerry/internal/keyfile"
	"github.com/skerry-dev/skerry/internal/snapshot"
)

// snapshotKeyMark says which key the snapshots beside it are sealed with. It is
// written before the first of them: a server with another key could read none,
// and would seal new ones with that.
type snapshotKeyMark struct {
	Key string `json:"key"`
}

// snapshotKey opens the key that an installation's snapshots are sealed with, or
// makes one if there never was any.
func snapshotKey(state string) ([]byte, error) {
	path := filepath.Join(state, "db", "snapshots.key")
	file := filepath.Join(state, "snapshots", "key.json")
	marked, err := readKeyMark(file)
	if err != nil {
		return nil, err
	}
	// The database is opened elsewhere, and perhaps later.
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	key, err := keyfile.Secret(path, marked != "")
	if err != nil {
		return nil, fmt.Errorf("open the key of the snapshots (to give them up, remove %s): %w", file, err)
	}
	id, err := snapshot.KeyID(key)
	if err != nil {
		return nil, err
	}
	if marked == "" {
		b, err := json.Marshal(snapshotKeyMark{Key: id})
		if err != nil {
			return nil, err
		}
		return key, writeWhole(file, append(b, '\n'))
	}
	if marked != id {
		return nil, fmt.Errorf("the snapshots are sealed with key %s, and %s is key %s: restore it from a backup (or, to give the snapshots up, remove %s)", marked, path, id, file)
	}
	return key, nil
}

func readKeyMark(file string) (string, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var mark snapshotKeyMark
	if err := json.Unmarshal(b, &mark); err != nil || mark.Key == "" {
		return "", fmt.Errorf("%s does not name a key: %w", file, err)
	}
	return mark.Key, nil
}
