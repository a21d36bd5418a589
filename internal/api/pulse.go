package api

import (
	"net/http"
	"strconv"
	"time"
)

// DefaultHeartbeat is the default interval of heartbeats. Proxies close connections
// that are idle for a minute, some after half of that.
const DefaultHeartbeat = 15 * time.Second

// patience is the number of heartbeat intervals before the first heartbeat of a JSON
// document, for clients that do not know heartbeats. Most calls have finished by then,
// and have their own status.
const patience = 3

// headerHeartbeat is the header with the interval of heartbeats, in milliseconds. A
// client that receives nothing for several intervals knows that the connection is
// dead.
const headerHeartbeat = "Skerry-Heartbeat"

// heartbeat is a line feed. Between the lines of a stream it is an empty line, which the
// public clients skip. Before a JSON document it is white space, which JSON allows. The
// TypeScript client skips only lines that are empty, so there is no other character.
var heartbeat = []byte{'\n'}

// pulse sends heartbeats while the handler writes nothing. The response's lock guards
// it.
type pulse struct {
	every time.Duration
	timer *time.Timer
	last  time.Time // of the last write
	// document is set if the response is a single JSON document. Its beginning ends the
	// heartbeats.
	document bool
	stopped  bool
}

// beatDocument sends heartbeats until the handler sends a JSON document: the first one
// after first, the others at the interval every. The first heartbeat sends status 200
// too. A later error then has its status in the body, see call.fail. Not every client
// knows that, so first should be longer for others.
func (w *response) beatDocument(first, every time.Duration) {
	w.beat(&pulse{every: every, document: true}, first)
}

// beatLines sends heartbeats between the lines of a stream that has begun. Each Write
// must end with a line feed.
func (w *response) beatLines(every time.Duration) { w.beat(&pulse{every: every}, every) }

func (w *response) beat(p *pulse, first time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hush()
	w.pulse, p.last = p, time.Now()
	p.timer = time.AfterFunc(first, func() { w.tick(p) })
}

// tick sends a heartbeat if it is due. If the write fails, the client is gone, and
// net/http ends the request's context.
func (w *response) tick(p *pulse) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.stopped {
		return
	}
	if idle := time.Since(p.last); idle < p.every {
		p.timer.Reset(p.every - idle)
		return
	}
	if w.status == 0 {
		h := w.ResponseWriter.Header()
		h.Set("Content-Type", "application/json; charset=utf-8")
		h.Set(headerHeartbeat, strconv.FormatInt(p.every.Milliseconds(), 10))
		w.status = http.StatusOK
		w.ResponseWriter.WriteHeader(http.StatusOK)
	}
	if _, err := w.write(heartbeat); err != nil || w.flush() != nil {
		p.stopped = true
		return
	}
	p.timer.Reset(p.every)
}

// quiet ends the heartbeats, and waits for one that is in progress.
func (w *response) quiet() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hush()
}

func (w *response) hush() {
	if w.pulse != nil && !w.pulse.stopped {
		w.pulse.stopped = true
		w.pulse.timer.Stop()
	}
}
