package api

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/tracing"
)

const (
	// maxBody limits a JSON body, in bytes. Only environments, arguments and network
	// policies are large, and their own limits are about as high.
	maxBody = 1 << 20
	// bodyTimeout is the time that a client has to send a JSON body.
	bodyTimeout = 30 * time.Second
	// slowBody is the time for a body after which the caller is authenticated anew.
	slowBody = 100 * time.Millisecond
	// strayTimeout limits how long net/http waits for a body that no handler reads. It
	// reads a part of the body before it sends the response.
	strayTimeout = 5 * time.Second
)

// call is a request and its response in a handler.
type call struct {
	w         *response
	r         *http.Request
	srv       *Server
	requestID string
	log       *slog.Logger
	// caller is zero on public routes.
	caller
	// code is that of the error that the call failed with.
	code skerry.Code
	act  *act
	// span is that of the request.
	span tracing.Span
}

// path returns a parameter of the route's path.
func (c *call) path(name string) string { return c.r.PathValue(name) }

// reply sends status 200 with v.
func (c *call) reply(v any) error {
	c.act.replies(v)
	writeJSON(c.w, http.StatusOK, v)
	return nil
}

// replyCreated sends status 201 with v.
func (c *call) replyCreated(v any) error {
	c.act.replies(v)
	writeJSON(c.w, http.StatusCreated, v)
	return nil
}

// query binds the query parameters to dst.
func (c *call) query(dst any) error {
	q, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		return skerry.Invalid("", "the query string is not valid")
	}
	return bindQuery(q, dst)
}

// body binds the JSON body to dst, a pointer to a struct. A missing body is an empty
// object.
func (c *call) body(dst any) error {
	began := time.Now()
	data, err := c.readBody()
	if err != nil {
		return err
	}
	// A token may have been revoked while a client held back the end of the body.
	if time.Since(began) > slowBody && c.identity != nil {
		switch ended, err := c.srv.ended(c.r.Context(), c.access()); {
		case err != nil:
			return fmt.Errorf("authenticate: %w", err)
		case ended:
			return errRevoked
		}
	}
	if len(data) == 0 {
		data = []byte("{}")
	}
	tree, err := parseTree(data)
	if err != nil {
		return err
	}
	if err := c.enterBody(tree); err != nil {
		return err
	}
	return bindBody(tree, dst)
}

func (c *call) readBody() ([]byte, error) {
	c.w.readWithin(c.srv.bodyTimeout)
	data, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	var timeout net.Error
	switch {
	case errors.As(err, &tooLarge):
		return nil, skerry.Errorf(skerry.CodeTooLarge, "the body must have at most %d bytes", maxBody)
	case errors.As(err, &timeout) && timeout.Timeout():
		return nil, skerry.Errorf(skerry.CodeBadRequest, "the body did not arrive within %s", c.srv.bodyTimeout)
	case err != nil:
		return nil, skerry.Errorf(skerry.CodeBadRequest, "the body could not be read: %w", err)
	}
	// The deadline belongs to the connection. It is removed after the body has been
	// read, because it would end a long command. After a failure it stays: net/http
	// would otherwise wait without limit for the rest before it sends the response.
	c.w.readForever()
	return data, nil
}

// origin returns the scheme and the host by which the client reaches this server, and
// the prefix of the paths.
func (c *call) origin() (u url.URL) {
	if public := c.srv.publicURL; public != nil {
		return url.URL{Scheme: public.Scheme, Host: public.Host, Path: strings.TrimSuffix(public.Path, "/")}
	}
	u.Scheme, u.Host = "http", c.r.Host
	if c.r.TLS != nil {
		u.Scheme = "https"
	}
	if c.srv.trustForwarded {
		if proto := firstValue(c.r.Header.Get("X-Forwarded-Proto")); proto == "http" || proto == "https" {
			u.Scheme = proto
		}
		if host := firstValue(c.r.Header.Get("X-Forwarded-Host")); host != "" {
			u.Host = host
		}
	}
	// A proxy in front may route only one of the two prefixes.
	if strings.HasPrefix(c.r.URL.Path, apiPrefix+"/") {
		u.Path = apiPrefix
	}
	return u
}

