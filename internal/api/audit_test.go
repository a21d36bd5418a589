package api

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/audit"
	"github.com/skerry-dev/skerry/internal/controller/controllertest"
)

// audited has a server write an audit log. The function that it returns closes the log,
// checks its chain and returns its records, without those of the log about itself.
func audited(t *testing.T) (with func(*Options), records func() []audit.Record, dir string) {
	t.Helper()
	dir = t.TempDir()
	l, err := audit.Open(audit.Options{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return func(o *Options) { o.Audit = l }, func() (all []audit.Record) {
		t.Helper()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := audit.Verify(dir); err != nil {
			t.Fatal(err)
		}
		r := audit.NewReader(dir, audit.Position{})
		defer r.Close()
		for {
			line, err := r.Next()
			if errors.Is(err, io.EOF) {
				return all
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := audit.Check(line)
			if err != nil {
				t.Fatal(err)
			}
			if got.Log == nil {
				all = append(all, *got)
			}
		}
	}, dir
}

// TestEveryOperationIsAudited has each operation be classified, and each name in a path
// have a kind.
func TestEveryOperationIsAudited(t *testing.T) {
	s := serve(t, &stub{}, func(o *Options) { o.Discovery = http.NotFoundHandler() }).srv
	seen := map[string]bool{}
	for _, rt := range s.routes() {
		seen[rt.id] = true
		kind := auditKinds[rt.id]
		switch {
		case kind == auditUnknown:
			t.Errorf("%s is not in auditKinds: say whether it changes something, shows the content of a sandbox, or only tells of a state", rt.id)
		case rt.method != http.MethodGet && kind < auditContent:
			t.Errorf("%s is a %s and no change", rt.id, rt.method)
		case (kind == auditNothing) != (rt.public && rt.id != "serveTerminal"):
			t.Errorf("%s: what needs a token is recorded, and nothing else", rt.id)
		}
		for _, name := range rt.pathNames() {
			if auditTargets[name].kind == "" {
				t.Errorf("%s: {%s} is not in auditTargets", rt.id, name)
			}
		}
	}
	for id := range auditKinds {
		if !seen[id] {
			t.Errorf("there is no operation %s", id)
		}
	}
}

// brief is what TestAudit looks at of a record.
func brief(r audit.Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %d %s [", r.Operation, r.Phase, r.Status, r.Code)
	for i, t := range r.Targets {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%s:%s", t.Kind, firstOf(t.Name, t.ID))
	}
	fmt.Fprintf(&b, "] %s", r.Program)
	return b.String()
}

// TestAudit has each change, and each look into a sandbox, have a record that says what
// was done to what.
func TestAudit(t *testing.T) {
	with, records, _ := audited(t)
	h := serve(t, controllertest.New(t), with)
	run := ok[runResponse](h, "POST", "/v3/sandboxes", `{"name":"a"}`)
	session := "/v2/sandboxes/sessions/" + run.Session.ID
	h.call("POST", "/v3/sandboxes", `{"name":"a"}`)
	h.call("GET", "/v2/sandboxes", "")
	h.call("GET", "/v2/sandboxes/a", "")
	h.call("GET", "/v2/sandboxes/a?resume=true", "")
	h.call("GET", session, "")
	h.call("GET", "/health", "")
	h.call("GET", "/nowhere", "")
	cmd := ok[commandResponse](h, "POST", session+"/cmd", `{"command":"/bin/sh","args":["-c","echo hush"]}`).Command
	h.call("POST", session+"/cmd", `{"command":"sh","args":["-c","echo hush"],"wait":true,"logs":true}`)
	h.call("POST", session+"/cmd", `{"command":"echo hush","args":[]}`)
	h.call("GET", session+"/cmd/"+cmd.ID, "")
	h.call("GET", session+"/cmd/"+cmd.ID+"/logs", "")
	h.call("POST", session+"/fs/read", `{"path":"/etc/hush"}`)
	h.call("POST", session+"/fs/mkdir", `{"path":"hush"}`)
	h.call("POST", "/v2/sandboxes/drives/d", `{}`)
	h.call("PATCH", "/v2/sandboxes/a?teamId=team_2", `{}`)
	conn := h.dial(session)
	sendText(t, conn, `{"type":"start","command":"sh","args":["-c","exit 7"]}`)
	if _, _, status := end(t, conn); status != websocket.StatusNormalClosure {
		t.Errorf("the terminal closed with %d", status)
	}
	h.srv.terminals.Wait()
	h.call("POST", session+"/stop", "")
	h.call("DELETE", "/v2/sandboxes/a", "")
	h.call("DELETE", "/v2/sandboxes/b", "")
	got := records()
	var lines []string
	for _, r := range got {
		line := strings.NewReplacer(run.Session.ID, "SESSION", cmd.ID, "CMD").Replace(brief(r))
		if i := strings.Index(line, "command:cmd_"); i >= 0 {
			line = line[:i] + "command:OTHER" + line[strings.IndexByte(line[i:], ']')+i:]
		}
		if i := strings.Index(line, "snapshot:snap_"); i >= 0 {
			line = line[:i] + "snapshot:SNAP" + line[strings.IndexAny(line[i:], " ]")+i:]
		}
		lines = append(lines, line)
	}
	// The answer of a stream comes before the record of the call's end would.
	want := []string{
		"createSandbox  200  [sandbox:a session:SESSION] ",
		"createSandbox  409 conflict [sandbox:a] ",
		"getSandbox  200  [sandbox:a session:SESSION] ",
		"runCommand  200  [sandbox:a session:SESSION command:CMD] sh",
		"runCommand  200  [sandbox:a session:SESSION command:OTHER] sh",
		"runCommand  400 executable_not_found [sandbox:a session:SESSION] ",
		"commandLogs  200  [sandbox:a session:SESSION command:CMD] ",
		"readFile  404 not_found [sandbox:a session:SESSION] ",
		"makeDir  200  [sandbox:a session:SESSION] ",
		"getOrCreateDrive  201  [drive:d] ",
		"updateSandbox  403 forbidden [sandbox:a] ",
		"openInteractive  200  [sandbox:a session:SESSION] ",
		"serveTerminal opened 101  [sandbox:a session:SESSION] ",
		"serveTerminal closed 101  [sandbox:a session:SESSION] sh",
		"stopSession  200  [sandbox:a session:SESSION snapshot:SNAP] ",
		"deleteSandbox  200  [sandbox:a] ",
		"deleteSandbox  404 not_found [sandbox:b] ",
	}
	if !slices.Equal(lines, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
	for _, r := range got {
		if r.Actor == nil || *r.Actor != (audit.Actor{Kind: audit.ActorToken, ID: "tok_1"}) || r.Team != "team_1" || r.Project != "prj_1" ||
			r.Remote != "127.0.0.1" || !strings.HasPrefix(r.UserAgent, "Go-http-client") || !strings.HasPrefix(r.RequestID, "req_") {
			t.Errorf("%+v", r)
		}
	}
}

// TestAuditReads has everything be recorded if that is wanted.
func TestAuditReads(t *testing.T) {
	with, records, _ := audited(t)
	h := serve(t, controllertest.New(t), with, func(o *Options) { o.AuditReads = true })
	h.call("GET", "/v2/sandboxes", "")
	h.call("GET", "/v2/sandboxes/none", "")
	h.call("GET", "/health", "")
	if got := records(); len(got) != 2 || brief(got[0]) != "listSandboxes  200  [] " || brief(got[1]) != "getSandbox  404 not_found [sandbox:none] " {
		t.Errorf("%+v", got)
	}
}

// TestAuditHasNoSecrets sends secrets wherever a client can send something.
func TestAuditHasNoSecrets(t *testing.T) {
	with, records, dir := audited(t)
	h := serve(t, controllertest.New(t), with, func(o *Options) { o.AuditReads = true })
	const secret = "hush-" + "Zm9yIG5vYm9keSdzIGV5ZXM"
	token := "sk_" + strings.Repeat("ABCD2345", 5)
	jwt := "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"
	run := ok[runResponse](h, "POST", "/v3/sandboxes", `{"name":"a","env":{"PASSWORD":"`+secret+`"},"tags":{"t":"`+secret+`"},
		"networkPolicy":{"allow":{"a.example":[{"transform":[{"headers":{"authorization":"`+secret+`"}}]}]}}}`)
	session := "/v2/sandboxes/sessions/" + run.Session.ID
	h.call("POST", session+"/network-policy", `{"allow":{"a.example":[{"transform":[{"headers":{"x":"`+secret+`"}}]}]}}`)
	cmd := ok[commandResponse](h, "POST", session+"/cmd", `{"command":"cat","args":["`+secret+`"],"env":{"A":"`+secret+`"},"cwd":"/tmp","attachStdin":true}`).Command
	h.call("POST", session+"/cmd", `{"command":"curl `+secret+`","args":[]}`)
	h.call("POST", session+"/cmd", `{"command":"`+secret+`/x y","args":[]}`)
	h.call("POST", session+"/cmd/"+cmd.ID+"/stdin", `{"data":"`+base64.StdEncoding.EncodeToString([]byte(secret))+`"}`)
	h.call("POST", session+"/fs/read", `{"path":"/`+secret+`"}`)
	h.call("GET", "/v2/sandboxes?namePrefix="+secret+"&cursor="+secret, "")
	h.call("GET", "/v2/sandboxes?tags="+secret, "")
	upload := h.request("POST", session+"/fs/write", secret)
	upload.Header.Set("X-Cwd", "/"+secret)
	upload.Header.Set("Cookie", secret)
	upload.Header.Set("Referer", "https://a.example/?"+secret)
	h.send(upload)
	for _, name := range []string{token, jwt, testToken} {
		h.call("DELETE", "/v2/sandboxes/"+name, "")
		req := h.request("GET", "/v2/sandboxes", "")
		req.Header.Set("User-Agent", "curl "+name)
		h.send(req)
	}
	for _, wrong := range []string{"Bearer " + token, "Bearer " + secret, "Basic " + secret} {
		req := h.request("DELETE", "/v2/sandboxes/"+wrong[strings.IndexByte(wrong, ' ')+1:], "")
		req.Header.Set("Authorization", wrong)
		h.send(req)
	}
	ticket := ok[interactiveResponse](h, "POST", session+"/interactive", "").Token
	conn, _, err := websocket.Dial(t.Context(), strings.Replace(h.url, "http", "ws", 1)+session+"/interactive?token="+ticket, &websocket.DialOptions{
		HTTPHeader: http.Header{"User-Agent": {"a " + ticket}},
	})
	if err != nil {
		t.Fatal(err)
	}
	sendText(t, conn, `{"type":"start","command":"cat","args":["`+secret+`"],"env":["A=`+secret+`"]}`)
	end(t, conn)
	h.srv.terminals.Wait()
	if got := records(); len(got) < 20 {
		t.Errorf("%d records", len(got))
	}
	data, err := os.ReadFile(filepath.Join(dir, "000001.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{
		"hush", secret[5:], base64.StdEncoding.EncodeToString([]byte(secret))[:12], testToken, token, jwt[:12], ticket, "PASSWORD", "a.example",
	} {
		for line := range bytes.Lines(data) {
			if bytes.Contains(line, []byte(s)) {
				t.Errorf("the log has %q: %s", s, line)
			}
		}
	}
}

// TestAuditOfRefusals has calls without a token be recorded up to a number, whatever they
// ask for.
func TestAuditOfRefusals(t *testing.T) {
	with, records, _ := audited(t)
	h := serve(t, controllertest.New(t), with)
	for range 300 {
		req := h.request("GET", "/v2/sandboxes", "")
		req.Header.Del("Authorization")
		h.send(req)
	}
	h.call("GET", "/v2/sandboxes?teamId=team_2", "")
	got := records()
	if len(got) < 5 || len(got) > 50 {
		t.Errorf("%d records", len(got))
	}
	last := got[len(got)-1]
	if first := got[0]; brief(first) != "listSandboxes  401 unauthorized [] " || first.Actor != nil || first.Team != "" || first.Remote != "127.0.0.1" ||
		brief(last) != "listSandboxes  403 forbidden [] " || last.Actor.ID != "tok_1" {
		t.Errorf("%+v, %+v", first, last)
	}
}

// auditStub is an audit log in memory.
type auditStub struct {
	err    error
	record func(audit.Event)
}

func (a *auditStub) Ready() error { return a.err }

func (a *auditStub) Record(e audit.Event, _ bool) error {
	if a.record != nil {
		a.record(e)
	}
	return a.err
}

// TestAuditRequired has a server without its log do nothing that it must record, if the
// operator wants that.
func TestAuditRequired(t *testing.T) {
	svc := &stub{}
	log := &auditStub{err: errors.New("the disk is full")}
	h := serve(t, svc, func(o *Options) { o.Audit, o.AuditRequired = log, true })
	h.refused("POST", "/v3/sandboxes", `{"name":"a"}`, http.StatusServiceUnavailable, skerry.CodeUnavailable, "")
	h.refused("POST", "/v2/sandboxes/sessions/s/fs/read", `{"path":"a"}`, http.StatusServiceUnavailable, skerry.CodeUnavailable, "")
	if svc.created.Name != "" {
		t.Error("a sandbox was created without a record")
	}
	if a := h.call("GET", "/v2/sandboxes", ""); a.status != http.StatusOK {
		t.Errorf("a list: %d %s", a.status, a.body)
	}
	if a := h.call("GET", "/health", ""); a.status != http.StatusOK {
		t.Errorf("health: %d", a.status)
	}
	h.srv.auditRequired = false
	svc.err = skerry.Errorf(skerry.CodeConflict, "it is there")
	h.refused("POST", "/v3/sandboxes", `{"name":"a"}`, http.StatusConflict, skerry.CodeConflict, "")
}

// TestAnswerWaitsForItsRecord has a client get no byte of an answer before the record is
// written.
func TestAnswerWaitsForItsRecord(t *testing.T) {
	asked, written := make(chan audit.Event), make(chan struct{})
	log := &auditStub{record: func(e audit.Event) { asked <- e; <-written }}
	svc := &stub{err: skerry.Errorf(skerry.CodeConflict, "no")}
	h := serve(t, svc, func(o *Options) { o.Audit = log })
	answers := make(chan *answer, 1)
	go func() { answers <- h.call("POST", "/v3/sandboxes", `{"name":"a"}`) }()
	if e := <-asked; e.Status != http.StatusConflict || e.Operation != "createSandbox" {
		t.Errorf("%+v", e)
	}
	select {
	case a := <-answers:
		t.Errorf("there is an answer without a record: %d", a.status)
	default:
	}
	close(written)
	if a := <-answers; a.status != http.StatusConflict {
		t.Errorf("%d", a.status)
	}
}

// TestAuditOfPanics has a call that fails badly, or whose client has gone, have a record.
func TestAuditOfPanics(t *testing.T) {
	events := make(chan audit.Event, 1)
	reading, release := make(chan struct{}), make(chan struct{})
	svc := &stub{
		run: func(context.Context, skerry.CommandParams, bool) (*skerry.Command, skerry.OutputReader, error) {
			panic("a fault")
		},
		read: func() (io.ReadCloser, error) { close(reading); <-release; return nil, errors.New("gone") },
	}
	h := serve(t, svc, func(o *Options) { o.Audit = &auditStub{record: func(e audit.Event) { events <- e }} })
	h.call("POST", "/v2/sandboxes/sessions/s/cmd", `{"command":"sh","args":[]}`)
	if e := <-events; e.Status != http.StatusInternalServerError || e.Program != "sh" {
		t.Errorf("%+v", e)
	}
	ctx, cancel := context.WithCancel(t.Context())
	req := h.request("POST", "/v2/sandboxes/sessions/s/fs/read", `{"path":"a"}`).WithContext(ctx)
	failed := make(chan error, 1)
	go func() {
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		failed <- err
	}()
	<-reading
	cancel()
	if err := <-failed; err == nil {
		t.Fatal("the call did not end")
	}
	close(release)
	if e := <-events; e.Operation != "readFile" || e.Status != http.StatusInternalServerError {
		t.Errorf("%+v", e)
	}
}

// TestRemoteAddress has a proxy's word be taken only if the proxy is trusted, and only its
// own.
func TestRemoteAddress(t *testing.T) {
	for _, c := range []struct {
		trusted     bool
		forwarded   []string
		remote, via string
	}{
		{false, []string{"192.0.2.1"}, "127.0.0.1", ""},
		{true, nil, "127.0.0.1", ""},
		{true, []string{"192.0.2.1"}, "192.0.2.1", "127.0.0.1"},
		{true, []string{"192.0.2.1, 192.0.2.2"}, "192.0.2.2", "127.0.0.1"},
		{true, []string{"192.0.2.1", "192.0.2.3"}, "192.0.2.3", "127.0.0.1"},
		{true, []string{"[2001:db8::1]:80"}, "2001:db8::1", "127.0.0.1"},
		{true, []string{"::ffff:192.0.2.1"}, "192.0.2.1", "127.0.0.1"},
		{true, []string{"192.0.2.1, hello"}, "127.0.0.1", ""},
		{true, []string{""}, "127.0.0.1", ""},
	} {
		events := make(chan audit.Event, 1)
		h := serve(t, &stub{}, func(o *Options) {
			o.Audit, o.TrustForwarded = &auditStub{record: func(e audit.Event) { events <- e }}, c.trusted
		})
		req := h.request("POST", "/v2/sandboxes/sessions/s/fs/mkdir", `{"path":"a"}`)
		req.Header["X-Forwarded-For"] = c.forwarded
		h.send(req)
		if e := <-events; e.Remote != c.remote || e.Via != c.via {
			t.Errorf("%v %q: %s via %q", c.trusted, c.forwarded, e.Remote, e.Via)
		}
	}
}
