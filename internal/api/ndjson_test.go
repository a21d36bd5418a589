package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller/controllertest"
)

// piece is output without its place in its stream.
type piece struct {
	stream skerry.Stream
	data   []byte
}

// placer gives pieces of output their offsets.
type placer map[skerry.Stream]int64

func (at placer) place(p piece) skerry.Output {
	out := skerry.Output{Stream: p.stream, Offset: at[p.stream], Data: p.data}
	at[p.stream] += int64(len(p.data))
	return out
}

// scripted is an OutputReader that a test feeds. It yields what comes from
// pieces until that is closed, and then fails with err or ends.
type scripted struct {
	ctx    context.Context
	pieces chan piece
	err    error
	once   sync.Once
	at     placer
	closed chan struct{}
}

func script(ctx context.Context, pieces ...piece) *scripted {
	s := &scripted{ctx: ctx, pieces: make(chan piece, len(pieces)), err: io.EOF, at: placer{}, closed: make(chan struct{})}
	for _, p := range pieces {
		s.pieces <- p
	}
	return s
}

func (s *scripted) Next() (skerry.Output, error) {
	select {
	case p, ok := <-s.pieces:
		if !ok {
			return skerry.Output{}, s.err
		}
		return s.at.place(p), nil
	case <-s.ctx.Done():
		return skerry.Output{}, s.ctx.Err()
	case <-s.closed:
		return skerry.Output{}, net.ErrClosed
	}
}

func (s *scripted) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func out(data string) piece { return piece{skerry.Stdout, []byte(data)} }

// anyLine is a line of a stream of either kind.
type anyLine struct {
	Command *skerry.Command `json:"command"`
	Stream  string          `json:"stream"`
	Data    json.RawMessage `json:"data"`
}

