package top

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/skerry-dev/skerry/internal/terminal"
)

// Source reads a sample.
type Source func(ctx context.Context) (*Sample, error)

// lookAround is how often the screen looks at its size and for keys' effects.
const lookAround = 100 * time.Millisecond

// What a terminal is told at the beginning and the end: to use another screen, without
// the cursor and without breaking lines, and back.
const (
	enter = "\x1b[?1049h\x1b[?25l\x1b[?7l"
	leave = "\x1b[?7h\x1b[?25h\x1b[?1049l"
)

// Screen shows a table in a terminal until its user or ctx ends that.
type Screen struct {
	In, Out *os.File
	Source  Source
	// Every is the time between two samples.
	Every time.Duration
	By    Column

	view   View
	before *Sample
	table  Table
}

// result is what came of a sample.
type result struct {
	sample *Sample
	err    error
}

// Run shows the table. The terminal is afterwards as it was.
func (s *Screen) Run(ctx context.Context) (err error) {
	state, err := term.MakeRaw(int(s.In.Fd()))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, term.Restore(int(s.In.Fd()), state)) }()
	if _, err := io.WriteString(s.Out, enter); err != nil {
		return err
	}
	defer func() {
		_, lerr := io.WriteString(s.Out, leave)
		err = errors.Join(err, lerr)
	}()
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan result)
	done := make(chan struct{})
	go func() { defer close(done); s.follow(ctx, results) }()
	defer func() { cancel(); <-done }()
	return s.loop(ctx, results)
}

// follow reads samples until ctx ends.
func (s *Screen) follow(ctx context.Context, to chan<- result) {
	tick := time.NewTicker(s.Every)
	defer tick.Stop()
	for {
		var r result
		r.sample, r.err = s.Source(ctx)
		select {
		case to <- r:
		case <-ctx.Done():
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// loop shows what comes, and does what keys say.
func (s *Screen) loop(ctx context.Context, results <-chan result) error {
	s.view.By = s.By
	var typed keyboard
	buf := make([]byte, 256)
	for ctx.Err() == nil {
		changed := s.measure()
		select {
		case r := <-results:
			s.take(r)
			changed = true
		default:
		}
		ready, err := readable(s.In, lookAround)
		if err != nil {
			return err
		}
		if ready {
			n, err := s.In.Read(buf)
			if err != nil {
				return nil // the terminal has gone
			}
			for _, k := range typed.keys(buf[:n]) {
				if k == keyQuit {
					return nil
				}
				s.press(k)
				changed = true
			}
		}
		if changed {
			if err := s.draw(); err != nil {
				return err
			}
		}
	}
	return nil
}

// readable waits until a file can be read, but not for long.
func readable(f *os.File, wait time.Duration) (bool, error) {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}, int(wait.Milliseconds()))
	if errors.Is(err, unix.EINTR) {
		return false, nil
	}
	return n > 0, err
}

// measure reports whether the terminal has another size.
func (s *Screen) measure() bool {
	w, h, err := term.GetSize(int(s.Out.Fd()))
	if err != nil || w < 1 || h < 1 {
		w, h = 80, 24
	}
	if w == s.view.Width && h == s.view.Height {
		return false
	}
	s.view.Width, s.view.Height = w, h
	return true
}

func (s *Screen) take(r result) {
	if r.err != nil {
		s.view.Trouble = terminal.Clean("no answer: " + r.err.Error())
		return
	}
	s.view.Trouble = ""
	s.table = Compare(s.before, r.sample)
	s.before = r.sample
}

// press does what a key says, other than keyQuit.
func (s *Screen) press(k key) {
	page := max(s.view.Height-6, 1)
	switch k {
	case keyLeft:
		s.view.By = (s.view.By + Column(len(columns)) - 1) % Column(len(columns))
	case keyRight:
		s.view.By = (s.view.By + 1) % Column(len(columns))
	case keyReverse:
		s.view.Reverse = !s.view.Reverse
	case keyUp:
		s.view.First--
	case keyDown:
		s.view.First++
	case keyPageUp:
		s.view.First -= page
	case keyPageDown:
		s.view.First += page
	case keyHome:
		s.view.First = 0
	case keyEnd:
		s.view.First = len(s.table.Rows)
	}
}

func (s *Screen) draw() error {
	s.table.Sort(s.view.By, s.view.Reverse)
	var b strings.Builder
	b.WriteString("\x1b[H")
	lines := s.view.Lines(&s.table)
	for i, line := range lines {
		// Cleared first, the last line with everything below it: after a full line the
		// cursor is on its last character, which clearing would remove.
		if i < len(lines)-1 {
			b.WriteString("\x1b[2K" + line + "\r\n")
		} else {
			b.WriteString("\x1b[J" + line)
		}
	}
	_, err := io.WriteString(s.Out, b.String())
	return err
}
