// Package remote carries package nodeapi over a socket: a Server serves a node, and
// a Client is that node for a controller in another process.
//
// # Protocol
//
// Every call is one HTTP/2 stream: POST /v1/METHOD. HTTP/2 has flow control for each
// stream, so a stream that nobody reads holds up no other call; the windows of a
// connection are larger than those of all its streams together. The path has the
// version of the protocol. Hello compares it, and a server with another version
// answers 404 to everything.
//
// The header Skerry-Timeout has the nanoseconds until the caller's deadline. The
// header Skerry-Call has the id of the call: the method "cancel" ends the context of
// the call with that id, whose answer is still waited for. A stream that is reset
// has been given up: its call ends, and so does what it returned. Traceparent (W3C
// Trace Context) names the span that the call belongs to.
//
// Most methods have one JSON document as their request and one as their answer
// (answer). The others use frames in a body, or in both:
//
//	kind    1 byte
//	length  4 bytes, big-endian
//	payload
//
// A request with frames begins with a frameHead, which has the arguments. A response
// with frames begins with a frameAnswer. Data follows, until a frameEnd, which says
// how that direction ended. A body that ends without one was cut off.
//
// # Errors
//
// A *skerry.Error crosses with its code, message, field and bytesWritten, and its
// cause as text for the log. Everything that keeps the client from reading a whole
// answer is nodeapi.Unreachable. A Client never repeats a call.
package remote

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// Protocol is the version of the protocol. It changes with every change that an
// older client or server would misunderstand.
const Protocol = 1

const (
	pathPrefix    = "/v1/"
	headerTimeout = "Skerry-Timeout"
	headerCall    = "Skerry-Call"
)

// Bounds, in bytes. The largest arguments are a policy with the environment of a
// sandbox, and a piece of a command's standard input.
const (
	maxHead = 8 << 20
	// maxList bounds requests that name every session, drive or snapshot.
	maxList   = 256 << 20
	maxAnswer = 64 << 20
	// maxData bounds the data of one frame.
	maxData = 64 << 10
	// maxDetail bounds the text of an error's cause.
	maxDetail = 8 << 10
)

// Windows of flow control. A connection has room for all its streams, so those that
// nobody reads do not stop the others.
const (
	maxStreams       = 1000
	streamWindow     = 256 << 10
	connectionWindow = maxStreams * streamWindow
)

// A connection that is silent for pingAfter is asked for a sign of life, and closed
// if there is none within pingWait, or if nothing can be written for writeWait.
const (
	pingAfter = 10 * time.Second
	pingWait  = 10 * time.Second
	writeWait = 20 * time.Second
)

func http2Config(t timing) *http.HTTP2Config {
	return &http.HTTP2Config{
		MaxConcurrentStreams:          maxStreams,
		MaxReceiveBufferPerStream:     streamWindow,
		MaxReceiveBufferPerConnection: connectionWindow,
		SendPingTimeout:               t.pingAfter,
		PingTimeout:                   t.pingWait,
		WriteByteTimeout:              t.writeWait,
	}
}

// timing is how long a silent connection is trusted. Tests are less patient.
type timing struct{ pingAfter, pingWait, writeWait time.Duration }

var defaultTiming = timing{pingAfter, pingWait, writeWait}

func http2Only() *http.Protocols {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	return &p
}

// Kinds of frames.
const (
	// frameHead is JSON: the arguments of a call.
	frameHead = 'h'
	// frameAnswer is JSON: an answer, to which data follows if it has no error.
	frameAnswer = 'a'
	// frameData is bytes of a stream.
	frameData = 'd'
	// frameOutput is a piece of a command's output: the stream (1 byte: 1 is standard
	// output, 2 standard error), its offset (8 bytes, big-endian), and its data.
	frameOutput = 'o'
	// frameResize is the new size of a terminal: columns and rows, 2 bytes each,
	// big-endian.
	frameResize = 'r'
	// frameEnd is JSON: an answer that tells how this direction ended.
	frameEnd = 'e'
	// frameClose follows frameEnd when a connection is not used any more.
	frameClose = 'c'
)

const (
	frameHeader  = 5
	outputHeader = 9
)

// errProtocol is what the other end has done if it does not keep to the protocol.
type errProtocol string

func (e errProtocol) Error() string { return "protocol violation: " + string(e) }

