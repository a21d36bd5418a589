package nodetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/nodeapi/eventlog"
)

var commandTests = map[string]func(*suite){
	"ends":         (*suite).commandEnds,
	"arguments":    (*suite).arguments,
	"output":       (*suite).largeOutput,
	"slow reader":  (*suite).slowReader,
	"reader stops": (*suite).readerStops,
	"many":         (*suite).manyCommands,
	"input":        (*suite).input,
	"drop":         (*suite).drop,
	"contexts":     (*suite).commandContexts,
	"stop":         (*suite).stopWithOutput,
	"terminal":     (*suite).terminal,
	"hang up":      (*suite).hangUp,
}

func withStdin(p skerry.CommandParams) skerry.CommandParams {
	p.Stdin = true
	return p
}

// commandEnds are all ways in which a command ends.
func (s *suite) commandEnds() {
	id := s.start()
	for _, c := range []struct {
		script string
		code   int
	}{{"exit 0", 0}, {"exit 7", 7}, {"kill -9 $$", 128 + 9}} {
		cmd, _ := s.exec(id, sh(c.script))
		for range 2 { // it can be asked again
			if exit := s.exit(id, cmd); exit.Code != c.code || exit.Duration <= 0 {
				s.Errorf("%q ended with %+v, want %d", c.script, exit, c.code)
			}
		}
	}
	_, err := s.Node.Exec(s.ctx, id, nodeapi.CommandSpec{ID: skerry.NewID(skerry.PrefixCommand), CommandParams: skerry.CommandParams{Name: "no-such-program"}}, true)
	s.code("Exec of no program", err, skerry.CodeExecutableNotFound)

	s.run(id, "echo text > text")
	cmd, r := s.exec(id, skerry.CommandParams{Name: "./text"})
	if _, errs := s.all(r); errs == "" {
		s.Error("a file that cannot be executed says nothing")
	}
	if exit := s.exit(id, cmd); exit.Code != 126 {
		s.Errorf("a file that cannot be executed ended with %d", exit.Code)
	}

	cmd, r = s.exec(id, sh("trap 'echo caught; exit 3' TERM; echo on; while :; do sleep 0.01; done"))
	s.until(r, "on\n")
	s.ok(s.Node.Signal(s.ctx, id, cmd, int(syscall.SIGTERM)))
	s.until(r, "caught\n")
	if exit := s.exit(id, cmd); exit.Code != 3 {
		s.Errorf("a command that caught SIGTERM ended with %d", exit.Code)
	}
	s.ok(s.Node.Signal(s.ctx, id, cmd, int(syscall.SIGTERM))) // it has ended

	p := sh("sleep 1000")
	p.Timeout = skerry.Duration(50 * time.Millisecond)
	cmd, _ = s.exec(id, p)
	if exit := s.exit(id, cmd); exit.Code != 128+9 {
		s.Errorf("a command ended with %d at its timeout", exit.Code)
	}

	twice := nodeapi.CommandSpec{ID: skerry.NewID(skerry.PrefixCommand), CommandParams: sh("true")}
	_, err = s.Node.Exec(s.ctx, id, twice, false)
	s.ok(err)
	if !s.lacks(UniqueIDs) {
		_, err = s.Node.Exec(s.ctx, id, twice, false)
		s.code("Exec with an id in use", err, skerry.CodeConflict)
	}
}

// arguments reach a command as they are, bytes that are no text too.
func (s *suite) arguments() {
	id := s.start(func(spec *nodeapi.SessionSpec) { spec.Env = map[string]string{"OF": "session", "BOTH": "session"} })
	odd, odder := "\xff\xfe", "\x80"
	if s.lacks(Bytes) {
		odd, odder = "odd", "odder"
	}
	p := skerry.CommandParams{
		Name: "sh", Args: []string{"-c", `printf '%s|' "$@" "$OF" "$BOTH" "$BYTES"; pwd`, "sh", "", "two words", odd, "ü\n"},
		Env: map[string]string{"BOTH": "command", "BYTES": odder}, Cwd: "/tmp",
	}
	_, r := s.exec(id, p)
	out, errs := s.all(r)
	want := "|two words|" + odd + "|ü\n|session|command|" + odder + "|"
	if got, ok := strings.CutPrefix(out, want); !ok || !strings.HasSuffix(got, "/tmp\n") || errs != "" {
		s.Errorf("got %q (%q), want %q and the folder", out, errs, want)
	}
}

