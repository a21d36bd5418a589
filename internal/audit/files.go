package audit

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/skerry-dev/skerry/internal/atomicfile"
)

const (
	fileSuffix = ".jsonl"
	tornSuffix = ".torn"
	headFile   = "head"
)

func fileName(number int) string { return fmt.Sprintf("%06d%s", number, fileSuffix) }

// fileNumbers returns the numbers of the files of a log, in order.
func fileNumbers(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var numbers []int
	for _, e := range entries {
		digits, is := strings.CutSuffix(e.Name(), fileSuffix)
		if n, err := strconv.Atoi(digits); is && err == nil && fileName(n) == e.Name() {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// head names the last record that is surely on disk. It is how a log is found to have
// lost its end.
type head struct {
	Seq  int64  `json:"seq"`
	Hash string `json:"hash"`
}

func writeHead(dir string, h head) error {
	data, err := json.Marshal(h)
	if err != nil {
		return err
	}
	return atomicfile.WriteDurable("", filepath.Join(dir, headFile), append(data, '\n'))
}

// errHead says that the head is there and says nothing.
var errHead = fmt.Errorf("the file %s cannot be understood", headFile)

func readHead(dir string) (h head, err error) {
	data, err := os.ReadFile(filepath.Join(dir, headFile))
	if err != nil {
		return h, err
	}
	if err := json.Unmarshal(data, &h); err != nil {
		return h, errHead
	}
	return h, nil
}

// tail is the end of a log, as a process left it.
type tail struct {
	file  int   // number of the last file, 0 if there is none
	size  int64 // of its whole lines
	extra int64 // bytes behind them
	// seq and hash are those of the last record of the log.
	seq  int64
	hash string
	// missing is the head if its record is not there any more.
	missing *head
	// begun is the time of the first record of the last file.
	begun string
}

// findTail looks for the end of a log. Lines that are wrong are left where they are
// unless nothing good follows them: Verify tells of them.
func findTail(dir string) (*tail, error) {
	numbers, err := fileNumbers(dir)
	if err != nil {
		return nil, err
	}
	t := &tail{hash: noHash}
	for i := len(numbers) - 1; i >= 0; i-- {
		last, size, whole, begun, err := lastRecord(filepath.Join(dir, fileName(numbers[i])))
		if err != nil {
			return nil, err
		}
		if i == len(numbers)-1 {
			t.file, t.size, t.extra, t.begun = numbers[i], whole, size-whole, begun
		}
		if last != nil {
			t.seq, t.hash = last.Seq, last.Hash
			break
		}
	}
	h, err := readHead(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case errors.Is(err, errHead):
		t.missing = &head{Seq: t.seq}
	case err != nil:
		return nil, err
	case h.Seq > t.seq, h.Seq == t.seq && h.Hash != t.hash && h.Seq > 0:
		t.missing = &h
	}
	return t, nil
}

// lastRecord returns the last line of a file that is whole, the size of the file, and
// where that line ends.
func lastRecord(path string) (last *Record, size, whole int64, begun string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, 0, "", err
	}
	defer f.Close()
	lines := newLines(f, 0)
	for {
		line, err := lines.next(true)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, 0, 0, "", err
		}
		if r, err := unseal(line); err == nil {
			if last == nil {
				begun = r.Time
			}
			last, whole = r, lines.offset
		}
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, 0, "", err
	}
	return last, info.Size(), whole, begun, nil
}

// lines reads the lines of a file that another process may be writing. It keeps no part
// of a line that is not whole yet: the writer may take it back.
type lines struct {
	f      io.ReaderAt
	offset int64 // of the next line
	number int   // of the last line
	buf    []byte
	have   []byte // unread part of buf
}

func newLines(f io.ReaderAt, offset int64) *lines {
	return &lines{f: f, offset: offset, buf: make([]byte, 4*maxLine)}
}

// next returns the next line without its line feed, until the next call. At the end it
// returns io.EOF, and can be called again later. A line that is longer than any may be is
// returned in parts. With rest, what follows the last line feed is a line too.
func (l *lines) next(rest bool) ([]byte, error) {
	for again := false; ; again = true {
		if i := bytes.IndexByte(l.have, '\n'); i >= 0 {
			line := l.have[:i]
			l.have = l.have[i+1:]
			l.offset += int64(i) + 1
			l.number++
			return line, nil
		}
		if again && (len(l.have) == len(l.buf) || rest && len(l.have) > 0) {
			line := l.have
			l.have = nil
			l.offset += int64(len(line))
			l.number++
			return line, nil
		}
		if again {
			l.have = nil
			return nil, io.EOF
		}
		n, err := l.f.ReadAt(l.buf, l.offset)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		l.have = l.buf[:n]
	}
}

func (t *tail) tornName() string { return fmt.Sprintf("%06d.%d%s", t.file, t.size, tornSuffix) }

// setAside moves what follows the whole lines of the last file to another file.
func (t *tail) setAside(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, fileName(t.file)), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	torn, err := os.OpenFile(filepath.Join(dir, t.tornName()), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(torn, io.NewSectionReader(f, t.size, t.extra))
	if err := errors.Join(err, torn.Sync(), torn.Close()); err != nil {
		return err
	}
	return errors.Join(f.Truncate(t.size), f.Sync())
}

// firstRecord returns the first record of a file, nil if it has none.
func firstRecord(path string) (*Record, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	line, err := newLines(f, 0).next(false)
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r, err := unseal(line)
	if err != nil {
		return nil, nil // Verify tells of it
	}
	return r, nil
}

// removeFile removes a file of the log, and what was torn from it.
func removeFile(dir string, number int) error {
	torn, err := filepath.Glob(filepath.Join(dir, fmt.Sprintf("%06d.*%s", number, tornSuffix)))
	for _, path := range append(torn, filepath.Join(dir, fileName(number))) {
		if rerr := os.Remove(path); !errors.Is(rerr, os.ErrNotExist) {
			err = cmp.Or(err, rerr)
		}
	}
	return err
}
