package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest/wire"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// source is what a session starts from. It holds what that takes until end.
type source struct {
	driver.Source
	// agent is the agent's image in a machine that goes on, "" in a fresh one.
	agent string
	// xattrs are those that the guest has to set: the image's. Files of a snapshot
	// have theirs already.
	xattrs wire.Xattrs

	// end releases what the source holds. It gets the error of the start and returns
	// the one that the caller is to see.
	end func(error) error
}

// source returns what a session starts from: its image, the files of a snapshot, a
// memory snapshot, or another session.
func (n *Node) source(ctx context.Context, spec nodeapi.SessionSpec) (*source, error) {
	if spec.ForkOf != "" {
		return n.forkSource(ctx, spec.ForkOf, spec.Capture)
	}
	from := &source{end: func(err error) error { return err }}
	if spec.Snapshot == "" {
		var err error
		from.xattrs, err = n.cfg.Images.Xattrs(spec.ImageDigest)
		return from, err
	}
	dir, release, err := n.loadSnapshot(ctx, spec.Snapshot, spec.Memory)
	if err != nil {
		return nil, err
	}
	// The machine holds the files open.
	from.end = func(err error) error { release(); return err }
	if !spec.Memory {
		from.Files = dir
		return from, nil
	}
	w, err := readWoken(dir)
	if err != nil {
		return nil, from.end(err)
	}
	from.Memory, from.agent = dir, w.Agent
	return from, nil
}

// wokenFile is in the same folder as the driver's files of a memory snapshot. It
// has the data for waking up the agent.
const wokenFile = "session.json"

type woken struct {
	// Agent is the name of the agent's image, which is named after its content.
	Agent string `json:"agent"`
	// Format is that of the driver's files.
	Format string `json:"format,omitempty"`
}

// describe writes the file into the folder of a memory snapshot. It refuses a
// session whose memory cannot be saved.
func (s *session) describe(dir string) error {
	if len(s.mounts) > 0 {
		return skerry.Errorf(skerry.CodeConflict,
			"the memory of session %s cannot be saved, because it has drives: its programs may have open files there, and drives are not part of a snapshot", s.id)
	}
	b, err := json.Marshal(woken{Agent: s.agent, Format: s.machine().Format(true).String()})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, wokenFile), b, 0o600)
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

// nudge has the agent read after its machine's memory was saved: data that was on
// its way to the agent at that moment is in a buffer of the sentry, which wakes no
// reader; the next bytes do. It does not matter whether the agent answers.
func (s *session) nudge() {
	if !s.isRunning() {
		return // there is no agent
	}
	s.spawn(func() {
		ctx, cancel := context.WithTimeout(s.ctx, s.node.cfg.AgentWait)
		defer cancel()
		_ = s.guest.Ping(ctx)
	})
}

// agentImage returns the image of the agent with this name. The images of earlier
// versions stay in the folder.
func (n *Node) agentImage(name string) (string, error) {
	path := filepath.Join(filepath.Dir(n.cfg.Agent), name)
	if _, err := os.Stat(path); err != nil || filepath.Base(name) != name {
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return "", skerry.Errorf(skerry.CodeSnapshotIncompatible, "the memory snapshot needs a version of the guest agent that this server does not have any more")
		}
		return "", err
	}
	return path, nil
}
