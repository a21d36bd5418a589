package controller

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi/processnode"
)

// TestGetOrCreateAtOnce does what the public SDKs do, eight times at once: get,
// and create what is not found. The first creation may fail.
func TestGetOrCreateAtOnce(t *testing.T) {
	for _, fails := range []bool{false, true} {
		l := newLab(t)
		var first sync.Once
		l.node.On(processnode.Start, func(context.Context, string) (err error) {
			if fails {
				first.Do(func() { err = errors.New("boom") })
			}
			return err
		})
		var asked, calls sync.WaitGroup
		asked.Add(8)
		var mu sync.Mutex
		ids, failed := map[string]bool{}, 0
		for range 8 {
			calls.Go(func() {
				_, err := l.GetSandbox(t.Context(), scope, "one", true)
				wantCode(t, "a sandbox that is not there", err, skerry.CodeNotFound)
				asked.Done()
				asked.Wait()
				run, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "one"})
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					failed++
				} else if ids[run.Session.ID] = true; run.Session.Status != skerry.StatusRunning {
					t.Errorf("a caller got %+v", run.Session)
				}
			})
		}
		calls.Wait()
		if len(ids) != 1 || fails != (failed == 1) {
			t.Errorf("eight callers got sessions %v, %d failed", ids, failed)
		}
		// Whoever has not asked before meets the conflict.
		_, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "one"})
		wantCode(t, "a ninth", err, skerry.CodeConflict)
	}
}

func TestAbsences(t *testing.T) {
	var a absences
	now := time.Now()
	a.tell(scope, "one", now)
	if a.redeem(scope, "one", now.Add(-time.Second), now) {
		t.Error("who was told after the creation has lost no race")
	}
	if a.redeem(scope, "two", now, now) || a.redeem(skerry.Scope{ProjectID: "prj_b"}, "one", now, now) {
		t.Error("another name or project was told nothing")
	}
	if !a.redeem(scope, "one", now, now) || a.redeem(scope, "one", now, now) {
		t.Error("who was told once comes back once")
	}
	for i := range 2 * maxAbsences {
		a.tell(scope, fmt.Sprint(i), now)
	}
	if got := len(a.told[scope.ProjectID]); got != maxAbsences {
		t.Errorf("%d names are remembered", got)
	}
	later := now.Add(absenceLife + time.Second)
	if a.redeem(scope, "0", later, later) || len(a.told) != 0 {
		t.Error("what is too old is remembered")
	}
}
