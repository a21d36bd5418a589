// Package clienttest is a stand-in for a Skerry server, for the tests of what
// talks to one: it speaks the same API over real HTTP on loopback, but its
// sandboxes isolate nothing. Commands run on this machine, in a directory of
// the test.
package clienttest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/skerry-dev/skerry"
)

// Token is the only one that the server accepts.
const Token = "skerry_test_token"

// Epoch is when everything is created; the listings of tests stay the same.
var Epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// Server is the stand-in.
type Server struct {
	URL string
	// dir is where all is kept, see [Server.WorkDir].
	dir string
	// Intercept, when set before the first request, may answer a request
	// itself and return true.
	Intercept func(w http.ResponseWriter, r *http.Request) bool

	mu        sync.Mutex
	sandboxes map[string]*skerry.Sandbox
	made      int               // sandboxes, those that are gone too
	dirs      map[string]string // by the name of the sandbox
	sources   map[string]string // the snapshot that it was created from
	snapshots []*skerry.Snapshot
	drives    []*skerry.Drive
	sessions  []*skerry.Session
	commands  map[string]*command
	requests  []string
	bodies    []string
	terminals []*websocket.Conn
}

// New starts a server that ends with the test.
func New(t testing.TB) *Server {
	s, stop := Start(t.TempDir())
	t.Cleanup(stop)
	return s
}

// Start starts a server whose sandboxes work in dir.
func Start(dir string) (s *Server, stop func()) {
	s = &Server{
		dir: dir, sandboxes: map[string]*skerry.Sandbox{}, commands: map[string]*command{},
		dirs: map[string]string{}, sources: map[string]string{},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v2/sandboxes", s.create)
	mux.HandleFunc("POST /v3/sandboxes", s.create)
	mux.HandleFunc("GET /v2/sandboxes", s.list)
	mux.HandleFunc("GET /v2/sandboxes/sessions", s.listSessions)
	mux.HandleFunc("GET /v2/sandboxes/{name}", s.get)
	mux.HandleFunc("PATCH /v2/sandboxes/{name}", s.update)
	mux.HandleFunc("DELETE /v2/sandboxes/{name}", s.delete)
	const session = "/v2/sandboxes/sessions/{id}"
	mux.HandleFunc("POST "+session+"/stop", s.stop)
	mux.HandleFunc("POST "+session+"/snapshot", s.live(s.snapshot))
	mux.HandleFunc("GET /v2/sandboxes/snapshots", s.listSnapshots)
	mux.HandleFunc("GET /v2/sandboxes/snapshots/tree", s.snapshotTree)
	mux.HandleFunc("GET /v2/sandboxes/snapshots/{id}", s.getSnapshot)
	mux.HandleFunc("DELETE /v2/sandboxes/snapshots/{id}", s.deleteSnapshot)
	mux.HandleFunc("POST "+session+"/pause", s.live(s.pause))
	// "/{name}/fork" and "/drives/{drive}" both match "/drives/fork".
	mux.HandleFunc("POST /v2/sandboxes/{name}/{action}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("action") != "fork" {
			http.NotFound(w, r)
			return
		}
		s.fork(w, r)
	})
	mux.HandleFunc("GET /v2/sandboxes/drives", s.listDrives)
	mux.HandleFunc("POST /v2/sandboxes/drives/{drive}", s.createDrive)
	mux.HandleFunc("POST /v2/sandboxes/drives/{drive}/fork", s.forkDrive)
	mux.HandleFunc("GET /v2/sandboxes/drives/{drive}", s.getDrive)
	mux.HandleFunc("DELETE /v2/sandboxes/drives/{drive}", s.deleteDrive)
	mux.HandleFunc("POST "+session+"/extend-timeout", s.live(s.extend))
	mux.HandleFunc("POST "+session+"/cmd", s.live(s.run))
	mux.HandleFunc("GET "+session+"/cmd/{cmd}", s.command)
	mux.HandleFunc("GET "+session+"/cmd/{cmd}/logs", s.logs)
	mux.HandleFunc("POST "+session+"/cmd/{cmd}/kill", s.kill)
	mux.HandleFunc("POST "+session+"/fs/write", s.live(s.write))
	mux.HandleFunc("POST "+session+"/fs/read", s.live(s.read))
	mux.HandleFunc("POST "+session+"/fs/mkdir", s.live(s.mkdir))
	mux.HandleFunc("POST "+session+"/interactive", s.live(s.interactive))
	mux.HandleFunc("GET /terminal/{id}", s.terminal)
	hs := httptest.NewServer(s.front(mux))
	s.URL = hs.URL
	return s, func() {
		s.killAll()
		hs.CloseClientConnections()
		hs.Close()
	}
}

