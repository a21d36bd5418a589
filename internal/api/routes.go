package api

import (
	"net/http"
	"regexp"
	"strings"

	"github.com/skerry-dev/skerry"
)

// route is an endpoint, with its description in the OpenAPI document.
type route struct {
	method string
	path   string // as documented, with {names}
	// mux is registered instead of path if path is ambiguous for http.ServeMux.
	mux     string
	id      string // operationId
	summary string
	detail  string // description after the summary
	// public routes need no access token.
	public bool
	// role is what the caller needs; see needs.
	role skerry.Role
	// accounts is set for calls about teams and what they have, not about what is in a project.
	accounts bool
	// teamless calls need no team, if the caller has several.
	teamless bool
	// query and request are zero values of the types of the query and the body.
	query       any
	request     any
	requestType string // of a body that is not JSON
	headers     map[string]string
	// response is a zero value of the type of the response. lines are zero values of the
	// types of a stream's lines.
	status int // http.StatusOK if zero
	// creates is set if the call responds with http.StatusCreated when it has created
	// something, and otherwise with status.
	creates      bool
	response     any
	responseType string // of a response that is not JSON
	lines        []any
	errors       []skerry.Code
	handle       func(*call) error
}

// answersDocument reports whether the response is one JSON document, and the handler has
// read all of the request before it waits.
func (rt *route) answersDocument() bool {
	return rt.response != nil && rt.lines == nil && rt.requestType == "" && !rt.public
}

// needs returns the role that a call needs: RoleViewer to read, RoleDeveloper for all else,
// unless the route says another.
func (rt *route) needs() skerry.Role {
	switch {
	case rt.role != "":
		return rt.role
	case rt.method == http.MethodGet:
		return skerry.RoleViewer
	}
	return skerry.RoleDeveloper
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
	// anyAction is the end of the pattern that is registered for "/fork". No other action
	// is a route.
	anyAction = "/{action}"
)

// Codes that similar calls have in common.
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

