package drive

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCopyReservesItsSize: a copy reserves the disk space of its source, unless the two
// share blocks, and releases it.
func TestCopyReservesItsSize(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	from := file("from")
	if _, err := from.WriteAt(make([]byte, 1<<20), 64<<20); err != nil { // after a hole
		t.Fatal(err)
	}
	if unix.IoctlFileClone(int(file("probe").Fd()), int(from.Fd())) == nil {
		s := &Store{reserve: func(int64) (func(), error) {
			t.Error("room is reserved for a copy that takes none")
			return func() {}, nil
		}}
		if err := s.copyImage(context.Background(), file("to"), from); err != nil {
			t.Error(err)
		}
		return
	}
	full := errors.New("full")
	var held, refuse int64
	s := &Store{reserve: func(size int64) (func(), error) {
		if refuse > 0 {
			return nil, full
		}
		held += size
		if held < 1<<20 || held > 2<<20 {
			t.Errorf("%d bytes are reserved for a copy of 1 MiB", held)
		}
		return func() { held -= size }, nil
	}}
	to := file("to")
	if err := s.copyImage(context.Background(), to, from); err != nil {
		t.Fatal(err)
	}
	if size, err := to.Seek(0, io.SeekEnd); err != nil || size != 65<<20 || held != 0 {
		t.Errorf("a copy of %d bytes, %d stay reserved: %v", size, held, err)
	}
	refuse = 1
	other := file("other")
	if err := s.copyImage(context.Background(), other, from); !errors.Is(err, full) {
		t.Errorf("without room: %v", err)
	}
	if st, err := other.Stat(); err != nil || st.Size() > 0 {
		t.Errorf("without room something was written: %v", err)
	}
}
