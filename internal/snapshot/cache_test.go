package snapshot

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// cached returns the manifests in the cache's folder.
func (l *lab) cached() []string {
	l.Helper()
	entries, err := os.ReadDir(l.opt.CacheDir)
	if err != nil {
		l.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() != "tmp" {
			name, _, _ := strings.Cut(e.Name(), ".")
			names = append(names, name)
		}
	}
	return names
}

// TestCacheDamaged damages what is cached: it is fetched again.
func TestCacheDamaged(t *testing.T) {
	l := newLab(t)
	tr := tree{"meta.img": text(1, 5000), "pages.img": mixed(1, 3<<20)}
	ref := l.add(tr)
	for name, damage := range map[string]func(e *entry) error{
		"flipped": func(e *entry) error { return flip(filepath.Join(e.files(), "pages.img")) },
		"short":   func(e *entry) error { return os.Truncate(filepath.Join(e.files(), "pages.img"), 2<<20) },
		"long":    func(e *entry) error { return os.Truncate(filepath.Join(e.files(), "pages.img"), 4<<20) },
		"missing": func(e *entry) error { return os.Remove(filepath.Join(e.files(), "meta.img")) },
		"more":    func(e *entry) error { return os.WriteFile(filepath.Join(e.files(), "new"), nil, 0o600) },
		"link": func(e *entry) error {
			path := filepath.Join(e.files(), "meta.img")
			if err := os.Rename(path, filepath.Join(l.dir, "elsewhere")); err != nil {
				return err
			}
			return os.Symlink(filepath.Join(l.dir, "elsewhere"), path)
		},
		"manifest":    func(e *entry) error { return flip(e.manifest()) },
		"no manifest": func(e *entry) error { return os.Remove(e.manifest()) },
		"gone":        func(e *entry) error { return os.RemoveAll(e.path) },
	} {
		t.Run(name, func(t *testing.T) {
			l.TB = t
			for _, reopen := range []bool{false, true} {
				l.loads(ref.Manifest, tr)
				e := l.cache.entries[mustParse(t, ref.Manifest)]
				if err := damage(e); err != nil {
					t.Fatal(err)
				}
				if reopen {
					l.open()
				}
				l.loads(ref.Manifest, tr)
				if got := l.cached(); !slices.Equal(got, []string{ref.Manifest}) {
					t.Errorf("cached are %v", got)
				}
			}
		})
	}
}

func flip(path string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	raw[len(raw)/2] ^= 1
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		return err
	}
	// The clock of a file system may not have moved since the file was made.
	return os.Chtimes(path, time.Time{}, time.Now().Add(time.Second))
}

