package api

import (
	"net/http"
	"regexp"
	"strings"

	"github.com/skerry-dev/skerry"
)

// route is one endpoint: what is registered, and what the OpenAPI document
// says of it.
type route struct {
	method string
	path   string // as documented, with {names}
	// mux is registered instead of path where that would be ambiguous to
	// http.ServeMux.
	mux     string
	id      string // operationId
	summary string
	detail  string // what the summary leaves out
	// public routes take no access token.
	public bool
	// query and request are zero values of the types that are bound.
	query       any
	request     any
	requestType string // of a body that is not JSON
	headers     map[string]string
	// response is the zero value of the answer's type. lines are the types
	// of the lines of a stream.
	status int // http.StatusOK if zero
	// creates is for a call that answers http.StatusCreated if it made what it
	// answers with, and the status otherwise.
	creates      bool
	response     any
	responseType string // of an answer that is not JSON
	lines        []any
	errors       []skerry.Code
	handle       func(*call) error
}

func (rt *route) muxPath() string {
	if rt.mux != "" {
		return rt.mux
	}
	return rt.path
}

var pathName = regexp.MustCompile(`\{(\w+)\}`)

func (rt *route) pathNames() (names []string) {
	for _, m := range pathName.FindAllStringSubmatch(rt.path, -1) {
		names = append(names, m[1])
	}
	return names
}

const (
	sandboxesPath = "/v2/sandboxes"
	sandboxPath   = sandboxesPath + "/{name}"
	sessionsPath  = sandboxesPath + "/sessions"
	snapshotsPath = sandboxesPath + "/snapshots"
	drivesPath    = sandboxesPath + "/drives"
	sessionPath   = sessionsPath + "/{session}"
	commandPath   = sessionPath + "/cmd/{command}"
	// anyAction ends the pattern that stands in for "/fork", and is no route
	// for anything else.
	anyAction = "/{action}"
)

// Codes that calls of a kind share.
var (
	sessionErrors = []skerry.Code{
		skerry.CodeNotFound, skerry.CodeSandboxStopped, skerry.CodeSandboxStopping, skerry.CodeSandboxSnapshotting,
		skerry.CodeRateLimited, skerry.CodeUnavailable,
	}
	createErrors = []skerry.Code{
		skerry.CodeConflict, skerry.CodeNotImplemented, skerry.CodeTimeoutInvalid, skerry.CodeImageInvalid,
		skerry.CodeSourceFailed, skerry.CodeRateLimited, skerry.CodeUnavailable, skerry.CodeTooLarge,
		skerry.CodeNotFound, skerry.CodeSnapshotNotFound, skerry.CodeSnapshotIncompatible, skerry.CodeDiskFull,
	}
)

// routes is every endpoint of the server.
func (s *Server) routes() []route {
	var all []route
	for _, part := range [][]route{
		s.sandboxRoutes(), s.portRoutes(), s.snapshotRoutes(), s.driveRoutes(), s.sessionRoutes(), s.commandRoutes(), s.fileRoutes(),
		s.scopeRoutes(), s.ownRoutes(),
	} {
		all = append(all, part...)
	}
	return all
}

func (s *Server) sandboxRoutes() []route {
	create := func(path, id, summary string) route {
		return route{
			method: http.MethodPost, path: path, id: id, summary: summary, request: createRequest{},
			response: runResponse{}, errors: createErrors, handle: s.createSandbox,
		}
	}
	return []route{
		create("/v3/sandboxes", "createSandbox", "Create a sandbox and start a session in it"),
		create(sandboxesPath, "createSandboxWithRuntime", "Create a sandbox and start a session in it"),
		{
			method: http.MethodGet, path: sandboxesPath, id: "listSandboxes", summary: "List sandboxes",
			query: listSandboxesQuery{}, response: sandboxesResponse{}, handle: s.listSandboxes,
		},
		{
			method: http.MethodGet, path: sandboxPath, id: "getSandbox", summary: "Get a sandbox, and resume it if asked to",
			query: getSandboxQuery{}, response: runResponse{}, handle: s.getSandbox,
			detail: "With resume, a stop in progress is waited for and a new session is started, which can fail as in creating a sandbox. " +
				"The answer comes once commands can run.",
			errors: []skerry.Code{
				skerry.CodeNotFound, skerry.CodeSnapshotNotFound, skerry.CodeSnapshotIncompatible, skerry.CodeUnavailable, skerry.CodeImageInvalid,
				skerry.CodeSourceFailed, skerry.CodeRateLimited, skerry.CodeDiskFull,
			},
		},
		{
			method: http.MethodPatch, path: sandboxPath, id: "updateSandbox", summary: "Change a sandbox's configuration",
			request: updateRequest{}, response: sandboxResponse{}, handle: s.updateSandbox,
			errors: []skerry.Code{skerry.CodeNotFound, skerry.CodeSnapshotNotFound, skerry.CodeNotImplemented, skerry.CodeTimeoutInvalid, skerry.CodeTooLarge},
		},
		{
			method: http.MethodDelete, path: sandboxPath, id: "deleteSandbox", summary: "Stop a sandbox and remove its name",
			query: deleteSandboxQuery{}, response: sandboxResponse{}, handle: s.deleteSandbox,
			errors: []skerry.Code{skerry.CodeNotFound},
		},
	}
}

