package acme

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/libdns/libdns"
)

// Hook sets DNS records with a program of the operator's:
//
//	PROGRAM present NAME VALUE
//	PROGRAM cleanup NAME VALUE
//
// NAME is the full name of a TXT record with the dot at its end, VALUE what it
// is to have besides values of others. Exit status 0 means done. The program
// has two minutes, PATH as its whole environment, no input, and / as its
// folder; the end of what it prints is logged when it fails.
type Hook struct {
	path    string
	log     *slog.Logger
	timeout func(context.Context) (context.Context, context.CancelFunc)
}

const (
	// hookOutput is how much of what a hook prints is kept.
	hookOutput = 2 << 10
	// hookGrace is how long what a killed hook has started may hold its output.
	hookGrace = 2 * time.Second
	hookPath  = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// NewHook checks that there is such a program.
func NewHook(program string, log *slog.Logger) (*Hook, error) {
	path, err := filepath.Abs(program)
	if err != nil {
		return nil, fmt.Errorf("acme: hook: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("acme: hook: %w", err)
	}
	switch mode := info.Mode(); {
	case !mode.IsRegular() || mode&0o111 == 0:
		return nil, fmt.Errorf("acme: hook: %s is no program", path)
	case mode&0o022 != 0:
		return nil, fmt.Errorf("acme: hook: %s may be written to by others than its owner, and would run as root", path)
	}
	return &Hook{path: path, log: log, timeout: within}, nil
}

// AppendRecords implements libdns.RecordAppender.
func (h *Hook) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return each(zone, records, func(name, value string) error { return h.run(ctx, "present", name, value) })
}

// DeleteRecords implements libdns.RecordDeleter.
func (h *Hook) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return each(zone, records, func(name, value string) error { return h.run(ctx, "cleanup", name, value) })
}

func (h *Hook) run(ctx context.Context, verb, name, value string) error {
	ctx, cancel := h.timeout(ctx)
	defer cancel()
	out := &tail{most: hookOutput}
	cmd := exec.CommandContext(ctx, h.path, verb, name, value)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = []string{hookPath}, "/", out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = hookGrace
	err := cmd.Run()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it is done; what it has started holds its output
	}
	if err != nil {
		h.log.Warn("the DNS hook failed", "program", h.path, "verb", verb, "name", name, "output", out.String(), "error", err)
		return fmt.Errorf("hook %s %s: %w", h.path, verb, err)
	}
	return nil
}

// tail keeps the end of what is written to it.
type tail struct {
	most int
	buf  bytes.Buffer
}

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	n := len(p)
	if len(p) > t.most {
		p = p[len(p)-t.most:]
	}
	if over := t.buf.Len() + len(p) - t.most; over > 0 {
		t.buf.Next(over)
	}
	t.buf.Write(p)
	return n, nil
}

func (t *tail) String() string { return strings.TrimSpace(strings.ToValidUTF8(t.buf.String(), "?")) }
