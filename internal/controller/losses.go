package controller

import (
	"slices"
	"sync"

	"github.com/skerry-dev/skerry"
)

// maxLosses bounds the losses that are kept to be told. The oldest are dropped:
// nobody may ever call their sessions again. Whoever does learns of the loss from
// the session alone.
const maxLosses = 1024

// losses are the sessions whose files were lost and of which nobody was told.
// Clients answer "stopped" by going on in a new session, without a word: the
// first call on a lost session gets another error.
type losses struct {
	mu     sync.Mutex
	untold []string // the oldest first
}

func (l *losses) add(sessionID string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if slices.Contains(l.untold, sessionID) {
		return
	}
	if len(l.untold) == maxLosses {
		l.untold = slices.Delete(l.untold, 0, 1)
	}
	l.untold = append(l.untold, sessionID)
}

// tell makes the error of the first call on a lost session one that clients
// show. err is the session's own.
func (l *losses) tell(sessionID string, err error) error {
	if skerry.CodeOf(err) != skerry.CodeSandboxStopped {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.untold, sessionID)
	if i < 0 {
		return err
	}
	l.untold = slices.Delete(l.untold, i, i+1)
	return skerry.Errorf(skerry.CodeConflict, "the sandbox was lost, with all files written since its last snapshot; the next call starts it again from that snapshot (%v)", err)
}
