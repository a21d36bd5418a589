package api

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"github.com/skerry-dev/skerry"
)

const testToken = "tok-secret-of-the-tests"

var testIdentity = skerry.Identity{
	TokenID: "tok_1",
	Grants: []skerry.Grant{{
		Team:    skerry.Team{ID: "team_1", Slug: "islanders", Name: "Islanders", CreatedAt: skerry.FromMillis(1), UpdatedAt: skerry.FromMillis(2)},
		Project: &skerry.Project{ID: "prj_1", TeamID: "team_1", Name: "rocks", CreatedAt: skerry.FromMillis(1), UpdatedAt: skerry.FromMillis(2)},
		Role:    skerry.RoleOwner,
	}},
}

// noAccounts has none.
type noAccounts struct{ Accounts }

var errNoAccount = skerry.Errorf(skerry.CodeNotFound, "there is none")

func (noAccounts) UpdateTeam(context.Context, string, string, string) (*skerry.Team, error) {
	return nil, errNoAccount
}

func (noAccounts) RenameProject(context.Context, string, string, string) (*skerry.Project, error) {
	return nil, errNoAccount
}

func (noAccounts) AddMember(context.Context, string, string, skerry.Role) (*skerry.Member, error) {
	return nil, errNoAccount
}

func (noAccounts) SetRole(context.Context, string, string, skerry.Role) (*skerry.Member, error) {
	return nil, errNoAccount
}

func (noAccounts) CreateToken(context.Context, skerry.TokenParams) (string, *skerry.AccessToken, error) {
	return "", nil, errNoAccount
}

// oneAccount knows testToken, and nothing else.
type oneAccount struct{ noAccounts }

func (oneAccount) Authenticate(_ context.Context, token string) (*skerry.Identity, error) {
	switch token {
	case testToken:
		id := testIdentity
		return &id, nil
	case "breaks":
		return nil, io.ErrClosedPipe
	}
	return nil, skerry.Errorf(skerry.CodeUnauthorized, "the access token is missing or not valid")
}

func (oneAccount) Quotas(context.Context, skerry.Scope) (skerry.Quotas, error) {
	return skerry.Quotas{}, nil
}

func (oneAccount) Ended(context.Context, []skerry.Access) ([]skerry.Access, error) { return nil, nil }

// harness is a server on a real socket, and a client of it whose every
// exchange is checked against the OpenAPI document.
type harness struct {
	*testing.T
	srv *Server
	url string
	// client trusts the server, and speaks HTTP/2 over TLS.
	client *http.Client
	logs   *logBuffer
	doc    routers.Router
}

// logBuffer is a log that tests read.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// serveFunc is serve, or serveTLS.
type serveFunc func(t *testing.T, svc Service, change ...func(*Options)) *harness

// overBoth runs a test over plain HTTP/1.1, and over TLS with HTTP/2.
func overBoth(t *testing.T, test func(*testing.T, serveFunc)) {
	t.Run("HTTP1", func(t *testing.T) { test(t, serve) })
	t.Run("HTTP2", func(t *testing.T) { test(t, serveTLS) })
}

func serve(t *testing.T, svc Service, change ...func(*Options)) *harness {
	t.Helper()
	h := newHarness(t, svc, change)
	hs := httptest.NewServer(h.srv)
	t.Cleanup(func() {
		h.srv.drain()
		hs.Close()
		h.srv.terminals.Wait()
	})
	h.url = hs.URL
	return h
}

// serveTLS serves as sandboxd does with a certificate.
func serveTLS(t *testing.T, svc Service, change ...func(*Options)) *harness {
	t.Helper()
	h := newHarness(t, svc, change)
	conf, pool := certificate(t)
	ctx, cancel := context.WithCancel(context.Background())
	ln, err := ListenConfig{Addr: "127.0.0.1:0", TLS: true}.Listen(ctx)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- h.srv.Serve(ctx, tls.NewListener(ln, conf), nil) }()
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		h.srv.drain()
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	h.url, h.client = "https://"+ln.Addr().String(), &http.Client{Transport: transport}
	return h
}

