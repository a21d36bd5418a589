package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/skerry-dev/skerry"
)

// TestVersionsOfHTTP: a client has what it asks for, over TLS 1.2 at least.
func TestVersionsOfHTTP(t *testing.T) {
	h := serveTLS(t, &stub{})
	roots := h.client.Transport.(*http.Transport).TLSClientConfig.RootCAs
	addr := strings.TrimPrefix(h.url, "https://")
	for protocols, want := range map[string]string{"h2,http/1.1": "h2", "http/1.1": "http/1.1", "": ""} {
		conf := &tls.Config{RootCAs: roots, MaxVersion: tls.VersionTLS12}
		if protocols != "" {
			conf.NextProtos = strings.Split(protocols, ",")
		}
		conn, err := tls.Dial("tcp", addr, conf)
		if err != nil {
			t.Fatal(err)
		}
		if got := conn.ConnectionState().NegotiatedProtocol; got != want {
			t.Errorf("of %q the server speaks %q", protocols, got)
		}
		conn.Close()
	}
	if conn, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: roots, MaxVersion: tls.VersionTLS11}); err == nil {
		conn.Close()
		t.Error("the server speaks TLS 1.1")
	}
}

// TestSilentHandshakes: a connection whose handshake stands still is closed, and so is
// one that says nothing after it.
func TestSilentHandshakes(t *testing.T) {
	conf, _ := certificate(t)
	synctest.Test(t, func(t *testing.T) {
		ln := &memory{conns: make(chan net.Conn), done: make(chan struct{})}
		srv := quietServer(t, &stub{})
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- srv.Serve(ctx, tls.NewListener(guard(ln, DefaultMaxConnections), conf), nil) }()
		start := time.Now()
		silent, slow, h1, h2 := ln.dial(), ln.dial(), ln.dial(), ln.dial()
		var writing sync.WaitGroup
		defer writing.Wait()
		writing.Go(func() { // the head of a record, and then a byte every second
			for _, b := range []byte("\x16\x03\x01\x02\x00" + strings.Repeat("\x01", 30)) {
				if _, err := slow.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		})
		over := func(p *peer, protocol string) *tls.Conn {
			conn := tls.Client(p, &tls.Config{NextProtos: []string{protocol}, InsecureSkipVerify: true})
			if err := conn.Handshake(); err != nil {
				t.Fatal(err)
			}
			return conn
		}
		one, two := over(h1, "http/1.1"), over(h2, "h2")
		for what, c := range map[string]struct {
			conn  net.Conn
			after time.Duration
		}{
			"a client that says nothing": {silent, readHeaderTimeout}, "a slow one": {slow, readHeaderTimeout},
			"HTTP/1.1 without a request": {one, readHeaderTimeout}, "HTTP/2 without a preface": {two, readHeaderTimeout},
		} {
			_, err := io.Copy(io.Discard, c.conn)
			if took := time.Since(start); took > c.after+time.Second {
				t.Errorf("%s was closed after %s: %v", what, took, err)
			}
		}
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

// frames is a client of HTTP/2 that a test leads frame by frame.
type frames struct {
	*testing.T
	conn   net.Conn
	framer *http2.Framer
	block  bytes.Buffer
	hpack  *hpack.Encoder
}

func (h *harness) frames() *frames {
	h.Helper()
	conf := h.client.Transport.(*http.Transport).TLSClientConfig.Clone()
	conf.NextProtos = []string{"h2"}
	conn, err := tls.Dial("tcp", strings.TrimPrefix(h.url, "https://"), conf)
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		h.Fatal(err)
	}
	f := &frames{T: h.T, conn: conn, framer: http2.NewFramer(conn, conn)}
	f.hpack = hpack.NewEncoder(&f.block)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		h.Fatal(err)
	}
	if err := f.framer.WriteSettings(); err != nil {
		h.Fatal(err)
	}
	return f
}

// get opens a stream with a request.
func (f *frames) get(stream uint32, path string) error {
	f.block.Reset()
	for _, field := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "localhost"}, {":path", path}, {"authorization", "Bearer " + testToken}} {
		if err := f.hpack.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}); err != nil {
			f.Fatal(err)
		}
	}
	return f.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: f.block.Bytes(), EndStream: true, EndHeaders: true})
}

// until reads frames until one is wanted.
func (f *frames) until(want func(http2.Frame) bool) {
	f.Helper()
	for {
		frame, err := f.framer.ReadFrame()
		if err != nil {
			f.Fatal(err)
		}
		if want(frame) {
			return
		}
	}
}

