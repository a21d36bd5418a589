// Package snapshot keeps folders of files that a sandbox's kernel wrote, and
// brings them back.
//
// A snapshot is a flat folder: a handful of regular files, one of which, with
// the pages of what the sandbox stored, may have many gigabytes. Its files are
// cut into chunks where their content says so (cut.go), so that two snapshots
// share the chunks of everything that is the same in both. That is what makes
// one the delta over its parent, though none knows its parent: each names all
// its chunks, and the hundredth of a chain is brought back as fast as the
// first.
//
// # Blobs
//
//	chunk/<sha256 of the plain bytes>       a chunk, see chunk.go
//	manifest/<sha256 of the blob>           what a snapshot is made of
//
// A manifest is JSON: {"version":1,"files":[{"name","size","sum","chunks":
// [{"sum","size"},…]},…]}, files in the order of their names. A chunk's sum is
// its SHA-256. A file's sum is the XXH64, as 16 hex digits, of the XXH64s of
// its chunks, 8 bytes each, little-endian: it is for cached files, which it
// protects from crashes and failing disks and not from malice, and can be
// computed on all cores at once.
//
// A manifest is written when all its chunks are. So whatever ends the process,
// a manifest that is there can be brought back; chunks that no manifest names
// are removed by GC.
//
// # Cache
//
// Folders that were added or loaded lately are kept whole:
//
//	CACHE/<manifest>.<random>/manifest   the manifest
//	CACHE/<manifest>.<random>/files/     the folder
//	CACHE/tmp/                           what is being made or removed
//
// The time of an entry's folder is when it was last used. Nothing in the cache
// is synced to disk or believed: each Load compares it with the checksums, and
// fetches anew what does not match.
//
// # Ownership
//
// One process, with one Store, owns the blobs and the cache. What keeps GC and
// Adds that run at the same time apart is in memory (ledger.go).
package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/blob"
)

// DefaultGrace is how long GC spares a snapshot that Add returned, unless
// Options say otherwise.
const DefaultGrace = time.Minute

// maxInFlight is how many chunks are held in memory at once, by all Adds and
// Loads together, at most 12 MiB each. Fewer leave a disk idle that could sync
// several files at once; twice as many cost more processor time on two cores.
const maxInFlight = 8

// Options configures a Store.
type Options struct {
	Blobs blob.Store
	// CacheDir is made if need be. Folders to Add must be on the same file
	// system to become part of the cache.
	CacheDir string
	// CacheBytes bounds the files in the cache. Folders that are in use may
	// exceed it.
	CacheBytes int64
	// Grace is how long a snapshot that Add returned is safe from GC although
	// GC's caller does not name it: the time a caller may take to record it.
	// 0 is DefaultGrace; less is none.
	Grace time.Duration
	Log   *slog.Logger
}

// Store packs folders into blobs and brings them back. Its methods may be
// called concurrently.
type Store struct {
	opt    Options
	codec  *codec
	cache  *cache
	ledger *ledger
	loads  flights
	// slots are taken by the chunks in memory.
	slots *semaphore.Weighted
	// collecting is held by the one GC that runs.
	collecting chan struct{}
}

// Ref names a stored snapshot.
type Ref struct {
	Manifest string // hex SHA-256
	Size     int64  // of the files
	Added    int64  // stored bytes that were not there before
}

// Open opens a store. What an earlier process left half made in the cache is
// removed.
func Open(opt Options) (*Store, error) {
	if opt.Blobs == nil || opt.CacheDir == "" || opt.Log == nil {
		return nil, errors.New("open snapshots: blobs, a cache directory and a log are needed")
	}
	if opt.Grace == 0 {
		opt.Grace = DefaultGrace
	}
	codec, err := newCodec(runtime.GOMAXPROCS(0))
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	cache, err := openCache(opt.CacheDir, opt.CacheBytes, opt.Log)
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	return &Store{
		opt: opt, codec: codec, cache: cache, ledger: newLedger(opt.Blobs),
		slots: semaphore.NewWeighted(maxInFlight), collecting: make(chan struct{}, 1),
	}, nil
}

// sum is a SHA-256.
type sum [sha256.Size]byte

func (s sum) String() string { return hex.EncodeToString(s[:]) }

// parseSum reads the 64 lower-case hex digits of a SHA-256.
func parseSum(text string) (sum, error) {
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != sha256.Size || hex.EncodeToString(raw) != text {
		return sum{}, fmt.Errorf("%.80q is not a SHA-256 in hex", text)
	}
	return sum(raw), nil
}

// MarshalText and UnmarshalText are for the manifest.
func (s sum) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, s[:]), nil }

func (s *sum) UnmarshalText(text []byte) (err error) {
	*s, err = parseSum(string(text))
	return err
}

const (
	chunkPrefix    = "chunk/"
	manifestPrefix = "manifest/"
)

// id names a blob.
type id struct {
	manifest bool
	sum      sum
}

func (b id) String() string {
	if b.manifest {
		return manifestPrefix + b.sum.String()
	}
	return chunkPrefix + b.sum.String()
}

// failure gives an error that was met while doing something the code that
// clients are to see.
func failure(doing string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return &skerry.Error{Code: skerry.CodeDiskFull, Message: doing + ": the disk is full", Err: err}
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// damaged is the error of a snapshot whose blob is missing or wrong.
func damaged(blob id, err error) error {
	return &skerry.Error{Code: skerry.CodeInternal, Message: fmt.Sprintf("the snapshot is damaged: blob %s", blob), Err: err}
}

// buffer has room for a chunk, plain and packed.
type buffer struct {
	plain  []byte
	packed []byte
}

var buffers = sync.Pool{New: func() any { return &buffer{plain: make([]byte, maxChunk)} }}

// buffer waits until there may be one more chunk in memory; giveBack lets the
// next be there.
func (s *Store) buffer(ctx context.Context) (*buffer, error) {
	if err := s.slots.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	return buffers.Get().(*buffer), nil
}

func (s *Store) giveBack(b *buffer) {
	buffers.Put(b)
	s.slots.Release(1)
}
