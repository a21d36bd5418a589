package auth

import (
	"reflect"
	"testing"

	"github.com/skerry-dev/skerry"
)

func ptr(n int) *int { return &n }

func TestQuotas(t *testing.T) {
	a, _ := open(t)
	p, err := a.Bootstrap(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	project, team, defaults := skerry.Scope{TeamID: p.TeamID, ProjectID: p.ID}, skerry.Scope{TeamID: p.TeamID}, skerry.Scope{}
	set := func(scope skerry.Scope, q skerry.Quota) {
		t.Helper()
		if _, err := a.SetQuota(t.Context(), scope, q, false); err != nil {
			t.Fatal(err)
		}
	}
	inForce := func(wantTeam, wantProject skerry.Quota) {
		t.Helper()
		got, err := a.Quotas(t.Context(), project)
		if err != nil || !reflect.DeepEqual(got.Team.Shown(), wantTeam) || !reflect.DeepEqual(got.Project.Shown(), wantProject) {
			t.Errorf("in force are %+v, %v", got, err)
		}
	}
	inForce(skerry.Quota{}, skerry.Quota{})
	set(defaults, skerry.Quota{Sandboxes: ptr(10), VCPUs: ptr(20)})
	set(project, skerry.Quota{MemoryMB: ptr(4096)})
	inForce(skerry.Quota{Sandboxes: ptr(10), VCPUs: ptr(20)}, skerry.Quota{MemoryMB: ptr(4096)})
	set(team, skerry.Quota{Sandboxes: ptr(30)})
	inForce(skerry.Quota{Sandboxes: ptr(30), VCPUs: ptr(20)}, skerry.Quota{MemoryMB: ptr(4096)})
	set(team, skerry.Quota{VCPUs: ptr(skerry.Unlimited)}) // the other limit stays
	inForce(skerry.Quota{Sandboxes: ptr(30)}, skerry.Quota{MemoryMB: ptr(4096)})
	if alone, err := a.Quotas(t.Context(), team); err != nil || alone.Project != (skerry.Quota{}) {
		t.Errorf("of the team alone: %+v, %v", alone, err)
	}
	set(project, skerry.Quota{MemoryMB: ptr(skerry.Unlimited)})
	inForce(skerry.Quota{Sandboxes: ptr(30)}, skerry.Quota{})

	_, err = a.SetQuota(t.Context(), team, skerry.Quota{StartsPerMinute: ptr(-2)}, true)
	wantField(t, err, skerry.CodeBadRequest, "startsPerMinute")
	_, err = a.SetQuota(t.Context(), team, skerry.Quota{MemoryMB: ptr(skerry.MaxQuota + 1)}, true)
	wantField(t, err, skerry.CodeBadRequest, "memoryMB")

	// A limit below what is in use is an error, unless that is meant.
	a.SetUsage(func(scope skerry.Scope) skerry.Use {
		if scope != team {
			return skerry.Use{}
		}
		return skerry.Use{Sandboxes: 5, VCPUs: 8, MemoryMB: 1000}
	})
	_, err = a.SetQuota(t.Context(), team, skerry.Quota{Sandboxes: ptr(5), VCPUs: ptr(7)}, false)
	wantField(t, err, skerry.CodeConflict, "vcpus")
	inForce(skerry.Quota{Sandboxes: ptr(30)}, skerry.Quota{})
	state, err := a.SetQuota(t.Context(), team, skerry.Quota{Sandboxes: ptr(5), VCPUs: ptr(7)}, true)
	if err != nil || *state.Quota.VCPUs != 7 || state.Use.VCPUs != 8 {
		t.Errorf("by force: %+v, %v", state, err)
	}
	inForce(skerry.Quota{Sandboxes: ptr(5), VCPUs: ptr(7)}, skerry.Quota{})
	_, err = a.SetQuota(t.Context(), skerry.Scope{TeamID: "team_none"}, skerry.Quota{Sandboxes: ptr(1)}, false)
	wantCode(t, "a team that does not exist", err, skerry.CodeNotFound)
}

func wantField(t *testing.T, err error, code skerry.Code, field string) {
	t.Helper()
	e, ok := err.(*skerry.Error) //nolint:errorlint // it is not wrapped
	if !ok || e.Code != code || e.Field != field {
		t.Errorf("%v, want %s of %s", err, code, field)
	}
}
