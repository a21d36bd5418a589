package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
)

// GC removes the images that no name stands for and that are not in inUse, a
// set of digests, and what interrupted builds left. Builds in progress are
// left alone. It returns how many bytes of images it removed.
//
// The caller sees to it that nothing starts to use an image between its
// filling of inUse and the end of GC.
func (s *Store) GC(ctx context.Context, inUse map[string]bool) (freed int64, err error) {
	freed, err = s.removeUnused(ctx, inUse)
	return freed, errors.Join(err, s.removeLeftovers(ctx))
}

func (s *Store) removeUnused(ctx context.Context, inUse map[string]bool) (freed int64, err error) {
	held, err := lock(ctx, s.path("lock"))
	if err != nil {
		return 0, fmt.Errorf("collecting unused images: %w", err)
	}
	defer held.Close()
	refs, err := s.references()
	if err != nil {
		return 0, err // without the names, every image might have one
	}
	keep := map[string]bool{}
	for _, r := range refs {
		keep[r.Digest] = true
	}
	// What is known of an image goes first: a blob alone cannot be resolved.
	for _, folder := range []string{"meta", "blobs"} {
		entries, err := os.ReadDir(s.path(folder))
		if err != nil {
			return freed, fmt.Errorf("collecting unused images: %w", err)
		}
		for _, e := range entries {
			id, _, _ := strings.Cut(e.Name(), ".")
			if digest := "sha256:" + id; keep[digest] || inUse[digest] {
				continue
			}
			n, err := removeFile(s.path(folder, e.Name()))
			if err != nil {
				return freed, fmt.Errorf("collecting unused images: %w", err)
			}
			if folder == "blobs" {
				freed += n
			}
		}
	}
	return freed, nil
}

// removeFile removes a file and returns the size it had.
func removeFile(path string) (int64, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}
	return info.Size(), os.Remove(path)
}

// removeLeftovers removes the work folders whose lock nobody holds.
func (s *Store) removeLeftovers(ctx context.Context) error {
	entries, err := os.ReadDir(s.path("work"))
	if err != nil {
		return fmt.Errorf("collecting interrupted builds: %w", err)
	}
	for _, e := range entries {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		w := &work{dir: s.path("work", strings.TrimSuffix(e.Name(), ".lock"))}
		w.lock, err = tryLock(w.dir + ".lock")
		if errors.Is(err, errLocked) {
			continue
		}
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			return fmt.Errorf("collecting interrupted builds: %w", err)
		}
	}
	return nil
}