// pattern prints lines of 16 bytes on standard output.
func pattern(lines int) string { return fmt.Sprintf("seq -f %%015.0f 1 %d", lines) }

func checkPattern(s *suite, out string, lines int) {
	s.Helper()
	if len(out) != 16*lines {
		s.Fatalf("%d bytes of output, want %d", len(out), 16*lines)
	}
	if first, last := out[:16], out[len(out)-16:]; first != fmt.Sprintf("%015d\n", 1) || last != fmt.Sprintf("%015d\n", lines) {
		s.Errorf("the output begins with %q and ends with %q", first, last)
	}
}

// largeOutput is larger than all windows on its way.
func (s *suite) largeOutput() {
	id := s.start()
	const lines = 300_000
	cmd, r := s.exec(id, sh(pattern(lines)+"; echo done >&2"))
	out, errs := s.all(r)
	checkPattern(s, out, lines)
	if errs != "done\n" {
		s.Errorf("standard error is %q", errs)
	}
	s.exit(id, cmd)
	again, err := s.Node.Output(s.ctx, id, cmd)
	s.ok(err)
	defer again.Close()
	out, _ = s.all(again)
	checkPattern(s, out, lines)
}

// slowReader holds up the command that it follows, and nothing else.
func (s *suite) slowReader() {
	id := s.start()
	const lines = 2_000_000 // more than is kept
	slow, r := s.exec(id, sh(pattern(lines)))
	first, err := r.Next()
	s.ok(err)
	if len(first.Data) == 0 || first.Offset != 0 {
		s.Fatalf("the output begins with %d bytes at %d", len(first.Data), first.Offset)
	}
	begun := int64(len(first.Data))
	for range 20 {
		if got := s.run(id, "echo quick"); got != "quick\n" {
			s.Errorf("beside a slow reader: %q", got)
		}
	}
	s.run(s.start(), "true")
	ctx, cancel := context.WithTimeout(s.ctx, 100*time.Millisecond)
	defer cancel()
	if _, err := eventlog.AwaitExit(ctx, s.Node, id, slow); err == nil {
		s.Error("a command did not wait for its reader")
	}
	for {
		o, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		s.ok(err)
		if o.Offset != begun {
			s.Fatalf("the output goes on at %d, after %d bytes", o.Offset, begun)
		}
		begun += int64(len(o.Data))
	}
	if begun != 16*lines {
		s.Errorf("%d bytes of output, want %d", begun, 16*lines)
	}
	s.exit(id, slow)
}

// readerStops closes a reader in the middle; the command goes on.
func (s *suite) readerStops() {
	id := s.start()
	cmd, r := s.exec(id, sh(pattern(500_000)))
	_, err := r.Next()
	s.ok(err)
	s.ok(r.Close())
	s.ok(r.Close())
	if _, err := r.Next(); err == nil || errors.Is(err, io.EOF) {
		s.Errorf("a closed reader says %v", err)
	}
	if exit := s.exit(id, cmd); exit.Code != 0 {
		s.Errorf("the command ended with %d", exit.Code)
	}
	// One that waits for output is woken.
	_, r = s.exec(id, sh("exec sleep 1000"))
	ended := make(chan error, 1)
	go func() {
		_, err := r.Next()
		ended <- err
	}()
	s.ok(r.Close())
	if err := wait(s, "the end of a reader", ended); err == nil || errors.Is(err, io.EOF) {
		s.Errorf("a reader that was closed while it waited says %v", err)
	}
}

