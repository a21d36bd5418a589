package blob

import "sync"

// folderSync syncs folders for many at once. What waits while one round of
// syncs goes on is synced in the next, each folder once: journaling file
// systems then write one transaction for all of them instead of one each.
// The zero value is ready.
type folderSync struct {
	turn sync.Mutex // held by the round that goes on

	mu   sync.Mutex
	next *syncRound // those that wait; nil if nobody does
}

type syncRound struct {
	folders map[string]error
	done    chan struct{} // closed when the errors are final
}

// do returns when all that was done in a folder before the call is on disk.
func (s *folderSync) do(folder string) error {
	s.mu.Lock()
	round := s.next
	leads := round == nil
	if leads {
		round = &syncRound{folders: map[string]error{}, done: make(chan struct{})}
		s.next = round
	}
	round.folders[folder] = nil
	s.mu.Unlock()
	if !leads {
		<-round.done
		return round.folders[folder]
	}
	s.turn.Lock()
	defer s.turn.Unlock()
	s.mu.Lock()
	s.next = nil
	s.mu.Unlock()
	for folder := range round.folders {
		round.folders[folder] = syncPath(folder)
	}
	close(round.done)
	return round.folders[folder]
}
