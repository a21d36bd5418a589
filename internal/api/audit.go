package api

import (
	"context"
	"net/http"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/audit"
)

// Audit keeps the audit log; internal/audit implements it.
type Audit interface {
	// Record adds an event. With wait it returns when the event is in the log, or after
	// a bounded time. An error has been reported, and the event is kept if it can be.
	Record(e audit.Event, wait bool) error
	// Ready returns an error while the log cannot be written.
	Ready() error
}

// auditKind is how an operation appears in the audit log.
type auditKind int

const (
	// auditUnknown is treated like auditChange.
	auditUnknown auditKind = iota
	// auditNothing is for what needs no token and tells nothing of anyone.
	auditNothing
	// auditRead is for lists and states. They are recorded only with Options.AuditReads.
	auditRead
	// auditContent is for what shows the content of a sandbox: files, output, terminals.
	auditContent
	auditChange
)

// auditKinds has every operation. A call that is refused for its token or its scope is
// recorded whatever its operation is.
var auditKinds = map[string]auditKind{
	"createSandbox": auditChange, "createSandboxWithRuntime": auditChange, "updateSandbox": auditChange, "deleteSandbox": auditChange, "forkSandbox": auditChange,
	"listSandboxes": auditRead,
	"getSandbox":    auditRead, // a change with resume=true

	"createRouteToken": auditChange,

	"createSnapshot": auditChange, "deleteSnapshot": auditChange,
	"listSnapshots": auditRead, "snapshotTree": auditRead, "getSnapshot": auditRead,

	"getOrCreateDrive": auditChange, "forkDrive": auditChange, "deleteDrive": auditChange,
	"listDrives": auditRead, "getDrive": auditRead,

	"stopSession": auditChange, "pauseSession": auditChange, "resumeSession": auditChange, "extendTimeout": auditChange, "setNetworkPolicy": auditChange,
	"listSessions": auditRead, "getSession": auditRead, "listNetworkEvents": auditRead,
	"openInteractive": auditContent, "serveTerminal": auditContent,

	"runCommand": auditChange, "writeStdin": auditChange, "killCommand": auditChange,
	"commandLogs":  auditContent,
	"listCommands": auditRead, "getCommand": auditRead,

	"writeFiles": auditChange, "makeDir": auditChange,
	"readFile": auditContent,

	"createTeam": auditChange, "updateTeam": auditChange, "deleteTeam": auditChange,
	"createProject": auditChange, "updateProject": auditChange, "deleteProject": auditChange,
	"addMember": auditChange, "updateMember": auditChange, "removeMember": auditChange,
	"createToken": auditChange, "revokeToken": auditChange, "createDevelopmentToken": auditChange,
	"getUser": auditRead, "listTeams": auditRead, "getTeam": auditRead, "listProjects": auditRead, "getProject": auditRead,
	"listMembers": auditRead, "listTokens": auditRead, "getQuotas": auditRead,

	"health": auditNothing, "healthz": auditNothing, "openapi": auditNothing, "jwks": auditNothing, "openidConfiguration": auditNothing,
}

// auditTargets are the kinds of what the names in paths stand for, and whether they are
// names and not ids.
var auditTargets = map[string]struct {
	kind  string
	named bool
}{
	"name": {audit.TargetSandbox, true}, "session": {audit.TargetSession, false}, "command": {audit.TargetCommand, false},
	"snapshot": {audit.TargetSnapshot, false}, "drive": {audit.TargetDrive, true},
	"port": {audit.TargetPort, true}, "team": {audit.TargetTeam, false}, "project": {audit.TargetProject, false},
	"user": {audit.TargetMember, false}, "token": {audit.TargetToken, false},
}

// act is what a call does, for the audit log. A nil act records nothing. It belongs to
// the goroutine of the handler.
type act struct {
	c       *call
	rt      *route
	kind    auditKind
	started time.Time
	targets []audit.Target
	program string
	role    string // that was given to a member or a token
	done    bool   // there is a record of the answer
}

// newAct returns the act of a call, nil if there is no audit log.
func (s *Server) newAct(c *call, rt *route, started time.Time) *act {
	if s.audit == nil {
		return nil
	}
	a := &act{c: c, rt: rt, kind: auditKinds[rt.id], started: started}
	switch {
	case rt.id == "":
		a.kind = auditNothing // there is no such route
	case rt.id == "getSandbox" && c.r.URL.Query().Get("resume") != "" && c.r.URL.Query().Get("resume") != "false":
		a.kind = auditChange
	case a.kind == auditUnknown:
		a.kind = auditChange
	}
	c.w.first = a.answered
	return a
}

// mustRecord reports whether the call may not happen without a record.
func (a *act) mustRecord() bool { return a.kind >= auditContent }

