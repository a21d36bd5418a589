package output

import (
	"testing"

	"github.com/skerry-dev/skerry"
)

// TestSmallLogHoldsLittle compares the memory of a log with Config.Small and of one
// without.
func TestSmallLogHoldsLittle(t *testing.T) {
	for _, c := range []struct {
		small bool
		most  int
	}{{false, maxTail * blockSize}, {true, smallTail * smallBlock}} {
		dir := t.TempDir()
		l := New(dir, "cmd", Config{Keep: 1, Small: c.small})
		data := make([]byte, 32<<10)
		for i := range 256 {
			if err := l.Append(t.Context(), skerry.Stdout, int64(i*len(data)), data); err != nil {
				t.Fatal(err)
			}
		}
		if used := diskUse(t, dir); used > 513<<10 {
			t.Errorf("a log that keeps little has %d bytes on disk", used)
		}
		held := 0
		for _, b := range l.tail {
			held += cap(b.buf)
		}
		if held > c.most+spillSize || held < c.most/2 {
			t.Errorf("a log (small: %v) holds %d bytes, want %d at the most", c.small, held, c.most)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}