// routes returns all endpoints of the server.
func (s *Server) routes() []route {
	var all []route
	for _, part := range [][]route{
		s.sandboxRoutes(), s.portRoutes(), s.snapshotRoutes(), s.driveRoutes(), s.sessionRoutes(), s.commandRoutes(), s.fileRoutes(),
		s.accountRoutes(), s.quotaRoutes(), s.ownRoutes(),
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
			method: http.MethodGet, path: sandboxPath, id: "getSandbox", summary: "Get a sandbox, and optionally resume it",
			query: getSandboxQuery{}, response: runResponse{}, handle: s.getSandbox,
			detail: "With resume=true the call waits for a stop in progress and then starts a new session. The start can fail with the same errors as createSandbox. " +
				"The response is sent as soon as commands can run.",
			errors: []skerry.Code{
				skerry.CodeNotFound, skerry.CodeSnapshotNotFound, skerry.CodeSnapshotIncompatible, skerry.CodeUnavailable, skerry.CodeImageInvalid,
				skerry.CodeSourceFailed, skerry.CodeRateLimited, skerry.CodeDiskFull,
			},
		},
		{
			method: http.MethodPatch, path: sandboxPath, id: "updateSandbox", summary: "Change the configuration of a sandbox",
			request: updateRequest{}, response: sandboxResponse{}, handle: s.updateSandbox,
			errors: []skerry.Code{skerry.CodeNotFound, skerry.CodeSnapshotNotFound, skerry.CodeNotImplemented, skerry.CodeTimeoutInvalid, skerry.CodeTooLarge},
		},
		{
			method: http.MethodDelete, path: sandboxPath, id: "deleteSandbox", summary: "Stop and delete a sandbox",
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
			summary: "Create a sandbox with the configuration and files of another one", request: forkRequest{}, response: runResponse{},
			handle: s.forkSandbox, errors: createErrors,
		},
		{
			method: http.MethodPost, path: sessionPath + "/snapshot", id: "createSnapshot", summary: "Save the files of a session, optionally with its memory, and stop it",
			request: snapshotRequest{}, response: createSnapshotResponse{}, handle: s.createSnapshot,
			errors: append([]skerry.Code{skerry.CodeNotImplemented, skerry.CodeDiskFull, skerry.CodeConflict}, sessionErrors...),
		},
		{
			method: http.MethodGet, path: snapshotsPath, id: "listSnapshots", summary: "List snapshots",
			query: listSnapshotsQuery{}, response: snapshotsResponse{}, handle: s.listSnapshots,
		},
		{
			method: http.MethodGet, path: snapshotsPath + "/tree", id: "snapshotTree", summary: "List the ancestors or descendants of a snapshot",
			query: treeQuery{}, response: treeResponse{}, handle: s.snapshotTree, errors: []skerry.Code{skerry.CodeNotFound},
		},
		{
			method: http.MethodGet, path: one, id: "getSnapshot", summary: "Get a snapshot, also a deleted one",
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
			method: http.MethodPost, path: sessionPath + "/stop", id: "stopSession", summary: "Stop a session, and wait until it has stopped",
			query: stopQuery{}, response: stopResponse{}, handle: s.stopSession,
			errors: []skerry.Code{skerry.CodeNotFound, skerry.CodeDiskFull, skerry.CodeSandboxUnsavable, skerry.CodeUnavailable},
			detail: "A persistent sandbox is saved first. If the save fails, the session continues until its timeout or a forced stop. " +
				"A session that cannot be saved at its timeout ends after a grace period that the server sets. Its reason then says so.",
		},
		{
			method: http.MethodPost, path: sessionPath + "/pause", id: "pauseSession", summary: "Pause a session, so that it uses no CPU until it is resumed",
			response: pauseResponse{}, handle: s.pauseSession, errors: sessionErrors,
			detail: "An addition to the public API. The status stays running, and pausedAt is set. The timeout keeps running. The session is resumed by resumeSession, " +
				"by getSandbox with resume=true, and by every call that needs the running sandbox (commands, files, terminals, signals). Calls that only read " +
				"stored information do not resume it. Pausing a paused session is not an error.",
		},
		{
			method: http.MethodPost, path: sessionPath + "/resume", id: "resumeSession", summary: "Resume a paused session",
			response: pauseResponse{}, handle: s.resumeSession, errors: sessionErrors,
			detail: "An addition to the public API. Resuming a session that is not paused is not an error.",
		},
		{
			method: http.MethodPost, path: sessionPath + "/extend-timeout", id: "extendTimeout", summary: "Extend the timeout of a session",
			request: extendRequest{}, response: extendResponse{}, handle: s.extendTimeout,
			errors: append([]skerry.Code{skerry.CodeTimeoutInvalid}, sessionErrors...),
		},
		{
			method: http.MethodPost, path: sessionPath + "/network-policy", id: "setNetworkPolicy", summary: "Change the network policy of a running session",
			request: policyRequest{}, response: pauseResponse{}, handle: s.setNetworkPolicy, errors: sessionErrors,
			detail: "The policy is enforced before the response is sent. Connections that it forbids are closed, and others continue. The policy of the sandbox, which later sessions start with, does not change; use updateSandbox to change it.",
		},
		{
			method: http.MethodGet, path: sessionPath + "/network-events", id: "listNetworkEvents", summary: "List what the network policy allowed and denied",
			query: networkEventsQuery{}, response: networkEventsResponse{}, handle: s.listNetworkEvents, errors: []skerry.Code{skerry.CodeNotFound},
			detail: "An addition to the public API. The newest events, oldest first: the proxy's decisions about connections, requests and DNS queries under a custom policy, and packets that were denied by their address. They stay available after the session has ended.",
		},
		{
			method: http.MethodPost, path: sessionPath + "/interactive", id: "openInteractive", summary: "Get a token for a terminal",
			response: interactiveResponse{}, handle: s.openInteractive,
			errors: sessionErrors,
			detail: "The token can be used once, within 60 seconds. A project may have 500 unused tokens.",
		},
		{
			method: http.MethodGet, path: sessionPath + "/interactive", id: "serveTerminal", summary: "Open a terminal as a WebSocket",
			public: true, query: terminalQuery{}, status: http.StatusSwitchingProtocols, handle: s.serveTerminal,
			errors: []skerry.Code{skerry.CodeUnauthorized, skerry.CodeRateLimited},
			detail: "The client must send the first frame within 15 seconds. It is a text frame: " +
				`{"type":"start","command":"…","args":[],"env":["NAME=value"],"cwd":"…","cols":80,"rows":24}. ` +
				"After that, binary frames carry the terminal's input and output. The client sends the text frame " +
				`{"type":"resize","cols":…,"rows":…} to change the size. The server's last frame is {"type":"exit","code":…}. ` +
				`If the terminal ended for another reason than the end of the command, {"type":"error","code":"…","message":"…"} comes before it. ` +
				"A frame from a client may have 1 MiB.",
		},
	}
}