// TestStreamsAreBounded: requests at once beyond the limit, which the client was told,
// are refused.
func TestStreamsAreBounded(t *testing.T) {
	running, finish := make(chan struct{}, maxStreams+1), make(chan struct{})
	h := serveTLS(t, &stub{wait: func(ctx context.Context) (*skerry.Command, error) {
		running <- struct{}{}
		<-finish
		return nil, skerry.Errorf(skerry.CodeNotFound, "over")
	}})
	f := h.frames()
	settings := map[http2.SettingID]uint32{}
	f.until(func(frame http2.Frame) bool {
		s, ok := frame.(*http2.SettingsFrame)
		if ok && !s.IsAck() {
			_ = s.ForeachSetting(func(s http2.Setting) error { settings[s.ID] = s.Val; return nil })
		}
		return ok
	})
	if settings[http2.SettingMaxConcurrentStreams] != maxStreams || settings[http2.SettingMaxFrameSize] != maxFrameRead {
		t.Errorf("the settings are %v", settings)
	}
	if most := settings[http2.SettingMaxHeaderListSize]; most < maxHeaderBytes || most > maxHeaderBytes+8<<10 {
		t.Errorf("headers may have %d bytes", most)
	}
	if err := f.framer.WriteSettingsAck(); err != nil {
		t.Fatal(err)
	}
	const path = "/v2/sandboxes/sessions/s/cmd/c?wait=true"
	stream := uint32(1)
	for range maxStreams {
		if err := f.get(stream, path); err != nil {
			t.Fatal(err)
		}
		stream += 2
	}
	for range maxStreams {
		<-running
	}
	if err := f.get(stream, path); err != nil {
		t.Fatal(err)
	}
	f.until(func(frame http2.Frame) bool {
		reset, ok := frame.(*http2.RSTStreamFrame)
		if ok && (reset.StreamID != stream || reset.ErrCode != http2.ErrCodeProtocol) {
			t.Errorf("stream %d is reset: %s", reset.StreamID, reset.ErrCode)
		}
		return ok
	})
	close(finish)
	answered := 0
	f.until(func(frame http2.Frame) bool {
		if _, ok := frame.(*http2.HeadersFrame); ok {
			answered++
		}
		return answered == maxStreams
	})
	if len(running) != 0 {
		t.Errorf("%d more requests were handled", len(running))
	}
}

// TestRapidResets: a client that resets streams as fast as it opens them, while nothing
// is answered, loses its connection, and occupies no more than others.
func TestRapidResets(t *testing.T) {
	finish := make(chan struct{})
	var calls atomic.Int64
	h := serveTLS(t, &stub{wait: func(context.Context) (*skerry.Command, error) {
		calls.Add(1)
		<-finish // a node that does not notice that the client is gone
		return nil, skerry.Errorf(skerry.CodeNotFound, "over")
	}})
	defer close(finish)
	f := h.frames()
	ended := make(chan http2.ErrCode, 1)
	go func() {
		for {
			frame, err := f.framer.ReadFrame()
			if goAway, ok := frame.(*http2.GoAwayFrame); ok {
				ended <- goAway.ErrCode
				return
			}
			if err != nil {
				ended <- http2.ErrCodeNo
				return
			}
		}
	}()
	opened := 0
	for stream := uint32(1); opened < 1_000_000; stream += 2 {
		if f.get(stream, "/v2/sandboxes/sessions/s/cmd/c?wait=true") != nil || f.framer.WriteRSTStream(stream, http2.ErrCodeCancel) != nil {
			break
		}
		opened++
	}
	// The error is lost if the server closes the connection before it is read.
	if code := <-ended; opened == 1_000_000 || code != http2.ErrCodeEnhanceYourCalm && code != http2.ErrCodeNo {
		t.Errorf("after %d streams the connection ended with %s", opened, code)
	}
	if n := calls.Load(); n > maxStreams {
		t.Errorf("%d calls were made", n)
	}
}

// TestStuckStreamIsCut: one whose client does not read it, on a connection that is
// otherwise in use.
func TestStuckStreamIsCut(t *testing.T) {
	closed := make(chan *scripted, 1)
	block := bytes.Repeat([]byte("x"), 64<<10)
	h := serveTLS(t, running(func(ctx context.Context) skerry.OutputReader {
		s := script(ctx)
		s.pieces = make(chan piece, 1000)
		for range 1000 {
			s.pieces <- piece{skerry.Stdout, block}
		}
		closed <- s
		return s
	}, finished()), func(o *Options) { o.StallTimeout = 50 * time.Millisecond })
	resp, err := h.client.Do(h.request("POST", "/v2/sandboxes/sessions/s/cmd", runWithLogs))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	<-(<-closed).closed
	if n, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Errorf("%d bytes look like the whole output", n)
	}
	if a := h.call("GET", "/v2/user", ""); a.status != 200 {
		t.Errorf("a call on the same connection: %d", a.status)
	}
}

// TestTerminalOverTLS has the URL of its WebSocket say so.
func TestTerminalOverTLS(t *testing.T) {
	h := serveTLS(t, &stub{})
	ticket := ok[interactiveResponse](h, "POST", "/v2/sandboxes/sessions/s/interactive", "")
	if want := fmt.Sprintf("wss%s/v2/sandboxes/sessions/s/interactive", strings.TrimPrefix(h.url, "https")); ticket.URL != want {
		t.Errorf("the URL is %s, want %s", ticket.URL, want)
	}
}
