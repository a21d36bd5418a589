package cli

import (
	"context"
	"os"
	"os/signal"
	"sync"
)

// signals hands the interrupts of this process to whoever should have them:
// by default the first one ends the context of the invocation and the second
// ends the process.
type signals struct {
	ch     chan os.Signal
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	handler func(os.Signal)
}

func watchSignals(cancel context.CancelFunc) *signals {
	s := &signals{ch: make(chan os.Signal, 4), cancel: cancel, done: make(chan struct{})}
	signal.Notify(s.ch, endingSignals...)
	ignoreBrokenPipes()
	go func() {
		defer close(s.done)
		for sig := range s.ch {
			s.deliver(sig)
		}
	}()
	return s
}

func (s *signals) deliver(sig os.Signal) {
	s.mu.Lock()
	handler := s.handler
	s.mu.Unlock()
	if handler != nil {
		handler(sig)
		return
	}
	s.interrupt()
}

// interrupt ends what is being done; the next signal does what it does to any
// process.
func (s *signals) interrupt() {
	signal.Stop(s.ch)
	s.cancel()
}

// handle gives signals to fn, one after the other, until release is called.
func (s *signals) handle(fn func(os.Signal)) (release func()) {
	s.set(fn)
	return func() { s.set(nil) }
}

func (s *signals) set(fn func(os.Signal)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handler = fn
}

func (s *signals) close() {
	signal.Stop(s.ch)
	close(s.ch)
	<-s.done
}
