package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sync/errgroup"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/blob"
)

// Folder is a snapshot's files on disk, for as long as it is not released.
// They are shared with whoever else loads it, and with the cache: they must not
// be written to.
type Folder struct {
	entry   *entry
	release func()
}

// Path returns the folder's path.
func (f *Folder) Path() string { return f.entry.files() }

// Release lets the cache remove the folder. To release it again does nothing.
func (f *Folder) Release() { f.release() }

// Load brings a snapshot's folder back, from the cache or from the blobs. Every
// byte is checked against the manifest's checksums on the way, unless it was lately
// and nobody has written to the file since. A snapshot that
// is not there is a skerry.CodeSnapshotNotFound; an error about a missing or
// damaged blob names it. Loads of one snapshot at the same time share the work.
// accept is asked about the snapshot's format before anything is fetched, and its
// error is Load's; the format is "" for snapshots of earlier versions. Loads that
// share the work ask the first one's.
func (s *Store) Load(ctx context.Context, manifest string, accept func(format string) error) (*Folder, error) {
	name, err := parseRef(manifest)
	if err != nil {
		return nil, skerry.Errorf(skerry.CodeSnapshotNotFound, "there is no snapshot %.80q", manifest)
	}
	e, err := s.loads.do(ctx, name, func(ctx context.Context) (*entry, error) { return s.load(ctx, name, accept) }, s.cache.morePins)
	if err != nil {
		return nil, failure("load snapshot "+manifest, err)
	}
	return &Folder{entry: e, release: sync.OnceFunc(func() { s.cache.unpin(e) })}, nil
}

