package store

import (
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
)

func TestDriveListing(t *testing.T) { onEach(t, testDriveListing) }

func testDriveListing(t *testing.T, openIn opener) {
	s := openIn(t, t.TempDir())
	scope := skerry.Scope{TeamID: "team_a", ProjectID: "prj_a"}
	for i, name := range []string{"b", "a", "data-2", "data-1", "data-3"} {
		d := &skerry.Drive{ID: skerry.NewID(skerry.PrefixDrive), Scope: scope, Name: name, MaxSizeBytes: 1 << 30,
			CreatedAt: skerry.FromMillis(int64(1000 + i)), UpdatedAt: skerry.FromMillis(int64(2000 - i))}
		if err := s.CreateDrive(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		d.ID = skerry.NewID(skerry.PrefixDrive)
		if err := s.CreateDrive(t.Context(), d); skerry.CodeOf(err) != skerry.CodeConflict {
			t.Errorf("a second drive named %s: %v", name, err)
		}
	}
	for _, test := range []struct {
		filter skerry.DriveFilter
		want   string
	}{
		{skerry.DriveFilter{}, "data-3 data-1 data-2 a b"},
		{skerry.DriveFilter{SortBy: "updatedAt"}, "b a data-2 data-1 data-3"},
		{skerry.DriveFilter{SortBy: "name", Page: skerry.Page{Ascending: true}}, "a b data-1 data-2 data-3"},
		{skerry.DriveFilter{SortBy: "name", NamePrefix: "data-"}, "data-3 data-2 data-1"},
		{skerry.DriveFilter{NamePrefix: "x"}, ""},
	} {
		var names []string
		for test.filter.Limit = 2; ; {
			page, next, err := s.ListDrives(t.Context(), scope, test.filter)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range page {
				names = append(names, d.Name)
			}
			if test.filter.Cursor = next; next == "" {
				break
			}
		}
		if got := strings.Join(names, " "); got != test.want {
			t.Errorf("%+v: %s, want %s", test.filter, got, test.want)
		}
	}
	if list, _, err := s.ListDrives(t.Context(), skerry.Scope{ProjectID: "prj_b"}, skerry.DriveFilter{}); err != nil || len(list) != 0 {
		t.Errorf("another project has %v, %v", list, err)
	}
	if ids, err := s.DriveIDs(t.Context()); err != nil || len(ids) != 5 {
		t.Errorf("there are %v, %v", ids, err)
	}
}
