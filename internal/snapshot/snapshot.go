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
//	sealed-chunk/<name>                 a chunk, see chunk.go
//	sealed-manifest/<name>              what a snapshot is made of
//
// Both are encrypted with a key of the installation, and named by a MAC of their
// content (seal.go). Earlier versions sealed nothing. What they stored is read
// for as long as a snapshot needs it; nothing is added to it.
//
//	chunk/<sha256 of the plain bytes>
//	manifest/<sha256 of the blob>
//
// A sealed snapshot is known by "sealed-" and its manifest's name, an earlier
// one by the name alone. A snapshot's chunks are sealed if its manifest is.
//
// A manifest is JSON: {"version":1,"format","lease","files":[{"name","size","sum","chunks":
// [{"sum","size"},…]},…]}, files in the order of their names. A chunk's sum is
// its SHA-256. A file's sum is the XXH64, as 16 hex digits, of the XXH64s of
// its chunks, 8 bytes each, little-endian: it is for cached files, which it
// protects from crashes and failing disks and not from malice, and can be
// computed on all cores at once.
//
// A manifest is written when all its chunks are. So whatever ends the process,
// a manifest that is there can be brought back; chunks that no manifest names
// are removed by Collect.
//
// # Cache
//
// Folders that were added or loaded lately are kept whole:
//
//	CACHE/<manifest>.<random>/manifest   the manifest
//	CACHE/<manifest>.<random>/files/     the folder
//	CACHE/tmp/                           what is being made or removed
//
// A cached manifest and its files are not sealed: a sandbox's kernel reads them.
//
// The time of an entry's folder is when it was last used. Nothing in the cache
// is synced to disk or believed: each Load compares it with the checksums, and
// fetches anew what does not match.
//
// # Ownership
//
// One process, with one Store, owns the blobs and the cache. Which snapshots there
// are, which chunks each uses and which saves are in progress is in the caller's
// database; what is stored and may be relied on is in memory (ledger.go). Collect
// brings the two together.
package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/blob"
)

// DefaultGrace is the default of Options.Grace.
const DefaultGrace = time.Minute

// DefaultKeepUnknown is how long snapshots are kept that the database does not know,
// the same as for drives. It gives the operator time to notice that the database was
// restored from an old backup.
const DefaultKeepUnknown = 30 * 24 * time.Hour

// maxInFlight is how many chunks are held in memory at once, by all Adds and
// Loads together, at most 12 MiB each. Fewer leave a disk idle that could sync
// several files at once; twice as many cost more processor time on two cores.
const maxInFlight = 8

// Options configures a Store.
type Options struct {
	Blobs blob.Store
	// Key seals the blobs: KeySize bytes that are random and never change. With
	// another, no snapshot can be loaded.
	Key []byte
	// CacheDir is made if need be. Folders to Add must be on the same file
	// system to become part of the cache.
	CacheDir string
	// CacheBytes bounds the files in the cache. Folders that are in use may
	// exceed it.
	CacheBytes int64
	// Grace is the age from which Collect may remove blobs that no snapshot has named
	// and whose save it does not know to have failed. 0 is DefaultGrace; less is none.
	Grace time.Duration
	// KeepUnknown is how long Collect sets snapshots aside that its caller does not
	// know. 0 is not at all.
	KeepUnknown time.Duration
	// Reserve, if set, reserves room on the disk of CacheDir for a folder that is
	// fetched.
	Reserve func(size int64) (release func(), err error)
	Log     *slog.Logger
}

// Store packs folders into blobs and brings them back. Its methods may be
// called concurrently.
type Store struct {
	opt    Options
	codec  *codec
	seal   *sealer
	cache  *cache
	ledger *ledger
	loads  flights
	// slots are taken by the chunks in memory.
	slots *semaphore.Weighted
	// collecting is held by the one Collect that runs.
	collecting chan struct{}
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
	seal, err := newSealer(opt.Key)
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	codec, err := newCodec(runtime.GOMAXPROCS(0))
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	cache, err := openCache(opt.CacheDir, opt.CacheBytes, opt.Log)
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	if opt.Reserve == nil {
		opt.Reserve = func(int64) (func(), error) { return func() {}, nil }
	}
	return &Store{
		opt: opt, codec: codec, seal: seal, cache: cache, ledger: newLedger(opt.Blobs),
		slots: semaphore.NewWeighted(maxInFlight), collecting: make(chan struct{}, 1),
	}, nil
}

// sum is a SHA-256, or a MAC of one.
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

// kind is what a blob is.
type kind uint8

const (
	sealedChunk kind = iota
	sealedManifest
	// plainChunk and plainManifest are blobs of earlier versions.
	plainChunk
	plainManifest
)

// prefix is what the keys of such blobs begin with.
func (k kind) prefix() string {
	return [...]string{"sealed-chunk/", "sealed-manifest/", "chunk/", "manifest/"}[k]
}

// id names a blob.
type id struct {
	kind kind
	sum  sum
}

func (b id) String() string { return b.kind.prefix() + b.sum.String() }

// parseKey reads the key of a blob; it reverses String.
func parseKey(key string) (id, error) {
	for k := sealedChunk; k <= plainManifest; k++ {
		if digits, ok := strings.CutPrefix(key, k.prefix()); ok {
			sum, err := parseSum(digits)
			return id{kind: k, sum: sum}, err
		}
	}
	return id{}, fmt.Errorf("blob %.80q is no part of a snapshot", key)
}

// sealedRef is what the name of a sealed snapshot begins with.
const sealedRef = "sealed-"

// ref returns what a snapshot is known by outside of this package: a name for
// its manifest.
func (b id) ref() string {
	if b.kind == sealedManifest {
		return sealedRef + b.sum.String()
	}
	return b.sum.String()
}

// parseRef returns the manifest that a snapshot's name is of.
func parseRef(text string) (id, error) {
	b := id{kind: plainManifest}
	if digits, sealed := strings.CutPrefix(text, sealedRef); sealed {
		b.kind, text = sealedManifest, digits
	}
	var err error
	b.sum, err = parseSum(text)
	return b, err
}

// failure gives an error that was met while doing something the code that
// clients are to see.
func failure(doing string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return &skerry.Error{Code: skerry.CodeDiskFull, Message: doing + ": the disk is full", Err: err}
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// isDamage reports whether an error is about the snapshot, and not about its storage.
func isDamage(err error) bool {
	e, ok := errors.AsType[*skerry.Error](err)
	return ok && e.Code == skerry.CodeInternal
}

// damaged is the error of a snapshot whose blob is missing or wrong.
func damaged(blob id, err error) error {
	if errors.Is(err, errOtherKey) {
		return &skerry.Error{Code: skerry.CodeInternal, Message: fmt.Sprintf("the snapshot is encrypted with a key that this server does not have: blob %s", blob), Err: err}
	}
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
