package node

import (
	"bytes"
	"io"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/output"
)

// printed is a command that has ended after printing so much.
func (s *session) printed(t *testing.T, size int) string {
	t.Helper()
	id := skerry.NewID(skerry.PrefixCommand)
	c := newCommand(id, nil, output.New(s.outputDir(), id, s.outputConfig()))
	for off := 0; off < size; off += 32 << 10 {
		if err := c.log.Append(t.Context(), skerry.Stdout, int64(off), bytes.Repeat([]byte{'x'}, min(32<<10, size-off))); err != nil {
			t.Fatal(err)
		}
	}
	s.mu.Lock()
	s.commands[c.id] = c
	s.running++
	s.mu.Unlock()
	c.finishLog(s)
	c.end()
	s.countOut(c)
	return c.id
}

func TestOutputOfASessionIsBounded(t *testing.T) {
	dir := t.TempDir()
	n, err := New(Config{Dir: filepath.Join(dir, "sessions"), SnapshotWork: filepath.Join(dir, "work"), OutputTotal: 1 << 20, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	s := newSession(n, skerry.NewID(skerry.PrefixSession))
	if err := s.makeOutputDir(); err != nil {
		t.Fatal(err)
	}
	if err := n.add(s); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for range 40 {
		ids = append(ids, s.printed(t, 100<<10))
	}
	kept, err := output.List(s.outputDir())
	if err != nil {
		t.Fatal(err)
	}
	var total int64
	for _, k := range kept {
		total += k.Bytes
	}
	if total > 1<<20+200<<10 || total < 512<<10 {
		t.Errorf("%d bytes of 40 commands are kept", total)
	}
	read := func(id string) int {
		t.Helper()
		r, err := n.Output(t.Context(), s.id, id)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		size := 0
		for {
			piece, err := r.Next()
			if err == io.EOF {
				return size
			}
			if err != nil {
				t.Fatal(err)
			}
			size += len(piece.Data)
		}
	}
	if got := read(ids[39]); got != 100<<10 {
		t.Errorf("the newest command has %d bytes", got)
	}
	if got := read(ids[0]); got != 0 {
		t.Errorf("the oldest command has %d bytes", got)
	}
	for _, id := range []string{ids[0], ids[39]} {
		if err := n.Drop(t.Context(), s.id, id); err != nil {
			t.Errorf("Drop() = %v", err)
		}
	}
}

func TestManyRunningCommandsKeepLess(t *testing.T) {
	s := newSession(&Node{cfg: Config{Output: output.Config{Keep: 16 << 20}}}, "")
	if got := s.outputConfig().Keep; got != 16<<20 {
		t.Errorf("the first command keeps %d bytes", got)
	}
	s.running = fullLogs - 1
	if got := s.outputConfig(); got.Keep != 16<<20 || got.Small {
		t.Errorf("the last that may keeps %d bytes, small: %v", got.Keep, got.Small)
	}
	s.running = fullLogs
	if got := s.outputConfig(); got.Keep >= 1<<20 || !got.Small {
		t.Errorf("one of many commands keeps %d bytes, small: %v", got.Keep, got.Small)
	}
}

func TestRunningCommandsAreLimited(t *testing.T) {
	s := newSession(&Node{cfg: Config{MaxCommands: 3}}, "")
	var begun []func()
	for range 3 {
		done, err := s.beginCommand()
		if err != nil {
			t.Fatal(err)
		}
		begun = append(begun, done)
	}
	if _, err := s.beginCommand(); skerry.CodeOf(err) != skerry.CodeRateLimited {
		t.Errorf("one too many that starts: %v", err)
	}
	begun[0]()
	s.running++ // it runs
	if _, err := s.beginCommand(); skerry.CodeOf(err) != skerry.CodeRateLimited {
		t.Errorf("one too many beside one that runs: %v", err)
	}
	s.running--
	if _, err := s.beginCommand(); err != nil {
		t.Errorf("one when there is room: %v", err)
	}
}