// front records requests, checks the token and lets the test intervene.
func (s *Server) front(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := ""
		if r.Header.Get("Content-Type") == "application/json" {
			b, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
			body = string(b)
			r.Body = io.NopCloser(strings.NewReader(body))
		}
		s.mu.Lock()
		s.requests = append(s.requests, r.Method+" "+r.URL.RequestURI())
		s.bodies = append(s.bodies, body)
		s.mu.Unlock()
		w.Header().Set("X-Request-Id", "req_test")
		if s.Intercept != nil && s.Intercept(w, r) {
			return
		}
		if !strings.HasPrefix(r.URL.Path, "/terminal/") && r.Header.Get("Authorization") != "Bearer "+Token {
			Refuse(w, http.StatusUnauthorized, skerry.CodeUnauthorized, "the token is not valid")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Requests returns the method and target of every request so far that begins
// with prefix.
func (s *Server) Requests(prefix string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, r := range s.requests {
		if strings.HasPrefix(r, prefix) {
			out = append(out, r)
		}
	}
	return out
}

// LastBody returns the JSON body of the last request that begins with prefix.
func (s *Server) LastBody(prefix string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.requests) - 1; i >= 0; i-- {
		if strings.HasPrefix(s.requests[i], prefix) {
			return s.bodies[i]
		}
	}
	return ""
}

// Refuse answers with an error in the form of the API.
func Refuse(w http.ResponseWriter, status int, code skerry.Code, message string) {
	refuse(w, status, &skerry.Error{Code: code, Message: message})
}

func refuse(w http.ResponseWriter, status int, e *skerry.Error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"error": e})
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

// Add puts a sandbox there, with a session in the given state. Sandboxes are
// created a minute apart.
func (s *Server) Add(name string, status skerry.SessionStatus) *skerry.Sandbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	created := skerry.At(Epoch.Add(time.Duration(len(s.sandboxes)) * time.Minute))
	sb := &skerry.Sandbox{
		Name: name, VCPUs: 2, MemoryMB: 4096, Runtime: "node24", Region: skerry.Region, Timeout: skerry.Duration(skerry.DefaultTimeout),
		CreatedAt: created, UpdatedAt: created,
	}
	s.add(sb)
	s.start(sb, status)
	return sb
}

// add takes a sandbox in; s.mu is held.
func (s *Server) add(sb *skerry.Sandbox) {
	sb.Cwd = filepath.Join(s.dir, "work", strconv.Itoa(s.made))
	s.made++
	s.dirs[sb.Name] = sb.Cwd
	s.sandboxes[sb.Name] = sb
	must(os.MkdirAll(sb.Cwd, 0o755))
}

// must is for what fails only if the machine does.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// WorkDir returns the working directory of a sandbox. It is the one part of it
// that snapshots keep.
func (s *Server) WorkDir(sandbox string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dirs[sandbox]
}

// workDir returns the working directory of the sandbox of a session.
func (s *Server) workDir(sessionID string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if session := s.session(sessionID); session != nil {
		return s.dirs[session.SandboxName]
	}
	return ""
}

// start gives a sandbox a session; s.mu is held.
func (s *Server) start(sb *skerry.Sandbox, status skerry.SessionStatus) *skerry.Session {
	session := &skerry.Session{
		ID: fmt.Sprintf("sbx_%024d", len(s.sessions)+1), SandboxName: sb.Name, VCPUs: sb.VCPUs, MemoryMB: sb.MemoryMB, Runtime: sb.Runtime,
		Region: skerry.Region, Timeout: sb.Timeout, Cwd: sb.Cwd, Status: status, Persistent: sb.Persistent,
		RequestedAt: sb.CreatedAt, StartedAt: sb.CreatedAt, CreatedAt: sb.CreatedAt, UpdatedAt: sb.CreatedAt,
	}
	session.SourceSnapshotID = s.startsFrom(sb)
	s.sessions = append(s.sessions, session)
	sb.CurrentSessionID, sb.Status = session.ID, status
	sb.ExpiresAt = session.ExpiresAt()
	return session
}

func (s *Server) session(id string) *skerry.Session {
	for _, session := range s.sessions {
		if session.ID == id {
			return session
		}
	}
	return nil
}

type runBody struct {
	Sandbox skerry.Sandbox `json:"sandbox"`
	Session skerry.Session `json:"session"`
	Routes  []skerry.Route `json:"routes"`
	Resumed bool           `json:"resumed,omitempty"`
}

func (s *Server) runOf(sb *skerry.Sandbox) runBody {
	return runBody{Sandbox: *sb, Session: *s.session(sb.CurrentSessionID), Routes: []skerry.Route{}}
}

