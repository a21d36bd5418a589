package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// TestGCUnreadable collects while a manifest cannot be read: what may belong to
// its snapshot is kept, all else is removed.
func TestGCUnreadable(t *testing.T) {
	for how, spoil := range map[string]func(l *lab, m *skerry.Manifest) error{
		"damaged": func(l *lab, m *skerry.Manifest) error {
			name := mustParse(t, m.Name).String()
			return l.blobs.Put(t.Context(), name, []byte("no manifest"))
		},
		"missing": func(l *lab, m *skerry.Manifest) error {
			return l.blobs.Delete(t.Context(), mustParse(t, m.Name).String())
		},
		"no manifest": func(_ *lab, m *skerry.Manifest) error { m.Name = "../../etc"; return nil },
	} {
		t.Run(how, func(t *testing.T) {
			l := newLab(t)
			old := l.add(tree{"pages.img": random(1, 1<<20)})
			bad := l.add(tree{"pages.img": random(2, 1<<20)})
			good := tree{"pages.img": random(3, 1<<20)}
			kept := l.add(good)
			before, _ := l.stored()
			known := recorded([]string{bad.Manifest, kept.Manifest})
			if err := spoil(l, &known[0]); err != nil {
				t.Fatal(err)
			}
			if _, err := l.GC(t.Context(), known); err != nil {
				t.Fatal(err)
			}
			after, _ := l.stored()
			for key := range before {
				_, left := after[key]
				if b, err := parseKey(key); err != nil || b.isChunk() && !left {
					t.Errorf("%s was removed, which may belong to the unreadable snapshot", key)
				}
			}
			if _, left := after[mustParse(t, old.Manifest).String()]; left {
				t.Error("a deleted snapshot was not removed")
			}
			// Chunks that are newer cannot be its own.
			known[0].CreatedAt = skerry.At(time.Now().Add(-2 * heldSlack))
			if freed, err := l.GC(t.Context(), known); err != nil || freed < 1<<20 {
				t.Errorf("with an older unreadable snapshot, GC freed %d, %v", freed, err)
			}
			l.emptyCache()
			l.loads(kept.Manifest, good)
			l.GC(t.Context(), known[1:])
			l.collects([]string{kept.Manifest})
		})
	}
}

// TestGCUnreadableRenewed has a chunk put again, so that it looks newer than the older
// snapshot that needs it as well, whose manifest cannot be read.
func TestGCUnreadableRenewed(t *testing.T) {
	l := newLab(t)
	shared := random(1, minChunk)
	older := tree{"pages.img": shared}
	ref := l.add(older)
	for key := range l.referenced([]string{ref.Manifest}) {
		if strings.HasPrefix(key, sealedChunk.prefix()) {
			if err := l.blobs.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
	}
	l.emptyCache()
	if _, err := l.Load(t.Context(), ref.Manifest, anyFormat); err == nil {
		t.Fatal("a snapshot was loaded whose chunks are missing")
	}
	l.add(tree{"pages.img": shared, "other.img": random(2, minChunk)})
	manifest := mustParse(t, ref.Manifest).String()
	sound, err := l.blobs.Get(t.Context(), manifest)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.blobs.Put(t.Context(), manifest, []byte("no manifest")); err != nil {
		t.Fatal(err)
	}
	known := recorded([]string{ref.Manifest})
	known[0].CreatedAt = skerry.At(time.Now().Add(-2 * heldSlack))
	// The other snapshot is deleted, with what only it has.
	if freed, err := l.GC(t.Context(), known); err != nil || freed < minChunk {
		t.Errorf("GC freed %d, %v", freed, err)
	}
	if err := l.blobs.Put(t.Context(), manifest, sound); err != nil {
		t.Fatal(err)
	}
	l.loads(ref.Manifest, older)
	l.GC(t.Context(), known)
	l.collects([]string{ref.Manifest})
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
	known := recorded(names[:lost])
	known[deleted].Deleted = true

	l.emptyCache() // this process has added none of them
	if _, err := l.GC(t.Context(), known); err != nil {
		t.Fatal(err)
	}
	l.emptyCache()
	for _, i := range []int{kept, lost, found} {
		l.loads(names[i], trees[i])
	}
	if _, err := l.Load(t.Context(), names[deleted], anyFormat); skerry.CodeOf(err) != skerry.CodeSnapshotNotFound {
		t.Errorf("loading a deleted snapshot: %v", err)
	}
	markers := func() (n int) {
		keys, _ := l.stored()
		for key := range keys {
			if strings.HasPrefix(key, unknownPrefix) {
				n++
			}
		}
		return n
	}
	if n := markers(); n != 2 {
		t.Errorf("%d snapshots are set aside", n)
	}

	// The newer database is back: one is known again. The time of the other is over.
	known = append(known, recorded(names[found:])...)
	err := filepath.WalkDir(filepath.Join(l.dir, "blobs", "blobs", unknownPrefix), func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chtimes(path, time.Time{}, time.Now().Add(-2*time.Hour)))
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.GC(t.Context(), known); err != nil {
		t.Fatal(err)
	}
	if n := markers(); n != 0 {
		t.Errorf("%d snapshots are set aside at the end", n)
	}
	l.emptyCache()
	l.loads(names[found], trees[found])
	l.collects([]string{names[kept], names[found]})

	// What this process adds and nobody records is given up, not lost.
	l.opt.KeepUnknown = time.Hour
	l.open()
	l.add(trees[lost])
	l.collects([]string{names[kept], names[found]})
}

// TestInterruptedSaves has processes end between adding a snapshot and recording
// it. Unlike a snapshot that was recorded once, it is collected.
func TestInterruptedSaves(t *testing.T) {
	l := newLab(t)
	l.opt.KeepUnknown = time.Hour
	l.open()
	trees := []tree{{"pages.img": random(1, 1<<20)}, {"pages.img": random(2, 1<<20)}, {"pages.img": random(3, 1<<20)}}
	const kept, lost, interrupted = 0, 1, 2
	var names []string
	for _, tr := range trees[:interrupted] {
		names = append(names, l.add(tr).Manifest)
	}
	if _, err := l.GC(t.Context(), recorded(names)); err != nil {
		t.Fatal(err)
	}
	names = append(names, l.add(trees[interrupted]).Manifest)
	l.open() // the next process, whose database is older than one of the snapshots
	known := recorded(names[:lost])
	if _, err := l.GC(t.Context(), known); err != nil {
		t.Fatal(err)
	}
	l.emptyCache()
	l.loads(names[kept], trees[kept])
	l.loads(names[lost], trees[lost])
	if _, err := l.Load(t.Context(), names[interrupted], anyFormat); skerry.CodeOf(err) != skerry.CodeSnapshotNotFound {
		t.Errorf("loading the interrupted snapshot: %v", err)
	}
	// The same files may be saved again.
	if again := l.add(trees[interrupted]).Manifest; again != names[interrupted] {
		t.Errorf("saved again, it is %s and not %s", again, names[interrupted])
	}
	l.loads(names[interrupted], trees[interrupted])
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
			if ref, err := l.Add(t.Context(), dir, ""); err == nil {
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
	if ref, err := l.Add(t.Context(), dir, ""); err == nil || !strings.Contains(err.Error(), "the most is") {
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