func newHarness(t *testing.T, svc Service, change []func(*Options)) *harness {
	t.Helper()
	logs := &logBuffer{}
	o := Options{
		Service: svc, Accounts: oneAccount{}, Version: "test",
		Log: slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&o)
	}
	srv, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := openapi3.NewLoader().LoadFromData(srv.document)
	if err != nil {
		t.Fatal(err)
	}
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	return &harness{T: t, srv: srv, client: http.DefaultClient, logs: logs, doc: router}
}

// answer is a response that was read to its end.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// errorBody returns the error of an answer.
func (a *answer) error(t testing.TB) errorBody {
	t.Helper()
	var e errorResponse
	if err := json.Unmarshal(a.body, &e); err != nil {
		t.Fatalf("no error in %d %q: %v", a.status, a.body, err)
	}
	return e.Error
}

func (h *harness) request(method, path, body string) *http.Request {
	h.Helper()
	req, err := http.NewRequestWithContext(h.Context(), method, h.url+path, strings.NewReader(body))
	if err != nil {
		h.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+testToken)
	return req
}

// call makes a request and checks the answer against the document.
func (h *harness) call(method, path, body string) *answer {
	h.Helper()
	return h.send(h.request(method, path, body))
}

func (h *harness) send(req *http.Request) *answer {
	h.Helper()
	resp, err := h.client.Do(req)
	if err != nil {
		h.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		h.Fatalf("reading the answer of %s %s: %v", req.Method, req.URL.Path, err)
	}
	a := &answer{status: resp.StatusCode, header: resp.Header, body: data}
	h.conforms(req, a)
	return a
}

// conforms checks an answer against what the document says of its route.
func (h *harness) conforms(req *http.Request, a *answer) {
	h.Helper()
	at := *req
	at.URL = &url.URL{Path: req.URL.Path, RawPath: req.URL.RawPath, RawQuery: req.URL.RawQuery}
	rt, params, err := h.doc.FindRoute(&at)
	if err != nil || rt.Operation == nil {
		return // not a route: the test looks at the status
	}
	in := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: &at, PathParams: params, Route: rt},
		Status:                 a.status, Header: a.header,
		Options: &openapi3filter.Options{
			IncludeResponseStatus: true,
			ExcludeResponseBody:   !strings.HasPrefix(a.header.Get("Content-Type"), "application/json"),
		},
	}
	in.SetBodyBytes(a.body)
	if err := openapi3filter.ValidateResponse(h.Context(), in); err != nil {
		h.Errorf("%s %s: answer %d %s: %v", req.Method, req.URL.Path, a.status, a.body, err)
	}
}

// ok calls and decodes an answer that must be 200.
func ok[T any](h *harness, method, path, body string) (v T) {
	h.Helper()
	a := h.call(method, path, body)
	if a.status != http.StatusOK {
		h.Fatalf("%s %s: %d %s", method, path, a.status, a.body)
	}
	if err := json.Unmarshal(a.body, &v); err != nil {
		h.Fatalf("%s %s: %v in %s", method, path, err, a.body)
	}
	return v
}

// refused calls and checks the error of the answer.
func (h *harness) refused(method, path, body string, status int, code skerry.Code, field string) {
	h.Helper()
	a := h.call(method, path, body)
	e := a.error(h)
	if a.status != status || e.Code != code || e.Field != field {
		h.Errorf("%s %s %.200s: %d %+v, want %d %s field %q", method, path, body, a.status, e, status, code, field)
	}
}

// session creates a sandbox and returns the path of its session.
func (h *harness) session() string {
	h.Helper()
	run := ok[runResponse](h, "POST", "/v3/sandboxes", `{}`)
	return "/v2/sandboxes/sessions/" + run.Session.ID
}

