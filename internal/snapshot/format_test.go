package snapshot

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry/internal/blob"
)

// fetches counts the chunks that are fetched.
type fetches struct {
	blob.Store
	chunks int
}

func (f *fetches) Get(ctx context.Context, key string) ([]byte, error) {
	if strings.HasPrefix(key, sealedChunk.prefix()) {
		f.chunks++
	}
	return f.Store.Get(ctx, key)
}

// TestFormat: a snapshot tells its format before anything else of it is fetched,
// from the cache too.
func TestFormat(t *testing.T) {
	l := newLab(t)
	counted := &fetches{Store: l.opt.Blobs}
	l.opt.Blobs = counted
	l.open()
	ref, err := l.Add(t.Context(), tree{"a": text(1, 5000)}.write(l, filepath.Join(l.dir, "one")), "some format", "lease")
	if err != nil {
		t.Fatal(err)
	}
	refused := errors.New("refused")
	for _, cached := range []bool{true, false} {
		if !cached {
			l.emptyCache()
		}
		asked := ""
		if _, err := l.Load(t.Context(), ref.Manifest, func(f string) error { asked = f; return refused }); !errors.Is(err, refused) || asked != "some format" {
			t.Errorf("of %q: %v", asked, err)
		}
		if counted.chunks > 0 {
			t.Errorf("%d chunks were fetched", counted.chunks)
		}
	}
	l.loads(ref.Manifest, tree{"a": text(1, 5000)})
	if counted.chunks == 0 {
		t.Error("no chunk was fetched")
	}
	if _, err := l.Add(t.Context(), tree{"a": text(1, 10)}.write(l, filepath.Join(l.dir, "two")), strings.Repeat("x", maxFormat+1), "lease"); err == nil {
		t.Error("a format of any length is taken")
	}
}

// TestFetchReservesRoom: a folder that is fetched has room reserved until it is
// there, and one that is in the cache needs none.
func TestFetchReservesRoom(t *testing.T) {
	l := newLab(t)
	tr := tree{"a": text(1, 5000), "b": text(2, 300)}
	ref := l.add(tr)
	full := errors.New("full")
	var held int64
	l.opt.Reserve = func(size int64) (func(), error) {
		held += size
		return func() { held = -1 }, nil
	}
	l.open()
	l.loads(ref.Manifest, tr)
	if held != 0 {
		t.Errorf("%d: room was reserved for what is there", held)
	}
	l.opt.Reserve = func(size int64) (func(), error) {
		if size != 5300 {
			t.Errorf("%d bytes are reserved for 5300", size)
		}
		return nil, full
	}
	l.emptyCache()
	if _, err := l.Load(t.Context(), ref.Manifest, anyFormat); !errors.Is(err, full) {
		t.Errorf("without room: %v", err)
	}
	released := false
	l.opt.Reserve = func(int64) (func(), error) { return func() { released = true }, nil }
	l.open()
	l.loads(ref.Manifest, tr)
	if !released {
		t.Error("the room stays reserved")
	}
}
