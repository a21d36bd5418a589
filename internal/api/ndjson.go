package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/skerry-dev/skerry"
)

const (
	// ndjsonType has no charset, because the public clients compare all of it.
	ndjsonType = "application/x-ndjson"
	// maxLineData limits the output in one line, before escaping. The TypeScript client
	// takes time that grows with the square of a line's length.
	maxLineData = 64 << 10
	// maxPending is how much output is buffered for a slow client before the command
	// must wait. A stream takes at most twice this and a line of memory.
	maxPending = 256 << 10
)

// ndjson is a response with one JSON value per line. One goroutine encodes the output
// and another sends it. So a line is sent at once if the connection is idle, and lines
// are sent together if it is busy.
type ndjson struct {
	w    *response
	once sync.Once // starts the heartbeats
	beat time.Duration
	// offsets adds its offset to each line of output.
	offsets bool
	// from is the offset at which the client wants each stream to begin.
	from map[skerry.Stream]int64

	mu      sync.Mutex
	changed sync.Cond
	pending []byte // lines to be sent
	ended   bool   // there are no further lines
	broken  bool   // sending has failed

	tails map[skerry.Stream]*tail // used only by the encoding goroutine
}

// tail is the position in a stream up to which it is encoded, and the beginning of an
// incomplete character.
type tail struct {
	at int64 // offset of b
	b  [utf8.UTFMax]byte
	n  int
}

func newNDJSON(c *call) *ndjson {
	st := &ndjson{w: c.w, beat: c.srv.heartbeat, tails: map[skerry.Stream]*tail{}}
	st.changed.L = &st.mu
	return st
}

// begin sends the header, so that the client knows that its call was accepted, before
// there is output.
func (st *ndjson) begin() error {
	st.header()
	st.w.WriteHeader(http.StatusOK)
	return st.write(nil)
}

func (st *ndjson) header() {
	h := st.w.Header()
	h.Set("Content-Type", ndjsonType)
	h.Set(headerHeartbeat, strconv.FormatInt(st.beat.Milliseconds(), 10))
}

// line sends one value. It must not be called while output is being sent.
func (st *ndjson) line(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode a line: %w", err)
	}
	if !st.w.begun() {
		st.header()
	}
	return st.write(append(appendASCII(nil, data), '\n'))
}

// write sends data and flushes it.
func (st *ndjson) write(data []byte) error {
	if _, err := st.w.Write(data); err != nil {
		return fmt.Errorf("write to the client: %w", err)
	}
	if err := st.w.FlushError(); err != nil {
		return fmt.Errorf("write to the client: %w", err)
	}
	st.once.Do(func() { st.w.beatLines(st.beat) })
	return nil
}

// pump encodes the output of out until its end. It returns out's error, which is io.EOF
// at a regular end.
func (st *ndjson) pump(out skerry.OutputReader) error {
	for {
		piece, err := out.Next()
		st.mu.Lock()
		if err != nil {
			if errors.Is(err, io.EOF) {
				st.flushTails()
			}
			st.ended = true
		} else {
			for len(st.pending) >= maxPending && !st.broken {
				st.changed.Wait()
			}
			st.encode(piece)
		}
		broken := st.broken
		st.changed.Broadcast()
		st.mu.Unlock()
		if err != nil || broken {
			return err
		}
	}
}

// send sends what pump encodes, until pump has ended or a write fails.
func (st *ndjson) send() error {
	var buf []byte
	for {
		st.mu.Lock()
		for len(st.pending) == 0 && !st.ended {
			st.changed.Wait()
		}
		buf, st.pending = st.pending, buf[:0]
		st.changed.Broadcast()
		st.mu.Unlock()
		if len(buf) == 0 {
			return nil
		}
		if err := st.write(buf); err != nil {
			st.mu.Lock()
			st.broken = true
			st.changed.Broadcast()
			st.mu.Unlock()
			return err
		}
	}
}

// encode appends output to pending, as lines. If a character is split between two
// pieces of a stream's output, its beginning waits for the second piece.
func (st *ndjson) encode(out skerry.Output) {
	stream, data := out.Stream, out.Data
	if had := st.from[stream] - out.Offset; had > 0 {
		had = min(had, int64(len(data)))
		data, out.Offset = data[had:], out.Offset+had
	}
	if len(data) == 0 {
		return
	}
	t := st.tails[stream]
	if t == nil {
		t = &tail{}
		st.tails[stream] = t
	}
	if t.n == 0 {
		t.at = out.Offset
	}
	head, data := t.join(data)
	for len(head)+len(data) > 0 {
		piece := data[:min(len(data), maxLineData)]
		keep := incompleteTail(piece)
		if len(piece) == len(data) {
			t.n = copy(t.b[:], piece[len(piece)-keep:])
			data = nil
		} else {
			data = data[len(piece)-keep:]
		}
		piece = piece[:len(piece)-keep]
		if len(head)+len(piece) > 0 {
			st.appendLine(stream, t, head, piece)
		}
		head = nil
	}
}

// appendLine appends a line with the output at t.at, and advances t.at.
func (st *ndjson) appendLine(stream skerry.Stream, t *tail, head, data []byte) {
	next := t.at + int64(len(head)+len(data))
	p := append(st.pending, `{"stream":"`...)
	p = append(p, stream...)
	if st.offsets {
		p = append(p, `","offset":`...)
		p = strconv.AppendInt(p, t.at, 10)
		p = append(p, `,"next":`...)
		p = strconv.AppendInt(p, next, 10)
		p = append(p, `,"data":"`...)
	} else {
		p = append(p, `","data":"`...)
	}
	t.at = next
	p = appendEscaped(p, head)
	p = appendEscaped(p, data)
	st.pending = append(p, "\"}\n"...)
}

// flushTails encodes the beginnings of characters that stayed incomplete.
func (st *ndjson) flushTails() {
	for _, stream := range []skerry.Stream{skerry.Stdout, skerry.Stderr} {
		if t := st.tails[stream]; t != nil && t.n > 0 {
			kept := t.b[:t.n]
			t.n = 0
			st.appendLine(stream, t, kept, nil)
		}
	}
}

// join completes the kept bytes with the beginning of data. It returns them as head,
// and the rest of data. If they are still incomplete, it keeps all of data too.
func (t *tail) join(data []byte) (head, rest []byte) {
	if t.n == 0 {
		return nil, data
	}
	var whole [2 * utf8.UTFMax]byte
	kept := copy(whole[:], t.b[:t.n])
	filled := kept + copy(whole[kept:], data[:min(len(data), utf8.UTFMax)])
	end := 0
	// Bytes that turn out not to begin a character are replaced one by one, as in a
	// single piece.
	for end < kept && utf8.FullRune(whole[end:filled]) {
		_, size := utf8.DecodeRune(whole[end:filled])
		end += size
	}
	if end < kept {
		// filled is less than a character past end, so data was used up.
		t.n = copy(t.b[:], whole[end:filled])
		return append([]byte(nil), whole[:end]...), nil
	}
	t.n = 0
	return append([]byte(nil), whole[:end]...), data[end-kept:]
}
