package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/skerry-dev/skerry"
)

const (
	// maxBody bounds a JSON body, in bytes. Environment and arguments are the
	// only large things in one, and Linux has room for less.
	maxBody = 1 << 20
	// bodyTimeout is how long a client may take to send a JSON body.
	bodyTimeout = 30 * time.Second
	// strayTimeout is how long net/http may wait for a body that no handler
	// reads: it reads a part of one before it sends the answer.
	strayTimeout = 5 * time.Second
	// defaultProject is the project that clients look for, and make, when
	// they were told none. It stands for the token's own.
	defaultProject = "vercel-sandbox-default-project"
)

// call is one request on its way through a handler.
type call struct {
	w         *response
	r         *http.Request
	srv       *Server
	requestID string
	log       *slog.Logger
	// identity and scope are whose token it is; nil and zero on public
	// routes.
	identity *skerry.Identity
	scope    skerry.Scope
}

// path returns a part of the path that the route names.
func (c *call) path(name string) string { return c.r.PathValue(name) }

// reply answers 200 with v.
func (c *call) reply(v any) error {
	writeJSON(c.w, http.StatusOK, v)
	return nil
}

// replyCreated is reply for a thing that was not there before.
func (c *call) replyCreated(v any) error {
	writeJSON(c.w, http.StatusCreated, v)
	return nil
}

// query binds the query parameters to dst.
func (c *call) query(dst any) error {
	q, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		return skerry.Invalid("", "the query is malformed")
	}
	return bindQuery(q, dst)
}

// body binds the JSON body to dst, a pointer to a struct. No body is an empty
// object.
func (c *call) body(dst any) error {
	data, err := c.readBody()
	if err != nil {
		return err
	}
	if len(bytes.TrimSpace(data)) == 0 {
		data = []byte("{}")
	}
	tree, err := parseTree(data)
	if err != nil {
		return err
	}
	if err := c.checkBodyScope(tree); err != nil {
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
		return nil, skerry.Errorf(skerry.CodeTooLarge, "the body is larger than %d bytes", maxBody)
	case errors.As(err, &timeout) && timeout.Timeout():
		return nil, skerry.Errorf(skerry.CodeBadRequest, "the body did not arrive within %s", c.srv.bodyTimeout)
	case err != nil:
		return nil, skerry.Errorf(skerry.CodeBadRequest, "the body could not be read: %w", err)
	}
	// The deadline is on the connection: it has to go once the body is in, or
	// it would end a long command. After a failure it stays, or net/http would
	// wait for the rest without end before it sends the answer.
	c.w.readForever()
	return data, nil
}

// checkScope refuses a query that names another team or project than the
// token's. Every value counts, however often a parameter is repeated.
func (c *call) checkScope(q url.Values) error {
	for _, name := range []string{"teamId", "slug"} {
		for _, v := range q[name] {
			if !c.ownTeam(v) {
				return foreign(name)
			}
		}
	}
	for _, name := range []string{"projectId", "project"} {
		for _, v := range q[name] {
			if !c.ownProject(v) {
				return foreign(name)
			}
		}
	}
	return nil
}

// checkBodyScope does the same for a body; a value of a wrong type is left for
// the binding to refuse.
func (c *call) checkBodyScope(tree any) error {
	members, _ := tree.(map[string]any)
	if v, ok := members["projectId"].(string); ok && !c.ownProject(v) {
		return foreign("projectId")
	}
	if v, ok := members["teamId"].(string); ok && !c.ownTeam(v) {
		return foreign("teamId")
	}
	return nil
}

// ownTeam and ownProject accept an empty name, which names nothing.
func (c *call) ownTeam(v string) bool {
	return v == "" || v == c.identity.Team.ID || v == c.identity.Team.Slug
}

func (c *call) ownProject(v string) bool {
	return v == "" || v == c.identity.Project.ID || v == c.identity.Project.Name || v == defaultProject
}

func foreign(field string) error {
	return &skerry.Error{
		Code: skerry.CodeForbidden, Field: field,
		Message: "the access token does not give access to it",
	}
}

// origin returns the scheme and host by which the client reaches this server,
// and the path prefix to put before a route.
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
	// A proxy in front may route one of the two prefixes alone.
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

// response remembers what became of a response, for the log and for errors
// that come after it has begun, and gives the client a bounded time to take
// each piece of it. A stream may be silent for hours, so no deadline outlives
// a write; over HTTP/2 one that passed would end the stream by itself.
type response struct {
	http.ResponseWriter
	rc     *http.ResponseController
	stall  time.Duration
	status int
	bytes  int64
}

func newResponse(w http.ResponseWriter, stall time.Duration) *response {
	return &response{ResponseWriter: w, rc: http.NewResponseController(w), stall: stall}
}

func (w *response) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	if err := w.deadline(time.Now().Add(w.stall)); err != nil {
		return 0, err
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, errors.Join(err, w.deadline(time.Time{}))
}

// FlushError sends what net/http has buffered.
func (w *response) FlushError() error {
	if err := w.deadline(time.Now().Add(w.stall)); err != nil {
		return err
	}
	return errors.Join(w.rc.Flush(), w.deadline(time.Time{}))
}

func (w *response) deadline(t time.Time) error {
	if err := w.rc.SetWriteDeadline(t); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("setting the deadline of a write: %w", err)
	}
	return nil
}

// readWithin gives the client d from now to send more of its body, readForever
// as long as it likes. Where a connection knows no deadlines nothing changes.
func (w *response) readWithin(d time.Duration) { _ = w.rc.SetReadDeadline(time.Now().Add(d)) }
func (w *response) readForever()               { _ = w.rc.SetReadDeadline(time.Time{}) }

// Unwrap lets http.ResponseController and the WebSocket library reach the
// connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// begun reports whether the client has been sent a status.
func (w *response) begun() bool { return w.status != 0 }
