package snapshot

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// To compare a cached gigabyte with its checksums takes a third of a second, which is a
// good part of a resume. So files that were compared, or written by this process, are
// not compared again for a while, unless the file system says that somebody has written
// to them. A later process compares them again: after a loss of power they may be
// anything.

// soundFor is how long files count as right: a disk may still lose what is on it.
const soundFor = time.Hour

// soundness is what is known of an entry's files.
type soundness struct {
	at     time.Time
	stamps map[string]stamp
}

// stamp changes when a file is written to or replaced.
type stamp struct {
	inode             uint64
	size              int64
	modified, changed syscall.Timespec
}

// stampsOf returns the stamps of the files in a folder, by name.
func stampsOf(dir string) (map[string]stamp, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	stamps := map[string]stamp{}
	for _, e := range entries {
		info, err := os.Lstat(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil, fmt.Errorf("%s has no inode", e.Name())
		}
		stamps[e.Name()] = stamp{inode: st.Ino, size: st.Size, modified: st.Mtim, changed: st.Ctim}
	}
	return stamps, nil
}

// isSound reports whether files with these stamps are known to be right.
func (c *cache) isSound(e *entry, stamps map[string]stamp) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return e.sound.stamps != nil && time.Since(e.sound.at) < soundFor && maps.Equal(e.sound.stamps, stamps)
}

// noteSound notes that files are right that had these stamps before they were looked at.
func (c *cache) noteSound(e *entry, stamps map[string]stamp) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.sound = soundness{at: time.Now(), stamps: stamps}
}
