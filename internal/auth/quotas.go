package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/store"
)

// quotaFormat is the format of the documents of quotas that this version writes.
const quotaFormat = 1

// quotaDocument is the stored form of a quota.
type quotaDocument struct {
	Format int `json:"format"`
	skerry.Quota
}

// SetUsage tells a how to find what running sandboxes use.
func (a *Auth) SetUsage(f func(skerry.Scope) skerry.Use) { a.usage.Store(&f) }

// QuotaState is a quota and what is used of it.
type QuotaState struct {
	// Scope is whose it is.
	Scope skerry.Scope `json:"scope"`
	// Set is what is set for the team or the project itself, Quota what is in force: for a
	// team with the defaults of all teams.
	Set   skerry.Quota `json:"set"`
	Quota skerry.Quota `json:"quota"`
	// Use is nil if no server runs, and for the defaults.
	Use *skerry.Use `json:"use,omitempty"`
}

// Quotas returns the quotas of a project and its team, or of a team alone if the scope has no
// project. It is asked in every request.
func (a *Auth) Quotas(ctx context.Context, scope skerry.Scope) (skerry.Quotas, error) {
	now := time.Now()
	if q, ok := a.quotas.get(scope, now); ok {
		return q, nil
	}
	set, err := a.readQuotas(ctx, scope.TeamID)
	if err != nil {
		return skerry.Quotas{}, err
	}
	q := skerry.Quotas{Team: set[skerry.Scope{TeamID: scope.TeamID}].Or(set[skerry.Scope{}])}
	if scope.ProjectID != "" {
		q.Project = set[scope]
	}
	a.quotas.put(scope, q, now)
	return q, nil
}

// readQuotas returns the quotas of a team and its projects, and the defaults of all teams.
func (a *Auth) readQuotas(ctx context.Context, teamID string) (map[skerry.Scope]skerry.Quota, error) {
	stored, err := a.store.Quotas(ctx, teamID)
	if err != nil {
		return nil, err
	}
	set := map[skerry.Scope]skerry.Quota{}
	for _, s := range stored {
		var d quotaDocument
		if err := json.Unmarshal([]byte(s.Document), &d); err != nil || d.Format < 1 || d.Format > quotaFormat {
			return nil, errors.Join(fmt.Errorf("cannot read the quota of %s/%s in the database (format %d)", s.TeamID, s.ProjectID, d.Format), err)
		}
		set[skerry.Scope{TeamID: s.TeamID, ProjectID: s.ProjectID}] = d.Quota
	}
	return set, nil
}

// Quota returns the state of the quota of a team, of a project, or of the defaults, if the
// scope is empty.
func (a *Auth) Quota(ctx context.Context, scope skerry.Scope) (QuotaState, error) {
	set, err := a.readQuotas(ctx, scope.TeamID)
	if err != nil {
		return QuotaState{}, err
	}
	s := QuotaState{Scope: scope, Set: set[scope], Quota: set[scope]}
	if scope.ProjectID == "" {
		s.Quota = s.Quota.Or(set[skerry.Scope{}])
	}
	if used := a.usage.Load(); used != nil && scope.TeamID != "" {
		use := (*used)(scope)
		s.Use = &use
	}
	return s, nil
}

// SetQuota changes those limits of a quota that the change sets. Unless force is set, a limit
// below what is in use is CodeConflict; sandboxes that run are never stopped for it.
func (a *Auth) SetQuota(ctx context.Context, scope skerry.Scope, change skerry.Quota, force bool) (QuotaState, error) {
	if err := change.Validate(); err != nil {
		return QuotaState{}, err
	}
	a.changing.Lock() // what is not changed is written back too
	defer a.changing.Unlock()
	state, err := a.Quota(ctx, scope)
	if err != nil {
		return QuotaState{}, err
	}
	if state.Use != nil && !force {
		for _, l := range []struct {
			field string
			limit *int
			used  int
		}{
			{"sandboxes", change.Sandboxes, state.Use.Sandboxes},
			{"vcpus", change.VCPUs, state.Use.VCPUs},
			{"memoryMB", change.MemoryMB, state.Use.MemoryMB},
		} {
			if most, limited := skerry.LimitOf(l.limit); limited && l.used > most {
				return QuotaState{}, &skerry.Error{Code: skerry.CodeConflict, Field: l.field, Message: fmt.Sprintf("is below what is in use, which is %d", l.used)}
			}
		}
	}
	next := change.Or(state.Set)
	if scope == (skerry.Scope{}) || scope.ProjectID != "" {
		// There is nothing below it that would have to be overruled.
		for _, l := range next.Limits() {
			if v := *l.Value; v != nil && *v == skerry.Unlimited {
				*l.Value = nil
			}
		}
	}
	document, err := json.Marshal(quotaDocument{quotaFormat, next})
	if err != nil {
		return QuotaState{}, err
	}
	if next == (skerry.Quota{}) {
		document = nil
	}
	defer a.quotas.clear()
	if err := a.store.SetQuota(ctx, store.Quota{TeamID: scope.TeamID, ProjectID: scope.ProjectID, Document: string(document)}); err != nil {
		return QuotaState{}, err
	}
	return a.Quota(ctx, scope)
}