// manyCommands run at once.
func (s *suite) manyCommands() {
	id := s.start()
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			spec := nodeapi.CommandSpec{ID: skerry.NewID(skerry.PrefixCommand), CommandParams: sh(fmt.Sprintf("echo %d; exit %d", i, i))}
			r, err := s.Node.Exec(s.ctx, id, spec, true)
			if err != nil {
				s.Error(err)
				return
			}
			defer r.Close()
			var out bytes.Buffer
			for {
				o, err := r.Next()
				if err != nil {
					if !errors.Is(err, io.EOF) {
						s.Error(err)
					}
					break
				}
				out.Write(o.Data)
			}
			exit, err := eventlog.AwaitExit(s.ctx, s.Node, id, spec.ID)
			if err != nil || exit == nil || exit.Code != i || out.String() != fmt.Sprintf("%d\n", i) {
				s.Errorf("command %d: %q, %+v, %v", i, out.String(), exit, err)
			}
		})
	}
	wg.Wait()
}

// input is what a command reads.
func (s *suite) input() {
	id := s.start()
	cmd, r := s.exec(id, skerry.CommandParams{Name: "cat", Stdin: true})
	write := func(p skerry.StdinParams, want int64) {
		s.Helper()
		n, err := s.Node.WriteStdin(s.ctx, id, cmd, p)
		s.ok(err)
		if n != want {
			s.Errorf("%d bytes were taken, want %d", n, want)
		}
	}
	at := func(offset int64) *int64 { return &offset }
	write(skerry.StdinParams{Data: []byte("hel")}, 3)
	write(skerry.StdinParams{Data: []byte("hello"), Offset: at(0)}, 5) // a repetition with more
	write(skerry.StdinParams{Data: []byte("hello"), Offset: at(0)}, 5)
	_, err := s.Node.WriteStdin(s.ctx, id, cmd, skerry.StdinParams{Data: []byte("x"), Offset: at(17)})
	s.code("WriteStdin beyond what was written", err, skerry.CodeBadRequest)
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<14)
	write(skerry.StdinParams{Data: big, Close: true}, 5+int64(len(big)))
	if out, _ := s.all(r); out != "hello"+string(big) {
		s.Errorf("the command read %d bytes", len(out))
	}
	s.exit(id, cmd)
	_, err = s.Node.WriteStdin(s.ctx, id, cmd, skerry.StdinParams{Data: []byte("x")})
	s.code("WriteStdin after the end", err, skerry.CodeStdinUnavailable)
	cmd, _ = s.exec(id, sh("exec sleep 1000"))
	_, err = s.Node.WriteStdin(s.ctx, id, cmd, skerry.StdinParams{Data: []byte("x")})
	s.code("WriteStdin without an input", err, skerry.CodeStdinUnavailable)
}

// drop forgets a command that has ended.
func (s *suite) drop() {
	id := s.start()
	cmd, r := s.exec(id, withStdin(sh("echo on; read line")))
	s.until(r, "on\n")
	if err := s.Node.Drop(s.ctx, id, cmd); err == nil {
		s.Error("a command that runs was dropped")
	}
	_, err := s.Node.WriteStdin(s.ctx, id, cmd, skerry.StdinParams{Data: []byte("\n"), Close: true})
	s.ok(err)
	s.exit(id, cmd)
	for range 2 {
		s.ok(s.Node.Drop(s.ctx, id, cmd))
	}
	s.nothingOf(id, cmd)
}

// nothingOf checks that no output of a command is kept.
func (s *suite) nothingOf(session, command string) {
	s.Helper()
	r, err := s.Node.Output(s.ctx, session, command)
	if err != nil {
		s.code("Output of a command that is not kept", err, skerry.CodeNotFound)
		return
	}
	defer r.Close()
	if out, errs := s.all(r); out != "" || errs != "" {
		s.Errorf("a command that is not kept has the output %q, %q", out, errs)
	}
}

// commandContexts end before calls, and during them.
func (s *suite) commandContexts() {
	id := s.start()
	before, cancel := context.WithCancel(s.ctx)
	cancel()
	spec := nodeapi.CommandSpec{ID: skerry.NewID(skerry.PrefixCommand), CommandParams: sh("exec sleep 1000")}
	if r, err := s.Node.Exec(before, id, spec, true); err != nil {
		s.ended("Exec", before, err)
	} else {
		s.ok(r.Close())
	}
	cmd, r := s.exec(id, sh("exec sleep 1000"))
	// What a call returned does not depend on its context.
	ctx, cancel := context.WithCancel(s.ctx)
	spec.ID, spec.CommandParams = skerry.NewID(skerry.PrefixCommand), sh("read line; echo $line")
	spec.Stdin = true
	late, err := s.Node.Exec(ctx, id, spec, true)
	s.ok(err)
	defer late.Close()
	cancel()
	_, err = s.Node.WriteStdin(s.ctx, id, spec.ID, skerry.StdinParams{Data: []byte("late\n"), Close: true})
	s.ok(err)
	if out, _ := s.all(late); out != "late\n" {
		s.Errorf("a reader says %q after the end of its call's context", out)
	}
	s.ok(s.Node.Signal(s.ctx, id, cmd, int(syscall.SIGKILL)))
	s.all(r)
}