// stub is a Service whose calls fail with err, but for those that are set. It
// validates what it is given, as a service must.
type stub struct {
	Service
	err         error
	run         func(ctx context.Context, p skerry.CommandParams, attach bool) (*skerry.Command, skerry.OutputReader, error)
	wait        func(ctx context.Context) (*skerry.Command, error)
	write       func(dir string, r io.Reader) error
	read        func() (io.ReadCloser, error)
	seen        skerry.CommandParams
	created     skerry.CreateParams
	updated     skerry.UpdateParams
	filter      skerry.SandboxFilter
	forked      skerry.ForkParams
	taken       skerry.SnapshotParams
	stdin       skerry.StdinParams
	forkedDrive [2]string // source and name
	drive       skerry.DriveParams
	drives      skerry.DriveFilter
	signal      int
	policy      *skerry.NetworkPolicy
}

func (s *stub) CreateSandbox(_ context.Context, _ skerry.Scope, p skerry.CreateParams) (*skerry.Run, error) {
	s.created = p
	p.Mounts = maps.Clone(p.Mounts)
	p.Name, p.Timeout = cmp.Or(p.Name, "a"), cmp.Or(p.Timeout, skerry.Duration(skerry.DefaultTimeout))
	p.VCPUs = cmp.Or(p.VCPUs, 1)
	p.MemoryMB = cmp.Or(p.MemoryMB, p.VCPUs*skerry.MemoryPerVCPU)
	return nil, cmp.Or(p.Validate(skerry.Limits{}), s.err)
}

func (s *stub) GetSandbox(context.Context, skerry.Scope, string, bool) (*skerry.Run, error) {
	return nil, s.err
}

func (s *stub) ListSandboxes(_ context.Context, _ skerry.Scope, f skerry.SandboxFilter) ([]skerry.Sandbox, string, error) {
	s.filter = f
	return nil, "", s.err
}

func (s *stub) UpdateSandbox(_ context.Context, _ skerry.Scope, _ string, p skerry.UpdateParams) (*skerry.Run, error) {
	s.updated = p
	p.Mounts = maps.Clone(p.Mounts)
	return nil, cmp.Or(p.Validate(skerry.Limits{}), s.err)
}

func (s *stub) DeleteSandbox(context.Context, skerry.Scope, string, bool) (*skerry.Sandbox, error) {
	return nil, s.err
}

func (s *stub) ForkSandbox(_ context.Context, _ skerry.Scope, _ string, p skerry.ForkParams) (*skerry.Run, error) {
	s.forked = p
	if p.Policy != nil {
		if err := p.Policy.Validate("networkPolicy"); err != nil {
			return nil, err
		}
	}
	return nil, cmp.Or(skerry.ValidateName("name", cmp.Or(p.Name, "a")), s.err)
}

func (s *stub) CreateSnapshot(_ context.Context, _ skerry.Scope, _ string, p skerry.SnapshotParams) (*skerry.Run, error) {
	s.taken = p
	return nil, s.err
}

func (s *stub) GetOrCreateDrive(_ context.Context, _ skerry.Scope, p skerry.DriveParams) (d *skerry.Drive, created bool, err error) {
	s.drive = p
	return nil, false, s.err
}

func (s *stub) ForkDrive(_ context.Context, _ skerry.Scope, source, name string) (*skerry.Drive, error) {
	s.forkedDrive = [2]string{source, name}
	return nil, s.err
}

func (s *stub) WriteStdin(_ context.Context, _ skerry.Scope, _, _ string, p skerry.StdinParams) (int64, error) {
	s.stdin = p
	return int64(len(p.Data)), s.err
}

func (s *stub) ListDrives(_ context.Context, _ skerry.Scope, f skerry.DriveFilter) ([]skerry.Drive, string, error) {
	s.drives = f
	return []skerry.Drive{{ID: "drv_1", Name: "d", ProjectID: "prj_1", Region: "local", MaxSizeBytes: 1 << 30}}, "on", nil
}

