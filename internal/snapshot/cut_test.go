package snapshot

import (
	"os"
	"path/filepath"
	"testing"
)

// cuts returns the lengths of the chunks of a file.
func cuts(t *testing.T, data []byte) []int {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, size, err := openRegular(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var lengths []int
	buf := make([]byte, maxChunk)
	for at := int64(0); at < size; {
		n, err := readChunk(f, buf[:min(maxChunk, size-at)], at)
		if err != nil {
			t.Fatal(err)
		}
		lengths = append(lengths, n)
		at += int64(n)
	}
	return lengths
}

func TestCutSizes(t *testing.T) {
	const size = 64<<20 + 100
	lengths := cuts(t, random(1, size))
	for i, n := range lengths {
		last := i == len(lengths)-1
		if n > maxChunk || !last && (n < minChunk || n%pageSize != 0) {
			t.Errorf("chunk %d of %d has %d bytes", i, len(lengths), n)
		}
	}
	if mean := size / len(lengths); mean < 700<<10 || mean > 1300<<10 {
		t.Errorf("%d chunks of %d bytes on average", len(lengths), mean)
	}
	// Pages that are all the same must not end a chunk each.
	if got := cuts(t, make([]byte, 8<<20)); len(got) != 2 {
		t.Errorf("zeros are cut into %v", got)
	}
}

// TestDelta adds successors of a snapshot, and looks at how much is new.
func TestDelta(t *testing.T) {
	t.Parallel()
	old := random(1, 32<<20)
	page := random(2, pageSize)
	replace := func(at int) []byte {
		b := append([]byte(nil), old...)
		copy(b[at:], page)
		return b
	}
	splice := func(at int, in []byte) []byte {
		return append(append(append([]byte(nil), old[:at]...), in...), old[at:]...)
	}
	for name, test := range map[string]struct {
		data []byte
		most int64
	}{
		"same":     {old, 0},
		"first":    {replace(0), 2 * maxChunk},
		"middle":   {replace(16 << 20), 2 * maxChunk},
		"inserted": {splice(5<<20, page), 3 * maxChunk},
		"grown":    {splice(32<<20, random(3, 1<<20)), 1<<20 + maxChunk},
		"cut off":  {old[20<<20:], 2 * maxChunk},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.add(tree{"pages.img": old})
			ref := l.add(tree{"pages.img": test.data})
			const manifestSize = 16 << 10
			if ref.Added > test.most+manifestSize {
				t.Errorf("%d bytes are new", ref.Added)
			}
			l.emptyCache()
			l.loads(ref.Manifest, tree{"pages.img": test.data})
		})
	}
}
