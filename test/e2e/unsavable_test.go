package e2e

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

// deepTree makes a tree whose description is as large as the square of its depth,
// which no save takes.
const deepTree = `
import os
for _ in range(3000):
    os.mkdir("d" * 255)
    os.chdir("d" * 255)
`

// TestUnsavableSandboxEnds: what a sandbox has made of its files keeps it from
// being saved. A stop says so and leaves it running; its time, or force, ends it,
// and it goes on from its last good snapshot.
func TestUnsavableSandboxEnds(t *testing.T) {
	s := newServer(t)
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	s.flags = []string{"--stop-grace", "1s"}
	s.start()
	for _, end := range []struct {
		name    string
		timeout time.Duration
		reason  string
	}{{"timeout", 12 * time.Second, "could not be saved"}, {"force", 10 * time.Minute, "by force"}} {
		t.Run(end.name, func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			sb := s.create(client.CreateOptions{Name: end.name, Timeout: end.timeout})
			if err := sb.WriteFile(t.Context(), "precious", []byte("mine"), 0o644); err != nil {
				t.Fatal(err)
			}
			saved, err := sb.Stop(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := sb.Command(t.Context(), "python3", "-c", deepTree).Run(); err != nil {
				t.Fatal(err)
			}
			session := sb.Session().ID
			_, err = sb.Stop(t.Context())
			if e := (*client.Error)(nil); !errors.As(err, &e) || e.Code != skerry.CodeSandboxUnsavable {
				t.Fatalf("a stop: %v", err)
			}
			if end.name == "force" {
				if err := sb.Command(t.Context(), "true").Run(); err != nil {
					t.Errorf("it does not go on: %v", err)
				}
				if _, err := sb.StopWith(t.Context(), client.StopOptions{Force: true}); err != nil {
					t.Fatal(err)
				}
			}
			s.waitFor("the session to end", func() bool { return s.get(end.name).Session().Status == skerry.StatusStopped })
			if run := s.get(end.name).Session(); run.ID != session || !strings.Contains(run.Reason, end.reason) || !strings.Contains(run.Reason, saved.Snapshot.ID()) {
				t.Errorf("session %s, of which %s was to end, ended with the reason %q", run.ID, session, run.Reason)
			}
			out, err := s.get(end.name).Command(t.Context(), "cat", "precious").Output()
			if err != nil || string(out) != "mine" {
				t.Errorf("afterwards its file has %q, %v", out, err)
			}
		})
	}
}