// TestSoundFiles are not compared with their checksums again for a while.
func TestSoundFiles(t *testing.T) {
	l := newLab(t)
	tr := tree{"pages.img": random(1, 1<<20)}
	ref := l.add(tr)
	name, err := parseRef(ref.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	sound := func(want bool, when string) {
		t.Helper()
		e := l.cache.pin(name)
		if e == nil {
			t.Fatalf("%s it is not in the cache", when)
		}
		defer l.cache.unpin(e)
		stamps, err := stampsOf(e.files())
		if err != nil {
			t.Fatal(err)
		}
		if got := l.cache.isSound(e, stamps); got != want {
			t.Errorf("%s it counts as right: %v", when, got)
		}
	}
	sound(true, "after it was added")
	l.open()
	sound(false, "in a new process")
	l.loads(ref.Manifest, tr)
	sound(true, "after it was loaded")
	e := l.cache.pin(name)
	l.cache.mu.Lock()
	e.sound.at = time.Now().Add(-soundFor)
	l.cache.mu.Unlock()
	sound(false, "after a while")
	l.loads(ref.Manifest, tr)
	sound(true, "after it was loaded again")
	if err := flip(filepath.Join(e.files(), "pages.img")); err != nil {
		t.Fatal(err)
	}
	sound(false, "after somebody wrote to it")
	l.cache.unpin(e)
	l.loads(ref.Manifest, tr)
}

// TestCacheDamagedInUse leaves a damaged folder to those who use it.
func TestCacheDamagedInUse(t *testing.T) {
	l := newLab(t)
	tr := tree{"pages.img": random(1, 1<<20)}
	ref := l.add(tr)
	first, err := l.Load(t.Context(), ref.Manifest, anyFormat)
	if err != nil {
		t.Fatal(err)
	}
	if err := flip(filepath.Join(first.Path(), "pages.img")); err != nil {
		t.Fatal(err)
	}
	second, err := l.Load(t.Context(), ref.Manifest, anyFormat)
	if err != nil {
		t.Fatal(err)
	}
	tr.check(t, second.Path())
	if _, err := os.Stat(first.Path()); err != nil || first.Path() == second.Path() {
		t.Errorf("the folder in use: %v", err)
	}
	first.Release()
	first.Release()
	if _, err := os.Stat(first.Path()); err == nil {
		t.Error("the damaged folder is still there")
	}
	second.Release()
	l.loads(ref.Manifest, tr)
	if l.cache.size != 1<<20 {
		t.Errorf("the cache counts %d bytes", l.cache.size)
	}
}

// TestCacheLRU has more snapshots than the cache has room for.
func TestCacheLRU(t *testing.T) {
	l := newLab(t)
	l.opt.CacheBytes = 3 << 20
	l.open()
	var refs []string
	var trees []tree
	for i := range 4 {
		trees = append(trees, tree{"pages.img": random(uint64(i), 1<<20)})
		refs = append(refs, l.add(trees[i]).Manifest)
	}
	l.expectCached(refs[1:]...)
	l.loads(refs[1], trees[1])
	l.loads(refs[0], trees[0])
	l.expectCached(refs[0], refs[1], refs[3])
	// The order outlives the process.
	l.loads(refs[3], trees[3])
	l.opt.CacheBytes = 2 << 20
	l.open()
	l.expectCached(refs[0], refs[3])
	// What is in use stays.
	l.opt.CacheBytes = 100
	l.open()
	l.expectCached()
	a, err := l.Load(t.Context(), refs[0], anyFormat)
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Load(t.Context(), refs[1], anyFormat)
	if err != nil {
		t.Fatal(err)
	}
	l.expectCached(refs[0], refs[1])
	a.Release()
	l.expectCached(refs[1])
	b.Release()
	l.expectCached()
	if l.cache.size != 0 {
		t.Errorf("the cache counts %d bytes", l.cache.size)
	}
}

func (l *lab) expectCached(want ...string) {
	l.Helper()
	got := l.cached()
	want = slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		l.Errorf("cached are %v, not %v", got, want)
	}
}

// TestCacheLeftovers opens a cache in which a crash left things half made.
func TestCacheLeftovers(t *testing.T) {
	l := newLab(t)
	tr := tree{"pages.img": random(1, 1<<20)}
	ref := l.add(tr)
	for _, left := range []string{"tmp/abc/files/pages.img", ref.Manifest + ".1/manifest", "junk/files/x", "file"} {
		path := filepath.Join(l.opt.CacheDir, left)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l.open()
	l.expectCached(ref.Manifest)
	if left, err := os.ReadDir(filepath.Join(l.opt.CacheDir, "tmp")); err != nil || len(left) > 0 {
		t.Errorf("left in tmp: %v, %v", left, err)
	}
	l.loads(ref.Manifest, tr)
}

// TestAddCaches has an added folder moved into the cache, or removed if it
// does not fit.
func TestAddCaches(t *testing.T) {
	l := newLab(t)
	dir := tree{"pages.img": random(1, 1<<20)}.write(t, filepath.Join(l.dir, "a"))
	inode := func(path string) os.FileInfo {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	before := inode(filepath.Join(dir, "pages.img"))
	ref, err := l.db.save(t.Context(), l.Store, dir)
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.Load(t.Context(), ref.Manifest, anyFormat)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, inode(filepath.Join(f.Path(), "pages.img"))) {
		t.Error("the folder was not moved into the cache")
	}
	// The same once more is another snapshot, of the same chunks.
	again := l.add(tree{"pages.img": random(1, 1<<20)})
	if again.Manifest == ref.Manifest || again.Added > 4096 || again.Size != 1<<20 {
		t.Errorf("%+v, then %+v", ref, again)
	}
	f.Release()
	l.expectCached(ref.Manifest, again.Manifest)

	l.opt.CacheBytes = 100
	l.open()
	dir = tree{"pages.img": random(2, 1<<20)}.write(t, filepath.Join(l.dir, "b"))
	if _, err := l.db.save(t.Context(), l.Store, dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the added folder is still there")
	}
	l.expectCached()
}

// TestOpenedOld takes an entry's last use from its folder.
func TestOpenedOld(t *testing.T) {
	l := newLab(t)
	first := l.add(tree{"pages.img": random(1, 1<<20)}).Manifest
	second := l.add(tree{"pages.img": random(2, 1<<20)}).Manifest
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(l.cache.entries[mustParse(t, second)].path, old, old); err != nil {
		t.Fatal(err)
	}
	l.opt.CacheBytes = 1 << 20
	l.open()
	l.expectCached(first)
}
