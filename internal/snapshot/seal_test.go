package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// addPlain stores a folder as versions without sealing did.
func (l *lab) addPlain(tr tree) nodeapi.SavedFiles {
	l.Helper()
	dir := tr.write(l, filepath.Join(l.dir, randomName()))
	entries, err := os.ReadDir(dir)
	if err != nil {
		l.Fatal(err)
	}
	put := func(name id, data []byte) {
		if err := l.blobs.Put(context.Background(), name.String(), data); err != nil {
			l.Fatal(err)
		}
	}
	m := manifest{Version: manifestVersion}
	for _, e := range entries {
		f := file{Name: e.Name(), Size: int64(len(tr[e.Name()]))}
		var sums []uint64
		for rest := tr[e.Name()]; len(rest) > 0; {
			plain := rest[:min(minChunk, len(rest))]
			rest = rest[len(plain):]
			c := chunk{Sum: sha256.Sum256(plain), Size: int64(len(plain))}
			put(id{kind: plainChunk, sum: c.Sum}, l.codec.encode(nil, plain))
			f.Chunks, sums = append(f.Chunks, c), append(sums, xxhash.Sum64(plain))
		}
		f.Sum = fileSum(sums)
		m.Files = append(m.Files, f)
	}
	raw, err := m.encode()
	if err != nil {
		l.Fatal(err)
	}
	name := id{kind: plainManifest, sum: sha256.Sum256(raw)}
	put(name, raw)
	return nodeapi.SavedFiles{Manifest: name.ref(), Size: m.size()}
}

// TestPlainSnapshots has snapshots of earlier versions beside sealed ones.
func TestPlainSnapshots(t *testing.T) {
	l := newLab(t)
	tr := tree{"meta.img": text(1, 5000), "pages.img": mixed(1, 3<<20)}
	plain, doomed := l.addPlain(tr), l.addPlain(tree{"pages.img": random(9, 1<<20)})
	if len(plain.Manifest) != 2*sha256.Size {
		t.Errorf("the plain snapshot is %s", plain.Manifest)
	}
	l.open()
	l.loads(plain.Manifest, tr)
	// The same files are stored again, sealed.
	sealed := l.add(tr)
	if sealed.Added < 1<<20 || sealed.Manifest == plain.Manifest {
		t.Errorf("sealed as %+v", sealed)
	}
	l.loads(doomed.Manifest, tree{"pages.img": random(9, 1<<20)})
	l.collects([]string{plain.Manifest, sealed.Manifest})
	l.emptyCache()
	l.loads(plain.Manifest, tr)
	l.loads(sealed.Manifest, tr)
	// What is cached is found by its name after a restart.
	l.open()
	for _, ref := range []nodeapi.SavedFiles{plain, sealed} {
		if e := l.cache.pin(mustParse(t, ref.Manifest)); e == nil {
			t.Errorf("%s is not in the cache", ref.Manifest)
		}
	}
	l.open()
	l.collects([]string{sealed.Manifest})
	l.emptyCache()
	l.loads(sealed.Manifest, tr)
	l.collects(nil)
}

// TestNothingIsInTheClear looks for what a snapshot holds in all that is stored,
// and for the name that anybody could compute of a known file.
func TestNothingIsInTheClear(t *testing.T) {
	l := newLab(t)
	const secret = "DATABASE_URL=postgres://admin:hunter2@db"
	pages := append(random(1, minChunk-pageSize), []byte(strings.Repeat(secret, 100))...)
	known := random(3, 1000)
	l.add(tree{"secret-name.img": pages, "known.img": known})
	public := sha256.Sum256(known)
	keys, _ := l.stored()
	if len(keys) < 3 {
		t.Fatalf("stored are %v", keys)
	}
	for key := range keys {
		data, err := l.blobs.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		for _, what := range [][]byte{[]byte("hunter2"), []byte("secret-name"), pages[:32], known[:32], public[:], []byte(sum(public).String())} {
			if bytes.Contains(data, what) || strings.Contains(key, string(what)) {
				t.Errorf("%s holds %.20q", key, what)
			}
		}
	}
}

