package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
)

// heldStore takes one batch of commands for each answer that it is given.
type heldStore struct {
	Store
	asked   chan []skerry.Command
	answers chan error
}

func (h *heldStore) SaveCommands(_ context.Context, cmds []skerry.Command) error {
	h.asked <- slices.Clone(cmds)
	return <-h.answers
}

// TestSaverKeepsTheOrder saves more commands than go into one transaction while the
// store fails: those that have waited longest are written first.
func TestSaverKeepsTheOrder(t *testing.T) {
	h := &heldStore{asked: make(chan []skerry.Command), answers: make(chan error)}
	s := newSaver(h, slog.New(slog.DiscardHandler), time.Millisecond)
	id := func(n int) string { return fmt.Sprintf("cmd_%04d", n) }
	s.save(skerry.Command{ID: id(0)})
	<-h.asked // the first batch is under way, and will fail
	for n := 1; n < 2*saveBatch; n++ {
		s.save(skerry.Command{ID: id(n)})
	}
	code := 3
	s.save(skerry.Command{ID: id(0), ExitCode: &code}) // keeps its place
	h.answers <- errors.New("the disk is full")
	flushed := make(chan error, 1)
	go func() { flushed <- s.flush(t.Context()) }()
	var written []string
	for range 2 {
		for _, cmd := range <-h.asked {
			written = append(written, cmd.ID)
			if cmd.ID == id(0) && !cmd.Finished() {
				t.Error("an old state was written although there was a newer one")
			}
		}
		if len(written) == saveBatch { // while the first of it is under way again
			s.save(skerry.Command{ID: id(0), Name: "again", ExitCode: &code})
		}
		h.answers <- nil
	}
	for batch := range h.asked {
		for _, cmd := range batch {
			written = append(written, cmd.ID)
		}
		h.answers <- nil
		if len(written) >= 2*saveBatch+1 {
			break
		}
	}
	if err := <-flushed; err != nil && err.Error() != "save commands: the disk is full" {
		t.Error(err)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
	var want []string
	for n := range saveBatch {
		want = append(want, id(n))
	}
	want = append(want, id(0))
	for n := saveBatch; n < 2*saveBatch; n++ {
		want = append(want, id(n))
	}
	if !slices.Equal(written, want) {
		t.Errorf("written were %v", written)
	}
}

// TestEndIsWrittenLast ends commands while their beginning is saved: whoever is told
// of the end finds the command ended in the store.
func TestEndIsWrittenLast(t *testing.T) {
	h := &lastStore{}
	s := newSaver(h, slog.New(slog.DiscardHandler), time.Millisecond)
	for n := range 20000 {
		cmd := &command{done: make(chan struct{}), cmd: skerry.Command{ID: fmt.Sprint(n)}}
		var begun sync.WaitGroup
		begun.Go(func() { cmd.save(s) })
		go cmd.end(3, time.Second, s)
		<-cmd.done
		begun.Wait()
		if err := s.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := h.last.Load(); got.ID != fmt.Sprint(n) || !got.Finished() {
			t.Fatalf("the store has %+v", got)
		}
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
}

// lastStore keeps the newest command.
type lastStore struct {
	Store
	last atomic.Pointer[skerry.Command]
}

func (l *lastStore) SaveCommands(_ context.Context, cmds []skerry.Command) error {
	l.last.Store(&cmds[len(cmds)-1])
	return nil
}
