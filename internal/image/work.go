package image

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// work is a folder in which one image is made. Whoever holds its lock owns it;
// a leftover of a build that was killed is removed by the next build of the
// same key, or by GC.
type work struct {
	dir  string
	lock *os.File
}

// newWork waits for the work folder of a key, so that two builds of the same
// image run one after the other and the second finds the first one's result.
func (s *Store) newWork(ctx context.Context, key string) (*work, error) {
	w := &work{dir: s.path("work", key)}
	var err error
	if w.lock, err = lock(ctx, w.dir+".lock"); err != nil {
		return nil, fmt.Errorf("waiting for another build of the same image: %w", err)
	}
	if err := os.RemoveAll(w.dir); err != nil {
		return nil, errors.Join(fmt.Errorf("removing what an interrupted build left: %w", err), w.Close())
	}
	if err := os.Mkdir(w.dir, 0o700); err != nil {
		return nil, errors.Join(fmt.Errorf("making a work folder: %w", err), w.Close())
	}
	return w, nil
}

// Close removes the folder and lets go of its lock.
func (w *work) Close() error {
	return errors.Join(os.RemoveAll(w.dir), os.Remove(w.lock.Name()), w.lock.Close())
}