// stopWithOutput ends a session whose commands have readers.
func (s *suite) stopWithOutput() {
	id := s.start()
	_, r := s.exec(id, sh("echo before; exec sleep 1000"))
	s.until(r, "before\n")
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := r.Next(); err != nil {
				ended <- err
				return
			}
		}
	}()
	s.stop(id)
	if err := wait(s, "the end of a reader", ended); err == nil {
		s.Error("the reader does not end")
	}
}

// terminal is an interactive command.
func (s *suite) terminal() {
	id := s.start()
	value := "\xfevalue"
	if s.lacks(Bytes) {
		value = "value"
	}
	t, err := s.Node.Terminal(s.ctx, id, skerry.TerminalParams{
		Name: "sh", Args: []string{"-c", `stty -echo; echo "[$VAR]"; while read line; do case $line in size) stty size;; end) exit 9;; *) echo "<$line>";; esac; done`},
		Env: []string{"VAR=" + value}, Cols: 80, Rows: 24,
	})
	s.ok(err)
	defer t.Close()
	var seen strings.Builder
	expect := func(text string) {
		s.Helper()
		buf := make([]byte, 1024)
		for !strings.Contains(seen.String(), text) {
			n, err := t.Read(buf)
			seen.Write(buf[:n])
			if err != nil {
				s.Fatalf("waited for %q: %q, %v", text, seen.String(), err)
			}
		}
	}
	expect("[" + value + "]")
	_, err = io.WriteString(t, "hello\n")
	s.ok(err)
	expect("<hello>")
	_, err = io.WriteString(t, "size\n")
	s.ok(err)
	expect("24 80")
	s.ok(t.Resize(100, 40))
	_, err = io.WriteString(t, "size\n")
	s.ok(err)
	expect("40 100")
	_, err = io.WriteString(t, "end\n")
	s.ok(err)
	if _, err := io.Copy(io.Discard, t); err != nil {
		s.Errorf("the terminal ended with %v", err)
	}
	if code, err := t.Wait(); code != 9 || err != nil {
		s.Errorf("the command ended with %d, %v", code, err)
	}
	t, err = s.Node.Terminal(s.ctx, id, skerry.TerminalParams{Name: "no-such-program"})
	s.ok(err) // the terminal says why
	defer t.Close()
	said, err := io.ReadAll(t)
	s.ok(err)
	if code, err := t.Wait(); !strings.Contains(string(said), "no-such-program") || code != 127 || err != nil {
		s.Errorf("a terminal without a program says %q, and ends with %d, %v", said, code, err)
	}
}

// hangUp closes a terminal whose command runs.
func (s *suite) hangUp() {
	id := s.start()
	t, err := s.Node.Terminal(s.ctx, id, skerry.TerminalParams{Name: "sh", Args: []string{"-c", "trap 'echo gone > hup; exit' HUP; echo on; while :; do sleep 0.01; done"}})
	s.ok(err)
	buf := make([]byte, 64)
	_, err = t.Read(buf)
	s.ok(err)
	read := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, t)
		read <- err
	}()
	s.ok(t.Close())
	wait(s, "the end of a read", read)
	if _, err := t.Write([]byte("x")); err == nil {
		// The input of a terminal that was closed goes nowhere.
		s.Log("a closed terminal takes input")
	}
	for {
		if _, err := s.Node.ReadFile(s.ctx, id, "", "hup"); err == nil {
			break
		}
		if s.ctx.Err() != nil {
			s.Fatal("the command was not hung up")
		}
		time.Sleep(time.Millisecond)
	}
}
