package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest"
)

// wokenFile is beside what the driver writes in a memory snapshot: what it
// takes to wake the agent up from it.
const wokenFile = "session.json"

type woken struct {
	// Agent is the name of the agent's image, which is named after its content.
	Agent string `json:"agent"`
}

// Keep implements controller.Node.
func (n *Node) Keep(ctx context.Context, captureID string) (controller.SavedFiles, error) {
	dir, err := n.captured(captureID)
	if err != nil {
		return controller.SavedFiles{}, err
	}
	saved, err := n.keep(ctx, dir)
	if err != nil {
		return saved, fmt.Errorf("keep capture %s: %w", captureID, err)
	}
	return saved, nil
}

// Discard implements controller.Node.
func (n *Node) Discard(_ context.Context, captureID string) error {
	dir, err := n.captured(captureID)
	if err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// captured is the folder of a capture.
func (n *Node) captured(id string) (string, error) {
	if id == "" || id == "." || id == ".." || filepath.Base(id) != id {
		return "", fmt.Errorf("%q is not the id of a capture", id)
	}
	return filepath.Join(n.cfg.SnapshotWork, id), nil
}

// writeMemory writes the machine with all that it runs into dir.
func (s *session) writeMemory(ctx context.Context, dir string) error {
	if len(s.mounts) > 0 {
		return skerry.Errorf(skerry.CodeConflict,
			"the memory of session %s cannot be saved: programs in it may have files of its drives open, which are no part of a snapshot", s.id)
	}
	b, err := json.Marshal(woken{Agent: s.agent})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, wokenFile), b, 0o600); err != nil {
		return err
	}
	if err := s.machine.SnapshotMemory(ctx, dir); err != nil {
		return err
	}
	// What was on its way to the agent at that moment is in a buffer of the
	// sentry's that wakes nobody: the next bytes do.
	return s.guest.Ping(ctx)
}

// wake starts the session's machine from a memory snapshot in dir.
func (s *session) wake(ctx context.Context, spec driver.Spec, setup guest.Setup, dir string) error {
	from, err := readWoken(dir)
	if err != nil {
		return err
	}
	return s.restore(ctx, spec, setup, from, func() (string, error) { return dir, nil })
}

// fork starts the session's machine from another session as it is now. That is
// saved while the new machine is made.
func (s *session) fork(ctx context.Context, spec driver.Spec, setup guest.Setup, of, captureID string) (err error) {
	to, err := s.node.captured(captureID)
	if err != nil {
		return err
	}
	source, err := s.node.running(of)
	if err != nil {
		return err
	}
	var dir string
	var failure error
	saved := make(chan struct{})
	go func() {
		defer close(saved)
		source.saving.Lock()
		defer source.saving.Unlock()
		dir, failure = source.save(ctx, controller.Saving{Memory: true})
	}()
	err = s.restore(ctx, spec, setup, woken{Agent: source.agent}, func() (string, error) {
		<-saved
		return dir, failure
	})
	<-saved
	if failure != nil {
		return source.failure(notSaved(fmt.Errorf("save session %s: %w", of, failure)))
	}
	if err == nil {
		err = os.Rename(dir, to)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	return nil
}

// restore starts the session's machine from what memory returns, and makes the
// agent that wakes up in it the session's own.
func (s *session) restore(ctx context.Context, spec driver.Spec, setup guest.Setup, from woken, memory func() (string, error)) (err error) {
	// Its file is mapped by processes that go on, so it must be the same.
	if spec.Agent, err = s.node.agentImage(from.Agent); err != nil {
		return err
	}
	s.agent = from.Agent
	if err := s.saveState(); err != nil {
		return err
	}
	if s.machine, err = s.node.cfg.Driver.Restore(ctx, spec, memory); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.node.cfg.AgentWait)
	defer cancel()
	conn, err := s.machine.Attach(ctx)
	if err != nil {
		return s.explain(err)
	}
	return s.greet(ctx, conn, setup, guest.Renew)
}

func readWoken(dir string) (w woken, err error) {
	b, err := os.ReadFile(filepath.Join(dir, wokenFile))
	if err == nil {
		err = json.Unmarshal(b, &w)
	}
	if err != nil {
		return w, fmt.Errorf("read the memory snapshot's session: %w", err)
	}
	return w, nil
}

// agentImage returns the image with the agent of a name. Those of earlier
// versions stay where they were made.
func (n *Node) agentImage(name string) (string, error) {
	path := filepath.Join(filepath.Dir(n.cfg.Agent), name)
	if _, err := os.Stat(path); err != nil || filepath.Base(name) != name {
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return "", skerry.Errorf(skerry.CodeSnapshotIncompatible, "the memory snapshot was taken with a guest agent that is not here any more")
		}
		return "", err
	}
	return path, nil
}
