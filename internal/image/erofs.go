package image

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// BuildEROFS packs the tree at dir into an EROFS file at out, with owners,
// modes, times and hard links as they are. Extended attributes are left out;
// see Meta.Xattrs. It writes out in place and removes it again if it fails or
// ctx ends.
func BuildEROFS(ctx context.Context, dir, out string) error {
	// gVisor cannot read data that is stored beside an inode ("bad address"),
	// so that is turned off. Compression it cannot read at all. A file with
	// extended attributes it cannot even stat ("operation not supported").
	if err := run(ctx, nil, nil, "mkfs.erofs", "-E", "noinline_data", "-x", "-1", out, dir); err != nil {
		os.Remove(out)
		return fmt.Errorf("packing %s into EROFS: %w", dir, err)
	}
	return nil
}

// stopTime is how long a program has to end by itself once ctx has ended.
const stopTime = 5 * time.Second

// run runs a program in a process group of its own, which is gone when run
// returns. Each line of its output goes to line, if that is not nil; its last
// lines are in the error.
//
// The program inherits hold: a lock held by that file is then held until the
// last process of the program is gone, even if this one is killed.
func run(ctx context.Context, hold *os.File, line func(string), name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = stopTime
	if hold != nil {
		cmd.ExtraFiles = []*os.File{hold}
	}
	output := &lineTail{line: line}
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	err := cmd.Wait()
	// The leader is gone; what it left running is not wanted either.
	syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, output)
	}
	return nil
}

// lineTail keeps the last lines of a program's output, for its error.
type lineTail struct {
	line    func(string)
	partial []byte
	last    []string
}

const (
	// tailLines is enough to see what a package manager complained about.
	tailLines = 12
	// tailWidth bounds a line.
	tailWidth = 1024
)

func (t *lineTail) Write(p []byte) (int, error) {
	t.partial = append(t.partial, p...)
	for {
		end := bytes.IndexAny(t.partial, "\r\n")
		if end < 0 && len(t.partial) < tailWidth {
			return len(p), nil
		}
		if end < 0 {
			end = tailWidth - 1
		}
		t.add(string(t.partial[:end]))
		t.partial = t.partial[end+1:]
	}
}

func (t *lineTail) add(s string) {
	s = strings.TrimSpace(s)
	if s == "" {
		return
	}
	if t.line != nil {
		t.line(s)
	}
	t.last = append(t.last, s)
	if len(t.last) > tailLines {
		t.last = t.last[1:]
	}
}

func (t *lineTail) String() string {
	return strings.Join(append(t.last, string(t.partial)), "\n")
}