// port returns the port by which the client reaches this server.
func (c *call) port() int {
	u := c.origin()
	if p, err := strconv.Atoi(u.Port()); err == nil && p > 0 {
		return p
	}
	if u.Scheme == "https" {
		return 443
	}
	return 80
}

func firstValue(header string) string {
	v, _, _ := strings.Cut(header, ",")
	return strings.TrimSpace(v)
}

func validText(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsRune(s, 0)
}

// response is a ResponseWriter that records what was sent, for the log and for errors
// that happen after the response has begun. It limits the time of each write. A stream
// may be silent for hours, so no deadline outlives a write: over HTTP/2 it would end
// the stream.
type response struct {
	http.ResponseWriter
	rc    *http.ResponseController
	stall time.Duration

	mu     sync.Mutex // guards the fields below, and the order of writes
	status int        // status that was sent, by the handler or by a heartbeat
	bytes  int64
	pulse  *pulse
	// answered is set when the handler has begun its response. first, if set, is called
	// before, with the status; it must not use the response.
	answered bool
	first    func(status int)

	// severed is set when the connection was cut: nothing more is sent or read.
	severed atomic.Bool
}

func newResponse(w http.ResponseWriter, stall time.Duration) *response {
	return &response{ResponseWriter: w, rc: http.NewResponseController(w), stall: stall}
}

// Header returns the header for the handler to change. A document's heartbeats, which
// change it too, end here.
func (w *response) Header() http.Header {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pulse != nil && w.pulse.document {
		w.hush()
	}
	return w.ResponseWriter.Header()
}

// WriteHeader sends the status, unless a heartbeat has sent one.
func (w *response) WriteHeader(status int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer(status)
	if w.status == 0 {
		w.status = status
		w.ResponseWriter.WriteHeader(status)
	}
}

func (w *response) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer(http.StatusOK)
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.write(p)
}

// answer records that the handler's response begins. No heartbeat interrupts a JSON
// document.
func (w *response) answer(status int) {
	if !w.answered && w.first != nil {
		w.first(status)
	}
	w.answered = true
	if w.pulse != nil && w.pulse.document {
		w.hush()
	}
}

// errSevered is the error of reads and writes after the connection was cut.
var errSevered = errors.New("the connection was cut")

// cut ends reads and writes in progress, and makes later ones fail.
func (w *response) cut() {
	w.severed.Store(true)
	past := time.Unix(1, 0)
	_ = w.rc.SetReadDeadline(past)
	_ = w.rc.SetWriteDeadline(past)
}

func (w *response) write(p []byte) (int, error) {
	if w.pulse != nil {
		w.pulse.last = time.Now()
	}
	if err := w.deadline(time.Now().Add(w.stall)); err != nil {
		return 0, err
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, errors.Join(err, w.deadline(time.Time{}))
}

// FlushError flushes the buffer of net/http.
func (w *response) FlushError() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.flush()
}

func (w *response) flush() error {
	if err := w.deadline(time.Now().Add(w.stall)); err != nil {
		return err
	}
	return errors.Join(w.rc.Flush(), w.deadline(time.Time{}))
}

func (w *response) deadline(t time.Time) error {
	if w.severed.Load() {
		return errSevered
	}
	if err := w.rc.SetWriteDeadline(t); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("set the deadline of a write: %w", err)
	}
	return nil
}

// readWithin sets the deadline of reads of the body to d from now; readForever removes
// it. A connection without deadlines is left as it is.
func (w *response) readWithin(d time.Duration) {
	if !w.severed.Load() {
		_ = w.rc.SetReadDeadline(time.Now().Add(d))
	}
}
func (w *response) readForever() { _ = w.rc.SetReadDeadline(time.Time{}) }

// Unwrap gives http.ResponseController and the WebSocket library access to the
// connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// switched records that the connection was taken over by a WebSocket.
func (w *response) switched() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer(http.StatusSwitchingProtocols)
	w.status = http.StatusSwitchingProtocols
}

// begun reports whether the handler's response has begun.
func (w *response) begun() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.answered
}

// beganEarly reports whether a heartbeat has sent the status before the document.
func (w *response) beganEarly() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status != 0 && !w.answered
}