// frameReader reads the frames of a body.
type frameReader struct {
	r    io.Reader
	head [frameHeader]byte
	buf  []byte
}

// next returns the next frame. Its payload is valid until the following call. A body
// that ends between two frames is io.ErrUnexpectedEOF, too: frameEnd is missing.
func (f *frameReader) next() (kind byte, payload []byte, err error) {
	if _, err := io.ReadFull(f.r, f.head[:]); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	kind = f.head[0]
	size := int(binary.BigEndian.Uint32(f.head[1:]))
	most := 0
	switch kind {
	case frameHead:
		most = maxHead
	case frameAnswer, frameEnd:
		most = maxAnswer
	case frameData, frameOutput:
		most = maxData + outputHeader
	case frameResize:
		most = 4
	case frameClose:
		most = 0
	default:
		return 0, nil, errProtocol(fmt.Sprintf("there are no frames of kind %q", kind))
	}
	if size < 0 || size > most {
		return 0, nil, errProtocol(fmt.Sprintf("a frame of kind %q has %d bytes, more than %d", kind, size, most))
	}
	if size > cap(f.buf) && size > maxData+outputHeader {
		// Memory grows with what arrives, not with what was announced.
		var b bytes.Buffer
		if _, err := io.CopyN(&b, f.r, int64(size)); err != nil {
			return 0, nil, unexpected(err)
		}
		return kind, b.Bytes(), nil
	}
	if size > cap(f.buf) {
		f.buf = make([]byte, maxData+outputHeader)
	}
	payload = f.buf[:size]
	if _, err := io.ReadFull(f.r, payload); err != nil {
		return 0, nil, unexpected(err)
	}
	return kind, payload, nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// appendFrame appends the header of a frame.
func appendFrame(b []byte, kind byte, size int) []byte {
	return binary.BigEndian.AppendUint32(append(b, kind), uint32(size))
}

// jsonFrame returns a frame with a JSON document.
func jsonFrame(kind byte, v any, most int) ([]byte, error) {
	doc, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if len(doc) > most {
		return nil, tooLarge(len(doc), most)
	}
	return append(appendFrame(make([]byte, 0, frameHeader+len(doc)), kind, len(doc)), doc...), nil
}

func tooLarge(size, most int) error {
	return skerry.Errorf(skerry.CodeTooLarge, "the request has %d bytes for the sandbox's machine, more than %d", size, most)
}

// answer is the outcome of a call, or of one direction of a stream. Some calls have
// a result although they failed.
type answer[T any] struct {
	Error  *failure `json:"error,omitempty"`
	Result T        `json:"result"`
}

type nothing struct{}

// failure is an error on its way.
type failure struct {
	// Kind is "" for a *skerry.Error.
	Kind         string      `json:"kind,omitempty"`
	Code         skerry.Code `json:"code,omitempty"`
	Message      string      `json:"message,omitempty"`
	Field        string      `json:"field,omitempty"`
	BytesWritten *int64      `json:"bytesWritten,omitempty"`
	// Detail is the whole error, for the log.
	Detail string `json:"detail,omitempty"`
}

// Kinds of failures besides a *skerry.Error.
const (
	// kindUnknown is an outcome that the server does not know either.
	kindUnknown = "unreachable"
	// kindEnded is the end of the call's context.
	kindEnded = "ended"
	// kindReset is a connection that broke.
	kindReset = "reset"
)

// failureOf returns nil for nil. ctx is the context of the call.
func failureOf(ctx context.Context, err error) *failure {
	if err == nil {
		return nil
	}
	err = nodeapi.Narrow(ctx, err)
	f := &failure{Detail: err.Error()}
	if len(f.Detail) > maxDetail {
		f.Detail = f.Detail[:maxDetail] + " …"
	}
	e, known := errors.AsType[*skerry.Error](err)
	switch {
	case errors.Is(err, nodeapi.ErrUnreachable):
		f.Kind = kindUnknown
	case known:
		f.Code, f.Message, f.Field, f.BytesWritten = e.Code, e.Message, e.Field, e.BytesWritten
		plain := skerry.Error{Code: e.Code, Message: e.Message, Field: e.Field}
		if f.Detail == plain.Error() {
			f.Detail = ""
		}
	default:
		f.Kind = kindEnded
	}
	return f
}

// err returns the error on the client's side. ctx is the context of the call.
func (f *failure) err(ctx context.Context) error {
	if f == nil {
		return nil
	}
	switch f.Kind {
	case "":
		e := &skerry.Error{Code: f.Code, Message: f.Message, Field: f.Field, BytesWritten: f.BytesWritten}
		if f.Detail != "" {
			e.Err = errors.New(f.Detail)
		}
		return e
	case kindEnded:
		// The server's timer was a little ahead, or the server is ending.
		if d, ok := ctx.Deadline(); ok && time.Until(d) < deadlineSlack {
			<-ctx.Done()
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nodeapi.Unreachable(errors.New(f.Detail))
}

// deadlineSlack is by how much a server's deadline may pass before the client's: its
// timer starts with the arrival of the call, but runs on its own.
const deadlineSlack = 100 * time.Millisecond

// text is a string that need not be UTF-8: arguments and paths are bytes. JSON would
// replace what is not.
type text string

// MarshalJSON writes a string, or a list with one string in base64.
func (t text) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(t)) {
		return json.Marshal(string(t))
	}
	return json.Marshal([1][]byte{[]byte(t)})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (t *text) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '[' {
		var raw [1][]byte
		err := json.Unmarshal(b, &raw)
		*t = text(raw[0])
		return err
	}
	return json.Unmarshal(b, (*string)(t))
}

func texts(list []string) []text {
	if list == nil {
		return nil
	}
	out := make([]text, len(list))
	for i, s := range list {
		out[i] = text(s)
	}
	return out
}

func stringsOf(list []text) []string {
	if list == nil {
		return nil
	}
	out := make([]string, len(list))
	for i, t := range list {
		out[i] = string(t)
	}
	return out
}

func textMap(m map[string]string) map[string]text {
	if m == nil {
		return nil
	}
	out := make(map[string]text, len(m))
	for k, v := range m {
		out[k] = text(v)
	}
	return out
}

func stringMap(m map[string]text) map[string]string {
	if m == nil {
		return nil
	}
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[k] = string(v)
	}
	return out
}

