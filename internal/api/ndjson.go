package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"unicode/utf8"

	"github.com/skerry-dev/skerry"
)

const (
	// ndjsonType is compared by the public clients as a whole: no charset.
	ndjsonType = "application/x-ndjson"
	// maxLineData bounds the output in one line, before escaping. The
	// TypeScript client joins a line from what it reads piece by piece, in
	// time that grows with the square of the line.
	maxLineData = 64 << 10
	// maxPending is how much output waits for a slow client before the
	// command has to: it bounds the memory of a stream to twice this and a
	// line.
	maxPending = 256 << 10
)

// ndjson is an answer of one JSON value a line. Output is encoded on one
// goroutine and sent on another, so that what is ready goes out at once while
// a busy connection gets it in large pieces.
type ndjson struct {
	w *response

	mu      sync.Mutex
	changed sync.Cond
	pending []byte // lines that wait to be sent
	ended   bool   // no more lines will come
	broken  bool   // nothing can be sent any more

	tails map[skerry.Stream]*tail // used by the encoding goroutine alone
}

// tail holds the start of a character whose rest is still to come.
type tail struct {
	b [utf8.UTFMax]byte
	n int
}

func newNDJSON(c *call) *ndjson {
	st := &ndjson{w: c.w, tails: map[skerry.Stream]*tail{}}
	st.changed.L = &st.mu
	return st
}

// begin sends the header, so that the client knows that its call was accepted
// before there is anything to say.
func (st *ndjson) begin() error {
	st.w.Header().Set("Content-Type", ndjsonType)
	st.w.WriteHeader(http.StatusOK)
	return st.write(nil)
}

// line sends one value. It is not called while output is being sent.
func (st *ndjson) line(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding a line: %w", err)
	}
	st.w.Header().Set("Content-Type", ndjsonType)
	return st.write(append(appendASCII(nil, data), '\n'))
}

// write sends data at once.
func (st *ndjson) write(data []byte) error {
	if _, err := st.w.Write(data); err != nil {
		return fmt.Errorf("writing to the client: %w", err)
	}
	if err := st.w.FlushError(); err != nil {
		return fmt.Errorf("writing to the client: %w", err)
	}
	return nil
}

// pump encodes what out yields until it ends, and returns its error, io.EOF at
// the proper end.
func (st *ndjson) pump(out skerry.OutputReader) error {
	for {
		stream, data, err := out.Next()
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
			st.encode(stream, data)
		}
		broken := st.broken
		st.changed.Broadcast()
		st.mu.Unlock()
		if err != nil || broken {
			return err
		}
	}
}

// send sends what pump encodes until pump has ended or the client cannot be
// written to.
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

// encode appends data as lines to pending. A character that is split between
// two pieces of a stream's output is kept for the second.
func (st *ndjson) encode(stream skerry.Stream, data []byte) {
	t := st.tails[stream]
	if t == nil {
		t = &tail{}
		st.tails[stream] = t
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
			st.appendLine(stream, head, piece)
		}
		head = nil
	}
}

func (st *ndjson) appendLine(stream skerry.Stream, head, data []byte) {
	p := append(st.pending, `{"stream":"`...)
	p = append(p, stream...)
	p = append(p, `","data":"`...)
	p = appendEscaped(p, head)
	p = appendEscaped(p, data)
	st.pending = append(p, "\"}\n"...)
}

// flushTails writes out the beginnings of characters that never came whole.
func (st *ndjson) flushTails() {
	for _, stream := range []skerry.Stream{skerry.Stdout, skerry.Stderr} {
		if t := st.tails[stream]; t != nil && t.n > 0 {
			st.appendLine(stream, t.b[:t.n], nil)
			t.n = 0
		}
	}
}

// join takes from data what completes the kept bytes, and returns them with it
// as head, and the rest of data. When they are still incomplete, all of data
// is kept too.
func (t *tail) join(data []byte) (head, rest []byte) {
	if t.n == 0 {
		return nil, data
	}
	var whole [2 * utf8.UTFMax]byte
	kept := copy(whole[:], t.b[:t.n])
	filled := kept + copy(whole[kept:], data[:min(len(data), utf8.UTFMax)])
	end := 0
	// Bytes that turn out not to begin a character count one by one, as
	// they would have in one piece.
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