// admit refuses the call if it needs a record and the log cannot be written.
func (a *act) admit() error {
	if a == nil || !a.c.srv.auditRequired || !a.mustRecord() {
		return nil
	}
	if a.c.srv.audit.Ready() != nil { // the log itself says why
		return skerry.Errorf(skerry.CodeUnavailable, "the server cannot write its audit log, and does nothing without a record")
	}
	return nil
}

// runs says which program a command runs. Only the name of a file is kept: what is not
// one may have arguments, and so secrets.
func (a *act) runs(program string) {
	if a == nil {
		return
	}
	if program = path.Base(program); programName.MatchString(program) {
		a.program = program
	}
}

var programName = regexp.MustCompile(`^[A-Za-z0-9._+-]{1,64}$`)

// on adds a target.
func (a *act) on(kind, id, name string) {
	if a == nil || id == "" && name == "" {
		return
	}
	for i := range a.targets {
		if t := &a.targets[i]; t.Kind == kind && (t.ID == id && id != "" || t.Name == name && name != "") {
			t.ID, t.Name = firstOf(id, t.ID), firstOf(name, t.Name)
			return
		}
	}
	a.targets = append(a.targets, audit.Target{Kind: kind, ID: id, Name: name})
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// replies adds the targets that a response names.
func (a *act) replies(v any) {
	if a == nil {
		return
	}
	sandbox, session := "", ""
	switch v := v.(type) {
	case runResponse:
		sandbox, session = v.Sandbox.Name, v.Session.ID
	case stopResponse:
		sandbox, session = v.Sandbox.Name, v.Session.ID
		if v.Snapshot != nil {
			a.on(audit.TargetSnapshot, v.Snapshot.ID, "")
		}
	case createSnapshotResponse:
		a.on(audit.TargetSnapshot, v.Snapshot.ID, "")
	case commandResponse:
		a.on(audit.TargetCommand, v.Command.ID, "")
	case driveResponse:
		a.on(audit.TargetDrive, v.Drive.ID, v.Drive.Name)
	case *skerry.Project:
		a.on(audit.TargetProject, v.ID, v.Name)
	case teamView:
		a.on(audit.TargetTeam, v.ID, v.Slug)
	case memberResponse:
		a.role = string(v.Member.Role)
		a.on(audit.TargetMember, v.Member.User.ID, v.Member.User.Name)
	case tokenResponse:
		a.on(audit.TargetToken, v.Token.ID, v.Token.Name)
	case createTokenResponse:
		a.role = string(v.Token.Role)
		a.on(audit.TargetToken, v.Token.ID, v.Token.Name)
	}
	if sandbox != "" {
		a.on(audit.TargetSandbox, "", sandbox)
		a.on(audit.TargetSession, session, "")
		a.c.srv.auditNames.learn(a.c.scope.ProjectID+session, sandbox)
	}
}

// answered records the call when its answer begins, so that nobody has an answer whose
// record is not written.
func (a *act) answered(status int) {
	if a.done {
		return
	}
	a.done = true
	refused := status == http.StatusUnauthorized || status == http.StatusForbidden
	if !refused && (a.kind == auditNothing || a.kind == auditRead && !a.c.srv.auditReads) {
		return
	}
	phase := ""
	if status == http.StatusSwitchingProtocols {
		phase = audit.PhaseOpened
	}
	e := a.event(status, phase)
	e.Refused = refused
	_ = a.c.srv.audit.Record(e, a.mustRecord() && !refused) // the log itself complains
}

// end records what has had no answer, and the end of a terminal.
func (a *act) end() {
	switch {
	case a == nil:
	case !a.done:
		a.answered(a.c.w.status)
	case a.c.w.status == http.StatusSwitchingProtocols:
		_ = a.c.srv.audit.Record(a.event(http.StatusSwitchingProtocols, audit.PhaseClosed), false)
	}
}

func (a *act) event(status int, phase string) audit.Event {
	c := a.c
	a.aim()
	if c.identity != nil && status != http.StatusForbidden {
		a.nameSandbox()
	}
	e := audit.Event{
		Time: a.started, RequestID: c.requestID, Operation: a.rt.id, Phase: phase, Targets: slices.Clone(a.targets), Role: a.role, Program: a.program,
		UserAgent: c.r.UserAgent(), Status: status, Code: string(c.code), Took: time.Since(a.started),
	}
	e.Remote, e.Via = c.remote()
	if id := c.identity; id != nil {
		e.Actor, e.Team, e.Project = actorOf(id), c.scope.TeamID, c.scope.ProjectID
		if g := id.Grant(""); e.Team == "" && g != nil { // refused for the scope that it named
			e.Team = g.Team.ID
			if g.Project != nil {
				e.Project = g.Project.ID
			}
		}
	}
	e.UserAgent = c.redact(e.UserAgent)
	for i := range e.Targets {
		e.Targets[i].ID, e.Targets[i].Name = c.redact(e.Targets[i].ID), c.redact(e.Targets[i].Name)
	}
	return e
}

// aim puts what the path names before the other targets.
func (a *act) aim() {
	others := a.targets
	a.targets = nil
	for _, name := range a.rt.pathNames() {
		if t := auditTargets[name]; t.named {
			a.on(t.kind, "", a.c.path(name))
		} else {
			a.on(t.kind, a.c.path(name), "")
		}
	}
	for _, t := range others {
		a.on(t.Kind, t.ID, t.Name)
	}
}

// actorOf returns who an identity is.
func actorOf(id *skerry.Identity) audit.Actor {
	switch {
	case id.User != nil:
		return audit.Actor{Kind: audit.ActorUser, ID: id.User.ID, Name: id.User.Name, Token: id.TokenID, Development: id.Development}
	case id.Rule != "":
		return audit.Actor{Kind: audit.ActorOIDC, ID: id.TokenID, Name: id.TokenName}
	}
	return audit.Actor{Kind: audit.ActorToken, ID: id.TokenID, Name: id.TokenName, Development: id.Development}
}

// nameTimeout limits the search for the sandbox of a session.
const nameTimeout = time.Second

// nameSandbox adds the sandbox of the session in the path, if it is one of the caller's,
// and puts it first.
func (a *act) nameSandbox() {
	if len(a.targets) == 0 || a.targets[0].Kind != audit.TargetSession {
		return
	}
	if i := slices.IndexFunc(a.targets, func(t audit.Target) bool { return t.Kind == audit.TargetSandbox }); i > 0 {
		sandbox := a.targets[i]
		a.targets = slices.Insert(slices.Delete(a.targets, i, i+1), 0, sandbox)
		return
	}
	session := a.targets[0].ID
	names := &a.c.srv.auditNames
	name, known := names.find(a.c.scope.ProjectID + session)
	if !known {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(a.c.r.Context()), nameTimeout)
		defer cancel()
		run, err := a.c.srv.service.GetSession(ctx, a.c.scope, session)
		if err != nil || run == nil {
			return // the record has the session's id
		}
		name = run.Sandbox.Name
		names.learn(a.c.scope.ProjectID+session, name)
	}
	a.targets = slices.Insert(a.targets, 0, audit.Target{Kind: audit.TargetSandbox, Name: name})
}

