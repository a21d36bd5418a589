package snapshot

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// cache is the folders that were used lately. An entry has a name of its own
// for life, so that one that turns out bad can stay with those who use it while
// another takes its place.
type cache struct {
	dir   string
	limit int64
	log   *slog.Logger

	mu      sync.Mutex
	entries map[id]*entry
	// size is of all files there are, or soon will be.
	size int64
}

// entry is one cached folder.
type entry struct {
	name id // of the manifest
	path string
	size int64
	// The rest is guarded by the cache's lock.
	used time.Time
	pins int
	// sound is when the files were last known to be right, and as what.
	sound soundness
	// dropped entries are not found any more, and removed with the last pin.
	dropped bool
}

func (e *entry) files() string    { return filepath.Join(e.path, "files") }
func (e *entry) manifest() string { return filepath.Join(e.path, "manifest") }

// openCache opens the cache in a directory and removes what is half made.
func openCache(dir string, limit int64, log *slog.Logger) (*cache, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	c := &cache{dir: dir, limit: limit, log: log, entries: map[id]*entry{}}
	if err := os.RemoveAll(c.tmp()); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.tmp(), 0o700); err != nil {
		return nil, err
	}
	found, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, f := range found {
		path := filepath.Join(dir, f.Name())
		if path == c.tmp() {
			continue
		}
		if e, ok := findEntry(path); ok {
			c.size += e.size
			c.insert(e)
		} else {
			c.remove(path)
		}
	}
	c.reserve(0)
	return c, nil
}

func (c *cache) tmp() string { return filepath.Join(c.dir, "tmp") }

// findEntry returns the entry that an earlier process left, if it is one.
func findEntry(path string) (*entry, bool) {
	ref, _, _ := strings.Cut(filepath.Base(path), ".")
	name, err := parseRef(ref)
	if err != nil {
		return nil, false
	}
	e := &entry{name: name, path: path}
	info, err := os.Lstat(path)
	if err != nil || !info.IsDir() {
		return nil, false
	}
	e.used = info.ModTime()
	files, err := os.ReadDir(e.files())
	if err != nil {
		return nil, false
	}
	for _, f := range files {
		info, err := f.Info()
		if err != nil || !info.Mode().IsRegular() {
			return nil, false
		}
		e.size += info.Size()
	}
	return e, true
}

// pin returns the entry of a manifest and keeps it from being removed until it
// is unpinned, or nil if there is none.
func (c *cache) pin(name id) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[name]
	if e == nil {
		return nil
	}
	e.pins++
	e.used = time.Now()
	return e
}

// unpin takes back a pin.
func (c *cache) unpin(e *entry) { c.morePins(e, -1) }

// morePins adds n pins to an entry that has one.
func (c *cache) morePins(e *entry, n int) {
	c.mu.Lock()
	e.pins += n
	idle := e.pins == 0
	var gone []*entry
	if idle {
		e.used = time.Now()
		if e.dropped {
			c.size -= e.size
			gone = append(gone, e)
		}
		gone = append(gone, c.evict()...)
	}
	c.mu.Unlock()
	if idle && !slices.Contains(gone, e) {
		c.noteUse(e)
	}
	c.discard(gone)
}

// noteUse writes down that an entry was used now. This is done when it is no
// longer used, and without the lock, because the file system may make it wait
// for the syncs of others.
func (c *cache) noteUse(e *entry) {
	now := time.Now()
	if err := os.Chtimes(e.path, now, now); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.Warn("cannot note the use of a cached snapshot", "manifest", e.name, "error", err)
	}
}

// drop makes an entry be found no more. It is removed when nobody uses it.
func (c *cache) drop(e *entry) {
	c.mu.Lock()
	gone := c.dropLocked(e)
	c.mu.Unlock()
	c.discard(gone)
}

func (c *cache) dropLocked(e *entry) []*entry {
	if e.dropped {
		return nil
	}
	e.dropped = true
	delete(c.entries, e.name)
	if e.pins > 0 {
		return nil
	}
	c.size -= e.size
	return []*entry{e}
}