func (s *stub) GetDrive(context.Context, skerry.Scope, string) (*skerry.Drive, error) {
	return nil, s.err
}

func (s *stub) RouteToken(_ context.Context, _ skerry.Scope, name string, port int, life skerry.Duration) (*skerry.RouteToken, error) {
	return &skerry.RouteToken{Token: fmt.Sprintf("skr_%s-%d-%d", name, port, life.Millis()), URL: "http://127.0.0.1:1/"}, nil
}

func (s *stub) DeleteDrive(context.Context, skerry.Scope, string) (*skerry.Drive, error) {
	return nil, s.err
}

func (s *stub) ListSessions(context.Context, skerry.Scope, skerry.SessionFilter) ([]skerry.Session, string, error) {
	return nil, "", s.err
}

func (s *stub) GetSession(context.Context, skerry.Scope, string) (*skerry.Run, error) {
	return nil, s.err
}

func (s *stub) StopSession(context.Context, skerry.Scope, string, skerry.StopParams) (*skerry.Run, error) {
	return nil, s.err
}

func (s *stub) PauseSession(context.Context, skerry.Scope, string) (*skerry.Session, error) {
	return nil, s.err
}

func (s *stub) ResumeSession(context.Context, skerry.Scope, string) (*skerry.Session, error) {
	return nil, s.err
}

func (s *stub) NetworkEvents(context.Context, skerry.Scope, string, int) ([]skerry.NetworkEvent, error) {
	return nil, s.err
}

func (s *stub) SetNetworkPolicy(_ context.Context, _ skerry.Scope, id string, p *skerry.NetworkPolicy) (*skerry.Session, error) {
	s.policy = p
	if err := cmp.Or(p.Validate(""), s.err); err != nil {
		return nil, err
	}
	run := &skerry.Session{ID: id, Status: skerry.StatusRunning}
	run.SetPolicy(p)
	return run, nil
}

func (s *stub) ExtendTimeout(_ context.Context, _ skerry.Scope, _ string, by skerry.Duration) (*skerry.Session, error) {
	return nil, cmp.Or(skerry.ValidatePositive("duration", by), s.err)
}

func (s *stub) RunCommand(ctx context.Context, _ skerry.Scope, _ string, p skerry.CommandParams, attach bool) (*skerry.Command, skerry.OutputReader, error) {
	s.seen = p
	if err := p.Validate(); err != nil {
		return nil, nil, err
	}
	if s.run == nil {
		return nil, nil, s.err
	}
	return s.run(ctx, p, attach)
}

func (s *stub) WaitCommand(ctx context.Context, _ skerry.Scope, _, _ string) (*skerry.Command, error) {
	if s.wait == nil {
		return nil, s.err
	}
	return s.wait(ctx)
}

func (s *stub) KillCommand(_ context.Context, _ skerry.Scope, _, _ string, signal int) (*skerry.Command, error) {
	s.signal = signal
	return nil, s.err
}

func (s *stub) CheckSession(context.Context, skerry.Scope, string) error { return s.err }

func (s *stub) WriteFiles(_ context.Context, _ skerry.Scope, _, dir string, r io.Reader) error {
	if s.write == nil {
		return s.err
	}
	return s.write(dir, r)
}

func (s *stub) ReadFile(_ context.Context, _ skerry.Scope, _, cwd, path string) (io.ReadCloser, error) {
	if err := skerry.ValidateFile(cwd, path); err != nil {
		return nil, err
	}
	if s.read == nil {
		return nil, s.err
	}
	return s.read()
}

func (s *stub) MakeDir(_ context.Context, _ skerry.Scope, _, cwd, path string, _ bool) error {
	return cmp.Or(skerry.ValidateFile(cwd, path), s.err)
}
