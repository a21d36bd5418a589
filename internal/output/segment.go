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
	// base is the position in the log of the segment's first record, size the
	// length of its records.
	base, size int64
}

func (s *segment) end() int64 { return s.base + s.size }

// segmentPath is the file of the segment with this sequence number. There are
// two names, used in turn, so that a log is found and removed without listing
// its folder.
func segmentPath(dir, id string, seq uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%s.%d.out", id, seq%2))
}

// Kept is what a log has on disk.
type Kept struct {
	ID    string
	Bytes int64
	// Written is when the newest of it was.
	Written time.Time
}

// List returns the logs that have files in a folder, the oldest first.
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
			continue // replaced just now
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

// Remove deletes what a log keeps on disk; a log without files is no error.
func Remove(dir, id string) error {
	var errs []error
	for seq := range uint64(2) {
		if err := os.Remove(segmentPath(dir, id, seq)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// loaded is what a segment's file holds.
type loaded struct {
	segmentStart
	size int64
	// ends are the offsets of both streams after the last whole record.
	ends [len(streams)]int64
}

// loadSegment reads a segment's file up to the last record that is whole, cuts
// off what follows (a write that a crash interrupted), and returns nil when
// there is no file or not even a header in it.
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

// scanSegment reads the records that follow one another without a gap.
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