// retain drops the entries of all manifests that keep does not want.
func (c *cache) retain(keep func(id) bool) {
	c.mu.Lock()
	var gone []*entry
	for _, e := range c.entries {
		if !keep(e.name) {
			gone = append(gone, c.dropLocked(e)...)
		}
	}
	c.mu.Unlock()
	c.discard(gone)
}

// reserve counts files that are about to be there, and makes room for them.
func (c *cache) reserve(size int64) {
	c.mu.Lock()
	c.size += size
	gone := c.evict()
	c.mu.Unlock()
	c.discard(gone)
}

// insert takes in an entry whose size is counted. The one that it replaces is
// dropped.
func (c *cache) insert(e *entry) {
	c.mu.Lock()
	var gone []*entry
	if old := c.entries[e.name]; old != nil {
		gone = c.dropLocked(old)
	}
	c.entries[e.name] = e
	c.mu.Unlock()
	c.discard(gone)
}

// evict takes out the entries that were used longest ago until the rest is
// within the limit. The lock is held.
func (c *cache) evict() []*entry {
	if c.size <= c.limit {
		return nil
	}
	var idle []*entry
	for _, e := range c.entries {
		if e.pins == 0 {
			idle = append(idle, e)
		}
	}
	slices.SortFunc(idle, func(a, b *entry) int { return a.used.Compare(b.used) })
	var gone []*entry
	for _, e := range idle {
		if c.size <= c.limit {
			break
		}
		gone = append(gone, c.dropLocked(e)...)
	}
	return gone
}

// discard removes entries that were taken out.
func (c *cache) discard(gone []*entry) {
	for _, e := range gone {
		c.remove(e.path)
	}
}

// remove removes a folder. It moves it away first if it can, so that a crash
// leaves no part of it that looks like an entry.
func (c *cache) remove(path string) {
	away := c.newTmp()
	if err := os.Rename(path, away); err != nil {
		away = path
	}
	if err := os.RemoveAll(away); err != nil {
		c.log.Warn("cannot remove a folder of the snapshot cache", "path", path, "error", err)
	}
}

// newTmp returns a path in tmp that is not in use.
func (c *cache) newTmp() string { return filepath.Join(c.tmp(), randomName()) }

func randomName() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// make makes an entry. The files are filled in by fill, which is given the
// path that their folder is to have. The entry has one pin if pinned.
func (c *cache) make(name id, size int64, manifest []byte, pinned bool, fill func(files string) error) (*entry, error) {
	c.reserve(size)
	tmp := &entry{path: c.newTmp()}
	e := &entry{name: name, size: size, used: time.Now(), path: filepath.Join(c.dir, name.ref()+"."+randomName())}
	if pinned {
		e.pins = 1
	}
	err := os.Mkdir(tmp.path, 0o700)
	if err == nil {
		err = os.WriteFile(tmp.manifest(), manifest, 0o600)
	}
	if err == nil {
		err = fill(tmp.files())
	}
	if err == nil {
		// What this process has just written is right.
		e.sound.at = time.Now()
		e.sound.stamps, err = stampsOf(tmp.files())
	}
	if err == nil {
		err = os.Rename(tmp.path, e.path)
	}
	if err != nil {
		c.reserve(-size)
		return nil, errors.Join(err, os.RemoveAll(tmp.path))
	}
	c.insert(e)
	return e, nil
}

// adopt makes an entry of a folder that was added. If it does not fit the
// folder is removed, as the snapshot has all that is in it.
func (c *cache) adopt(name id, size int64, manifest []byte, dir string) {
	if size > c.limit {
		c.remove(dir)
		return
	}
	_, err := c.make(name, size, manifest, false, func(files string) error { return os.Rename(dir, files) })
	if err != nil {
		err = errors.Join(err, os.RemoveAll(dir))
		c.log.Warn("an added snapshot is not in the cache", "manifest", name, "error", fmt.Errorf("adopt %s: %w", dir, err))
	}
}
