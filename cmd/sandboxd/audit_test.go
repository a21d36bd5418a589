package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/audit"
	"github.com/skerry-dev/skerry/internal/auth"
	"github.com/skerry-dev/skerry/internal/usage"
)

// sandboxd runs a command on a state folder.
func sandboxd(ctx context.Context, state string, args ...string) (string, error) {
	root := newRoot()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetArgs(append([]string{"--state", state}, args...))
	err := root.ExecuteContext(ctx)
	return out.String(), err
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// someLog makes an audit log.
func someLog(t *testing.T, state string, events ...audit.Event) {
	t.Helper()
	a, err := (&auditOptions{what: auditChanges, maxMB: 1, keepDays: 1}).open(state, discard())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		a.add(e)
	}
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
}

func stopped(name, team string, at time.Time) audit.Event {
	return audit.Event{
		Time: at, Operation: "stopSession", Actor: audit.Actor{Kind: audit.ActorToken, ID: "tok_1"}, Team: team, Remote: "192.0.2.1", Status: 200,
		Targets: []audit.Target{{Kind: audit.TargetSandbox, Name: name}, {Kind: audit.TargetSession, ID: "sbx_" + name}},
	}
}

// TestAuditExport prints what is asked for.
func TestAuditExport(t *testing.T) {
	state := t.TempDir()
	now := time.Date(2020, 12, 1, 12, 0, 0, 0, time.UTC)
	hostile := stopped("c", "team_2", now)
	hostile.Program, hostile.UserAgent, hostile.Targets[0].Name = "\x1b]0;x\x07", "\x1b[2J", "\u202ec\x1b[31m"
	hostile.Status, hostile.Code = 404, "not_found"
	someLog(t, state, stopped("a", "team_1", now.Add(-48*time.Hour)), stopped("b", "team_1", now.Add(-24*time.Hour)), hostile)
	for _, c := range []struct {
		args string
		want []string // names of sandboxes
	}{
		{"", []string{"-", "a", "b", "c", "-"}},
		{"--team team_1", []string{"a", "b"}},
		{"--sandbox b", []string{"b"}},
		{"--team team_2 --sandbox b", nil},
		{"--until 2020-12-01", []string{"a", "b"}},
		{"--since 2020-11-30 --until 2020-12-01T12:00:00Z", []string{"b"}},
	} {
		out, err := sandboxd(t.Context(), state, append([]string{"audit", "export"}, strings.Fields(c.args)...)...)
		if err != nil {
			t.Errorf("%s: %v", c.args, err)
		}
		var got []string
		for line := range strings.Lines(out) {
			r, err := audit.Check(audit.Line{Bytes: []byte(strings.TrimSuffix(line, "\n"))})
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			name := "-"
			for _, n := range []string{"a", "b", "c"} {
				if len(r.Targets) > 0 && r.Targets[1].ID == "sbx_"+n {
					name = n
				}
			}
			got = append(got, name)
		}
		if strings.Join(got, " ") != strings.Join(c.want, " ") {
			t.Errorf("%s: %q, want %q", c.args, got, c.want)
		}
	}
	out, err := sandboxd(t.Context(), state, "audit", "export", "--format", "table", "--until", "2020-12-02")
	if err != nil {
		t.Fatal(err)
	}
	want := `TIME                      WHO                            OPERATION                 RESULT              FROM             WHAT
2020-11-29T12:00:00.000Z  tok_1                          stopSession               200                 192.0.2.1        sandbox a, session sbx_a
2020-11-30T12:00:00.000Z  tok_1                          stopSession               200                 192.0.2.1        sandbox b, session sbx_b
2020-12-01T12:00:00.000Z  tok_1                          stopSession               404 not_found       192.0.2.1        sandbox �c�[31m, session sbx_c, program �]0;x�
`
	if out != want {
		t.Errorf("got\n%q\nwant\n%q", out, want)
	}
	for args, want := range map[string]string{
		"--since soon":  `--since "soon" is neither a time`,
		"--until -1h":   `--until "-1h" is neither a time`,
		"--format yaml": `--format must be jsonl or table, not "yaml"`,
	} {
		_, err := sandboxd(t.Context(), state, append([]string{"audit", "export"}, strings.Fields(args)...)...)
		if _, misused := errors.AsType[usage.Error](err); !misused || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", args, err)
		}
	}
	if _, err := sandboxd(t.Context(), t.TempDir(), "audit", "export"); err == nil || !strings.Contains(err.Error(), "there is no audit log in") {
		t.Errorf("without a log: %v", err)
	}
}

