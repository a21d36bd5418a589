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
	// streamBuffer is larger than a usual line of output, so that the line is decoded
	// without a copy.
	streamBuffer = 128 << 10
	// maxLine limits a line of a stream. The server sends pieces of some ten kilobytes,
	// which are at most six times as long when escaped.
	maxLine = 8 << 20
)

// event is a line of a command's stream: the state of the command, or a piece of its
// output.
type event struct {
	command *skerry.Command
	stream  skerry.Stream
	data    []byte
	// offset and next are the offsets of the beginning and the end of data in its stream,
	// if placed is set.
	offset, next int64
	placed       bool
}

// eventReader decodes a stream of events line by line.
type eventReader struct {
	r *bufio.Reader
	// long is the buffer for a line that is longer than r's buffer, text the buffer for
	// the unescaped data of an event.
	long, text []byte
}

func newEventReader(r io.Reader) *eventReader {
	return &eventReader{r: bufio.NewReaderSize(r, streamBuffer)}
}

// next returns the next event, and io.EOF after the last one. The event's data is valid
// until the next call. An error in the stream is returned as an *Error.
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

// line returns the next line without its line feed. A last line without line feed is
// incomplete.
func (d *eventReader) line() ([]byte, error) {
	d.long = d.long[:0]
	for {
		part, err := d.r.ReadSlice('\n')
		if err == nil && len(d.long) == 0 {
			return part[:len(part)-1], nil
		}
		if len(d.long)+len(part) > maxLine {
			return nil, malformedError{fmt.Errorf("the server sent a line of more than %d bytes", maxLine)}
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
		Offset  *int64          `json:"offset"`
		Next    *int64          `json:"next"`
		Data    json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(line, &wire); err != nil {
		return event{}, malformedError{fmt.Errorf("the server sent a line that is not an event: %w", err)}
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
			return event{}, malformedError{fmt.Errorf("the server sent an invalid error: %w", err)}
		}
		return event{}, &e
	case wire.Stream == string(skerry.Stdout) || wire.Stream == string(skerry.Stderr):
		var data string
		if err := json.Unmarshal(wire.Data, &data); err != nil {
			return event{}, malformedError{fmt.Errorf("the server sent output that is not a string: %w", err)}
		}
		ev := event{stream: skerry.Stream(wire.Stream), data: []byte(data)}
		if wire.Offset != nil && wire.Next != nil {
			ev.offset, ev.next, ev.placed = *wire.Offset, *wire.Next, true
		}
		return ev, nil
	}
	return event{}, malformedError{errors.New("the server sent a line that is neither a command nor output")}
}

// The parts of a line of output as the server writes it. Offsets, if requested, are
// between a prefix and the data.
var (
	stdoutPrefix = []byte(`{"stream":"stdout",`)
	stderrPrefix = []byte(`{"stream":"stderr",`)
	offsetPrefix = []byte(`"offset":`)
	nextPrefix   = []byte(`,"next":`)
	dataPrefix   = []byte(`"data":"`)
	outputSuffix = []byte(`"}`)
)

// places removes the offsets from the beginning of a line, if there are any.
func (ev *event) places(line []byte) (rest []byte, ok bool) {
	if rest, ok = bytes.CutPrefix(line, offsetPrefix); !ok {
		return line, true
	}
	if ev.offset, rest, ok = number(rest); !ok {
		return nil, false
	}
	if rest, ok = bytes.CutPrefix(rest, nextPrefix); !ok {
		return nil, false
	}
	if ev.next, rest, ok = number(rest); !ok {
		return nil, false
	}
	ev.placed = true
	return bytes.CutPrefix(rest, []byte(","))
}

// number removes a decimal number from the beginning of b.
func number(b []byte) (n int64, rest []byte, ok bool) {
	i := 0
	for i < len(b) && '0' <= b[i] && b[i] <= '9' {
		i++
	}
	n, err := strconv.ParseInt(string(b[:i]), 10, 64)
	return n, b[i:], err == nil
}

// decodeOutput decodes a line of output in its usual form. It is several times faster
// than the general decoder, which would limit the throughput. It leaves unusual lines to
// the general decoder.
func (d *eventReader) decodeOutput(line []byte) (event, bool) {
	ev := event{stream: skerry.Stdout}
	rest, ok := bytes.CutPrefix(line, stdoutPrefix)
	if !ok {
		ev.stream = skerry.Stderr
		if rest, ok = bytes.CutPrefix(line, stderrPrefix); !ok {
			return event{}, false
		}
	}
	if rest, ok = ev.places(rest); !ok {
		return event{}, false
	}
	if rest, ok = bytes.CutPrefix(rest, dataPrefix); !ok {
		return event{}, false
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

// unescape appends the character of the escape sequence at the start of s, and returns
// the length of the sequence; 0 for an unusual one.
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
