package controller

import (
	"maps"
	"testing"
)

func TestCounts(t *testing.T) {
	l := newLab(t)
	expect := func(running, paused, vcpus int) {
		t.Helper()
		got := l.Counts()
		want := map[string]int{"pending": 0, "running": running, "snapshotting": 0, "stopping": 0, "paused": paused, "idle": 0, "hibernated": 0}
		if !maps.Equal(got.ByState, want) || got.VCPUs != vcpus || got.MemoryMB != 2048*vcpus {
			t.Errorf("the counts are %+v, want %v and %d vCPUs", got, want, vcpus)
		}
	}
	expect(0, 0, 0)
	one, two := l.create("one"), l.create("two")
	if _, err := l.PauseSession(t.Context(), scope, two.Session.ID); err != nil {
		t.Fatal(err)
	}
	expect(1, 1, 4)
	l.stop(one.Session.ID)
	expect(0, 1, 2)
}
