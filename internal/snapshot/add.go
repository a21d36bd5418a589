package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// Add stores a folder of regular files, at most 64 of at most 16 TiB, named
// with letters, digits, dots, dashes and underscores. When it returns, the
// snapshot will survive a loss of power. The folder then belongs to the cache
// and is no longer where it was; nobody may write to its files.
//
// Load tells the format, which says what the folder is for. lease identifies this save
// only. The caller's database must have it from before the call until the snapshot is
// recorded, together with SavedFiles.Chunks; see Collect.
//
// If Add fails, the folder is as it was and there is no snapshot. A disk that
// is full is a skerry.CodeDiskFull, all else that keeps it from being stored a
// skerry.CodeUnavailable.
func (s *Store) Add(ctx context.Context, dir, format, lease string) (nodeapi.SavedFiles, error) {
	ref, err := s.add(ctx, dir, format, lease)
	if err == nil {
		return ref, nil
	}
	if err = failure("store the snapshot", err); skerry.CodeOf(err) == skerry.CodeInternal {
		// Whoever saves a sandbox tells this from a sandbox that cannot be saved.
		err = &skerry.Error{Code: skerry.CodeUnavailable, Message: "the snapshot could not be written to the snapshot storage", Err: err}
	}
	return nodeapi.SavedFiles{}, err
}

func (s *Store) add(ctx context.Context, dir, format, lease string) (saved nodeapi.SavedFiles, err error) {
	if len(format) > maxFormat {
		return nodeapi.SavedFiles{}, fmt.Errorf("a format of %d bytes: the most is %d", len(format), maxFormat)
	}
	if lease == "" || len(lease) > maxLease {
		return nodeapi.SavedFiles{}, fmt.Errorf("a lease of %d bytes: it has 1 to %d", len(lease), maxLease)
	}
	if err := s.ledger.index(ctx); err != nil {
		return nodeapi.SavedFiles{}, err
	}
	a := &adding{Store: s}
	defer func() {
		if err != nil {
			s.ledger.leave(a.put)
		}
	}()
	m, err := a.files(ctx, dir)
	if err != nil {
		return nodeapi.SavedFiles{}, err
	}
	m.Format, m.Lease, m.sealed = format, lease, true
	raw, err := m.encode()
	if err != nil {
		return nodeapi.SavedFiles{}, err
	}
	name := s.seal.name(sealedManifest, sha256.Sum256(raw))
	blob := s.seal.seal(append(s.seal.begin(nil), raw...), name)
	if err := s.opt.Blobs.Put(ctx, name.String(), blob); err != nil {
		return nodeapi.SavedFiles{}, err
	}
	s.cache.adopt(name, m.size(), raw, dir)
	return nodeapi.SavedFiles{Manifest: name.ref(), Lease: lease, Chunks: s.chunksOf(m), Size: m.size(), Added: a.added.Load() + int64(len(blob))}, nil
}

// adding is an Add in progress.
type adding struct {
	*Store
	added atomic.Int64

	mu sync.Mutex
	// put are the chunks that were not stored before.
	put []id
}

// files stores the chunks of a folder's files.
func (a *adding) files(ctx context.Context, dir string) (manifest, error) {
	m := manifest{Version: manifestVersion, Files: []file{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return m, err
	}
	if len(entries) > maxFiles {
		return m, fmt.Errorf("there are %d files in it: the most is %d", len(entries), maxFiles)
	}
	for _, entry := range entries {
		if err := checkName(entry.Name()); err != nil {
			return m, err
		}
		f, err := a.file(ctx, filepath.Join(dir, entry.Name()))
		if err != nil {
			return m, err
		}
		m.Files = append(m.Files, f)
	}
	return m, nil
}

// file stores the chunks of one file.
func (a *adding) file(ctx context.Context, path string) (file, error) {
	f, size, err := openRegular(path)
	if err != nil {
		return file{}, err
	}
	defer f.Close()
	if size > maxFileSize {
		return file{}, fmt.Errorf("%s has %d bytes: the most is %d", path, size, int64(maxFileSize))
	}
	parts := &parts{}
	group, ctx := errgroup.WithContext(ctx)
	for at := int64(0); at < size; {
		buf, err := a.buffer(ctx)
		if err != nil {
			group.Go(func() error { return err })
			break
		}
		n, err := readChunk(f, buf.plain[:min(maxChunk, size-at)], at)
		if err != nil {
			a.giveBack(buf)
			group.Go(func() error { return err })
			break
		}
		i := parts.next()
		group.Go(func() error {
			defer a.giveBack(buf)
			c, sum, err := a.chunk(ctx, buf, n)
			parts.set(i, c, sum)
			return err
		})
		at += int64(n)
	}
	if err := group.Wait(); err != nil {
		return file{}, err
	}
	return file{Name: filepath.Base(path), Size: size, Sum: fileSum(parts.sums), Chunks: parts.chunks}, nil
}

// parts are a file's chunks, which become known in any order.
type parts struct {
	mu     sync.Mutex
	chunks []chunk
	sums   []uint64
}

func (p *parts) next() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.chunks = append(p.chunks, chunk{})
	p.sums = append(p.sums, 0)
	return len(p.chunks) - 1
}

func (p *parts) set(i int, c chunk, sum uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.chunks[i], p.sums[i] = c, sum
}

// chunk stores the first n bytes of a buffer.
func (a *adding) chunk(ctx context.Context, buf *buffer, n int) (chunk, uint64, error) {
	plain := buf.plain[:n]
	c := chunk{Sum: sha256.Sum256(plain), Size: int64(n)}
	name := a.seal.name(sealedChunk, c.Sum)
	added, err := a.ledger.put(ctx, name, func() []byte {
		buf.packed = a.seal.seal(a.codec.encode(a.seal.begin(buf.packed[:0]), plain), name)
		return buf.packed
	})
	if added > 0 {
		a.added.Add(added)
		a.mu.Lock()
		a.put = append(a.put, name)
		a.mu.Unlock()
	}
	return c, xxhash.Sum64(plain), err
}

// readStep is how much of a file is read at once in search of a chunk's end.
// What is read beyond it is read again with the next chunk.
const readStep = 256 << 10

// readChunk reads the chunk of a file that begins at an offset, into a buffer
// that ends where the file or the longest chunk does, and returns its length.
func readChunk(f *os.File, buf []byte, at int64) (int, error) {
	for n := 0; n < len(buf); {
		step := buf[n:min(n+readStep, len(buf))]
		if _, err := f.ReadAt(step, at+int64(n)); err != nil {
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("%s became shorter while it was read", f.Name())
			}
			return 0, err
		}
		from := n
		n += len(step)
		if end := cutAfter(buf[:n], from); end > 0 {
			return end, nil
		}
	}
	return len(buf), nil
}

// openRegular opens a regular file and returns its size.
func openRegular(path string) (*os.File, int64, error) {
	// O_NONBLOCK so that a fifo is refused rather than waited for.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}