func (s *Server) snapshotRoutes() []route {
	one := snapshotsPath + "/{snapshot}"
	return []route{
		{
			// "/{name}/fork" and "/drives/{drive}" both match "/drives/fork".
			method: http.MethodPost, path: sandboxPath + "/fork", mux: sandboxPath + anyAction, id: "forkSandbox",
			summary: "Create a sandbox with another's configuration and files", request: forkRequest{}, response: runResponse{},
			handle: s.forkSandbox, errors: createErrors,
		},
		{
			method: http.MethodPost, path: sessionPath + "/snapshot", id: "createSnapshot", summary: "Save a session's files, and what it runs if asked to, and stop it",
			request: snapshotRequest{}, response: createSnapshotResponse{}, handle: s.createSnapshot,
			errors: append([]skerry.Code{skerry.CodeNotImplemented, skerry.CodeDiskFull, skerry.CodeConflict}, sessionErrors...),
		},
		{
			method: http.MethodGet, path: snapshotsPath, id: "listSnapshots", summary: "List snapshots that are not deleted",
			query: listSnapshotsQuery{}, response: snapshotsResponse{}, handle: s.listSnapshots,
		},
		{
			method: http.MethodGet, path: snapshotsPath + "/tree", id: "snapshotTree", summary: "Walk the ancestry of a snapshot",
			query: treeQuery{}, response: treeResponse{}, handle: s.snapshotTree, errors: []skerry.Code{skerry.CodeNotFound},
		},
		{
			method: http.MethodGet, path: one, id: "getSnapshot", summary: "Get a snapshot, a deleted one too",
			response: snapshotResponse{}, handle: s.getSnapshot, errors: []skerry.Code{skerry.CodeNotFound},
		},
		{
			method: http.MethodDelete, path: one, id: "deleteSnapshot", summary: "Delete a snapshot",
			response: snapshotResponse{}, handle: s.deleteSnapshot, errors: []skerry.Code{skerry.CodeNotFound},
		},
	}
}