func (l anyLine) text(t testing.TB) (s string) {
	t.Helper()
	if err := json.Unmarshal(l.Data, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// stream opens a stream and returns its lines one by one.
func (h *harness) stream(req *http.Request) (*http.Response, func() (anyLine, bool)) {
	h.Helper()
	resp, err := h.client.Do(req)
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { resp.Body.Close() })
	if ct := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || ct != "application/x-ndjson" {
		data, _ := io.ReadAll(resp.Body)
		h.Fatalf("%d %q %s", resp.StatusCode, ct, data)
	}
	lines := bufio.NewReader(resp.Body)
	return resp, func() (l anyLine, ok bool) {
		h.Helper()
		data, err := lines.ReadBytes('\n')
		if err != nil {
			if len(data) > 0 {
				h.Errorf("an unfinished line: %q", data)
			}
			return l, false
		}
		for _, b := range data {
			if b >= 0x80 {
				h.Fatalf("a line is not ASCII: %q", data)
			}
		}
		if err := json.Unmarshal(data, &l); err != nil {
			h.Fatalf("%v in %q", err, data)
		}
		return l, true
	}
}

// outputs runs a stream to its end and returns both outputs and the commands.
func (h *harness) outputs(req *http.Request) (stdout, stderr string, commands []*skerry.Command) {
	h.Helper()
	_, next := h.stream(req)
	for {
		l, ok := next()
		switch {
		case !ok:
			return stdout, stderr, commands
		case l.Command != nil:
			commands = append(commands, l.Command)
		case l.Stream == "stdout":
			stdout += l.text(h)
		case l.Stream == "stderr":
			stderr += l.text(h)
		default:
			h.Fatalf("line %+v %s", l, l.Data)
		}
	}
}

func TestRunStreamsOutput(t *testing.T) { overBoth(t, testRunStreamsOutput) }

func testRunStreamsOutput(t *testing.T, serve serveFunc) {
	h := serve(t, controllertest.New(t))
	s := h.session()
	stdout, stderr, commands := h.outputs(h.request("POST", s+"/cmd",
		`{"command":"sh","args":["-c","echo out; echo err >&2; printf 'ü€😀\\377'; exit 3","ü"],"wait":true,"logs":true}`))
	if stdout != "out\nü€😀\uFFFD" || stderr != "err\n" {
		t.Errorf("stdout %q, stderr %q", stdout, stderr)
	}
	if len(commands) != 2 || commands[0].ExitCode != nil || commands[1].ExitCode == nil || *commands[1].ExitCode != 3 ||
		commands[0].ID != commands[1].ID || commands[0].Args[2] != "ü" {
		t.Errorf("commands: %+v", commands)
	}
	// Without logs the output stays away, and can be had later.
	stdout, stderr, commands = h.outputs(h.request("POST", s+"/cmd", `{"command":"echo","args":["hidden"],"wait":true}`))
	if stdout+stderr != "" || len(commands) != 2 {
		t.Errorf("without logs: %q %q %d", stdout, stderr, len(commands))
	}
	if stdout, _, _ = h.outputs(h.request("GET", s+"/cmd/"+commands[0].ID+"/logs", "")); stdout != "hidden\n" {
		t.Errorf("logs: %q", stdout)
	}
	h.refused("POST", s+"/cmd", `{"command":"no-such-program","wait":true,"logs":true}`, 400, skerry.CodeExecutableNotFound, "")
}

func TestDetachedCommand(t *testing.T) { overBoth(t, testDetachedCommand) }

func testDetachedCommand(t *testing.T, serve serveFunc) {
	h := serve(t, controllertest.New(t))
	s := h.session()
	cmd := ok[commandResponse](h, "POST", s+"/cmd", `{"command":"sh","args":["-c","echo $A; read x < /dev/zero"],"env":{"A":"b"}}`).Command
	if cmd.ExitCode != nil {
		t.Errorf("a detached command: %+v", cmd)
	}
	_, next := h.stream(h.request("GET", s+"/cmd/"+cmd.ID+"/logs", ""))
	if l, _ := next(); l.text(t) != "b\n" {
		t.Errorf("first line %s", l.Data)
	}
	if got := ok[commandResponse](h, "GET", s+"/cmd/"+cmd.ID, "").Command; got.ExitCode != nil {
		t.Errorf("it runs: %+v", got)
	}
	ok[commandResponse](h, "POST", s+"/cmd/"+cmd.ID+"/kill", `{"signal":9}`)
	if got := ok[commandResponse](h, "GET", s+"/cmd/"+cmd.ID+"?wait=true", "").Command; got.ExitCode == nil || *got.ExitCode != 137 {
		t.Errorf("after a kill: %+v", got)
	}
	if _, more := next(); more {
		t.Error("the log goes on after the command's end")
	}
	if list := ok[commandsResponse](h, "GET", s+"/cmd", "").Commands; len(list) != 1 || list[0].Args == nil {
		t.Errorf("commands: %+v", list)
	}
	h.refused("GET", s+"/cmd/cmd_none", "", 404, skerry.CodeNotFound, "")
	h.refused("GET", s+"/cmd/cmd_none/logs", "", 404, skerry.CodeNotFound, "")
}

// running returns a stub whose command's output is the reader that newReader
// makes, and which finishes once finish is closed.
func running(newReader func(context.Context) skerry.OutputReader, finish <-chan struct{}) *stub {
	code := 0
	return &stub{
		run: func(ctx context.Context, _ skerry.CommandParams, attach bool) (*skerry.Command, skerry.OutputReader, error) {
			cmd := &skerry.Command{ID: "cmd_1", SessionID: "s", Name: "c"}
			if !attach {
				return cmd, nil, nil
			}
			return cmd, newReader(ctx), nil
		},
		wait: func(ctx context.Context) (*skerry.Command, error) {
			select {
			case <-finish:
				return &skerry.Command{ID: "cmd_1", SessionID: "s", Name: "c", ExitCode: &code, Duration: skerry.Duration(time.Second)}, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		},
	}
}

const runWithLogs = `{"command":"c","wait":true,"logs":true}`

func finished() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

func TestEveryLineIsFlushedAsItComes(t *testing.T) { overBoth(t, testEveryLineIsFlushedAsItComes) }

func testEveryLineIsFlushedAsItComes(t *testing.T, serve serveFunc) {
	pieces := make(chan piece)
	finish := make(chan struct{})
	h := serve(t, running(func(ctx context.Context) skerry.OutputReader {
		s := script(ctx)
		s.pieces = pieces
		return s
	}, finish))
	_, next := h.stream(h.request("POST", "/v2/sandboxes/sessions/s/cmd", runWithLogs))
	if l, _ := next(); l.Command == nil || l.Command.ExitCode != nil {
		t.Fatalf("first line: %+v", l)
	}
	for _, s := range []string{"a", "no newline", "b\n"} {
		pieces <- out(s)
		if l, _ := next(); l.text(t) != s {
			t.Errorf("line %s, want %q", l.Data, s)
		}
	}
	close(pieces)
	close(finish)
	if l, _ := next(); l.Command == nil || *l.Command.ExitCode != 0 || l.Command.Duration.Millis() != 1000 {
		t.Errorf("last line: %+v", l)
	}
}

func TestSplitCharacters(t *testing.T) {
	text := "aü€😀z"
	for _, raw := range []string{text, text + "\xf0\x9f", "\x80" + text, "\xe2" + text, "\xf0\x9f" + text + "\xf0\x9f\x98", "\xe2\x82\xf0\x9f\x98\x80"} {
		want := decodeWhole([]byte(raw))
		for size := 1; size <= len(raw); size++ {
			pieces := []piece{}
			for b := []byte(raw); len(b) > 0; {
				n := min(size, len(b))
				// The other stream in between must not disturb it.
				pieces = append(pieces, piece{skerry.Stdout, b[:n]}, piece{skerry.Stderr, []byte("\xe2")}, piece{skerry.Stderr, []byte("\x82\xac")})
				b = b[n:]
			}
			st := encodeAll(pieces)
			if got := joined(t, st, "stdout"); got != want {
				t.Errorf("%q in pieces of %d: %q, want %q", raw, size, got, want)
			}
			if got := joined(t, st, "stderr"); strings.Trim(got, "€") != "" {
				t.Errorf("the other stream: %q", got)
			}
		}
	}
}

// encodeAll returns the lines of pieces as the server encodes them.
func encodeAll(pieces []piece) []byte {
	st := &ndjson{tails: map[skerry.Stream]*tail{}}
	at := placer{}
	for _, p := range pieces {
		st.encode(at.place(p))
	}
	st.flushTails()
	return st.pending
}

// joined decodes lines and returns the data of one stream.
func joined(t testing.TB, lines []byte, stream string) string {
	t.Helper()
	var b strings.Builder
	for line := range bytes.Lines(lines) {
		var l anyLine
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		if l.Stream == stream {
			b.WriteString(l.text(t))
		}
	}
	return b.String()
}

// decodeWhole is what encoding/json makes of bytes: U+FFFD for each that is
// not part of a character.
func decodeWhole(raw []byte) string {
	data, err := json.Marshal(string(raw))
	if err != nil {
		panic(err)
	}
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		panic(err)
	}
	return s
}

func FuzzEscaper(f *testing.F) {
	f.Add([]byte("plain text that is longer than eight bytes\n"), uint8(3))
	f.Add([]byte("\x00\x1f \"\\/\u007f\u0080\u2028\ufffd😀\xff\xc0\xaf\xed\xa0\x80"), uint8(1))
	f.Fuzz(func(t *testing.T, raw []byte, size uint8) {
		want := decodeWhole(raw)
		line := append(appendEscaped([]byte{'"'}, raw), '"')
		var got string
		if err := json.Unmarshal(line, &got); err != nil || got != want {
			t.Fatalf("%q is escaped as %s: %q, %v", raw, line, got, err)
		}
		for _, b := range line {
			if b >= 0x80 || b < 0x20 {
				t.Fatalf("%q is escaped as %q", raw, line)
			}
		}
		var pieces []piece
		for b := raw; len(b) > 0; {
			n := min(int(size)+1, len(b))
			pieces = append(pieces, piece{skerry.Stdout, b[:n]})
			b = b[n:]
		}
		if got := joined(t, encodeAll(pieces), "stdout"); got != want {
			t.Fatalf("%q in pieces of %d: %q", raw, int(size)+1, got)
		}
	})
}

func TestLongOutputIsCutIntoLines(t *testing.T) { overBoth(t, testLongOutputIsCutIntoLines) }

func testLongOutputIsCutIntoLines(t *testing.T, serve serveFunc) {
	raw := strings.Repeat("€", maxLineData) // three times the limit, cut inside characters
	lines := encodeAll([]piece{out(raw)})
	if got := joined(t, lines, "stdout"); got != raw {
		t.Error("long output is changed")
	}
	if n := bytes.Count(lines, []byte("\n")); n != 4 {
		t.Errorf("%d lines", n)
	}
}

func TestErrorsInFlight(t *testing.T) { overBoth(t, testErrorsInFlight) }

func testErrorsInFlight(t *testing.T, serve serveFunc) {
	for _, c := range []struct {
		err  error
		code skerry.Code
		text string
	}{
		{skerry.Errorf(skerry.CodeSandboxStopped, "the session has stopped"), skerry.CodeSandboxStopped, "the session has stopped"},
		{errors.New("secret"), skerry.CodeInternal, "internal error"},
	} {
		h := serve(t, running(func(ctx context.Context) skerry.OutputReader {
			s := script(ctx, out("before"))
			s.err = c.err
			close(s.pieces)
			return s
		}, finished()))
		_, next := h.stream(h.request("POST", "/v2/sandboxes/sessions/s/cmd", runWithLogs))
		next()
		if l, _ := next(); l.text(t) != "before" {
			t.Errorf("line %+v", l)
		}
		l, _ := next()
		var e errorBody
		if err := json.Unmarshal(l.Data, &e); err != nil || l.Stream != "error" || e.Code != c.code || e.Message != c.text {
			t.Errorf("line %+v %s", l, l.Data)
		}
		if l, more := next(); more {
			t.Errorf("a line after the error: %+v", l)
		}
	}
}

func TestServerEndingEndsStreams(t *testing.T) { overBoth(t, testServerEndingEndsStreams) }

func testServerEndingEndsStreams(t *testing.T, serve serveFunc) {
	h := serve(t, running(func(ctx context.Context) skerry.OutputReader { return script(ctx) }, nil))
	_, next := h.stream(h.request("POST", "/v2/sandboxes/sessions/s/cmd", runWithLogs))
	next()
	h.srv.drain()
	l, _ := next()
	if l.Stream != "error" || !strings.Contains(string(l.Data), "sandbox_stream_closed") {
		t.Errorf("line %+v %s", l, l.Data)
	}
}

// TestServerEndingAbortsAStart: a command that the server's end keeps from starting is not
// an internal error.
func TestServerEndingAbortsAStart(t *testing.T) { overBoth(t, testServerEndingAbortsAStart) }

func testServerEndingAbortsAStart(t *testing.T, serve serveFunc) {
	begun := make(chan struct{})
	h := serve(t, &stub{run: func(ctx context.Context, _ skerry.CommandParams, _ bool) (*skerry.Command, skerry.OutputReader, error) {
		close(begun)
		<-ctx.Done() // the session is being resumed
		return nil, nil, ctx.Err()
	}})
	go func() {
		<-begun
		h.srv.drain()
	}()
	h.refused("POST", "/v2/sandboxes/sessions/s/cmd", runWithLogs, http.StatusServiceUnavailable, skerry.CodeUnavailable, "")
}

func TestClientThatGoesClosesTheReader(t *testing.T) { overBoth(t, testClientThatGoesClosesTheReader) }

func testClientThatGoesClosesTheReader(t *testing.T, serve serveFunc) {
	var reader *scripted
	h := serve(t, running(func(ctx context.Context) skerry.OutputReader {
		reader = script(ctx)
		return reader
	}, nil))
	ctx, cancel := context.WithCancel(t.Context())
	_, next := h.stream(h.request("POST", "/v2/sandboxes/sessions/s/cmd", runWithLogs).WithContext(ctx))
	next()
	cancel()
	<-reader.closed
}

// slowClient opens a stream on a raw connection, so that a test decides when
// anything is read.
func (h *harness) slowClient(path, body string) net.Conn {
	h.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(h.url, "http://"))
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", path, testToken, len(body), body)
	return conn
}

