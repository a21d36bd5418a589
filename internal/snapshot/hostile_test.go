package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// TestDamagedBlobs damages each blob of a snapshot in every way: Load fails,
// names it, and leaves no folder.
func TestDamagedBlobs(t *testing.T) {
	l := newLab(t)
	tr := tree{"meta.img": text(1, 5000), "pages.img": mixed(1, 3<<20)}
	ref := l.add(tr)
	keys, _ := l.stored()
	for key := range keys {
		good, err := l.blobs.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		for name, bad := range damages(good) {
			if err := l.blobs.Put(t.Context(), key, bad); err != nil {
				t.Fatal(err)
			}
			l.fails(ref, key, name, skerry.CodeInternal)
		}
		if err := l.blobs.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		code := skerry.CodeInternal
		if key == mustParse(t, ref.Manifest).String() {
			code = skerry.CodeSnapshotNotFound
		}
		l.fails(ref, key, "missing", code)
		if err := l.blobs.Put(t.Context(), key, good); err != nil {
			t.Fatal(err)
		}
	}
	l.emptyCache()
	l.loads(ref.Manifest, tr)
}

// damages returns what may become of a blob on a bad disk.
func damages(good []byte) map[string][]byte {
	flipped := bytes.Clone(good)
	flipped[len(good)/2] ^= 1
	header := bytes.Clone(good)
	header[3] ^= 2
	return map[string][]byte{
		"flipped": flipped, "header": header, "short": good[:len(good)-1], "long": append(bytes.Clone(good), 0),
		"empty": {}, "zeros": make([]byte, len(good)),
	}
}

// fails fails unless a snapshot cannot be loaded because of a blob.
func (l *lab) fails(ref nodeapi.SavedFiles, key, how string, code skerry.Code) {
	l.Helper()
	l.emptyCache()
	f, err := l.Load(context.Background(), ref.Manifest, anyFormat)
	if err == nil {
		l.Fatalf("%s %s: loaded into %s", how, key, f.Path())
	}
	_, digits, _ := strings.Cut(key, "/")
	if skerry.CodeOf(err) != code || !strings.Contains(err.Error(), digits) {
		l.Errorf("%s %s: %v", how, key, err)
	}
	left, err := filepath.Glob(filepath.Join(l.opt.CacheDir, "*", "*"))
	if err != nil || len(left) > 0 {
		l.Errorf("%s %s left %v, %v", how, key, left, err)
	}
}

