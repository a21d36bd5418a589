package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/skerry-dev/skerry/internal/atomicfile"
)

// Dir keeps blobs in a local directory, for one process at a time:
//
//	blobs/<elements>/<xx>_/<last element>   a blob; xx are the first two
//	                                        characters of the last element
//	tmp/                                    blobs that are being written
//
// The folder that spreads the blobs of one prefix ends in "_", which is in no
// key, so it cannot be mistaken for an element. A blob is written and synced
// in tmp, then renamed, then the folder is synced: each by itself, since
// journaling file systems group the syncs of concurrent Puts better than we
// could (gathering them was no faster on ext4). A crash leaves at
// most files in tmp, which OpenDir removes.
type Dir struct {
	root string
	// made has the folders that are known to be on disk, not only in memory.
	made sync.Map
}

var _ Store = (*Dir)(nil)

// OpenDir opens the store in a directory, which it makes if need be, and
// removes what an earlier process left half written.
func OpenDir(path string) (*Dir, error) {
	root, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open the blob store: %w", err)
	}
	d := &Dir{root: root}
	if err := os.RemoveAll(d.tmp()); err != nil {
		return nil, fmt.Errorf("open the blob store: remove what was left half written: %w", err)
	}
	for _, folder := range []string{d.tmp(), d.blobs()} {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return nil, fmt.Errorf("open the blob store: %w", err)
		}
	}
	for _, folder := range []string{filepath.Dir(root), root} {
		if err := atomicfile.Sync(folder); err != nil {
			return nil, fmt.Errorf("open the blob store: %w", err)
		}
	}
	d.made.Store(d.blobs(), true)
	return d, nil
}

func (d *Dir) tmp() string   { return filepath.Join(d.root, "tmp") }
func (d *Dir) blobs() string { return filepath.Join(d.root, "blobs") }

// path returns where a blob is.
func (d *Dir) path(key string) string {
	folder, last := filepath.Split(filepath.FromSlash(key))
	return filepath.Join(d.blobs(), folder, last[:min(2, len(last))]+"_", last)
}

// key returns the key of a path that is relative to blobs, and whether it is
// one of a blob.
func key(rel string) (string, bool) {
	folder, last := filepath.Split(rel)
	folder = filepath.Clean(folder)
	key := filepath.ToSlash(filepath.Join(filepath.Dir(folder), last))
	spread := filepath.Base(folder)
	return key, checkKey(key) == nil && spread == last[:min(2, len(last))]+"_"
}

// Put implements Store.
func (d *Dir) Put(ctx context.Context, key string, data []byte) error {
	if err := checkPut(key, data); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := d.put(d.path(key), data); err != nil {
		return fmt.Errorf("put blob %s: %w", key, err)
	}
	return nil
}

func (d *Dir) put(path string, data []byte) error {
	folder := filepath.Dir(path)
	if err := d.makeFolder(folder); err != nil {
		return err
	}
	return atomicfile.WriteDurable(d.tmp(), path, data)
}

// makeFolder makes a folder below blobs that will be there after a loss of
// power.
func (d *Dir) makeFolder(folder string) error {
	if _, known := d.made.Load(folder); known {
		return nil
	}
	parent := filepath.Dir(folder)
	if err := d.makeFolder(parent); err != nil {
		return err
	}
	if err := os.Mkdir(folder, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// Also if it was there: who made it may have died before the sync.
	if err := atomicfile.Sync(parent); err != nil {
		return err
	}
	d.made.Store(folder, true)
	return nil
}

// Get implements Store.
func (d *Dir) Get(ctx context.Context, key string) ([]byte, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	data, err := readBlob(d.path(key))
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("get blob %s: %w", key, err)
	}
	return data, nil
}

func readBlob(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > MaxSize {
		return nil, tooLarge(info.Size())
	}
	data := make([]byte, info.Size())
	_, err = io.ReadFull(f, data)
	return data, err
}

// Delete implements Store.
func (d *Dir) Delete(ctx context.Context, key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := os.Remove(d.path(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete blob %s: %w", key, err)
	}
	return nil
}

// List implements Store.
func (d *Dir) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		if err := checkPrefix(prefix); err != nil {
			yield(Info{}, err)
			return
		}
		start := filepath.Join(d.blobs(), filepath.FromSlash(prefix[:strings.LastIndexByte(prefix, '/')+1]))
		err := filepath.WalkDir(start, func(path string, entry fs.DirEntry, err error) error {
			if err = errors.Join(err, ctx.Err()); err != nil || entry.IsDir() {
				return notGone(err)
			}
			info, ok, err := d.info(path, entry)
			if err != nil || !ok || !strings.HasPrefix(info.Key, prefix) {
				return notGone(err)
			}
			if !yield(info, nil) {
				return fs.SkipAll
			}
			return nil
		})
		if err != nil {
			yield(Info{}, fmt.Errorf("list blobs: %w", err))
		}
	}
}

// info returns what a listing tells of a file, if it is a blob.
func (d *Dir) info(path string, entry fs.DirEntry) (info Info, ok bool, err error) {
	rel, err := filepath.Rel(d.blobs(), path)
	if err != nil {
		return Info{}, false, err
	}
	key, ok := key(rel)
	if !ok || !entry.Type().IsRegular() {
		return Info{}, false, nil
	}
	stat, err := entry.Info()
	if err != nil {
		return Info{}, false, err
	}
	return Info{Key: key, Size: stat.Size(), ModTime: stat.ModTime()}, true, nil
}

// notGone passes on an error unless it says that something was removed while
// it was listed.
func notGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
