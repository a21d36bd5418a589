package node

import (
	"slices"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/output"
)

// The output of commands is kept on the host's disk, outside the sandbox's own
// limit, so it is limited per session too. The first running commands keep as much
// as Config.Output allows, further ones the minimum of a log. Of ended commands,
// the newest outputs are kept within Config.OutputTotal.
const (
	DefaultOutputTotal = 512 << 20
	// fullLogs is the number of running commands that keep as much as is
	// configured, on disk and in memory.
	fullLogs = 32
	// DefaultMaxCommands is the default maximum number of running commands in a
	// session.
	DefaultMaxCommands = 256
)

// beginCommand reserves a place for a command that is about to start. The returned
// function gives the place back; call it when the command counts as running or has
// failed.
func (s *session) beginCommand() (begun func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if most := s.node.cfg.MaxCommands; s.running+s.beginning >= most {
		return nil, skerry.Errorf(skerry.CodeRateLimited, "limit of %d running commands in a session reached; wait until some have ended", most)
	}
	s.beginning++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.beginning--
	}, nil
}

// outputConfig returns how much output the next command keeps.
func (s *session) outputConfig() output.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running >= fullLogs {
		return output.Config{Keep: 1, Small: true} // raised to the least
	}
	return s.node.cfg.Output
}

// trim removes the oldest output of ended commands until a quarter of the session's
// share is free. A command without its output is still listed, with empty output.
func (s *session) trim() {
	kept, err := output.List(s.outputDir())
	if err != nil {
		s.node.cfg.Log.Error("cannot bound the output of a session's commands", "session", s.id, "error", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	kept = slices.DeleteFunc(kept, func(k output.Kept) bool {
		c := s.commands[k.ID]
		return c != nil && (!c.over() || c.log.Followed())
	})
	s.outputBytes = 0
	for _, k := range kept {
		s.outputBytes += k.Bytes
	}
	for _, k := range kept {
		if s.outputBytes <= s.node.cfg.OutputTotal*3/4 {
			return
		}
		if err := output.Remove(s.outputDir(), k.ID); err != nil {
			s.node.cfg.Log.Error("cannot remove the output of an old command", "session", s.id, "command", k.ID, "error", err)
			return
		}
		if c := s.commands[k.ID]; c != nil {
			// From now on the output is read from disk, where there is none.
			delete(s.commands, k.ID)
			if err := c.log.Close(); err != nil {
				s.node.cfg.Log.Error("cannot close the output of an old command", "session", s.id, "command", k.ID, "error", err)
			}
		}
		s.outputBytes -= k.Bytes
	}
}
