package firewall

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/egress"
)

const (
	// exportRetry is the delay before a write is retried after a failure.
	exportRetry = time.Second
	// exportClose is the maximum time that close waits for a target that accepts no
	// data.
	exportClose = 5 * time.Second
)

// exporter writes the events of all sandboxes for the operator to a file or to
// standard output, in the background. If the target is slower than the events, or
// full, events are dropped and counted. Nothing waits for it.
type exporter struct {
	path  string // "" for a file that is not opened again
	file  *os.File
	log   *slog.Logger
	queue chan egress.Event
	ended chan struct{}
	// patience is exportClose, but for tests.
	patience time.Duration

	dropped atomic.Int64 // since the last line that tells of it
	failing bool         // the log has been told
	cut     bool         // the last line is not whole

	mu     sync.RWMutex
	closed bool
}

// newExporter opens the file at path, or uses standard output for "-".
func newExporter(path string, log *slog.Logger) (*exporter, error) {
	if path == "-" {
		return exportTo("", os.Stdout, log), nil
	}
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("the network log %q must be an absolute path or -", path)
	}
	f, err := openExport(path)
	if err != nil {
		return nil, err
	}
	return exportTo(path, f, log), nil
}

func exportTo(path string, f *os.File, log *slog.Logger) *exporter {
	x := &exporter{path: path, file: f, log: log, queue: make(chan egress.Event, waiting), ended: make(chan struct{}), patience: exportClose}
	go x.run()
	return x
}

// openExport opens only a regular file: opening a pipe could wait for ever.
func openExport(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the network log: %w", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the network log: %w", err), f.Close())
	}
	return f, nil
}

// add never waits.
func (x *exporter) add(e egress.Event) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if x.closed {
		return
	}
	select {
	case x.queue <- e:
	default:
		x.dropped.Add(1)
	}
}

// close writes the events in the queue. It gives up on a target that accepts no
// data.
func (x *exporter) close() error {
	x.mu.Lock()
	closed := x.closed
	x.closed = true
	x.mu.Unlock()
	if closed {
		return nil
	}
	close(x.queue)
	select {
	case <-x.ended:
	case <-time.After(x.patience):
		return fmt.Errorf("the network log takes nothing, %d events were not written", int64(len(x.queue))+x.dropped.Load())
	}
	if x.path == "" {
		return nil
	}
	return x.file.Close()
}

func (x *exporter) run() {
	defer close(x.ended)
	retry := time.NewTicker(exportRetry)
	defer retry.Stop()
	for {
		select {
		case e, ok := <-x.queue:
			if !ok {
				x.write(nil)
				return
			}
			x.write(x.more(e))
		case <-retry.C:
			x.write(nil)
		}
	}
}

// more returns the event with further ones from the queue, at most as many as are
// written at once.
func (x *exporter) more(first egress.Event) []egress.Event {
	list := []egress.Event{first}
	for len(list) < atOnce {
		select {
		case e, ok := <-x.queue:
			if !ok {
				return list
			}
			list = append(list, e)
		default:
			return list
		}
	}
	return list
}

// write writes events, after a line about events that were dropped before.
func (x *exporter) write(events []egress.Event) {
	dropped := x.dropped.Swap(0)
	if dropped == 0 && len(events) == 0 {
		return
	}
	var b bytes.Buffer
	if x.cut {
		b.WriteByte('\n')
	}
	skip := b.Len()
	encoder := json.NewEncoder(&b) // into memory, of plain values: no errors
	if dropped > 0 {
		_ = encoder.Encode(struct {
			Time    string `json:"time"`
			Dropped int64  `json:"dropped"`
		}{exportTime(time.Now()), dropped})
	}
	for _, e := range events {
		_ = encoder.Encode(lineOf(e))
	}
	err := x.reopen()
	n := 0
	if err == nil {
		n, err = x.file.Write(b.Bytes())
	}
	written := b.Bytes()[:n]
	if n > 0 {
		x.cut = written[n-1] != '\n'
	}
	if err == nil {
		if x.failing {
			x.log.Info("the network log is written again")
		}
		x.failing = false
		return
	}
	whole := int64(bytes.Count(written[min(skip, n):], []byte("\n")))
	if dropped > 0 && whole > 0 {
		whole, dropped = whole-1, 0 // the line about it was written
	}
	x.dropped.Add(dropped + int64(len(events)) - whole)
	if !x.failing {
		x.log.Error("cannot write the network log, events are dropped", "error", err)
	}
	x.failing = true
}

// reopen opens the file again if it was moved or removed, as programs that rotate
// logs do.
func (x *exporter) reopen() error {
	if x.path == "" {
		return nil
	}
	own, err := x.file.Stat()
	if err != nil {
		return err
	}
	if at, err := os.Stat(x.path); err == nil && os.SameFile(at, own) {
		return nil
	}
	f, err := openExport(x.path)
	if err != nil {
		return err
	}
	err = x.file.Close()
	x.file, x.cut = f, false
	return err
}

// line is an event in the operator's log. README.md documents its field names.
type line struct {
	Time        string `json:"time"`
	SandboxID   string `json:"sandboxId,omitempty"`
	SandboxName string `json:"sandboxName,omitempty"`
	SessionID   string `json:"sessionId"`
	TeamID      string `json:"teamId,omitempty"`
	ProjectID   string `json:"projectId,omitempty"`
	Decision    string `json:"decision"`
	Reason      string `json:"reason"`
	Protocol    string `json:"protocol"`
	Domain      string `json:"domain,omitempty"`
	Destination string `json:"destination,omitempty"`
	Upstream    string `json:"upstream,omitempty"`
	End         bool   `json:"end,omitempty"`
	BytesIn     *int64 `json:"bytesIn,omitempty"`
	BytesOut    *int64 `json:"bytesOut,omitempty"`
	DurationMs  *int64 `json:"durationMs,omitempty"`
	Suppressed  int64  `json:"suppressed,omitempty"`
}

func lineOf(e egress.Event) line {
	l := line{
		Time: exportTime(e.Time), SandboxID: e.Box, SandboxName: e.Claims.SandboxName, SessionID: e.Sandbox,
		TeamID: e.Claims.TeamID, ProjectID: e.Claims.ProjectID, Decision: "denied", Reason: e.Reason, Protocol: e.Protocol,
		Domain: e.Domain, Destination: text(e.Destination), Upstream: text(e.Upstream), End: e.End, Suppressed: e.Suppressed,
	}
	if e.Allowed {
		l.Decision = "allowed"
	}
	if e.End {
		ms := e.Duration.Milliseconds()
		l.BytesIn, l.BytesOut, l.DurationMs = &e.BytesIn, &e.BytesOut, &ms
	}
	return l
}

func exportTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z07:00") }