func (s *Server) commandRoutes() []route {
	return []route{
		{
			method: http.MethodPost, path: sessionPath + "/cmd", id: "runCommand", summary: "Run a command",
			query: outputQuery{}, request: runRequest{}, response: commandResponse{}, handle: s.runCommand,
			lines: []any{commandResponse{}, logLine{}, errorLine{}},
			detail: "With wait=true the response is a stream: first the command, then (with logs=true) its output as it is written, and at its end the command again. " +
				"The exit code is 126 if the program cannot be run, and 128 plus the signal number " +
				"if a signal ended it. Closing the connection does not end the command.",
			errors: append([]skerry.Code{skerry.CodeNotImplemented, skerry.CodeTooLarge, skerry.CodeExecutableNotFound}, sessionErrors...),
		},
		{
			method: http.MethodGet, path: sessionPath + "/cmd", id: "listCommands", summary: "List the commands of a session",
			query: listCommandsQuery{}, response: commandsResponse{}, handle: s.listCommands,
			errors: []skerry.Code{skerry.CodeNotFound, skerry.CodeUnavailable},
			detail: "All running commands and the newest thousand that have ended. Only the first 8 KiB of a command's name and arguments are kept; argsTruncated is true if there were more.",
		},
		{
			method: http.MethodGet, path: commandPath, id: "getCommand", summary: "Get a command, and optionally wait for its end",
			query: getCommandQuery{}, response: commandResponse{}, handle: s.getCommand,
			errors: []skerry.Code{skerry.CodeNotFound, skerry.CodeSandboxStopped, skerry.CodeRateLimited, skerry.CodeUnavailable},
		},
		{
			method: http.MethodGet, path: commandPath + "/logs", id: "commandLogs", summary: "Read the output of a command from its start, and follow it",
			query: logsQuery{}, lines: []any{logLine{}, errorLine{}}, handle: s.commandLogs,
			errors: []skerry.Code{skerry.CodeNotFound, skerry.CodeSandboxStopped, skerry.CodeRateLimited, skerry.CodeUnavailable},
			detail: "The server keeps a limited amount of output: by default the newest 16 MiB of each command, and 512 MiB of all commands of a session. Beyond that, the oldest output of ended commands is removed first. Output is kept as long as the session is listed.",
		},
		{
			method: http.MethodPost, path: commandPath + "/stdin", id: "writeStdin", summary: "Write to a command's standard input",
			detail: "The command must have been started with attachStdin. If the command does not read its input for 10 s, the call fails with command_stdin_timeout " +
				"and the total number of bytes that were written; repeat the call with the same offset. A restart of the server closes the input.",
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
			method: http.MethodPost, path: sessionPath + "/fs/write", id: "writeFiles", summary: "Upload files as a tar archive, gzipped or not",
			requestType: "application/gzip", response: emptyResponse{}, handle: s.writeFiles, errors: fileErrors,
			headers: map[string]string{"x-cwd": "Directory to unpack the archive in; /vercel/sandbox by default."},
		},
		{
			method: http.MethodPost, path: sessionPath + "/fs/read", id: "readFile", summary: "Read a file",
			request: readRequest{}, responseType: "application/octet-stream", handle: s.readFile, errors: sessionErrors,
		},
		{
			method: http.MethodPost, path: sessionPath + "/fs/mkdir", id: "makeDir", summary: "Create a directory",
			request: mkdirRequest{}, response: emptyResponse{}, handle: s.makeDir,
			errors: append([]skerry.Code{skerry.CodeConflict}, fileErrors...),
		},
	}
}

// ownRoutes are about the server itself, and need no token. The public clients call
// /health before they open a terminal.
func (s *Server) ownRoutes() []route {
	health := func(c *call) error { return c.reply(statusResponse{Status: "ok"}) }
	return append(s.discoveryRoutes(), []route{
		{method: http.MethodGet, path: "/health", id: "health", summary: "Check that the server answers", public: true, response: statusResponse{}, handle: health},
		{method: http.MethodGet, path: "/healthz", id: "healthz", summary: "Check that the server answers", public: true, response: statusResponse{}, handle: health},
		{method: http.MethodGet, path: "/openapi.json", id: "openapi", summary: "Get this document", public: true, response: documentResponse{}, handle: s.openAPI},
	}...)
}

// discoveryRoutes are for those who verify tokens of this server.
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
		{method: http.MethodGet, path: "/.well-known/jwks", id: "jwks", summary: "Get the keys that verify the tokens of this server", public: true, response: documentResponse{}, handle: serve},
		{method: http.MethodGet, path: "/.well-known/openid-configuration", id: "openidConfiguration", summary: "Get the issuer of the tokens of this server", public: true, response: documentResponse{}, handle: serve},
	}
}

// unbuiltTrees are prefixes of paths that public clients may call, and that this version
// does not support.
var unbuiltTrees = map[string]string{
	"/v1/sandboxes":                     "version 1 of the API",
	"/.well-known/openid-configuration": "logging in with OAuth",
}
