package node

import (
	"slices"

	"github.com/skerry-dev/skerry/internal/output"
)

// What commands print is kept on the host's disk, outside the sandbox's own
// limit, so it is bounded per session too: a few running commands keep as much
// as Config.Output says, any further ones the least that a log can, and of
// those that have ended the newest stay within Config.OutputTotal.
const (
	DefaultOutputTotal = 512 << 20
	// fullLogs is how many running commands keep as much as is configured.
	fullLogs = 32
)

// outputConfig is how much the next command keeps.
func (s *session) outputConfig() output.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running >= fullLogs {
		return output.Config{Keep: 1} // raised to the least
	}
	return s.node.cfg.Output
}

// trim removes the oldest output of commands that have ended until a quarter of
// the session's share is free. A command whose output is gone is known all the
// same, and has printed nothing to whoever asks.
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
			// From here on it is read from disk, where there is nothing.
			delete(s.commands, k.ID)
			if err := c.log.Close(); err != nil {
				s.node.cfg.Log.Error("cannot close the output of an old command", "session", s.id, "command", k.ID, "error", err)
			}
		}
		s.outputBytes -= k.Bytes
	}
}
