package room

import (
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
)

func free(t *testing.T, dir string) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// TestReservationsShare has many reserve at once what there is room for twice.
func TestReservationsShare(t *testing.T) {
	dir := t.TempDir()
	d := New(dir, free(t, dir)/4)
	size := free(t, dir) / 10 * 3
	var wg sync.WaitGroup
	var had atomic.Int64
	releases := make(chan func(), 8)
	for range 8 {
		wg.Go(func() {
			release, err := d.Reserve(size)
			if err == nil {
				had.Add(1)
				releases <- release
			} else if skerry.CodeOf(err) != skerry.CodeDiskFull {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if had.Load() != 2 {
		t.Errorf("%d had room", had.Load())
	}
	// A save may use half of what is kept.
	if _, err := d.ReserveSave(free(t, dir) / 10); err != nil {
		t.Error(err)
	}
	close(releases)
	for release := range releases {
		release()
		release()
	}
	if d.promised <= 0 || d.promised > free(t, dir)/5 {
		t.Errorf("%d bytes are promised", d.promised)
	}
	if _, err := d.Reserve(size); err != nil {
		t.Error(err)
	}
}

func TestNoLimit(t *testing.T) {
	for _, d := range []*Disk{nil, New(t.TempDir(), 0)} {
		if err := d.Check(); err != nil {
			t.Error(err)
		}
		release, err := d.Reserve(1 << 60)
		if err != nil {
			t.Fatal(err)
		}
		release()
	}
}
