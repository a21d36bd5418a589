package gvisor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// panicLog is a pipe with a name, to which a sentry writes why it dies.
	panicLog = "panic.log"
	// maxWords is how much of that is kept. A sentry that fails tells of all its
	// goroutines, and one that was taken over may write for ever.
	maxWords = 4 << 10
	// wordsWait bounds how long the end of a sentry's words is waited for. It
	// comes with the end of the last of the machine's processes.
	wordsWait = 10 * time.Second
)

// words are what a sentry says when it dies. They go through a pipe that is read
// at once, so that they are bounded, and take no room on the host.
type words struct {
	r *os.File
	// held keeps the pipe from coming to its end before the sentry has it.
	held *os.File
	done chan struct{} // closed when there is nothing more to come

	mu   sync.Mutex
	kept []byte
}

// hearWords listens to a machine's sentry. Of a new machine started is to be
// called.
func hearWords(dir string, isNew bool) (_ *words, err error) {
	path := filepath.Join(dir, panicLog)
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make the pipe of the sentry's last words: %w", err)
	}
	w := &words{done: make(chan struct{})}
	// It is not blocked by nobody writing yet, and can be polled.
	if w.r, err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
		return nil, err
	}
	if isNew {
		if w.held, err = os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0); err != nil {
			return nil, errors.Join(err, w.r.Close())
		}
	}
	go w.read()
	return w, nil
}

// started is called when the sentry has its end, or there will be none.
func (w *words) started() {
	if w.held != nil {
		w.held.Close()
		w.held = nil
	}
}

// read takes what comes until all that could write have ended.
func (w *words) read() {
	defer close(w.done)
	defer w.r.Close()
	b := make([]byte, maxWords)
	for {
		n, err := w.r.Read(b)
		w.mu.Lock()
		w.kept = append(w.kept, b[:min(n, maxWords-len(w.kept))]...)
		w.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// last returns what a sentry has said that has ended.
func (w *words) last() string {
	select {
	case <-w.done:
	case <-time.After(wordsWait):
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(w.kept)
}

// close stops listening.
func (w *words) close() {
	w.started()
	w.r.Close()
	<-w.done
}
