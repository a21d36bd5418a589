package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

// unwilling kills or stops every process that it can see, the guest agent
// among them, and whatever is executed later.
const unwilling = `
import os, signal
me = os.getpid()
turn = 0
while True:
    turn += 1
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != me:
            try:
                os.kill(int(name), signal.SIGSTOP if turn % 2 or name == "1" else signal.SIGKILL)
            except OSError:
                pass
`

// TestUnwillingGuest: code that is root in a sandbox cannot keep it from being
// saved and stopped, neither by a call nor when its time is up.
func TestUnwillingGuest(t *testing.T) {
	server := newServer(t)
	for _, end := range []struct {
		name    string
		timeout time.Duration
		stop    func(*client.Sandbox) error
	}{
		{"stop", time.Minute, func(sb *client.Sandbox) error {
			_, err := sb.Stop(t.Context())
			return err
		}},
		{"snapshot with memory", time.Minute, func(sb *client.Sandbox) error {
			_, err := sb.Snapshot(t.Context(), client.TakeOptions{Memory: true})
			return err
		}},
		{"timeout", 10 * time.Second, func(sb *client.Sandbox) error {
			server.waitFor("the session to time out", func() bool { return server.get(sb.Name()).Session().Status == skerry.StatusStopped })
			return nil
		}},
	} {
		t.Run(end.name, func(t *testing.T) {
			t.Parallel()
			s := server.in(t)
			sb := s.create(client.CreateOptions{Timeout: end.timeout})
			if err := sb.WriteFile(t.Context(), "precious", []byte("mine"), 0o644); err != nil {
				t.Fatal(err)
			}
			cmd := sb.Command(t.Context(), "python3", "-c", unwilling)
			cmd.Sudo, cmd.Detached = true, true
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			s.waitFor("the guest to kill what is executed in it", func() bool {
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				return sb.Command(ctx, "sleep", "0.1").Run() != nil
			})
			if err := end.stop(sb); err != nil {
				t.Fatal(err)
			}
			if end.name == "snapshot with memory" {
				return // what wakes up in it is as unwilling
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			out, err := sb.Command(ctx, "cat", "precious").Output()
			if err != nil || string(out) != "mine" {
				t.Errorf("after the end its file has %q, %v", out, err)
			}
		})
	}
}

// TestLostAgent: root in a sandbox has the guest agent break the protocol of its
// connection. Nothing can be run in the session any more; its files are saved.
func TestLostAgent(t *testing.T) {
	s := newServer(t)
	sb := s.create(client.CreateOptions{Name: "lost"})
	lost := sb.Session().ID
	if err := sb.WriteFile(t.Context(), "precious", []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := sb.Command(ctx, "sh", "-c", "cat /dev/urandom >/proc/1/fd/4")
	cmd.Sudo = true
	if err := cmd.Run(); err == nil {
		t.Error("the command that ends the agent's connection ended well")
	}
	s.waitFor("the session to be aborted", func() bool { return s.get("lost").Info().Status == skerry.StatusAborted })
	for run, err := range sb.Sessions(t.Context(), client.SessionOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		if run.ID == lost && run.Reason != "the connection to the sandbox's guest agent was lost; the files were saved" {
			t.Errorf("the session ended: %s", run.Reason)
		}
	}
	out, err := s.get("lost").Command(t.Context(), "cat", "precious").Output()
	if err != nil || string(out) != "mine" {
		t.Errorf("after the loss its file has %q, %v", out, err)
	}
}
