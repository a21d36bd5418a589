package output

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// segment is one of the two files of a log.
type segment struct {
	segmentStart
	// base is the position of the segment's first record in the log. size is the
	// length of its records.
	base, size int64
}

func (s *segment) end() int64 { return s.base + s.size }

// segmentPath returns the file of the segment with this sequence number. Two names
// are used in turn, so a log can be found and removed without listing the folder.
func segmentPath(dir, id string, seq uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%s.%d.out", id, seq%2))
}

// Kept describes the files of a log on disk.
type Kept struct {
	ID    string
	Bytes int64
	// Written is the time of the last write.
	Written time.Time
}

// List returns the logs that have files in a folder, in the order of their last
// writes.
func List(dir string) ([]Kept, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	found := map[string]Kept{}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".out")
		if !ok || len(id) < 3 || id[len(id)-2] != '.' {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // just removed
		}
		if err != nil {
			return nil, err
		}
		k := found[id[:len(id)-2]]
		k.ID, k.Bytes = id[:len(id)-2], k.Bytes+info.Size()
		if info.ModTime().After(k.Written) {
			k.Written = info.ModTime()
		}
		found[k.ID] = k
	}
	return slices.SortedFunc(maps.Values(found), func(a, b Kept) int { return a.Written.Compare(b.Written) }), nil
}

// Remove deletes the files of a log. A log without files is not an error.
func Remove(dir, id string) error {
	var errs []error
	for seq := range uint64(2) {
		if err := os.Remove(segmentPath(dir, id, seq)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// loaded describes the content of a segment's file.
type loaded struct {
	segmentStart
	size int64
	// ends are the offsets of both streams after the last complete record.
	ends [len(streams)]int64
}

// loadSegment reads the file of a segment up to the last complete record. It
// truncates the file there, because a crash may have interrupted the next write. It
// returns nil if there is no file or no valid header.
func loadSegment(path string) (*loaded, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	l, err := scanSegment(f)
	if errors.Is(err, errTorn) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if err := f.Truncate(segmentHeader + l.size); err != nil {
		return nil, err
	}
	return l, nil
}

// scanSegment reads records until the first that is damaged or does not follow the
// one before.
func scanSegment(r io.Reader) (*loaded, error) {
	buf := make([]byte, 0, 4*maxRecord)
	header := buf[:segmentHeader]
	if _, err := io.ReadFull(r, header); err != nil {
		return nil, tornAtEOF(err)
	}
	start, err := decodeSegmentStart(header)
	if err != nil {
		return nil, err
	}
	l := &loaded{segmentStart: start, ends: start.offsets}
	rest := buf[:0]
	for eof := false; ; {
		rec, err := decodeRecord(rest, true)
		switch {
		case err == nil && rec.offset == l.ends[rec.stream]:
			l.ends[rec.stream] += int64(len(rec.data))
			l.size += int64(rec.size())
			rest = rest[rec.size():]
			continue
		case err == nil || eof || len(rest) >= recordHeader+maxRecord:
			return l, nil
		}
		kept := copy(buf[:cap(buf)], rest)
		n, err := io.ReadFull(r, buf[kept:cap(buf)])
		if err != nil && tornAtEOF(err) != errTorn {
			return nil, err
		}
		eof, rest = err != nil, buf[:kept+n]
	}
}

func tornAtEOF(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return errTorn
	}
	return err
}