// load returns an entry with one pin.
func (s *Store) load(ctx context.Context, name id, accept func(format string) error) (*entry, error) {
	if e := s.cache.pin(name); e != nil {
		m, err := s.cachedManifest(e)
		if err == nil {
			if err := accept(m.Format); err != nil {
				s.cache.unpin(e)
				return nil, err
			}
			err = s.check(ctx, m, e)
		}
		if err == nil {
			return e, nil
		}
		if ctx.Err() == nil {
			s.opt.Log.Warn("a cached snapshot is damaged and will be fetched again", "manifest", name, "error", err)
			s.cache.drop(e)
		}
		s.cache.unpin(e)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	raw, m, err := s.manifest(ctx, name)
	if err != nil {
		return nil, err
	}
	if err := accept(m.Format); err != nil {
		return nil, err
	}
	e, err := s.cache.make(name, m.size(), raw, true, func(files string) error {
		release, err := s.opt.Reserve(m.size())
		if err != nil {
			return err
		}
		defer release()
		return s.assemble(ctx, m, files)
	})
	if errors.Is(err, blob.ErrNotFound) {
		// A snapshot that was deleted in the meantime is not damaged.
		if _, _, gone := s.manifest(ctx, name); gone != nil {
			err = gone
		}
	}
	return e, err
}

// manifest gets a manifest from the blobs.
func (s *Store) manifest(ctx context.Context, name id) ([]byte, manifest, error) {
	raw, err := s.opt.Blobs.Get(ctx, name.String())
	if errors.Is(err, blob.ErrNotFound) {
		return nil, manifest{}, &skerry.Error{Code: skerry.CodeSnapshotNotFound, Message: "there is no snapshot " + name.ref(), Err: err}
	}
	if err != nil {
		return nil, manifest{}, err
	}
	if name.kind == sealedManifest {
		raw, err = s.seal.open(raw, name)
	}
	var m manifest
	if err == nil {
		m, err = s.checkManifest(raw, name)
	}
	if err != nil {
		return nil, manifest{}, damaged(name, err)
	}
	return raw, m, nil
}

// checkManifest parses a manifest that is to have a name.
func (s *Store) checkManifest(raw []byte, name id) (manifest, error) {
	actual := id{kind: plainManifest, sum: sha256.Sum256(raw)}
	if name.kind == sealedManifest {
		actual = s.seal.name(sealedManifest, actual.sum)
	}
	if actual != name {
		return manifest{}, errors.New("its content does not match its name")
	}
	m, err := parseManifest(raw)
	m.sealed = name.kind == sealedManifest
	return m, err
}

// blobOf names the blob of a manifest's chunk.
func (s *Store) blobOf(m manifest, c chunk) id {
	if m.sealed {
		return s.seal.name(sealedChunk, c.Sum)
	}
	return id{kind: plainChunk, sum: c.Sum}
}

// assemble makes a folder of a snapshot's files from their chunks.
func (s *Store) assemble(ctx context.Context, m manifest, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for _, f := range m.Files {
		if err := s.assembleFile(ctx, m, f, filepath.Join(dir, f.Name)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) assembleFile(ctx context.Context, m manifest, f file, path string) (err error) {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	group, ctx := errgroup.WithContext(ctx)
	at := int64(0)
	for _, c := range f.Chunks {
		buf, err := s.buffer(ctx)
		if err != nil {
			group.Go(func() error { return err })
			break
		}
		offset := at
		group.Go(func() error {
			defer s.giveBack(buf)
			plain, err := s.fetch(ctx, s.blobOf(m, c), c, buf.plain)
			if err == nil {
				_, err = out.WriteAt(plain, offset)
			}
			return err
		})
		at += c.Size
	}
	return group.Wait()
}

// fetch gets a chunk's plain bytes, with the help of a buffer.
func (s *Store) fetch(ctx context.Context, name id, c chunk, buf []byte) ([]byte, error) {
	raw, err := s.opt.Blobs.Get(ctx, name.String())
	if err != nil && !errors.Is(err, blob.ErrNotFound) {
		return nil, err
	}
	if err == nil && name.kind == sealedChunk {
		raw, err = s.seal.open(raw, name)
	}
	var plain []byte
	if err == nil {
		plain, err = s.codec.decode(buf, raw, c)
	}
	if err != nil {
		s.ledger.doubt(name)
		return nil, damaged(name, err)
	}
	return plain, nil
}

// cachedManifest returns the manifest of a cached folder.
func (s *Store) cachedManifest(e *entry) (manifest, error) {
	raw, err := readSmall(e.manifest(), maxManifest)
	if err != nil {
		return manifest{}, err
	}
	m, err := s.checkManifest(raw, e.name)
	if err != nil {
		return manifest{}, fmt.Errorf("its manifest: %w", err)
	}
	return m, nil
}

// check verifies a cached folder, unless it is known to be right.
func (s *Store) check(ctx context.Context, m manifest, e *entry) error {
	before, err := stampsOf(e.files())
	if err != nil {
		return err
	}
	if s.cache.isSound(e, before) {
		return nil
	}
	if err := verify(ctx, m, e); err != nil {
		return err
	}
	s.cache.noteSound(e, before)
	return nil
}

// verify compares a cached folder with its manifest's checksums.
func verify(ctx context.Context, m manifest, e *entry) error {
	entries, err := os.ReadDir(e.files())
	if err != nil {
		return err
	}
	if len(entries) != len(m.Files) {
		return fmt.Errorf("it has %d files of %d", len(entries), len(m.Files))
	}
	for _, f := range m.Files {
		if err := verifyFile(ctx, f, filepath.Join(e.files(), f.Name)); err != nil {
			return err
		}
	}
	return nil
}

func verifyFile(ctx context.Context, want file, path string) error {
	f, size, err := openRegular(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if size != want.Size {
		return fmt.Errorf("%s has %d bytes of %d", path, size, want.Size)
	}
	sums := make([]uint64, len(want.Chunks))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	at := int64(0)
	for i, c := range want.Chunks {
		part := io.NewSectionReader(f, at, c.Size)
		group.Go(func() (err error) {
			if err = ctx.Err(); err == nil {
				sums[i], err = sumOf(part)
			}
			return err
		})
		at += c.Size
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if fileSum(sums) != want.Sum {
		return fmt.Errorf("%s does not match its checksum", path)
	}
	return nil
}

// sumBuffers are small enough for a core's cache to hold what is read until it
// is summed.
var sumBuffers = sync.Pool{New: func() any { return new([128 << 10]byte) }}

func sumOf(r *io.SectionReader) (uint64, error) {
	buf := sumBuffers.Get().(*[128 << 10]byte)
	defer sumBuffers.Put(buf)
	h := xxhash.New()
	n, err := io.CopyBuffer(h, onlyReader{r}, buf[:])
	if err == nil && n != r.Size() {
		err = io.ErrUnexpectedEOF
	}
	return h.Sum64(), err
}

// onlyReader hides the methods with which io.CopyBuffer would do without its
// buffer.
type onlyReader struct{ io.Reader }

// readSmall reads a file of at most so many bytes.
func readSmall(path string, most int64) ([]byte, error) {
	f, size, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > most {
		return nil, fmt.Errorf("%s has %d bytes: the most is %d", path, size, most)
	}
	raw := make([]byte, size)
	_, err = io.ReadFull(f, raw)
	return raw, err
}
