package controller

import (
	"context"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
)

// The public SDKs get or create a sandbox by two calls: they get it, and if it is
// not found they create it, and take a conflict for a failure. So of callers that
// do this at once all but one would fail. Whoever was told that a sandbox is not
// there, and loses the race to create it, is given the one that is there by then,
// as if the first call had come later. Whoever did not ask before meets the
// conflict.

const (
	// absenceLife is how long after it was told that a sandbox is not there a
	// client may still come to create it.
	absenceLife = 10 * time.Second
	// maxAbsences bounds what is remembered of a project.
	maxAbsences = 512
)

// absences remembers who was told that a sandbox is not there.
type absences struct {
	mu sync.Mutex
	// told has, by project and name, when that was, the oldest first.
	told map[string]map[string][]time.Time
}

// tell remembers that a sandbox was not found.
func (a *absences) tell(scope skerry.Scope, name string, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.told == nil {
		a.told = map[string]map[string][]time.Time{}
	}
	if a.prune(scope.ProjectID, now) >= maxAbsences {
		return // who comes late meets the conflict
	}
	names := a.told[scope.ProjectID]
	if names == nil {
		names = map[string][]time.Time{}
		a.told[scope.ProjectID] = names
	}
	names[name] = append(names[name], now)
}

// redeem reports whether somebody was told before a moment that a sandbox is not
// there and has not come back yet: it is taken to be the caller.
func (a *absences) redeem(scope skerry.Scope, name string, before, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.prune(scope.ProjectID, now)
	names := a.told[scope.ProjectID]
	told := names[name]
	if len(told) == 0 || told[0].After(before) {
		return false
	}
	if names[name] = told[1:]; len(told) == 1 {
		delete(names, name)
	}
	return true
}

// prune forgets what is too old of a project, and returns how much is left.
func (a *absences) prune(project string, now time.Time) (left int) {
	names := a.told[project]
	for name, told := range names {
		for len(told) > 0 && now.Sub(told[0]) > absenceLife {
			told = told[1:]
		}
		if names[name] = told; len(told) == 0 {
			delete(names, name)
		}
		left += len(told)
	}
	if left == 0 {
		delete(a.told, project)
	}
	return left
}

// joinCreation gives a caller that lost the race to create a sandbox the one that
// won. If the other creation fails, that is CodeNotFound: the name is free again.
func (c *sandboxes) joinCreation(ctx context.Context, sandbox *skerry.Sandbox) (*skerry.Run, error) {
	if s := c.sessionOf(sandbox.ID); s != nil && c.awaitStart(ctx, s) != nil {
		unlock, err := c.lifecycles.lock(ctx, sandbox.ID) // held while it is undone
		if err != nil {
			return nil, err
		}
		unlock()
		return nil, skerry.Errorf(skerry.CodeNotFound, "another call tried to create the sandbox and failed; try again")
	}
	if _, err := c.resume(ctx, sandbox.ID); err != nil {
		return nil, err
	}
	return c.runOf(ctx, sandbox.ID, false)
}
