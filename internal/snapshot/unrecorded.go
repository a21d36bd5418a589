package snapshot

import (
	"os"
	"path/filepath"
)

// unrecorded is a folder with an empty file for each snapshot that was added and
// is not yet known to be recorded in the caller's database. So GC tells what a
// crash has interrupted, which nobody needs, from what a database lacks that was
// restored from a backup.
//
// The files are not synced. What a loss of power takes is set aside like any
// snapshot that the database does not know.
type unrecorded struct{ dir string }

func openUnrecorded(cacheDir string) (unrecorded, error) {
	u := unrecorded{filepath.Join(cacheDir, unrecordedName)}
	return u, os.MkdirAll(u.dir, 0o700)
}

// unrecordedName is the folder's name in the cache's.
const unrecordedName = "unrecorded"

func (u unrecorded) path(b id) string { return filepath.Join(u.dir, b.ref()) }

// begin is called before a manifest is put.
func (u unrecorded) begin(b id) error { return os.WriteFile(u.path(b), nil, 0o600) }

// end is called when a snapshot is recorded or removed.
func (u unrecorded) end(b id) error {
	if err := os.Remove(u.path(b)); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// all returns the manifests that are not known to be recorded.
func (u unrecorded) all() (map[id]struct{}, error) {
	entries, err := os.ReadDir(u.dir)
	if err != nil {
		return nil, err
	}
	all := make(map[id]struct{}, len(entries))
	for _, e := range entries {
		if b, err := parseRef(e.Name()); err == nil {
			all[b] = struct{}{}
		}
	}
	return all, nil
}