// TestAuditExportFollows prints records as they come, and leaves out what is none.
func TestAuditExportFollows(t *testing.T) {
	state := t.TempDir()
	someLog(t, state)
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	root := newRoot()
	root.SetOut(w)
	root.SetArgs([]string{"--state", state, "audit", "export", "--follow", "--sandbox", "a"})
	done := make(chan error, 1)
	go func() {
		done <- root.ExecuteContext(ctx)
		w.Close()
	}()
	line := make([]byte, 64<<10)
	for range 2 {
		someLog(t, state, stopped("b", "team_1", time.Now()), stopped("a", "team_1", time.Now()))
		n, err := r.Read(line)
		if err != nil || !strings.Contains(string(line[:n]), `"sbx_a"`) || strings.Count(string(line[:n]), "\n") != 1 {
			t.Fatalf("%s, %v", line[:n], err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	f, err := os.OpenFile(filepath.Join(auditDir(state), "000001.jsonl"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("{\"seq\":1}\n"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	out, err := sandboxd(t.Context(), state, "audit", "export", "--sandbox", "b")
	if err == nil || !strings.Contains(err.Error(), "left out lines that are no records or were changed: 1") || strings.Count(out, "\n") != 2 {
		t.Errorf("%v: %s", err, out)
	}
}

// TestAuditVerify checks a log, and names what is wrong with it.
func TestAuditVerify(t *testing.T) {
	state := t.TempDir()
	if _, err := sandboxd(t.Context(), state, "audit", "verify"); err == nil || !strings.Contains(err.Error(), "there is no audit log in") {
		t.Errorf("without a log: %v", err)
	}
	someLog(t, state, stopped("a", "team_1", time.Now()))
	out, err := sandboxd(t.Context(), state, "audit", "verify")
	_, hash, _ := strings.Cut(strings.TrimSpace(out), "hash of the last one: ")
	if err != nil || !strings.HasPrefix(out, "intact: 3 records, 1 to 3\n") || len(hash) != 64 {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := sandboxd(t.Context(), state, "audit", "verify", "--head", strings.ToUpper(hash)); err != nil {
		t.Error(err)
	}
	other := strings.Repeat("0", 64)
	if _, err := sandboxd(t.Context(), state, "audit", "verify", "--head", hash+","+other); err == nil || err.Error() != "the audit log is not intact: no record has the hash "+other {
		t.Errorf("%v", err)
	}
	if _, err := sandboxd(t.Context(), state, "audit", "verify", "--head", "x"); err == nil || !strings.Contains(err.Error(), "--head must be a hash") {
		t.Errorf("%v", err)
	}
	path := filepath.Join(auditDir(state), "000001.jsonl")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(data, []byte("tok_1"), []byte("tok_2"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := sandboxd(t.Context(), state, "audit", "verify"); err == nil || err.Error() != "the audit log is not intact: 000001.jsonl, line 2: its hash is not the one that it says" {
		t.Errorf("%v", err)
	}
}

// TestAuditPage runs the program of docs/audit.md that checks a log.
func TestAuditPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	_, program, found := strings.Cut(string(page), "```python\n")
	program, _, _ = strings.Cut(program, "```")
	if !found || strings.Count(program, "\n") > 20 {
		t.Fatalf("the program has %d lines", strings.Count(program, "\n"))
	}
	state := t.TempDir()
	for range 2 {
		someLog(t, state, stopped("a", "team_1", time.Now()), stopped("ü\"\\", "team_1", time.Now()))
	}
	check := func() (string, error) {
		cmd := exec.CommandContext(t.Context(), "python3", "-", auditDir(state))
		cmd.Stdin = strings.NewReader(program)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	report, err := audit.Verify(auditDir(state))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := check(); err != nil || out != strconv.FormatInt(report.Last, 10)+" "+report.Hash+"\n" {
		t.Errorf("%v: %s", err, out)
	}
	path := filepath.Join(auditDir(state), "000001.jsonl")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(data), "\n")
	for name, changed := range map[string]string{
		"changed": strings.Replace(string(data), "tok_1", "tok_2", 1), "removed": strings.Join(append(lines[:2:2], lines[3:]...), ""),
	} {
		if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := check(); err == nil || !strings.Contains(out, "000001.jsonl") {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
}

// TestOperatorsAreRecorded has what is done over the socket, and without a server, be
// recorded, without the tokens.
func TestOperatorsAreRecorded(t *testing.T) {
	state := t.TempDir()
	t.Setenv("SKERRY_DATABASE", "")
	out, err := sandboxd(t.Context(), state, "token", "create", "offline")
	if err != nil {
		t.Fatal(err)
	}
	tokens := []string{strings.TrimSpace(out)}
	db, err := openDatabase(t.Context(), state, "", discard())
	if err != nil {
		t.Fatal(err)
	}
	a, err := (&auditOptions{what: auditChanges}).open(state, discard())
	if err != nil {
		t.Fatal(err)
	}
	_, cancel := context.WithCancel(t.Context())
	end := newEnding(cancel)
	close(end.over)
	stop, err := serveSocket(state, socketHandler(end, auth.New(db), a, db, newSampler(), "http://example.com"))
	if err != nil {
		t.Fatal(err)
	}
	create := func(name string) (answer newTokenAnswer, err error) {
		err = ask(t.Context(), state, "POST", createToken.path(), newTokenRequest{accountRequest: accountRequest{Name: name}}, &answer)
		return answer, err
	}
	revoke := func(id string) error { return ask(t.Context(), state, "POST", revokeToken.path(), id, nil) }
	online, err := create("online")
	if err != nil {
		t.Fatal(err)
	}
	tokens = append(tokens, online.Secret)
	if _, err := create(""); err == nil {
		t.Error("a token without a name")
	}
	if err := revoke(online.Token.ID); err != nil {
		t.Fatal(err)
	}
	if err := revoke("tok_none"); err == nil {
		t.Error("an unknown token was revoked")
	}
	if err := revoke(tokens[0]); err == nil { // a token where its id belongs
		t.Error("a token was revoked by itself")
	}
	team := accountRequest{Slug: "acme"}
	if err := ask(t.Context(), state, "POST", createTeam.path(), team, nil); err != nil {
		t.Fatal(err)
	}
	member := accountRequest{Team: "acme", User: "alice", Role: skerry.RoleViewer}
	if err := ask(t.Context(), state, "POST", addMember.path(), member, nil); err != nil {
		t.Fatal(err)
	}
	if err := ask(t.Context(), state, "POST", listTeams.path(), nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := ask(t.Context(), state, "POST", "/stop", stopOrder{Keep: true}, nil); err != nil {
		t.Fatal(err)
	}
	a.sessionEnded(skerry.Session{ID: "sbx_1", SandboxName: "one", Status: skerry.StatusStopped}, true)
	a.sessionEnded(skerry.Session{ID: "sbx_2", SandboxName: "two", Status: skerry.StatusStopped}, false)
	a.sessionEnded(skerry.Session{ID: "sbx_3", SandboxName: "three", Status: skerry.StatusAborted}, false)
	if err := errors.Join(stop(), a.close(), db.Close()); err != nil {
		t.Fatal(err)
	}
	out, err = sandboxd(t.Context(), state, "audit", "export", "--format", "table")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(out) {
		at := strings.Index(line, "  ") // after the time
		f := strings.Fields(line[at:])
		if strings.HasPrefix(line, "TIME") || strings.Contains(line, " audit.") {
			continue
		}
		if f[1][0] == '(' { // whoever logged in
			f = append(f[:1:1], f[2:]...)
		}
		got = append(got, strings.Join(f, " "))
	}
	who := "uid:" + strconv.Itoa(os.Getuid())
	want := []string{
		who + " token.create ok - token offline, team " + online.Token.TeamID + ", project " + online.Token.ProjectID + ", role developer", who + " token.create ok - token online, team " + online.Token.TeamID + ", project " + online.Token.ProjectID + ", role developer", who + " token.create bad_request -",
		who + " token.revoke ok - token online", who + " token.revoke not_found - token tok_none",
		who + " token.revoke not_found - token [redacted]",
		who + " team.create ok - team acme", who + " member.add ok - member alice, team acme, role viewer",
		who + " server.stop ok -", "server session.timeout ok - sandbox one, session sbx_1", "server session.lost ok - sandbox three, session sbx_3",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	data, err := os.ReadFile(filepath.Join(auditDir(state), "000001.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range tokens {
		if len(token) < 20 || bytes.Contains(data, []byte(token)) {
			t.Errorf("the log has the token %q", token)
		}
	}
	if !bytes.Contains(data, []byte(`{"kind":"team","name":"acme"}],"role":"viewer"`)) {
		t.Errorf("the log does not have the role of a new member: %s", data)
	}
	if !bytes.Contains(data, []byte(`"id":"`+online.Token.ID+`","name":"online"`)) {
		t.Errorf("the log does not have the id of a new token")
	}
}

// TestAuditFileHangup has a server open the copy of the log again when it is told to.
func TestAuditFileHangup(t *testing.T) {
	state, path := t.TempDir(), filepath.Join(t.TempDir(), "audit.jsonl")
	a, err := (&auditOptions{what: auditChanges, file: path}).open(state, discard())
	if err != nil {
		t.Fatal(err)
	}
	await := func(what string) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			if _, err := os.Stat(path); err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("there is no file %s", what)
			}
		}
	}
	await("at the start")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	await("after the signal")
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(data, []byte("audit.closed")) {
		t.Errorf("%s, %v", data, err)
	}
}

// TestAuditOff has no log.
func TestAuditOff(t *testing.T) {
	state := t.TempDir()
	a, err := (&auditOptions{what: auditOff}).open(state, discard())
	if a != nil || err != nil || a.forAPI() != nil {
		t.Fatalf("%v, %v", a, err)
	}
	a.add(audit.Event{})
	a.operator(t.Context(), "token.create", time.Now(), nil, "")
	a.sessionEnded(skerry.Session{}, true)
	if err := a.close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(auditDir(state)); err == nil {
		t.Error("there is a folder")
	}
}

// TestAuditReady has a server that does nothing without its log not be ready without it.
func TestAuditReady(t *testing.T) {
	state := t.TempDir()
	a, err := (&auditOptions{what: auditChanges}).open(state, discard())
	if err != nil {
		t.Fatal(err)
	}
	o := serveOptions{audit: auditOptions{required: true}}
	check := o.ready(nil, &nodeParts{}, a)["audit"]
	if err := check(t.Context()); err != nil {
		t.Error(err)
	}
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	if err := check(t.Context()); err == nil {
		t.Error("ready without its log")
	}
	if _, is := (&serveOptions{}).ready(nil, &nodeParts{}, a)["audit"]; is {
		t.Error("the log is needed although it is not required")
	}
}
