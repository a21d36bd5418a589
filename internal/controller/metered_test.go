package controller

import (
	"context"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi/processnode"
)

// TestMetered has each session that has not ended be there, with what the node knows of
// it.
func TestMetered(t *testing.T) {
	l := newLab(t)
	metered := func() map[string]Metered {
		t.Helper()
		all, err := l.Metered(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		byName := map[string]Metered{}
		for _, m := range all {
			byName[m.Session.SandboxName] = m
		}
		return byName
	}
	if got := metered(); len(got) != 0 {
		t.Errorf("nothing runs, and there is %+v", got)
	}
	one := l.create("one")
	if _, _, err := l.RunCommand(t.Context(), scope, one.Session.ID, skerry.CommandParams{Name: "sleep", Args: []string{"60"}}, false); err != nil {
		t.Fatal(err)
	}
	if _, err := l.PauseSession(t.Context(), scope, l.create("two").Session.ID); err != nil {
		t.Fatal(err)
	}
	begun, release := make(chan struct{}), make(chan struct{})
	l.node.On(processnode.Start, func(context.Context, string) error { close(begun); <-release; return nil })
	created := make(chan error, 1)
	go func() {
		_, err := l.CreateSandbox(context.Background(), scope, skerry.CreateParams{Name: "three"})
		created <- err
	}()
	<-begun
	got := metered()
	if len(got) != 3 || got["one"].Commands != 1 || got["one"].Meter == nil || got["one"].Meter.ActiveCPU <= 0 || got["one"].Session.ID != one.Session.ID {
		t.Errorf("metered is %+v", got)
	}
	if two := got["two"]; two.Session.PausedAt.IsZero() || two.Meter == nil || two.Commands != 0 {
		t.Errorf("of one that is paused, %+v", two)
	}
	if three := got["three"]; three.Session.Status != skerry.StatusPending || three.Meter != nil {
		t.Errorf("of one that is starting, %+v", three)
	}
	close(release)
	if err := <-created; err != nil {
		t.Fatal(err)
	}
	l.stop(one.Session.ID)
	if _, is := metered()["one"]; is {
		t.Error("one that has stopped is metered")
	}
}