// The arguments of calls.
type (
	sessionArgs struct {
		nodeapi.SessionSpec
		// Env replaces that of the specification.
		Env map[string]text
	}
	idArgs  struct{ ID string }
	idsArgs struct{ IDs []string }
	// keepArgs are the sessions that Recover adopts.
	keepArgs struct {
		Keep map[string]nodeapi.NetworkSpec
	}
	deadlineArgs struct {
		ID   string
		Left time.Duration
	}
	idleArgs struct {
		ID   string
		Mode skerry.IdleMode
	}
	networkArgs struct {
		ID      string
		Network nodeapi.NetworkSpec
	}
	cursorArgs struct{ After nodeapi.Cursor }
	eventsArgs struct {
		ID    string
		Limit int
	}
	snapshotArgs struct {
		ID  string
		How nodeapi.Saving
	}
	captureArgs     struct{ ID, Capture string }
	keepCaptureArgs struct{ ID, Lease string }
	driveArgs       struct {
		ID, From string
		Size     int64
	}
	commandArgs struct {
		Session, ID string
		Signal      int
	}
	stdinArgs struct {
		Session, ID string
		Params      skerry.StdinParams
	}
	execArgs struct {
		Session, ID string
		Name        text
		Args        []text
		Cwd         text
		Env         map[string]text
		Sudo, Stdin bool
		Timeout     time.Duration
	}
	terminalArgs struct {
		Session    string
		Name       text
		Args       []text
		Cwd        text
		Env        []text
		Sudo       bool
		Cols, Rows uint16
	}
	pathArgs struct {
		Session   string
		Cwd, Path text
		Recursive bool
	}
	dialArgs struct {
		Session string
		Port    int
		Client  string
	}
	chargeArgs struct{ Conn, Client string }
	// dialResult says what a connection can do.
	dialResult struct {
		// Conn is the id for "charge" and "wanted", if it can be charged to a client.
		Conn string
	}
	fileResult struct{ Size int64 }
	exitResult struct{ Code int }
)

// Hello is what a server says of its node.
type Hello struct {
	Protocol int
	// Version is that of the server's program, for the log.
	Version string
	// Issuer is the URL that tokens of forwarded requests name.
	Issuer string
	// CPUs and MemoryBytes are what the node's machine has.
	CPUs        int
	MemoryBytes int64
}