func (s *Server) sessionRoutes() []route {
	return []route{
		{
			method: http.MethodGet, path: sessionsPath, id: "listSessions", summary: "List sessions",
			query: listSessionsQuery{}, response: sessionsResponse{}, handle: s.listSessions,
			errors: []skerry.Code{skerry.CodeNotFound},
		},
		{
			method: http.MethodGet, path: sessionPath, id: "getSession", summary: "Get a session",
			response: sessionResponse{}, handle: s.getSession, errors: []skerry.Code{skerry.CodeNotFound},
		},
		{
			method: http.MethodPost, path: sessionPath + "/stop", id: "stopSession", summary: "Stop a session; answers once it has stopped",
			response: stopResponse{}, handle: s.stopSession, errors: []skerry.Code{skerry.CodeNotFound, skerry.CodeDiskFull},
		},
		{
			method: http.MethodPost, path: sessionPath + "/pause", id: "pauseSession", summary: "Pause a session: it uses no CPU until it is resumed",
			response: pauseResponse{}, handle: s.pauseSession, errors: sessionErrors,
			detail: "An addition to the public API. Its status stays running, with pausedAt; its timeout goes on. It is resumed by the call resume, " +
				"by every call that needs what is in it (commands, files, terminals, signals), and by getSandbox with resume=true; what only reads " +
				"what is known of it does not resume it. To pause a paused one is no error.",
		},
		{
			method: http.MethodPost, path: sessionPath + "/resume", id: "resumeSession", summary: "Let a paused session go on",
			response: pauseResponse{}, handle: s.resumeSession, errors: sessionErrors,
			detail: "An addition to the public API. To resume one that is not paused is no error.",
		},
		{
			method: http.MethodPost, path: sessionPath + "/extend-timeout", id: "extendTimeout", summary: "Let a session live longer",
			request: extendRequest{}, response: extendResponse{}, handle: s.extendTimeout,
			errors: append([]skerry.Code{skerry.CodeTimeoutInvalid}, sessionErrors...),
		},
		{
			method: http.MethodPost, path: sessionPath + "/network-policy", id: "setNetworkPolicy", summary: "Change what a running session may reach",
			request: policyRequest{}, response: pauseResponse{}, handle: s.setNetworkPolicy, errors: sessionErrors,
			detail: "It is enforced when the answer comes: connections that the new policy forbids are cut, the others kept. The sandbox's own policy, which later sessions start with, stays as it is: see updateSandbox.",
		},
		{
			method: http.MethodGet, path: sessionPath + "/network-events", id: "listNetworkEvents", summary: "What the proxy has allowed and denied",
			query: networkEventsQuery{}, response: networkEventsResponse{}, handle: s.listNetworkEvents, errors: []skerry.Code{skerry.CodeNotFound},
			detail: "An addition to the public API. The newest decisions about connections, requests and queries that a custom policy has judged by domains, the oldest first; also after the session has ended. What is denied by address alone is not among them.",
		},
		{
			method: http.MethodPost, path: sessionPath + "/interactive", id: "openInteractive", summary: "Ask for a terminal",
			response: interactiveResponse{}, handle: s.openInteractive,
			errors: sessionErrors,
			detail: "The token is good once, for 60 seconds. A project may have 500 that were not used.",
		},
		{
			method: http.MethodGet, path: sessionPath + "/interactive", id: "serveTerminal", summary: "Open a terminal: a WebSocket",
			public: true, query: terminalQuery{}, status: http.StatusSwitchingProtocols, handle: s.serveTerminal,
			errors: []skerry.Code{skerry.CodeUnauthorized, skerry.CodeRateLimited},
			detail: "The first frame is text, within 15 seconds: " +
				`{"type":"start","command":"…","args":[],"env":["NAME=value"],"cwd":"…","cols":80,"rows":24}. ` +
				"Then binary frames are what is typed and what the terminal shows, and a text frame " +
				`{"type":"resize","cols":…,"rows":…} tells a new size. The server ends with {"type":"exit","code":…}, ` +
				`before it {"type":"error","code":"…","message":"…"} if it was not the command that ended. ` +
				"A frame of a client has 1 MiB at most.",
		},
	}
}

func (s *Server) commandRoutes() []route {
	return []route{
		{
			method: http.MethodPost, path: sessionPath + "/cmd", id: "runCommand", summary: "Run a command",
			request: runRequest{}, response: commandResponse{}, handle: s.runCommand,
			lines: []any{commandResponse{}, logLine{}, errorLine{}},
			detail: "With wait, the answer is a stream: the command, with logs what it writes as it writes it, and the command again when it " +
				"has ended. It has exit code 127 if there is no such program, 126 if it cannot be run, and 128 and the signal's number " +
				"if a signal ended it. Closing the connection does not end the command.",
			errors: append([]skerry.Code{skerry.CodeNotImplemented, skerry.CodeTooLarge}, sessionErrors...),
		},
		{
			method: http.MethodGet, path: sessionPath + "/cmd", id: "listCommands", summary: "List the commands of a session",
			response: commandsResponse{}, handle: s.listCommands, errors: []skerry.Code{skerry.CodeNotFound},
		},
		{
			method: http.MethodGet, path: commandPath, id: "getCommand", summary: "Get a command, and wait for its end if asked to",
			query: getCommandQuery{}, response: commandResponse{}, handle: s.getCommand,
			errors: []skerry.Code{skerry.CodeNotFound, skerry.CodeSandboxStopped, skerry.CodeRateLimited, skerry.CodeUnavailable},
		},
		{
			method: http.MethodGet, path: commandPath + "/logs", id: "commandLogs", summary: "Follow the output of a command from its start",
			lines: []any{logLine{}, errorLine{}}, handle: s.commandLogs,
			errors: []skerry.Code{skerry.CodeNotFound, skerry.CodeSandboxStopped, skerry.CodeRateLimited, skerry.CodeUnavailable},
			detail: "What is kept of a command's output is bounded: the newest 16 MiB of each command by default, and of all commands of a session 512 MiB, the oldest of those that have ended going first. It is kept for as long as the session is listed.",
		},
		{
			method: http.MethodPost, path: commandPath + "/stdin", id: "writeStdin", summary: "Write to a command's standard input",
			detail: "Of a command that was started with attachStdin. A call waits up to 10 s for the command to read on, and is then answered with command_stdin_timeout " +
				"and the number of bytes that were taken; repeat it with the same offset. A restart of the server ends the input.",
			request: stdinRequest{}, response: stdinResponse{}, handle: s.writeStdin,
			errors: append([]skerry.Code{skerry.CodeStdinUnavailable, skerry.CodeStdinTimeout}, sessionErrors...),
		},
		{
			method: http.MethodPost, path: commandPath + "/kill", id: "killCommand", summary: "Send a signal to a command",
			request: killRequest{}, response: commandResponse{}, handle: s.killCommand, errors: sessionErrors,
		},
	}
}

