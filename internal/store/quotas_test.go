package store

import (
	"slices"
	"testing"

	"github.com/skerry-dev/skerry"
)

func TestQuotas(t *testing.T) {
	onEach(t, func(t *testing.T, openIn opener) {
		s := openIn(t, t.TempDir())
		set := func(q Quota) {
			t.Helper()
			if err := s.SetQuota(t.Context(), q); err != nil {
				t.Fatal(err)
			}
		}
		defaults, team := Quota{"", "", "defaults"}, Quota{scope.TeamID, "", "team"}
		project, other := Quota{scope.TeamID, "prj_b", "project"}, Quota{fullScope.TeamID, "", "other"}
		for _, q := range []Quota{team, project, other, defaults, {team.TeamID, "", "before"}, team} {
			set(q)
		}
		want := func(want ...Quota) {
			t.Helper()
			got, err := s.Quotas(t.Context(), scope.TeamID)
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%v, %v, want %v", got, err, want)
			}
		}
		want(defaults, team, project)
		for what, q := range map[string]Quota{
			"a team": {"team_none", "", "x"}, "a project": {scope.TeamID, "prj_none", "x"}, "another team's project": {fullScope.TeamID, "prj_b", "x"},
		} {
			if err := s.SetQuota(t.Context(), q); skerry.CodeOf(err) != skerry.CodeNotFound {
				t.Errorf("%s that does not exist: %v", what, err)
			}
		}
		set(Quota{team.TeamID, "", ""})
		want(defaults, project)
		// They go with what they are for.
		if err := s.DeleteProject(t.Context(), scope.TeamID, "prj_b"); err != nil {
			t.Fatal(err)
		}
		want(defaults)
		if err := s.DeleteTeam(t.Context(), fullScope.TeamID); err != nil {
			t.Fatal(err)
		}
		if left, err := s.Quotas(t.Context(), fullScope.TeamID); err != nil || !slices.Equal(left, []Quota{defaults}) {
			t.Errorf("%v, %v", left, err)
		}
	})
}