func TestSlowClientGetsEverything(t *testing.T) {
	const pieces, size = 400, 64 << 10
	block := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	var produced sync.WaitGroup
	h := serve(t, running(func(ctx context.Context) skerry.OutputReader {
		s := script(ctx)
		produced.Go(func() {
			defer close(s.pieces)
			for range pieces {
				s.pieces <- piece{skerry.Stdout, block}
			}
		})
		return s
	}, finished()))
	conn := h.slowClient("/v2/sandboxes/sessions/s/cmd", runWithLogs)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	// The output is many times what the buffers hold, so the producer waits
	// for this reader.
	var total int
	var last anyLine
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		last = anyLine{}
		if err := json.Unmarshal(lines.Bytes(), &last); err != nil {
			t.Fatal(err)
		}
		if last.Stream == "stdout" {
			total += len(last.text(t))
		}
	}
	produced.Wait()
	if total != pieces*size || last.Command == nil || last.Command.ExitCode == nil {
		t.Errorf("%d bytes of %d, last line %+v", total, pieces*size, last)
	}
}

func TestStuckClientIsCut(t *testing.T) {
	closed := make(chan *scripted, 1)
	block := bytes.Repeat([]byte("x"), 64<<10)
	h := serve(t, running(func(ctx context.Context) skerry.OutputReader {
		s := script(ctx)
		s.pieces = make(chan piece, 1000)
		for range 1000 {
			s.pieces <- piece{skerry.Stdout, block}
		}
		closed <- s
		return s
	}, finished()), func(o *Options) { o.StallTimeout = 50 * time.Millisecond })
	h.slowClient("/v2/sandboxes/sessions/s/cmd", runWithLogs)
	<-(<-closed).closed
}