// TestDeduplicationIsPerKey stores the same files under two keys.
func TestDeduplicationIsPerKey(t *testing.T) {
	l := newLab(t)
	tr := tree{"pages.img": mixed(1, 3<<20)}
	first := l.add(tr)
	again := l.add(tr)
	if again.Added > 4096 || again.Manifest == first.Manifest {
		t.Errorf("the same again: %+v after %+v", again, first)
	}
	mine, _ := l.stored()
	l.opt.Key = bytes.Repeat([]byte{8}, KeySize)
	l.emptyCache()
	l.fails(first, mustParse(t, first.Manifest).String(), "with another key", skerry.CodeInternal)
	if _, err := l.Load(t.Context(), first.Manifest, anyFormat); err == nil || !strings.Contains(err.Error(), "key") {
		t.Errorf("loading with another key: %v", err)
	}
	// A collection needs no manifest's content.
	if freed, err := l.db.collect(t.Context(), l.Store); err != nil || freed != 0 {
		t.Errorf("collecting with another key freed %d, %v", freed, err)
	}
	other := l.add(tr)
	if other.Manifest == first.Manifest || other.Added < first.Added {
		t.Errorf("with another key: %+v after %+v", other, first)
	}
	both, _ := l.stored()
	if len(both) != 2*len(mine)-1 { // as there are two manifests under one
		t.Errorf("%d blobs under two keys, %d under one", len(both), len(mine))
	}
	l.opt.Key = testKey
	l.emptyCache()
	l.loads(first.Manifest, tr)
}

// TestSealedBlobsAreBound has whoever holds the storage exchange blobs, which are
// all sealed with the right key.
func TestSealedBlobsAreBound(t *testing.T) {
	l := newLab(t)
	one := l.add(tree{"pages.img": random(1, 1<<20)})
	two := l.add(tree{"pages.img": random(2, 1<<20)})
	blobs := func(ref nodeapi.SavedFiles) (chunk, name string) {
		for key := range l.referenced([]string{ref.Manifest}) {
			if strings.HasPrefix(key, sealedChunk.prefix()) {
				chunk = key
			}
		}
		return chunk, mustParse(t, ref.Manifest).String()
	}
	chunk1, name1 := blobs(one)
	chunk2, name2 := blobs(two)
	for _, pair := range [][2]string{{chunk1, chunk2}, {name1, name2}, {name1, chunk1}, {chunk1, name1}} {
		good, err := l.blobs.Get(t.Context(), pair[0])
		if err != nil {
			t.Fatal(err)
		}
		bad, err := l.blobs.Get(t.Context(), pair[1])
		if err != nil {
			t.Fatal(err)
		}
		if err := l.blobs.Put(t.Context(), pair[0], bad); err != nil {
			t.Fatal(err)
		}
		l.fails(one, pair[0], "exchanged", skerry.CodeInternal)
		if err := l.blobs.Put(t.Context(), pair[0], good); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSealing seals one content twice: no two nonces are the same, so nothing is
// learnt of one from the other.
func TestSealing(t *testing.T) {
	s, err := newSealer(testKey)
	if err != nil {
		t.Fatal(err)
	}
	content := text(1, 10_000)
	name := s.name(sealedChunk, sha256.Sum256(content))
	if name == s.name(sealedManifest, sha256.Sum256(content)) {
		t.Error("a chunk and a manifest have one name")
	}
	seal := func() []byte { return s.seal(append(s.begin(nil), content...), name) }
	first, second := seal(), seal()
	if len(first) != len(content)+sealHeader+sealTag || bytes.Equal(first[sealHeader:], second[sealHeader:]) {
		t.Errorf("%d bytes became %d and %d", len(content), len(first), len(second))
	}
	for i := range sealHeader {
		bad := bytes.Clone(first)
		bad[i] ^= 1
		if _, err := s.open(bad, name); err == nil {
			t.Errorf("opened with byte %d changed", i)
		}
	}
	got, err := s.open(first, name)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("opened as %d bytes, %v", len(got), err)
	}
	if _, err := newSealer(testKey[1:]); err == nil {
		t.Error("a short key was taken")
	}
	id, err := KeyID(testKey)
	if err != nil || len(id) != 2*sealKeyID || !bytes.Contains(second, s.prefix) {
		t.Errorf("the key is %q, %v", id, err)
	}
}

func FuzzOpenSealed(f *testing.F) {
	s, err := newSealer(testKey)
	if err != nil {
		f.Fatal(err)
	}
	name := s.name(sealedChunk, sum{1})
	f.Add(s.seal(append(s.begin(nil), 1, 2, 3), name))
	f.Add([]byte(sealMagic))
	f.Fuzz(func(t *testing.T, blob []byte) {
		if content, err := s.open(blob, s.name(sealedChunk, sum{2})); err == nil {
			t.Errorf("opened as %d bytes", len(content))
		}
	})
}
