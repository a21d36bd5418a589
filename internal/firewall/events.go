package firewall

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/egress"
)

// The log of a session is two files of JSON lines in its folder. When the newer
// file is full, it replaces the older.
const (
	logFile, olderLogFile = "network.jsonl", "network.1.jsonl"
	maxLogBytes           = 1 << 20
	// waiting is the maximum number of events in the queue. Further events are
	// dropped and counted.
	waiting = 8192
	// atOnce is the maximum number of events in one write.
	atOnce = 512
)

// recorder writes events in the background.
type recorder struct {
	dir     string
	log     *slog.Logger
	queue   chan egress.Event
	dropped atomic.Int64
	done    sync.WaitGroup

	mu     sync.RWMutex
	closed bool
}

func newRecorder(dir string, log *slog.Logger) *recorder {
	r := &recorder{dir: dir, log: log, queue: make(chan egress.Event, waiting)}
	r.done.Go(r.write)
	return r
}

// add implements egress.Config.OnEvent. It never waits.
func (r *recorder) add(e egress.Event) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.closed {
		return
	}
	select {
	case r.queue <- e:
	default:
		r.dropped.Add(1)
	}
}

func (r *recorder) close() {
	r.mu.Lock()
	closed := r.closed
	r.closed = true
	r.mu.Unlock()
	if !closed {
		close(r.queue)
	}
	r.done.Wait()
}

// write writes the events in the queue, by session.
func (r *recorder) write() {
	for e := range r.queue {
		lines := map[string]*bytes.Buffer{}
		encode(lines, e)
	more:
		for range atOnce {
			select {
			case e, ok := <-r.queue:
				if !ok {
					break more
				}
				encode(lines, e)
			default:
				break more
			}
		}
		for id, b := range lines {
			if err := r.append(id, b.Bytes()); err != nil && !errors.Is(err, fs.ErrNotExist) { // it has been forgotten
				r.log.Warn("cannot log what a session was allowed", "session", id, "error", err)
			}
		}
		if n := r.dropped.Swap(0); n > 0 {
			r.log.Warn("events of the proxy were dropped", "count", n)
		}
	}
}

func encode(lines map[string]*bytes.Buffer, e egress.Event) {
	b := lines[e.Sandbox]
	if b == nil {
		b = &bytes.Buffer{}
		lines[e.Sandbox] = b
	}
	_ = json.NewEncoder(b).Encode(skerry.NetworkEvent{ // into memory, of plain values
		Time: skerry.At(e.Time), Allowed: e.Allowed, Protocol: e.Protocol, Reason: e.Reason, Domain: e.Domain,
		Destination: text(e.Destination), Upstream: text(e.Upstream), End: e.End, BytesIn: e.BytesIn, BytesOut: e.BytesOut,
		Duration: skerry.Duration(e.Duration), Suppressed: e.Suppressed,
	})
}

func text(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	if a.Port() == 0 { // of a protocol without ports
		return a.Addr().String()
	}
	return a.String()
}

func (r *recorder) append(id string, lines []byte) error {
	if !skerry.ValidID(skerry.PrefixSession, id) {
		return fmt.Errorf("%q is not a session's id", id)
	}
	path := filepath.Join(r.dir, id, logFile)
	if st, err := os.Stat(path); err == nil && st.Size() > maxLogBytes {
		if err := os.Rename(path, filepath.Join(r.dir, id, olderLogFile)); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(lines)
	return errors.Join(err, f.Close())
}

// Events implements nodeapi.Networks.
func (f *Firewall) Events(_ context.Context, sessionID string, limit int) ([]skerry.NetworkEvent, error) {
	if !skerry.ValidID(skerry.PrefixSession, sessionID) {
		return nil, fmt.Errorf("%q is not a session's id", sessionID)
	}
	var list []skerry.NetworkEvent
	for _, name := range []string{olderLogFile, logFile} {
		b, err := os.ReadFile(filepath.Join(f.events.dir, sessionID, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for line := range bytes.Lines(b) {
			var e skerry.NetworkEvent
			// A crash may have cut a line short.
			if json.Unmarshal(line, &e) == nil {
				list = append(list, e)
			}
		}
	}
	return list[max(0, len(list)-limit):], nil
}
