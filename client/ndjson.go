package client

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode/utf8"

	"github.com/skerry-dev/skerry"
)

const (
	// streamBuffer holds a usual line of output whole, so that it is not
	// copied before it is decoded.
	streamBuffer = 128 << 10
	// maxLine bounds a line of a stream. A server cuts output into pieces of
	// some ten kilobytes; escaping makes them six times as long at most.
	maxLine = 8 << 20
)

// event is one line of the stream that a command's output comes in: either
// the state of the command or a piece of its output.
type event struct {
	command *skerry.Command
	stream  skerry.Stream
	data    []byte
}

// eventReader decodes a stream of events line by line.
type eventReader struct {
	r *bufio.Reader
	// long gathers a line that is longer than r's buffer, text the unescaped
	// data of an event. Both are used again for the next.
	long, text []byte
}

func newEventReader(r io.Reader) *eventReader {
	return &eventReader{r: bufio.NewReaderSize(r, streamBuffer)}
}

// next returns the next event, and io.EOF after the last. The event's data is
// valid until the following call. An error that the server reports in the
// stream is an *Error.
func (d *eventReader) next() (event, error) {
	for {
		line, err := d.line()
		if err != nil {
			return event{}, err
		}
		if len(bytes.TrimSpace(line)) > 0 {
			return d.decode(line)
		}
	}
}

// line returns the next line without its end. A last line that has no end was
// cut off.
func (d *eventReader) line() ([]byte, error) {
	d.long = d.long[:0]
	for {
		part, err := d.r.ReadSlice('\n')
		if err == nil && len(d.long) == 0 {
			return part[:len(part)-1], nil
		}
		if len(d.long)+len(part) > maxLine {
			return nil, fmt.Errorf("the server sent a line of more than %d bytes", maxLine)
		}
		d.long = append(d.long, part...)
		switch {
		case err == nil:
			return d.long[:len(d.long)-1], nil
		case errors.Is(err, bufio.ErrBufferFull):
		case err == io.EOF && len(bytes.TrimSpace(d.long)) > 0:
			return nil, io.ErrUnexpectedEOF
		default:
			return nil, err
		}
	}
}

func (d *eventReader) decode(line []byte) (event, error) {
	if ev, ok := d.decodeOutput(line); ok {
		return ev, nil
	}
	var wire struct {
		Command *skerry.Command `json:"command"`
		Stream  string          `json:"stream"`
		Data    json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(line, &wire); err != nil {
		return event{}, fmt.Errorf("the server sent a line that is not an event: %w", err)
	}
	switch {
	case wire.Command != nil:
		return event{command: wire.Command}, nil
	case wire.Stream == "error":
		var e Error
		body := struct {
			Code    *skerry.Code `json:"code"`
			Message *string      `json:"message"`
		}{&e.Code, &e.Message}
		if err := json.Unmarshal(wire.Data, &body); err != nil {
			return event{}, fmt.Errorf("the server sent an error that is not one: %w", err)
		}
		return event{}, &e
	case wire.Stream == string(skerry.Stdout) || wire.Stream == string(skerry.Stderr):
		var data string
		if err := json.Unmarshal(wire.Data, &data); err != nil {
			return event{}, fmt.Errorf("the server sent output that is not text: %w", err)
		}
		return event{stream: skerry.Stream(wire.Stream), data: []byte(data)}, nil
	}
	return event{}, errors.New("the server sent a line that is neither a command nor output")
}

// The beginnings of a line of output as servers write it, and its end.
var (
	stdoutPrefix = []byte(`{"stream":"stdout","data":"`)
	stderrPrefix = []byte(`{"stream":"stderr","data":"`)
	outputSuffix = []byte(`"}`)
)

// decodeOutput decodes a line of output in its usual form several times
// faster than the general decoder, which is what bounds the throughput of a
// command. It leaves everything unusual to the latter.
func (d *eventReader) decodeOutput(line []byte) (event, bool) {
	ev := event{stream: skerry.Stdout}
	rest, ok := bytes.CutPrefix(line, stdoutPrefix)
	if !ok {
		ev.stream = skerry.Stderr
		if rest, ok = bytes.CutPrefix(line, stderrPrefix); !ok {
			return event{}, false
		}
	}
	if rest, ok = bytes.CutSuffix(rest, outputSuffix); !ok {
		return event{}, false
	}
	d.text = d.text[:0]
	for {
		i := bytes.IndexByte(rest, '\\')
		plain := rest
		if i >= 0 {
			plain = rest[:i]
		}
		if bytes.IndexByte(plain, '"') >= 0 {
			return event{}, false // the string ends earlier than the line
		}
		d.text = append(d.text, plain...)
		if i < 0 {
			ev.data = d.text
			return ev, true
		}
		n := d.unescape(rest[i:])
		if n == 0 {
			return event{}, false
		}
		rest = rest[i+n:]
	}
}

// unescape appends what the escape sequence at the start of s stands for, and
// returns its length, 0 when it is a rare one.
func (d *eventReader) unescape(s []byte) int {
	if len(s) < 2 {
		return 0
	}
	const from, to = `"\/bfnrt`, "\"\\/\b\f\n\r\t"
	for i := range len(from) {
		if s[1] == from[i] {
			d.text = append(d.text, to[i])
			return 2
		}
	}
	if s[1] != 'u' || len(s) < 6 {
		return 0
	}
	r, err := strconv.ParseUint(string(s[2:6]), 16, 16)
	if err != nil || (r >= 0xd800 && r < 0xe000) { // half of a pair
		return 0
	}
	d.text = utf8.AppendRune(d.text, rune(r))
	return 6
}