// TestDamageMended has a chunk that was found damaged put again by the next Add
// that has it.
func TestDamageMended(t *testing.T) {
	for _, indexed := range []bool{true, false} {
		l := newLab(t)
		tr := tree{"pages.img": random(1, minChunk)}
		ref := l.add(tr)
		for key := range l.referenced([]string{ref.Manifest}) {
			if strings.HasPrefix(key, sealedChunk.prefix()) {
				if err := l.blobs.Put(t.Context(), key, []byte("bad")); err != nil {
					t.Fatal(err)
				}
			}
		}
		l.emptyCache()
		if indexed {
			if err := l.ledger.index(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := l.Load(t.Context(), ref.Manifest, anyFormat); err == nil {
			t.Fatal("a damaged snapshot was loaded")
		}
		if again := l.add(tr); again.Added < minChunk {
			t.Errorf("only %d bytes were put", again.Added)
		}
		l.emptyCache()
		l.loads(ref.Manifest, tr)
	}
}

// TestCollectUnreadable collects while a manifest cannot be read whose chunks the
// database does not know: what may belong to its snapshot is kept, all else is
// removed.
func TestCollectUnreadable(t *testing.T) {
	for how, spoil := range map[string]func(l *lab, name string) string{
		"damaged": func(l *lab, name string) string {
			if err := l.blobs.Put(t.Context(), mustParse(t, name).String(), []byte("no manifest")); err != nil {
				t.Fatal(err)
			}
			return name
		},
		"missing": func(l *lab, name string) string {
			if err := l.blobs.Delete(t.Context(), mustParse(t, name).String()); err != nil {
				t.Fatal(err)
			}
			return name
		},
		"no manifest": func(l *lab, name string) string { l.db.forget(name); return "../../etc" },
	} {
		t.Run(how, func(t *testing.T) {
			l := newLab(t)
			old := l.add(tree{"pages.img": random(1, 1<<20)})
			bad := l.add(tree{"pages.img": random(2, 1<<20)})
			good := tree{"pages.img": random(3, 1<<20)}
			kept := l.add(good)
			before, _ := l.stored()
			name := spoil(l, bad.Manifest)
			made := func(at time.Time) {
				l.db.edit(name, func(m *nodeapi.Manifest) { m.Name, m.Chunks, m.CreatedAt = name, nil, skerry.At(at) })
			}
			made(time.Now())
			l.gc(name, kept.Manifest)
			after, _ := l.stored()
			for key := range before {
				_, left := after[key]
				if _, err := parseKey(key); err != nil || strings.Contains(key, "chunk/") && !left {
					t.Errorf("%s was removed, which may belong to the unreadable snapshot", key)
				}
			}
			if _, left := after[mustParse(t, old.Manifest).String()]; left {
				t.Error("a deleted snapshot was not removed")
			}
			// Chunks that are newer cannot be its own.
			made(time.Now().Add(-2 * ageSlack))
			if freed := l.gc(name, kept.Manifest); freed < 1<<20 {
				t.Errorf("with an older unreadable snapshot, collecting freed %d", freed)
			}
			l.emptyCache()
			l.loads(kept.Manifest, good)
			l.gc(kept.Manifest)
			l.collects([]string{kept.Manifest})
		})
	}
}

// TestCollectReadsNothing collects when no manifest can be read, and all are known.
func TestCollectReadsNothing(t *testing.T) {
	l, h := newHooked(t)
	tr := tree{"pages.img": random(1, 1<<20)}
	kept := l.add(tr)
	l.add(tree{"pages.img": random(2, 1<<20)})
	h.get = func(key string) { t.Errorf("%s was read", key) }
	if freed := l.gc(kept.Manifest); freed < 1<<20 {
		t.Errorf("collecting freed %d", freed)
	}
	h.get = nil
	l.emptyCache()
	l.loads(kept.Manifest, tr)
	l.collects([]string{kept.Manifest})
}

// TestCollectLearns has snapshots of an earlier version, whose chunks the database
// does not know: a collection tells them once.
func TestCollectLearns(t *testing.T) {
	l, h := newHooked(t)
	trees := []tree{{"pages.img": random(1, 1<<20)}, {"pages.img": random(2, 1<<20)}, {}}
	saved := []nodeapi.SavedFiles{l.addPlain(trees[0]), l.add(trees[1]), l.add(trees[2])}
	var names []string
	for _, ref := range saved {
		names = append(names, ref.Manifest)
		l.db.edit(ref.Manifest, func(m *nodeapi.Manifest) { m.Name, m.Chunks = ref.Manifest, nil })
	}
	var mu sync.Mutex
	reads := 0
	h.get = func(string) {
		mu.Lock()
		defer mu.Unlock()
		reads++
	}
	for range 2 {
		if freed := l.gc(names...); freed != 0 {
			t.Errorf("a collection freed %d", freed)
		}
		if reads != len(names) {
			t.Errorf("%d manifests were read", reads)
		}
	}
	h.get = nil
	for i, name := range names[1:] {
		l.db.edit(name, func(m *nodeapi.Manifest) {
			if !bytes.Equal(m.Chunks, saved[i+1].Chunks) {
				t.Errorf("learned %x, saved as %x", m.Chunks, saved[i+1].Chunks)
			}
		})
	}
	l.emptyCache()
	for i, name := range names {
		l.loads(name, trees[i])
	}
	l.collects(names[:1])
	l.collects(nil)
}

// TestDamagedChunkList has a database whose list of a snapshot's chunks is damaged: it
// is as if the manifest could not be read.
func TestDamagedChunkList(t *testing.T) {
	for _, list := range [][]byte{{}, {9, 1, 2, 3, 4, 5, 6, 7, 8}, {chunksForm, 1}} {
		l := newLab(t)
		tr := tree{"pages.img": random(1, 1<<20)}
		ref := l.add(tr)
		l.db.edit(ref.Manifest, func(m *nodeapi.Manifest) { m.Chunks = list })
		l.gc(ref.Manifest)
		l.emptyCache()
		l.loads(ref.Manifest, tr)
	}
}

// TestUnknownSnapshots has snapshots that a database from an old backup does not
// know. They are set aside, and can be loaded again once they are known.
func TestUnknownSnapshots(t *testing.T) {
	l := newLab(t)
	l.opt.KeepUnknown = time.Hour
	l.open()
	trees := []tree{{"pages.img": random(1, 1<<20)}, {"pages.img": random(2, 1<<20)}, {"pages.img": random(3, 1<<20)}, {"pages.img": random(4, 1<<20)}}
	var names []string
	for _, tr := range trees {
		names = append(names, l.add(tr).Manifest)
	}
	const kept, deleted, lost, found = 0, 1, 2, 3
	l.db.edit(names[deleted], func(m *nodeapi.Manifest) { m.Deleted = true })
	newer := l.db.manifests[names[found]]
	l.db.forget(names[lost])
	l.db.forget(names[found])
	collect := func() {
		t.Helper()
		if _, err := l.db.collect(t.Context(), l.Store); err != nil {
			t.Fatal(err)
		}
	}
	unknown := func() (n int) {
		for _, m := range l.db.manifests {
			if !m.UnknownSince.IsZero() {
				n++
			}
		}
		return n
	}
	for range 2 {
		l.emptyCache()
		collect()
		l.emptyCache()
		for _, i := range []int{kept, lost, found} {
			l.loads(names[i], trees[i])
		}
		if _, err := l.Load(t.Context(), names[deleted], anyFormat); skerry.CodeOf(err) != skerry.CodeSnapshotNotFound {
			t.Errorf("loading a deleted snapshot: %v", err)
		}
		if n := unknown(); n != 2 {
			t.Errorf("%d snapshots are set aside", n)
		}
	}

	// The newer database is back: one is known again. The time of the other is over.
	l.db.edit(names[found], func(m *nodeapi.Manifest) { *m = newer })
	l.db.edit(names[lost], func(m *nodeapi.Manifest) { m.UnknownSince = skerry.At(time.Now().Add(-2 * time.Hour)) })
	collect()
	if n := unknown(); n != 0 {
		t.Errorf("%d snapshots are set aside at the end", n)
	}
	l.emptyCache()
	l.loads(names[found], trees[found])
	l.collects([]string{names[kept], names[found]})

	// What was saved and is named by nobody is given up, not lost.
	l.db.end(l.save(trees[lost]).Lease)
	l.collects([]string{names[kept], names[found]})
}

// TestUnreadableUnknown has a manifest that nobody knows, and that cannot be read. It
// is set aside too, with all chunks that may be its own.
func TestUnreadableUnknown(t *testing.T) {
	l := newLab(t)
	l.opt.KeepUnknown = time.Hour
	l.open()
	tr := tree{"pages.img": random(1, 1<<20)}
	ref := l.add(tr)
	key := mustParse(t, ref.Manifest).String()
	sound, err := l.blobs.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.blobs.Put(t.Context(), key, []byte("no manifest")); err != nil {
		t.Fatal(err)
	}
	l.db.forget(ref.Manifest)
	l.gc()
	if err := l.blobs.Put(t.Context(), key, sound); err != nil {
		t.Fatal(err)
	}
	l.emptyCache()
	l.loads(ref.Manifest, tr)
	if m := l.db.manifests[ref.Manifest]; m.UnknownSince.IsZero() || m.Chunks != nil {
		t.Errorf("recorded as %+v", m)
	}
	if _, err := l.db.collect(t.Context(), l.Store); err != nil {
		t.Fatal(err)
	}
	if m := l.db.manifests[ref.Manifest]; !bytes.Equal(m.Chunks, ref.Chunks) {
		t.Errorf("later recorded as %+v", m)
	}
}

// TestInterruptedSaves has processes end between adding a snapshot and recording
// it. Unlike a snapshot that was recorded once, it is collected.
func TestInterruptedSaves(t *testing.T) {
	l := newLab(t)
	l.opt.KeepUnknown, l.opt.Grace = time.Hour, time.Hour
	l.open()
	ref := l.save(tree{"pages.img": random(1, 1<<20)})
	l.open()
	l.db.end(ref.Lease) // as the next process does
	l.collects(nil)
	if _, err := l.Load(t.Context(), ref.Manifest, anyFormat); skerry.CodeOf(err) != skerry.CodeSnapshotNotFound {
		t.Errorf("loading the interrupted snapshot: %v", err)
	}
}

func TestLoadUnknown(t *testing.T) {
	l := newLab(t)
	for _, manifest := range []string{"", "x", "../../../etc/passwd", strings.Repeat("0", 64), strings.Repeat("A", 64), strings.Repeat("0", 65)} {
		if _, err := l.Load(t.Context(), manifest, anyFormat); skerry.CodeOf(err) != skerry.CodeSnapshotNotFound {
			t.Errorf("Load(%q): %v", manifest, err)
		}
	}
}

// TestAddRefuses adds what is no snapshot; it stays where it is.
func TestAddRefuses(t *testing.T) {
	l := newLab(t)
	for name, spoil := range map[string]func(dir string) error{
		"folder":    func(dir string) error { return os.Mkdir(filepath.Join(dir, "sub"), 0o700) },
		"link":      func(dir string) error { return os.Symlink("pages.img", filepath.Join(dir, "link")) },
		"fifo":      func(dir string) error { return syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600) },
		"name":      func(dir string) error { return os.WriteFile(filepath.Join(dir, "a b"), nil, 0o600) },
		"long name": func(dir string) error { return os.WriteFile(filepath.Join(dir, strings.Repeat("a", 129)), nil, 0o600) },
		"hidden":    func(dir string) error { return os.WriteFile(filepath.Join(dir, ".a"), nil, 0o600) },
		"missing":   os.RemoveAll,
		"many": func(dir string) error {
			for i := range maxFiles {
				if err := os.WriteFile(filepath.Join(dir, "f"+string(rune('A'+i%26))+string(rune('A'+i/26))), nil, 0o600); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := tree{"pages.img": {1}}.write(t, filepath.Join(l.dir, randomName()))
			if err := spoil(dir); err != nil {
				t.Fatal(err)
			}
			if ref, err := l.Add(t.Context(), dir, "", "lease"); err == nil {
				t.Errorf("it was added: %+v", ref)
			}
			if _, err := os.Stat(dir); err != nil && name != "missing" {
				t.Errorf("it is not where it was: %v", err)
			}
		})
	}
	l.collects(nil)
}

// TestAddRefusesAHugeFile: it is not read to its end to find that it is too large.
func TestAddRefusesAHugeFile(t *testing.T) {
	l := newLab(t)
	dir, err := os.MkdirTemp("/dev/shm", "skerry-huge-") // other filesystems have no such files
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "pages.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, maxFileSize+1); err != nil {
		t.Fatal(err)
	}
	if ref, err := l.Add(t.Context(), dir, "", "lease"); err == nil || !strings.Contains(err.Error(), "the most is") {
		t.Errorf("added as %+v, %v", ref, err)
	}
}

