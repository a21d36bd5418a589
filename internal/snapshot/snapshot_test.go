package snapshot

import (
	"bytes"
	"context"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/skerry-dev/skerry/internal/blob"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// tree is a folder's files by name.
type tree map[string][]byte

func anyFormat(string) error { return nil }

// write makes the folder of a tree, next to the cache of a lab.
func (tr tree) write(t testing.TB, dir string) string {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, data := range tr {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// check fails unless a folder has exactly the tree's files.
func (tr tree) check(t testing.TB, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != len(tr) {
		t.Fatalf("%s has %v, not %d files", dir, entries, len(tr))
	}
	for name, want := range tr {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%s: %d bytes that differ from the %d written", name, len(got), len(want))
		}
	}
}

var testKey = bytes.Repeat([]byte{7}, KeySize)

// lab is a store on a temporary directory.
type lab struct {
	testing.TB
	dir   string
	blobs blob.Store
	opt   Options
	db    *database
	*Store
}

func newLab(t testing.TB) *lab {
	l := &lab{TB: t, dir: t.TempDir(), db: newDatabase()}
	dir, err := blob.OpenDir(filepath.Join(l.dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	l.blobs = dir
	l.opt = Options{
		Blobs: dir, Key: testKey, CacheDir: filepath.Join(l.dir, "cache"), CacheBytes: 1 << 30, Grace: -1,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	l.open()
	return l
}

// open opens the store again, as a new process would.
func (l *lab) open() {
	l.Helper()
	s, err := Open(l.opt)
	if err != nil {
		l.Fatal(err)
	}
	l.Store = s
}

// emptyCache opens the store with nothing in its cache.
func (l *lab) emptyCache() {
	l.Helper()
	if err := os.RemoveAll(l.opt.CacheDir); err != nil {
		l.Fatal(err)
	}
	l.open()
}

// save adds a tree, which has a lease from then on.
func (l *lab) save(tr tree) nodeapi.SavedFiles {
	l.Helper()
	ref, err := l.db.save(context.Background(), l.Store, tr.write(l, filepath.Join(l.dir, randomName())))
	if err != nil {
		l.Fatal(err)
	}
	return ref
}

// add adds a snapshot of a tree.
func (l *lab) add(tr tree) nodeapi.SavedFiles {
	l.Helper()
	ref := l.save(tr)
	l.db.name(ref)
	return ref
}

// gc deletes all snapshots but those of the manifests, and collects.
func (l *lab) gc(keep ...string) (freed int64) {
	l.Helper()
	l.db.keep(keep)
	freed, err := l.db.collect(context.Background(), l.Store)
	if err != nil {
		l.Error(err)
	}
	return freed
}

// loads fails unless a snapshot is brought back as it was.
func (l *lab) loads(manifest string, tr tree) {
	l.Helper()
	f, err := l.Load(context.Background(), manifest, anyFormat)
	if err != nil {
		l.Fatal(err)
	}
	defer f.Release()
	tr.check(l, f.Path())
}

// random returns bytes that are the same for the same seed and cannot be
// compressed.
func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	rand.NewChaCha8(key).Read(b)
	return b
}

// text returns bytes that compress about as well as programs do.
func text(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	words := make([][]byte, 4096)
	for i := range words {
		words[i] = random(seed+uint64(i), 3+r.IntN(12))
	}
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = append(b, words[min(r.IntN(4096), r.IntN(4096))]...)
	}
	return b[:n]
}

// mixed returns bytes of which every second megabyte compresses.
func mixed(seed uint64, n int) []byte {
	b := make([]byte, 0, n)
	for i := uint64(0); len(b) < n; i++ {
		part := min(1<<20, n-len(b))
		if i%2 == 0 {
			b = append(b, random(seed*1000+i, part)...)
		} else {
			b = append(b, text(seed*1000+i, part)...)
		}
	}
	return b
}

func TestRoundTrip(t *testing.T) {
	l := newLab(t)
	for name, tr := range map[string]tree{
		"none":   {},
		"empty":  {"pages.img": {}},
		"byte":   {"pages.img": {7}},
		"small":  {"checkpoint.img": []byte("manifest"), "pages_meta.img": random(1, 5000), "pages.img": text(1, 3<<20)},
		"zeros":  {"pages.img": make([]byte, 9<<20)},
		"uneven": {"pages.img": append(mixed(2, 7<<20), 1, 2, 3)},
		"max":    {"pages.img": make([]byte, maxChunk)},
	} {
		t.Run(name, func(t *testing.T) {
			l.TB = t
			ref := l.add(tr)
			l.loads(ref.Manifest, tr)
			l.emptyCache()
			l.loads(ref.Manifest, tr)
			l.loads(ref.Manifest, tr)
		})
	}
}
