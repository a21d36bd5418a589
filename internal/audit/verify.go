package audit

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Report is what Verify found.
type Report struct {
	Records     int64
	First, Last int64 // sequence numbers
	Hash        string
	// Notes are what is worth knowing and is no fault.
	Notes []string
}

// WrongError says what is wrong with a log.
type WrongError struct {
	File string // "" if it is no line
	Line int
	Why  string
}

func (e *WrongError) Error() string {
	if e.File == "" {
		return e.Why
	}
	return fmt.Sprintf("%s, line %d: %s", e.File, e.Line, e.Why)
}

// verifier checks the lines of a log in order.
type verifier struct {
	report  Report
	prev    string
	removed *removedEnd // that the first record names as the one before it
	told    bool        // a record tells of its removal
	head    head
	seen    bool // the head's record
	anchors map[string]bool
}

type removedEnd struct {
	seq        int64
	hash, file string
}

// Verify checks the log in a folder, which a server may be writing, from the first file
// that is kept. anchors are hashes that records of the log must have. The error is a
// *WrongError if the log could be read and is not what a Log has written.
func Verify(dir string, anchors ...string) (*Report, error) {
	const attempts = 3
	for n := 1; ; n++ {
		r, again, err := verify(dir, anchors)
		if !again || n == attempts {
			return r, err
		}
	}
}

// verify is one attempt. It can be repeated if files were removed meanwhile.
func verify(dir string, anchors []string) (_ *Report, again bool, err error) {
	before, err := fileNumbers(dir)
	if err != nil {
		return nil, false, err
	}
	if len(before) == 0 {
		return nil, false, &WrongError{Why: "there is no audit log in " + dir}
	}
	v := &verifier{anchors: map[string]bool{}}
	for _, a := range anchors {
		v.anchors[a] = false
	}
	// The head is written after its record: so it is read before.
	v.head, err = readHead(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, false, &WrongError{Why: fmt.Sprintf("the file %s is missing", headFile)}
	case errors.Is(err, errHead):
		return nil, false, &WrongError{Why: err.Error()}
	case err != nil:
		return nil, false, err
	}
	err = v.files(dir)
	if err == nil {
		err = v.finish()
	}
	after, lerr := fileNumbers(dir)
	if lerr != nil {
		return nil, false, lerr
	}
	again = err != nil && (len(after) == 0 || after[0] != before[0])
	return &v.report, again, err
}

func (v *verifier) files(dir string) error {
	r := NewReader(dir, Position{})
	defer r.Close()
	file := 0
	for {
		line, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if now := r.Position().File; now != file {
			if file > 0 && now != file+1 {
				return &WrongError{Why: fmt.Sprintf("the file %s is missing or empty", fileName(file+1))}
			}
			file = now
		}
		if err := v.line(line); err != nil {
			return &WrongError{File: line.File, Line: line.Number, Why: err.Error()}
		}
	}
	at := r.Position()
	if info, err := os.Stat(filepath.Join(dir, fileName(at.File))); err == nil && info.Size() > at.Offset {
		if info.Size()-at.Offset > maxLine {
			return &WrongError{Why: fmt.Sprintf("%s ends with %d bytes that are no record", fileName(at.File), info.Size()-at.Offset)}
		}
		v.report.Notes = append(v.report.Notes, fmt.Sprintf("%s ends with a part of a line: a server is writing it, or was killed", fileName(at.File)))
	}
	return nil
}

func (v *verifier) line(l Line) error {
	if l.Torn {
		return errors.New("it is a part of a line")
	}
	r, err := unseal(l.Bytes)
	if err != nil {
		return err
	}
	switch {
	case v.report.Records > 0:
		if r.Prev != v.prev {
			return fmt.Errorf("it does not follow the line before: that is record %d, this one %d", v.report.Last, r.Seq)
		}
		// Missing records are numbered; see Log.begin.
		if r.Seq != v.report.Last+1 && r.Operation != opMissing {
			return fmt.Errorf("record %d follows record %d", r.Seq, v.report.Last)
		}
	case r.Seq == 1 && r.Prev == noHash:
		v.report.First = 1
	default:
		v.report.First, v.removed = r.Seq, &removedEnd{seq: r.Seq - 1, hash: r.Prev, file: l.File}
	}
	v.report.Records++
	v.report.Last, v.report.Hash, v.prev = r.Seq, r.Hash, r.Hash
	if r.Seq == v.head.Seq {
		if r.Hash != v.head.Hash {
			return fmt.Errorf("the file %s names another record %d", headFile, r.Seq)
		}
		v.seen = true
	}
	if _, is := v.anchors[r.Hash]; is {
		v.anchors[r.Hash] = true
	}
	return v.about(r)
}

// about checks what the log says about itself.
func (v *verifier) about(r *Record) error {
	n := r.Log
	if n == nil {
		return nil
	}
	switch r.Operation {
	case opRemoved:
		if v.removed != nil && n.Through == v.removed.seq && n.Hash == v.removed.hash {
			v.told = true
		}
	case opMissing:
		if n.Count > 0 {
			return fmt.Errorf("%d records before it, up to %d, are missing: so the server found at %s", n.Count, n.Through, r.Time)
		}
		return fmt.Errorf("the records before it are not those that were written, or the head was lost: so the server found at %s", r.Time)
	case opTorn:
		v.report.Notes = append(v.report.Notes, fmt.Sprintf("record %d: %d bytes that were no whole line were moved to %s at %s", r.Seq, n.Bytes, n.File, r.Time))
	case opLost:
		v.report.Notes = append(v.report.Notes, fmt.Sprintf("record %d: %d records could not be written from %s to %s", r.Seq, n.Count, n.Since, r.Time))
	}
	return nil
}

func (v *verifier) finish() error {
	switch {
	case v.report.Last < v.head.Seq:
		return &WrongError{Why: fmt.Sprintf("the end is missing: the last record is %d, and the file %s names %d", v.report.Last, headFile, v.head.Seq)}
	case !v.seen && v.head.Seq >= v.report.First:
		return &WrongError{Why: fmt.Sprintf("there is no record %d, which the file %s names", v.head.Seq, headFile)}
	case v.removed != nil && !v.told:
		return &WrongError{File: v.removed.file, Line: 1, Why: fmt.Sprintf("the records before %d are missing, and no record tells of their removal", v.report.First)}
	}
	for hash, found := range v.anchors {
		if !found {
			return &WrongError{Why: fmt.Sprintf("no record has the hash %s", hash)}
		}
	}
	return nil
}