// sample is a manifest that is right.
func sample() manifest {
	return manifest{Version: manifestVersion, Files: []file{
		{Name: "empty.img", Chunks: []chunk{}},
		{Name: "pages.img", Size: 3 * pageSize, Sum: 7, Chunks: []chunk{{Sum: sum{1}, Size: 2 * pageSize}, {Sum: sum{2}, Size: pageSize}}},
	}}
}

func TestManifest(t *testing.T) {
	raw, err := sample().encode()
	if err != nil {
		t.Fatal(err)
	}
	if m, err := parseManifest(raw); err != nil || m.size() != 3*pageSize {
		t.Fatalf("%+v, %v", m, err)
	}
	for name, spoil := range map[string]func(m *manifest){
		"version":       func(m *manifest) { m.Version = 2 },
		"many files":    func(m *manifest) { m.Files = make([]file, maxFiles+1) },
		"name":          func(m *manifest) { m.Files[1].Name = "../pages.img" },
		"no name":       func(m *manifest) { m.Files[0].Name = "" },
		"order":         func(m *manifest) { slices.Reverse(m.Files) },
		"twice":         func(m *manifest) { m.Files[0] = m.Files[1] },
		"less":          func(m *manifest) { m.Files[1].Size-- },
		"negative":      func(m *manifest) { m.Files[0].Size = -1 },
		"empty chunk":   func(m *manifest) { m.Files[0].Chunks = []chunk{{}} },
		"negative part": func(m *manifest) { m.Files[0].Chunks = []chunk{{Size: -1}, {Size: 1}} },
		"large chunk": func(m *manifest) {
			m.Files[0] = file{Name: "a", Size: maxChunk + 1, Chunks: []chunk{{Size: maxChunk + 1}}}
		},
		"huge": func(m *manifest) { m.Files[1].Size = 1 << 62 },
	} {
		m := sample()
		spoil(&m)
		raw, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseManifest(raw); err == nil {
			t.Errorf("%s: it was taken: %s", name, raw)
		}
	}
	for _, text := range []string{"", "null", "[]", "{}", string(raw) + "{}", strings.Replace(string(raw), `"sum":"01`, `"sum":"0`, 1)} {
		if _, err := parseManifest([]byte(text)); err == nil {
			t.Errorf("%s was taken", text)
		}
	}
	if _, err := parseManifest(bytes.Repeat([]byte(" "), maxManifest+1)); err == nil {
		t.Error("a manifest that is too large was taken")
	}
	// A snapshot of so many chunks is not made either.
	m := sample()
	if raw, err = json.Marshal(m.Files[1].Chunks[0]); err != nil {
		t.Fatal(err)
	}
	m.Files[1].Chunks = slices.Repeat(m.Files[1].Chunks[:1], maxManifest/(len(raw)+1)+1)
	if _, err := m.encode(); err == nil {
		t.Error("a manifest that is too large was made")
	}
	m.Files[1].Chunks = m.Files[1].Chunks[:len(m.Files[1].Chunks)-20]
	if _, err := m.encode(); err != nil {
		t.Error(err)
	}
}

