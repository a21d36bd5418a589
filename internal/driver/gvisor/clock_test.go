//go:build gvisor_patched

package gvisor

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gvisor.dev/gvisor/pkg/hostarch"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/pgalloc"
	sentrytime "gvisor.dev/gvisor/pkg/sentry/time"
)

// countedClocks count how often they were calibrated.
type countedClocks struct{ updates atomic.Int32 }

func (c *countedClocks) Update(bool) sentrytime.UpdateResult {
	c.updates.Add(1)
	return sentrytime.UpdateResult{}
}

func (c *countedClocks) GetTime(sentrytime.ClockID) (int64, error) { return time.Now().UnixNano(), nil }

func (c *countedClocks) MonotonicRawEnabled() bool { return false }

// TestClocksAreCalibratedEarly: a sandbox's clocks are sampled twice at its start, and
// then every second.
func TestClocksAreCalibratedEarly(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "memory"))
	if err != nil {
		t.Fatal(err)
	}
	mf, err := pgalloc.NewMemoryFile(file, pgalloc.MemoryFileOpts{DisableMemoryAccounting: true})
	if err != nil {
		t.Fatal(err)
	}
	defer mf.Destroy()
	page, err := mf.Allocate(hostarch.PageSize, pgalloc.AllocOpts{Mode: pgalloc.AllocateAndCommit})
	if err != nil {
		t.Fatal(err)
	}
	defer mf.DecRef(page)
	synctest.Test(t, func(t *testing.T) {
		clocks := &countedClocks{}
		tk := kernel.NewTimekeeper()
		tk.SetClocks(clocks, kernel.NewVDSOParamPage(mf, page))
		defer tk.Destroy()
		for _, step := range []struct {
			after time.Duration
			want  int32
		}{{0, 1}, {20 * time.Millisecond, 2}, {900 * time.Millisecond, 2}, {101 * time.Millisecond, 3}} {
			time.Sleep(step.after)
			if _, err := tk.GetTime(sentrytime.Monotonic); err != nil { // or it parks
				t.Fatal(err)
			}
			synctest.Wait()
			if got := clocks.updates.Load(); got != step.want {
				t.Errorf("%v later the clocks have been sampled %d times, want %d", step.after, got, step.want)
			}
		}
	})
}