func (s *Server) fileRoutes() []route {
	fileErrors := append([]skerry.Code{skerry.CodeDiskFull, skerry.CodeTooLarge}, sessionErrors...)
	return []route{
		{
			method: http.MethodPost, path: sessionPath + "/fs/write", id: "writeFiles", summary: "Unpack a tar archive, gzipped or not",
			requestType: "application/gzip", response: emptyResponse{}, handle: s.writeFiles, errors: fileErrors,
			headers: map[string]string{"x-cwd": "Directory to unpack in; /vercel/sandbox by default."},
		},
		{
			method: http.MethodPost, path: sessionPath + "/fs/read", id: "readFile", summary: "Read a file",
			request: readRequest{}, responseType: "application/octet-stream", handle: s.readFile, errors: sessionErrors,
		},
		{
			method: http.MethodPost, path: sessionPath + "/fs/mkdir", id: "makeDir", summary: "Make a directory",
			request: mkdirRequest{}, response: emptyResponse{}, handle: s.makeDir,
			errors: append([]skerry.Code{skerry.CodeConflict}, fileErrors...),
		},
	}
}

func (s *Server) scopeRoutes() []route {
	return []route{
		{method: http.MethodGet, path: "/v2/user", id: "getUser", summary: "Whose token it is", response: userResponse{}, handle: s.getUser},
		{method: http.MethodGet, path: "/v2/teams", id: "listTeams", summary: "List teams: the token's own", response: teamsResponse{}, handle: s.listTeams},
		{method: http.MethodGet, path: "/v2/teams/{team}", id: "getTeam", summary: "Get the token's own team by id or slug", response: teamView{}, handle: s.getTeam},
		{
			method: http.MethodGet, path: "/v2/projects/{project}", id: "getProject", summary: "Get the token's own project by id or name",
			response: skerry.Project{}, handle: s.getProject, errors: []skerry.Code{skerry.CodeNotFound},
		},
		{
			method: http.MethodPost, path: "/v11/projects", id: "createProject", summary: "Get the token's own project under its default name",
			request: projectRequest{}, response: skerry.Project{}, handle: s.createProject,
		},
	}
}

// ownRoutes are about the server, not about anyone's sandboxes, and need no
// token. The public clients ask /health before they open a terminal.
func (s *Server) ownRoutes() []route {
	health := func(c *call) error { return c.reply(statusResponse{Status: "ok"}) }
	return append(s.discoveryRoutes(), []route{
		{method: http.MethodGet, path: "/health", id: "health", summary: "Whether the server answers", public: true, response: statusResponse{}, handle: health},
		{method: http.MethodGet, path: "/healthz", id: "healthz", summary: "Whether the server answers", public: true, response: statusResponse{}, handle: health},
		{method: http.MethodGet, path: "/openapi.json", id: "openapi", summary: "This document", public: true, response: documentResponse{}, handle: s.openAPI},
	}...)
}

// discoveryRoutes are what it takes to verify tokens of this server.
func (s *Server) discoveryRoutes() []route {
	if s.discovery == nil {
		return nil
	}
	serve := func(c *call) error {
		r := c.r.Clone(c.r.Context())
		r.URL.Path = strings.TrimPrefix(r.URL.Path, apiPrefix)
		s.discovery.ServeHTTP(c.w, r)
		return nil
	}
	return []route{
		{method: http.MethodGet, path: "/.well-known/jwks", id: "jwks", summary: "The keys that sign the tokens of forwarded requests", public: true, response: documentResponse{}, handle: serve},
		{method: http.MethodGet, path: "/.well-known/openid-configuration", id: "openidConfiguration", summary: "Who signs the tokens of forwarded requests", public: true, response: documentResponse{}, handle: serve},
	}
}

// unbuiltTrees are the beginnings of paths that public clients may call and of
// which this version has nothing.
var unbuiltTrees = map[string]string{
	"/v1/sandboxes":                     "version 1 of the API",
	"/.well-known/openid-configuration": "logging in with OAuth",
}