func FuzzManifest(f *testing.F) {
	raw, err := sample().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"version":1,"files":[{"name":"a","size":9223372036854775807,"sum":"0","chunks":null}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := parseManifest(raw)
		if err != nil {
			return
		}
		again, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		m2, err := parseManifest(again)
		if err != nil || m2.size() != m.size() || m.size() < 0 {
			t.Errorf("%s became %s: %v", raw, again, err)
		}
		for _, f := range m.Files {
			if filepath.Base(f.Name) != f.Name || f.Name == ".." || f.Name == "." {
				t.Errorf("name %q", f.Name)
			}
		}
	})
}

func FuzzChunk(f *testing.F) {
	codec, err := newCodec(1)
	if err != nil {
		f.Fatal(err)
	}
	for _, plain := range [][]byte{{}, text(1, 300), random(1, 300), make([]byte, 1<<20)} {
		f.Add(codec.encode(nil, plain), uint32(len(plain)))
	}
	buf := make([]byte, maxChunk)
	f.Fuzz(func(t *testing.T, blob []byte, size uint32) {
		if plain, err := codec.decode(buf, blob, chunk{Size: int64(size), Sum: sha256.Sum256(nil)}); err == nil && len(plain) > 0 {
			t.Errorf("%d bytes that do not match their name", len(plain))
		}
		// Let it get past the header too.
		if len(blob) >= chunkHeader {
			copy(blob, chunkMagic)
			blob[3] &= 1
			size %= maxChunk + 1
			binary.LittleEndian.PutUint32(blob[4:], size)
		}
		plain, err := codec.decode(buf, blob, chunk{Size: int64(size)})
		if err == nil {
			t.Errorf("%d bytes that do not match their name", len(plain))
		}
	})
}

// TestBomb decodes a chunk that says it is small and is not.
func TestBomb(t *testing.T) {
	codec, err := newCodec(1)
	if err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 64<<20)
	blob := append([]byte(chunkMagic), codingZstd)
	blob = binary.LittleEndian.AppendUint32(blob, maxChunk)
	blob = codec.enc.EncodeAll(zeros, blob)
	if _, err := codec.decode(make([]byte, maxChunk), blob, chunk{Size: maxChunk, Sum: sha256.Sum256(zeros[:maxChunk])}); err == nil {
		t.Error("a chunk that is larger than it says was decoded")
	}
	for _, plain := range [][]byte{nil, {1}, zeros[:maxChunk], random(1, maxChunk), text(1, maxChunk)} {
		c := chunk{Size: int64(len(plain)), Sum: sha256.Sum256(plain)}
		blob := codec.encode(nil, plain)
		if len(blob) > len(plain)+chunkHeader+16 {
			t.Errorf("%d bytes became %d", len(plain), len(blob))
		}
		if got, err := codec.decode(make([]byte, maxChunk), blob, c); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes of %d, %v", len(got), len(plain), err)
		}
	}
}
