package client_test

import (
	"testing"

	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/servertest"
)

func TestPause(t *testing.T) {
	c := connect(t, servertest.New(t), client.Options{})
	sb, err := c.CreateSandbox(t.Context(), client.CreateOptions{Name: "box"})
	if err != nil {
		t.Fatal(err)
	}
	if err := sb.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if sb.Session().PausedAt.IsZero() || sb.Info().PausedAt.IsZero() {
		t.Errorf("after the pause: %+v", sb.Session())
	}
	if err := sb.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !sb.Session().PausedAt.IsZero() {
		t.Errorf("after the resume: %+v", sb.Session())
	}
	if _, err := sb.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := sb.Pause(t.Context()); !client.IsStopped(err) {
		t.Errorf("pausing what has stopped: %v", err)
	}
}
