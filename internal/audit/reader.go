package audit

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// Position is a place between two lines of a log.
type Position struct {
	File   int   `json:"file"`
	Offset int64 `json:"offset"`
}

// Line is a line of a log.
type Line struct {
	File   string
	Number int // in its file, from the position at which the reader began
	// Bytes are the line without its line feed, until the next call.
	Bytes []byte
	// Torn is set if the line has no line feed, although it is not the last one.
	Torn bool
}

// Reader reads a log, which a server may be writing.
type Reader struct {
	dir    string
	file   int
	f      *os.File
	lines  *lines
	from   int64 // offset in the file to open
	missed bool
}

// NewReader returns a reader that begins at a position; the zero Position is the
// beginning.
func NewReader(dir string, at Position) *Reader {
	return &Reader{dir: dir, file: at.File, from: at.Offset}
}

// Position returns the place behind the last line.
func (r *Reader) Position() Position {
	if r.lines == nil {
		return Position{File: r.file, Offset: r.from}
	}
	return Position{File: r.file, Offset: r.lines.offset}
}

// Missed reports whether files were removed before the reader came to them, and forgets
// it.
func (r *Reader) Missed() bool {
	missed := r.missed
	r.missed = false
	return missed
}

// Next returns the next whole line. At the end it returns io.EOF, and may be called again
// when there is more.
func (r *Reader) Next() (Line, error) {
	for {
		if r.f == nil {
			if err := r.open(); err != nil {
				return Line{}, err
			}
		}
		line, err := r.lines.next(false)
		if err == nil {
			return r.line(line), nil
		}
		if !errors.Is(err, io.EOF) {
			return Line{}, err
		}
		next, err := r.after(r.file)
		if err != nil {
			return Line{}, err
		}
		if next == 0 {
			return Line{}, io.EOF
		}
		// The file gets no more lines, and may have got some since.
		if line, err := r.lines.next(true); err == nil {
			l := r.line(line)
			l.Torn = r.f != nil && !r.wholeBefore()
			return l, nil
		} else if !errors.Is(err, io.EOF) {
			return Line{}, err
		}
		if r.file > 0 && next != r.file+1 {
			r.missed = true
		}
		if err := r.Close(); err != nil {
			return Line{}, err
		}
		r.file, r.from = next, 0
	}
}

// wholeBefore reports whether the last line ended with a line feed.
func (r *Reader) wholeBefore() bool {
	var b [1]byte
	_, err := r.f.ReadAt(b[:], r.lines.offset-1)
	return err == nil && b[0] == '\n'
}

func (r *Reader) line(b []byte) Line {
	return Line{File: fileName(r.file), Number: r.lines.number, Bytes: b}
}

// open opens the file of the reader's position, or the first one behind it.
func (r *Reader) open() error {
	for {
		if r.file > 0 {
			f, err := os.Open(filepath.Join(r.dir, fileName(r.file)))
			if err == nil {
				r.f, r.lines = f, newLines(f, r.from)
				return nil
			}
			if !errors.Is(err, os.ErrNotExist) {
				return err
			}
			r.missed = true
		}
		next, err := r.after(r.file)
		if err != nil {
			return err
		}
		if next == 0 {
			return io.EOF
		}
		r.file, r.from = next, 0
	}
}

// after returns the number of the file behind one, 0 if there is none.
func (r *Reader) after(number int) (int, error) {
	numbers, err := fileNumbers(r.dir)
	if err != nil {
		return 0, err
	}
	i, _ := slices.BinarySearch(numbers, number+1)
	if i == len(numbers) {
		return 0, nil
	}
	return numbers[i], nil
}

// Close closes the reader.
func (r *Reader) Close() error {
	if r.f == nil {
		return nil
	}
	r.from = r.lines.offset
	err := r.f.Close()
	r.f, r.lines = nil, nil
	return err
}
