package controller

import (
	"context"
	"net"
	"net/netip"

	"github.com/skerry-dev/skerry"
)

// Ready returns the session that takes a sandbox's requests at once, "" if there
// is none.
func (c *sandboxes) Ready(sandboxID string) (sessionID string) {
	if s := c.sessionOf(sandboxID); s != nil {
		if run := s.state(); run.Status == skerry.StatusRunning && run.PausedAt.IsZero() {
			return s.id
		}
	}
	return ""
}

// Reach returns the session that takes a sandbox's requests. One that is
// paused continues for it; with resume, so does a persistent sandbox that has
// stopped, and the caller waits for that.
func (c *sandboxes) Reach(ctx context.Context, sandboxID string, resume bool) (sessionID string, err error) {
	for {
		s := c.sessionOf(sandboxID)
		if s == nil {
			if err := c.mayResume(ctx, sandboxID, resume); err != nil {
				return "", err
			}
			if _, err := c.resume(ctx, sandboxID); err != nil {
				return "", err
			}
			continue
		}
		run := s.state()
		switch {
		case run.Status == skerry.StatusRunning && run.PausedAt.IsZero(), run.Status == skerry.StatusSnapshotting:
			return s.id, nil
		case run.Status == skerry.StatusRunning:
			if err := s.resume(ctx); err != nil {
				return "", c.failure(ctx, s, err)
			}
		default:
			// It starts or stops; which way it goes is seen afterwards.
			if again, err := c.awaitChange(ctx, s, new(bool)); !again && err != nil {
				return "", err
			}
		}
	}
}

// mayResume says why a request does not start a sandbox.
func (c *sandboxes) mayResume(ctx context.Context, sandboxID string, resume bool) error {
	sandbox, err := c.store.Sandbox(ctx, sandboxID)
	if err != nil {
		return err
	}
	if !resume || !sandbox.Persistent {
		return skerry.Errorf(skerry.CodeSandboxStopped, "the sandbox has stopped")
	}
	return nil
}

// Dial connects to a port of a running session for a client.
func (c *sessions) Dial(ctx context.Context, sessionID string, port int, client netip.Addr) (net.Conn, error) {
	return c.node.Dial(ctx, sessionID, port, client)
}
