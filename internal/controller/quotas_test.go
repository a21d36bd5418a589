package controller

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/skerry-dev/skerry"
)

// quotas are what a test sets.
type quotas struct {
	mu sync.Mutex
	of map[skerry.Scope]skerry.Quotas
	// fail is the error of a store that does not answer.
	fail error
}

func (q *quotas) get(_ context.Context, scope skerry.Scope) (skerry.Quotas, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.of[scope], q.fail
}

func (q *quotas) set(scope skerry.Scope, to skerry.Quotas, fail error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.of, q.fail = map[skerry.Scope]skerry.Quotas{scope: to}, fail
}

func limit(n int) *int { return &n }

func TestQuotas(t *testing.T) {
	q := &quotas{}
	l := newLab(t, func(c *Config) { c.Quotas = q.get })
	refused := func(what string, p skerry.CreateParams, code skerry.Code, field, says string) {
		t.Helper()
		_, err := l.CreateSandbox(t.Context(), scope, p)
		var e *skerry.Error
		if !errors.As(err, &e) || e.Code != code || e.Field != field || !strings.Contains(e.Message, says) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := l.store.SandboxByName(t.Context(), scope, "refused"); skerry.CodeOf(err) != skerry.CodeNotFound {
			t.Errorf("%s: it is in the store: %v", what, err)
		}
	}
	one := skerry.CreateParams{Name: "refused", VCPUs: 1, MemoryMB: 2048}
	four := skerry.CreateParams{Name: "refused", VCPUs: 4, MemoryMB: 8192}
	for name, quota := range map[string]func(skerry.Quota) skerry.Quotas{
		"team":    func(q skerry.Quota) skerry.Quotas { return skerry.Quotas{Team: q} },
		"project": func(q skerry.Quota) skerry.Quotas { return skerry.Quotas{Project: q} },
	} {
		set := func(to skerry.Quota) { q.set(scope, quota(to), nil) }
		set(skerry.Quota{Sandboxes: limit(1), VCPUs: limit(3), MemoryMB: limit(1 << 20)})
		refused("too many vCPUs", four, skerry.CodeForbidden, "resources.vcpus", "the "+name+"'s quota is 3 vCPUs, and this one needs 4")
		set(skerry.Quota{Sandboxes: limit(1), MemoryMB: limit(4096)})
		refused("too much memory", four, skerry.CodeForbidden, "resources.memory", "the "+name+"'s quota is 4096 MB of memory")
		run, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "first", VCPUs: 1, MemoryMB: 2048})
		if err != nil {
			t.Fatal(err)
		}
		refused("a second sandbox", one, skerry.CodeRateLimited, "", "the "+name+"'s quota is 1 running sandboxes, of which 1 are used")
		set(skerry.Quota{VCPUs: limit(4)})
		refused("vCPUs that are used", four, skerry.CodeRateLimited, "", "4 vCPUs, of which 1 are used, and this one needs 4")
		for _, of := range []skerry.Scope{scope, {TeamID: scope.TeamID}} {
			if got := l.Used(of); got != (skerry.Use{Sandboxes: 1, VCPUs: 1, MemoryMB: 2048}) {
				t.Errorf("%v uses %+v", of, got)
			}
		}
		// Another team is not concerned, and neither is what runs.
		set(skerry.Quota{Sandboxes: limit(0)})
		other := skerry.Scope{TeamID: "team_b", ProjectID: "prj_b"}
		if _, err := l.CreateSandbox(t.Context(), other, skerry.CreateParams{Name: name}); err != nil {
			t.Errorf("another team: %v", err)
		}
		if got := l.run(run.Session.ID, "true"); got == nil {
			t.Error("what runs does not go on")
		}
		// Neither a resume nor a fork gets around it.
		if _, err := l.StopSession(t.Context(), scope, run.Session.ID, skerry.StopParams{}); err != nil {
			t.Fatal(err)
		}
		if _, err := l.GetSandbox(t.Context(), scope, "first", true); skerry.CodeOf(err) != skerry.CodeForbidden {
			t.Errorf("a resume: %v", err)
		}
		if _, err := l.ForkSandbox(t.Context(), scope, "first", skerry.ForkParams{Name: "refused"}); skerry.CodeOf(err) != skerry.CodeForbidden {
			t.Errorf("a fork: %v", err)
		}
		set(skerry.Quota{Sandboxes: limit(skerry.Unlimited)})
		if _, err := l.GetSandbox(t.Context(), scope, "first", true); err != nil {
			t.Errorf("a resume without a limit: %v", err)
		}
		if _, err := l.DeleteSandbox(t.Context(), scope, "first", true); err != nil {
			t.Fatal(err)
		}
		l.eventually("nothing to be used", func() bool { return l.Used(scope) == skerry.Use{} })
	}
	down := errors.New("the database does not answer")
	q.set(scope, skerry.Quotas{}, down)
	if _, err := l.CreateSandbox(t.Context(), scope, one); !errors.Is(err, down) {
		t.Errorf("without quotas: %v", err)
	}
}

func TestQuotaOfStarts(t *testing.T) {
	q := &quotas{}
	l := newLab(t, func(c *Config) { c.Quotas = q.get })
	q.set(scope, skerry.Quotas{Team: skerry.Quota{StartsPerMinute: limit(3)}, Project: skerry.Quota{StartsPerMinute: limit(2)}}, nil)
	for _, name := range []string{"one", "two"} {
		l.create(name)
	}
	_, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "three"})
	var e *skerry.Error
	if !errors.As(err, &e) || e.Code != skerry.CodeRateLimited || e.RetryAfter <= 0 || !strings.Contains(e.Message, "the project's quota is 2 starts") {
		t.Errorf("the third start: %v", err)
	}
	if got := l.Used(scope).Sandboxes; got != 2 {
		t.Errorf("%d run", got)
	}
}
