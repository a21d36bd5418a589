package controller

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi/processnode"
)

// TestTeamsTakeTurns: of two teams, one of which has asked for many sandboxes before, each has
// every second start.
func TestTeamsTakeTurns(t *testing.T) {
	l := newLab(t, func(c *Config) { c.ConcurrentStarts = 1 })
	other := skerry.Scope{TeamID: "team_b", ProjectID: "prj_b"}
	var mu sync.Mutex
	var order []string
	next := make(chan struct{})
	l.node.On(processnode.Start, func(ctx context.Context, _ string) error {
		select {
		case <-next:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	var creates sync.WaitGroup
	create := func(in skerry.Scope) {
		creates.Go(func() {
			if _, err := l.CreateSandbox(t.Context(), in, skerry.CreateParams{}); err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			order = append(order, in.TeamID)
		})
	}
	started := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(order)
	}
	const many, few = 20, 5
	for range many {
		create(scope)
	}
	l.eventually("all to wait", func() bool { return l.startSlots.Waiting() == many-1 })
	for range few {
		create(other)
	}
	l.eventually("all to wait", func() bool { return l.startSlots.Waiting() == many-1+few })
	for n := range many + few {
		next <- struct{}{}
		l.eventually("a start", func() bool { return started() == n+1 })
	}
	creates.Wait()
	// The first was in progress before the others were asked for.
	if last := 1 + 2*few; slices.Contains(order[last:], other.TeamID) {
		t.Errorf("a team that asked for %d waited for more than as many of the other's: %v", few, order)
	}
}

// TestAudienceOfForks: a fork has its source's audience, or one of its own.
func TestAudienceOfForks(t *testing.T) {
	l := newLab(t)
	if _, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "one", OIDCAudience: "sts"}); err != nil {
		t.Fatal(err)
	}
	for audience, want := range map[string]string{"": "sts", "vault": "vault"} {
		run, err := l.ForkSandbox(t.Context(), scope, "one", skerry.ForkParams{OIDCAudience: audience})
		if err != nil || run.Sandbox.OIDCAudience != want {
			t.Errorf("with %q: %v, want %q", audience, err, want)
		}
	}
	if _, err := l.ForkSandbox(t.Context(), scope, "one", skerry.ForkParams{OIDCAudience: "a b"}); skerry.CodeOf(err) != skerry.CodeBadRequest {
		t.Errorf("a bad one: %v", err)
	}
}