func (s *Server) create(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Name               string            `json:"name"`
		Ports              []int             `json:"ports"`
		Timeout            skerry.Duration   `json:"timeout"`
		Tags               map[string]string `json:"tags"`
		Persistent         *bool             `json:"persistent"`
		Source             *skerry.Source    `json:"source"`
		SnapshotExpiration *skerry.Duration  `json:"snapshotExpiration"`
		KeepLastSnapshots  *skerry.Retention `json:"keepLastSnapshots"`
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		Refuse(w, http.StatusBadRequest, skerry.CodeBadRequest, err.Error())
		return
	}
	if len(body.Ports) > 0 {
		refuse(w, http.StatusNotImplemented, skerry.NotImplemented("ports", "publishing ports"))
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sb := &skerry.Sandbox{
		Name: body.Name, Tags: body.Tags, Persistent: body.Persistent == nil || *body.Persistent,
		VCPUs: 2, MemoryMB: 4096, Runtime: "node24", Region: skerry.Region, Timeout: body.Timeout,
		SnapshotExpiration: body.SnapshotExpiration, Retention: body.KeepLastSnapshots,
	}
	source := ""
	if body.Source != nil {
		source = body.Source.SnapshotID
	}
	s.begin(w, sb, source)
}

// begin starts the first session of a new sandbox from a snapshot, if it is
// not "", and answers; s.mu is held.
func (s *Server) begin(w http.ResponseWriter, sb *skerry.Sandbox, source string) {
	if s.sandboxes[sb.Name] != nil {
		Refuse(w, http.StatusConflict, skerry.CodeConflict, "the name is taken")
		return
	}
	if sb.Name == "" {
		sb.Name = fmt.Sprintf("made-up-%d", len(s.sandboxes)+1)
	}
	if sb.Timeout == 0 {
		sb.Timeout = skerry.Duration(skerry.DefaultTimeout)
	}
	sb.CreatedAt = skerry.At(Epoch.Add(time.Duration(len(s.sandboxes)) * time.Minute))
	sb.UpdatedAt = sb.CreatedAt
	s.sources[sb.Name] = source
	if !s.usable(w, sb) {
		return
	}
	s.add(sb)
	s.restore(sb)
	s.start(sb, skerry.StatusRunning)
	answer(w, s.runOf(sb))
}

// find answers 404 and returns nil if there is no such sandbox; s.mu is held.
func (s *Server) find(w http.ResponseWriter, r *http.Request) *skerry.Sandbox {
	sb := s.sandboxes[r.PathValue("name")]
	if sb == nil {
		Refuse(w, http.StatusNotFound, skerry.CodeNotFound, "there is no sandbox "+strconv.Quote(r.PathValue("name")))
	}
	return sb
}

func (s *Server) get(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sb := s.find(w, r)
	if sb == nil {
		return
	}
	resume := r.URL.Query().Get("resume") == "true" && sb.Status != skerry.StatusRunning
	if resume {
		if !s.usable(w, sb) {
			return
		}
		s.restore(sb)
		s.start(sb, skerry.StatusRunning)
	}
	if session := s.session(sb.CurrentSessionID); session != nil && r.URL.Query().Get("resume") == "true" {
		session.PausedAt, sb.PausedAt = skerry.Time{}, skerry.Time{}
	}
	run := s.runOf(sb)
	run.Resumed = resume
	answer(w, run)
}

func (s *Server) update(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Timeout   *skerry.Duration  `json:"timeout"`
		Tags      map[string]string `json:"tags"`
		Resources struct {
			VCPUs int `json:"vcpus"`
		} `json:"resources"`
		Persistent         *bool            `json:"persistent"`
		SnapshotExpiration *skerry.Duration `json:"snapshotExpiration"`
		KeepLastSnapshots  json.RawMessage  `json:"keepLastSnapshots"`
		CurrentSnapshotID  *string          `json:"currentSnapshotId"`
	}
	json.NewDecoder(r.Body).Decode(&body)
	s.mu.Lock()
	defer s.mu.Unlock()
	sb := s.find(w, r)
	if sb == nil {
		return
	}
	if body.Timeout != nil {
		sb.Timeout = *body.Timeout
	}
	if body.Tags != nil {
		sb.Tags = body.Tags
	}
	if body.Resources.VCPUs > 0 {
		sb.VCPUs = body.Resources.VCPUs
	}
	if body.Persistent != nil {
		sb.Persistent = *body.Persistent
	}
	if body.SnapshotExpiration != nil {
		sb.SnapshotExpiration = body.SnapshotExpiration
	}
	if body.KeepLastSnapshots != nil { // null lifts it
		sb.Retention = nil
		must(json.Unmarshal(body.KeepLastSnapshots, &sb.Retention))
	}
	if body.CurrentSnapshotID != nil {
		if s.snapshotByID(*body.CurrentSnapshotID) == nil {
			refuse(w, http.StatusNotFound, &skerry.Error{
				Code: skerry.CodeNotFound, Field: "currentSnapshotId", Message: "there is no snapshot " + strconv.Quote(*body.CurrentSnapshotID),
			})
			return
		}
		sb.CurrentSnapshotID = *body.CurrentSnapshotID
	}
	answer(w, map[string]any{"sandbox": sb})
}