// sessionNames are the names of the sandboxes of sessions, which never change. The keys are
// of a project and a session, as a caller may name the session of another project.
type sessionNames struct {
	mu sync.Mutex
	by map[string]string
}

// maxSessionNames limits them; at the limit they are forgotten.
const maxSessionNames = 8192

func (n *sessionNames) find(session string) (name string, known bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	name, known = n.by[session]
	return name, known
}

func (n *sessionNames) learn(session, name string) {
	if session == "" || name == "" {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.by == nil || len(n.by) >= maxSessionNames {
		n.by = map[string]string{}
	}
	n.by[session] = name
}

// remote returns the address of the client. Behind a trusted proxy it is the last one in
// X-Forwarded-For, which that proxy has added, and via is the proxy's own.
func (c *call) remote() (remote, via string) {
	remote = c.r.RemoteAddr
	if a, err := netip.ParseAddrPort(remote); err == nil {
		remote = a.Addr().Unmap().String()
	}
	if !c.srv.trustForwarded {
		return remote, ""
	}
	given := c.r.Header.Values("X-Forwarded-For")
	if len(given) == 0 {
		return remote, ""
	}
	last := given[len(given)-1]
	last = strings.TrimSpace(last[strings.LastIndexByte(last, ',')+1:])
	if a, err := netip.ParseAddr(last); err == nil {
		return a.Unmap().String(), remote
	}
	if a, err := netip.ParseAddrPort(last); err == nil {
		return a.Addr().Unmap().String(), remote
	}
	return remote, ""
}

// redact removes credentials from a string of the request: a client may have put one
// where a name belongs.
func (c *call) redact(s string) string {
	if len(s) < 8 {
		return s
	}
	s = audit.Redact(s)
	_, bearer, _ := strings.Cut(c.r.Header.Get("Authorization"), " ")
	for _, secret := range []string{strings.TrimSpace(bearer), c.r.URL.Query().Get("token")} {
		if len(secret) >= 8 {
			s = strings.ReplaceAll(s, secret, audit.Redacted)
		}
	}
	return s
}