func (s *Server) delete(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sb := s.find(w, r); sb != nil {
		delete(s.sandboxes, sb.Name)
		if r.URL.Query().Get("deleteOrphanSnapshots") == "true" {
			s.deleteOrphans(sb.Name)
		}
		answer(w, map[string]any{"sandbox": sb})
	}
}

// page cuts a list at limit and cursor, which is the index to start from.
func page[T any](r *http.Request, list []T) ([]T, map[string]any) {
	limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
	from, _ := strconv.Atoi(r.URL.Query().Get("cursor"))
	p := skerry.Page{Limit: limit}
	end := min(from+p.Size(), len(list))
	pagination := map[string]any{"count": end - from, "next": nil}
	if end < len(list) {
		pagination["next"] = strconv.Itoa(end)
	}
	return list[from:end], pagination
}

func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []*skerry.Sandbox{}
	for _, sb := range s.sandboxes {
		if strings.HasPrefix(sb.Name, r.URL.Query().Get("namePrefix")) {
			all = append(all, sb)
		}
	}
	slices.SortFunc(all, func(a, b *skerry.Sandbox) int {
		if r.URL.Query().Get("sortBy") == "name" {
			return strings.Compare(a.Name, b.Name)
		}
		return b.CreatedAt.Compare(a.CreatedAt.Time)
	})
	items, pagination := page(r, all)
	answer(w, map[string]any{"sandboxes": items, "pagination": pagination})
}

func (s *Server) listSessions(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []*skerry.Session{}
	for _, session := range slices.Backward(s.sessions) {
		if name := r.URL.Query().Get("name"); name == "" || session.SandboxName == name {
			all = append(all, session)
		}
	}
	items, pagination := page(r, all)
	answer(w, map[string]any{"sessions": items, "pagination": pagination})
}

// live lets only calls on a running session through.
func (s *Server) live(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		session := s.session(r.PathValue("id"))
		status := skerry.SessionStatus("")
		if session != nil {
			status = session.Status
		}
		s.mu.Unlock()
		switch status {
		case skerry.StatusRunning:
			next(w, r)
		case skerry.StatusStopping:
			Refuse(w, http.StatusUnprocessableEntity, skerry.CodeSandboxStopping, "the session is stopping")
		case "":
			Refuse(w, http.StatusNotFound, skerry.CodeNotFound, "there is no such session")
		default:
			Refuse(w, http.StatusGone, skerry.CodeSandboxStopped, "the session has stopped")
		}
	}
}

func (s *Server) stop(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	session := s.session(r.PathValue("id"))
	if session == nil {
		Refuse(w, http.StatusNotFound, skerry.CodeNotFound, "there is no such session")
		return
	}
	sb := s.sandboxes[session.SandboxName]
	out := map[string]any{"session": session, "sandbox": sb}
	if session.Status == skerry.StatusRunning && session.Persistent {
		out["snapshot"] = s.take(sb, session, skerry.CreatedAtStop, nil)
	}
	s.end(sb, session)
	answer(w, out)
}

// end makes a session one that has stopped; s.mu is held.
func (s *Server) end(sb *skerry.Sandbox, session *skerry.Session) {
	session.Status, session.Duration, session.ActiveCPU = skerry.StatusStopped, skerry.Duration(90*time.Second), skerry.Duration(1500*time.Millisecond)
	session.Network = &skerry.NetworkTransfer{Ingress: 5 << 20, Egress: 2048}
	sb.Status = session.Status
}

func (s *Server) extend(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Duration skerry.Duration `json:"duration"`
	}
	json.NewDecoder(r.Body).Decode(&body)
	s.mu.Lock()
	defer s.mu.Unlock()
	session := s.session(r.PathValue("id"))
	session.Timeout += body.Duration
	answer(w, map[string]any{"session": session})
}

func (s *Server) pause(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	session := s.session(r.PathValue("id"))
	session.PausedAt = skerry.At(time.Now())
	answer(w, map[string]any{"session": session})
}

// waitCtx waits for done or the end of ctx.
func waitCtx(ctx context.Context, done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}
