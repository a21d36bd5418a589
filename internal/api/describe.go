package api

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/skerry-dev/skerry"
)

// overview is the description of the document, for all calls.
func overview(maxUpload int64, maxOpen int, heartbeat time.Duration) string {
	return fmt.Sprintf(`Sandboxes on your own machines. Times are integers: milliseconds since the Unix epoch. Durations are integers in milliseconds. Memory sizes are in MiB, all other sizes in bytes. Fields that this document does not describe are ignored. A field that is null counts as absent.

Every call except the public ones needs a bearer token. A token is for one project, for all projects of a team, or for what a user may do in their teams, and has a role: viewer (reads), developer (does everything in a project) or owner (also manages projects, members and tokens). The query names the team (teamId or slug; the token's first one by default), the query or the body the project (projectId or project). A team or project that the token is not for is refused with 403, and so is a call that takes another role.

Limits: a JSON body may have %d bytes and %d levels of nesting, and must arrive within %s. All headers together may have %d bytes. An upload may unpack to %d bytes; beyond %d bytes it may unpack to at most %d times its size. %d streams, terminals, uploads and downloads may be open at once, at most half of them with one token and a quarter of them on one session. They are closed within seconds when their token is revoked or expires. A page of a list has from 1 to %d items, %d by default.

A stream that has been silent for %s sends a blank line; ignore it. If a JSON response takes longer than %s, the server starts it with status 200 and white space. An error that happens afterwards is in the body, with its HTTP status next to its code. If the request has the header %s, or waits for the end of a command, the first white space is sent after %s.

Errors have the body {"error":{"code","message","field"?,"requestId"?}}. With 429 and 503 the header Retry-After says when to try again. To recover from 410 sandbox_stopped and 422 sandbox_stopping, resume the sandbox (getSandbox with resume=true). 501 not_implemented names a field or call that this version does not support; do not retry it. Every response has the id of its request in the header X-Request-Id.`,
		maxBody, maxDepth, bodyTimeout, maxHeaderBytes, maxUpload, int64(bombFree), bombRatio, maxOpen,
		skerry.MaxPageSize, skerry.DefaultPageSize, heartbeat, patience*heartbeat, headerHeartbeat, heartbeat)
}

// codes returns all codes of errors.
func codes() []skerry.Code { return slices.Sorted(maps.Keys(statusOf)) }

// codesDoc describes the status of each code.
func codesDoc() string {
	list := make([]string, 0, len(statusOf))
	for _, code := range codes() {
		list = append(list, fmt.Sprintf("%s (%d)", code, statusOf[code]))
	}
	return "Each code has one HTTP status: " + strings.Join(list, ", ") +
		". The exception is a method that the endpoint does not support: bad_request with 405."
}

// statuses are the states of a session in their usual order.
var statuses = []skerry.SessionStatus{
	skerry.StatusPending, skerry.StatusRunning, skerry.StatusSnapshotting, skerry.StatusStopping,
	skerry.StatusStopped, skerry.StatusFailed, skerry.StatusAborted,
}

const statusDoc = "State of the session. failed: it did not start. aborted: it was lost while it ran."

// fieldDocs describe the fields of responses, and add limits to the doc tags of requests.
// The key is the name of the struct and of the field.
var fieldDocs = map[string]string{
	"errorBody.code": codesDoc(),

	"createRequest.name":     nameDoc,
	"forkRequest.name":       nameDoc,
	"forkDriveRequest.name":  nameDoc,
	"createRequest.timeout":  fmt.Sprintf("From %d to %d by default; an installation may allow less.", skerry.MinTimeout.Milliseconds(), skerry.MaxTimeout.Milliseconds()),
	"createRequest.env":      envDoc,
	"createRequest.tags":     tagsDoc,
	"updateRequest.env":      envDoc,
	"updateRequest.tags":     tagsDoc,
	"runRequest.env":         envDoc,
	"runRequest.cwd":         pathDoc,
	"readRequest.path":       pathDoc,
	"readRequest.cwd":        pathDoc,
	"mkdirRequest.path":      pathDoc,
	"mkdirRequest.cwd":       pathDoc,
	"resourcesRequest.vcpus": fmt.Sprintf("A power of two; the default is %d, and the installation sets the maximum.", skerry.DefaultVCPUs),
	"createRequest.mounts":   mountsDoc,
	"updateRequest.mounts":   mountsDoc,
	"forkRequest.mounts":     mountsDoc,
	"sourceRequest.url":      fmt.Sprintf("At most %d bytes. A user name and a password in it are used as username and password.", skerry.MaxSourceURL),
	"sourceRequest.revision": fmt.Sprintf("At most %d bytes.", skerry.MaxRevision),
	"sourceRequest.username": fmt.Sprintf("At most %d bytes.", skerry.MaxCredential),
	"sourceRequest.password": fmt.Sprintf("At most %d bytes.", skerry.MaxCredential),
	"createRequest.image":    imageDoc,
	"forkRequest.image":      imageDoc,
	"forkRequest.env":        envDoc,
	"forkRequest.tags":       tagsDoc,
	"runRequest.args":        fmt.Sprintf("At most %d, with at most %d bytes together with the command.", skerry.MaxArgs, skerry.MaxArgBytes),

	"driveRequest.maxSizeBytes": fmt.Sprintf("At least %d. The default is %d and the maximum %d, unless the installation sets others.",
		skerry.MinDriveSize, skerry.DefaultDriveSize, skerry.MaxDriveSize),

	"extendRequest.duration": "The resulting timeout must not exceed the installation's maximum.",

	"Sandbox.name":                         "Unique in the project.",
	"Sandbox.persistent":                   "Whether the filesystem is kept when a session ends.",
	"Sandbox.region":                       "Region in which it runs.",
	"Sandbox.vcpus":                        "Number of virtual CPUs of the next session.",
	"Sandbox.memory":                       "Memory of the next session, in MiB.",
	"Sandbox.runtime":                      "Runtime of the default image that is first on PATH.",
	"Sandbox.image":                        "Image that it starts from, with its digest; absent for the default image.",
	"Sandbox.timeout":                      "Timeout of the next session, in ms.",
	"Sandbox.tags":                         "Labels for finding the sandbox.",
	"Sandbox.currentSessionId":             "Id of the running session, or of the last one.",
	"Sandbox.statusUpdatedAt":              "Time of the last change of status, in ms since the Unix epoch.",
	"Sandbox.cwd":                          "Working directory.",
	"Sandbox.expiresAt":                    "Time at which the running session times out, in ms since the Unix epoch.",
	"Sandbox.pausedAt":                     "Time at which the running session was paused, in ms since the Unix epoch; absent if it is not paused. An addition to the public API.",
	"Sandbox.idle":                         "When the server pauses sessions that nobody uses: default, never, pause or hibernate. Absent: default. An addition to the public API.",
	"Quota.sandboxes":                      "Sandboxes that run at a time.",
	"Quota.vcpus":                          "vCPUs of the sandboxes that run at a time.",
	"Quota.memoryMB":                       "Memory of the sandboxes that run at a time, in MiB.",
	"Quota.startsPerMinute":                "Sandboxes that are created, forked or resumed in a minute; as many may start at once.",
	"Quota.requestsPerMinute":              "Requests in a minute; as many may come at once.",
	"Use.sandboxes":                        "Sandboxes that run.",
	"Use.vcpus":                            "Their vCPUs.",
	"Use.memoryMB":                         "Their memory, in MiB.",
	"Sandbox.oidcAudience":                 "Whom the workload token of the sandbox's programs is for; absent if they have none. An addition to the public API.",
	"Sandbox.idleState":                    "paused if the server has paused the running session because nobody uses it, hibernated if it has also saved it with its memory and taken it off the machine; absent otherwise. An addition to the public API.",
	"Sandbox.totalDurationMs":              "Total duration of the ended sessions, in ms.",
	"Sandbox.totalActiveCpuDurationMs":     "CPU time of the ended sessions, in ms.",
	"Sandbox.totalResidentMemoryMBSeconds": "Memory that the ended sessions held over time, in MiB times seconds; see Session. An addition to the public API.",
	"Sandbox.totalEgressBytes":             "Bytes that the ended sessions sent, headers included.",
	"Sandbox.totalIngressBytes":            "Bytes that the ended sessions received, headers included.",
	"Sandbox.snapshotExpiration":           "How long its snapshots are kept, in ms. 0: for ever. Absent: 30 days.",
	"Sandbox.keepLastSnapshots":            "Rule for which of its snapshots are kept.",
	"Sandbox.currentSnapshotId":            "Id of the snapshot that the next session starts from.",
	"Retention.count":                      "Number of newest snapshots to keep.",
	"Retention.expiration":                 "How long these are kept, in ms. 0: for ever.",
	"Retention.deleteEvicted":              "Whether all other snapshots are deleted at once; true by default.",
	"Snapshot.id":                          "Id of the snapshot, snap_….",
	"Snapshot.sourceSessionId":             "Id of the session that was saved.",
	"Snapshot.sandboxName":                 "Name of that session's sandbox.",
	"Snapshot.parentId":                    "Id of the snapshot that the saved session started from.",
	"Snapshot.region":                      "Region in which it is stored.",
	"Snapshot.status":                      "created, or deleted. The files of a deleted snapshot are removed.",
	"Snapshot.sizeBytes":                   "Size of the difference to the image, in bytes.",
	"Snapshot.creationMethod":              "manual, automatic (at a stop), or fork (for a fork of a running sandbox).",
	"Snapshot.memory":                      "Whether it includes the memory of the running processes. An addition to the public API.",
	"Snapshot.expiresAt":                   "Time at which it expires, in ms since the Unix epoch; absent if it never does.",
	"Snapshot.lastUsedAt":                  "Time of the last start of a session from it, in ms since the Unix epoch.",
	"Sandbox.mounts":                       "Drives of the next session, by mount path.",
	"Mount.drive":                          "Name of the drive.",
	"Mount.mode":                           "read-write, or snapshot: a read-only copy, made when the session starts.",
	"Drive.id":                             "Id of the drive, drv_….",
	"Drive.name":                           "Unique in the project.",
	"Drive.projectId":                      "Id of the project.",
	"Drive.region":                         "Region in which it is stored.",
	"Drive.maxSizeBytes":                   "Maximum size in bytes, including the filesystem's own data.",
	"Drive.currentSessionId":               "Id of the session that has mounted it read-write; absent if there is none.",
	"Drive.currentSandboxName":             "Name of that session's sandbox.",
	"NetworkPolicySummary.mode":            "allow-all, deny-all, or custom: only the listed destinations are allowed.",
	"NetworkPolicySummary.allowedDomains":  "Domains that may be reached over HTTP and HTTPS, with or without rules.",
	"NetworkPolicySummary.allowedCIDRs":    "Networks that may be reached over any protocol.",
	"NetworkPolicySummary.deniedCIDRs":     "Networks that may never be reached, even if a rule or list allows them.",
	"NetworkPolicySummary.injectionRules":  "Rules that set headers.",
	"NetworkPolicySummary.forwardRules":    "Rules that send requests to a proxy.",
	"NetworkPolicySummary.responseRules":   "Rules that answer requests. An addition to the public API.",
	"NetworkEvent.time":                    "Time of the event, in ms since the Unix epoch.",
	"NetworkEvent.allowed":                 "Whether the connection, request or query was allowed.",
	"NetworkEvent.protocol":                "tcp; tls (passed through, decided by name); https (a request in TLS that the proxy terminated); http; or dns. For a packet that was denied by its address: tcp, udp, icmp, or ip for any other protocol.",
	"NetworkEvent.reason":                  "Reason of the decision, in a few words.",
	"NetworkEvent.domain":                  "Domain name that was checked.",
	"NetworkEvent.destination":             "Address and port that the sandbox connected to.",
	"NetworkEvent.upstream":                "Address and port that the proxy connected to.",
	"NetworkEvent.end":                     "True for the end of a connection or request that was allowed before. The event then has the byte counts.",
	"NetworkEvent.bytesIn":                 "Payload bytes sent to the sandbox.",
	"NetworkEvent.bytesOut":                "Payload bytes received from the sandbox.",
	"NetworkEvent.durationMs":              "Duration of the connection or request, in ms.",
	"NetworkEvent.suppressed":              "Number of events before this one that were dropped, because there were too many.",
	"InjectionRule.domain":                 "Domain that the rule applies to.",
	"InjectionRule.headerNames":            "Names of the headers that it sets. Their values are not returned.",
	"InjectionRule.match":                  "Requests that it applies to. Values that headers are compared with are not returned.",
	"ForwardRule.domain":                   "Domain that the rule applies to.",
	"ForwardRule.forwardURL":               "URL of the proxy.",
	"ForwardRule.match":                    "Requests that it applies to.",
	"ResponseRule.domain":                  "Domain that the rule applies to.",
	"ResponseRule.statusCode":              "HTTP status of the response.",
	"ResponseRule.match":                   "Requests that it applies to.",
	"NetworkRule.match":                    "Requests that the rule applies to; all requests if absent. The first matching rule of a domain is used. A request that matches no rule is passed on unchanged.",
	"NetworkRule.transform":                "Headers to set in the request. They replace headers of the same name that the sandbox sent. Exactly one of transform, forwardURL and response must be given.",
	"NetworkRule.forwardURL":               "URL of a proxy that gets the request instead of the domain. It must be an https URL without query and fragment. The headers vercel-forwarded-host, vercel-forwarded-scheme, vercel-forwarded-port and vercel-forwarded-path are added, and the header vercel-sandbox-oidc-token with a token that identifies the sandbox.",
	"NetworkRule.response":                 "Response that is sent instead of contacting the domain.",
	"HeaderTransform.headers":              fmt.Sprintf("At most %d, with values of at most %d bytes. Headers about the connection, the body's length or the host are refused.", skerry.MaxRuleHeaders, skerry.MaxHeaderValue),
	"RuleResponse.statusCode":              "From 200 to 599.",
	"RuleResponse.headers":                 "Headers about the connection or the body's length are refused.",
	"RuleResponse.body":                    fmt.Sprintf("At most %d bytes. It needs contentType, and is refused with status 204, 205 or 304.", skerry.MaxRuleBody),
	"RuleResponse.contentType":             "Content type of the body.",
	"RequestMatch.path":                    "Condition on the path of the request.",
	"RequestMatch.method":                  "The request must have one of these methods.",
	"RequestMatch.queryString":             "Query parameters. The request must have all of them.",
	"RequestMatch.headers":                 "Headers. The request must have all of them.",
	"PairMatcher.key":                      "Condition on the name; any name if absent.",
	"PairMatcher.value":                    "Condition on the value; any value if absent.",
	"Matcher.exact":                        "The text must be equal to this.",
	"Matcher.startsWith":                   "The text must begin with this.",
	"Matcher.regex":                        fmt.Sprintf("RE2 expression that the text must match, of at most %d bytes.", skerry.MaxPattern),
	"policyRequest.allow":                  fmt.Sprintf("At most %d domains, with at most %d rules each. A policy may have at most %d bytes in total.", skerry.MaxPolicyDomains, skerry.MaxDomainRules, skerry.MaxPolicyBytes),
	"subnetsRequest.allow":                 cidrsDoc,
	"subnetsRequest.deny":                  cidrsDoc,
	"Route.url":                            "Public URL of the port.",
	"Route.subdomain":                      "First label of the URL's host.",
	"Route.port":                           "Port inside the sandbox.",
	"Drive.parentDriveId":                  "Id of the drive that it was forked from; absent if it was created empty. That drive may have been deleted.",
	"Drive.rootDriveId":                    "Id of the first drive in the chain of forks.",
	"Route.private":                        "Whether a token is required. An addition to the public API.",
	"Sandbox.routes":                       "Routes of its published ports. An addition to the public API.",
	"RouteToken.token":                     "The token, skr_….",
	"RouteToken.url":                       "The route's URL with the token.",
	"RouteToken.expiresAt":                 "Time at which the token expires, in ms since the Unix epoch.",

	"Session.id":                      "Id of the session, sbx_….",
	"Session.sandboxName":             "Name of its sandbox.",
	"Session.vcpus":                   "Number of virtual CPUs.",
	"Session.memory":                  "Memory in MiB.",
	"Session.region":                  "Region in which it runs.",
	"Session.runtime":                 "Runtime of the default image that is first on PATH.",
	"Session.image":                   "Image that it started from, with its digest; absent for the default image.",
	"Session.timeout":                 "Timeout in ms, counted from startedAt, including extensions.",
	"Session.cwd":                     "Working directory.",
	"Session.persistent":              "Whether its files are kept when it ends.",
	"Session.pausedAt":                "Time at which it was paused, in ms since the Unix epoch; absent if it is not paused. An addition to the public API.",
	"Session.idleState":               "paused if the server has paused it because nobody uses it, hibernated if it has also saved it with its memory and taken it off the machine; its status is still running, and the next use resumes it first. Absent otherwise. An addition to the public API.",
	"Session.imageDigest":             "Digest of the image file.",
	"Session.sourceSnapshotId":        "Id of the snapshot that it started from.",
	"Session.snapshottedAt":           "Time at which its files were saved, in ms since the Unix epoch.",
	"Session.reason":                  "Human-readable reason why it failed, was aborted, or stopped without being saved.",
	"Session.requestedAt":             "Time of the request that created it, in ms since the Unix epoch.",
	"Session.startedAt":               "Time from which commands could run, in ms since the Unix epoch.",
	"Session.requestedStopAt":         "Time of the request to stop, or of the timeout, in ms since the Unix epoch.",
	"Session.stoppedAt":               "Time at which it stopped, in ms since the Unix epoch.",
	"Session.abortedAt":               "Time at which it was found to be lost, in ms since the Unix epoch.",
	"Session.duration":                "Duration in ms; present after its end.",
	"Session.activeCpuDurationMs":     "CPU time in ms; present after its end.",
	"Session.residentMemoryMBSeconds": "Memory that it held on the server's machine over time, in MiB times seconds; present after its end. While it hibernates it holds none. An addition to the public API.",
	"NetworkTransfer.ingress":         "Bytes received, headers included.",
	"NetworkTransfer.egress":          "Bytes sent, headers included.",

	"sessionView.projectId":         "Id of the project.",
	"sessionView.sourceSandboxName": "Same as sandboxName.",
	"sessionView.interactivePort":   "Port of this server that serves terminals.",

	"Command.id":            "Id of the command, cmd_….",
	"Command.sessionId":     "Id of the session that it runs in.",
	"Command.name":          "Program.",
	"Command.args":          "Arguments of the program.",
	"Command.argsTruncated": "True if name and args were longer than 8 KiB; only the first 8 KiB are kept. An addition to the public API.",
	"Command.cwd":           "Working directory.",
	"Command.exitCode":      "Null while the command runs. If a signal ended it: 128 plus the signal number.",
	"Command.durationMs":    "Duration in ms; present after its end.",
	"Command.startedAt":     "Start time, in ms since the Unix epoch.",
	"logLine.stream":        "Stream that the command wrote to.",
	"logLine.data":          "Text of the output. Bytes that are not UTF-8 are replaced by U+FFFD. A character is never split.",
	"errorLine.stream":      "Marks the end of a stream that failed.",

	"currentUser.id":            "Id of the user, or of the token if it is not a user's.",
	"currentUser.username":      "Name of the user, or the slug of the team if the token is not a user's.",
	"currentUser.defaultTeamId": "Id of the caller's team; null if there are several, or none.",
	"User.id":                   "Id of the user, user_….",
	"User.name":                 "Name of the user: a login name or an e-mail address.",
	"Team.id":                   "Id of the team, team_….",
	"Team.slug":                 "Unique in the installation.",
	"Team.name":                 "Display name.",
	"teamRequest.slug":          fmt.Sprintf("At most %d lower-case letters, digits and hyphens; required for a new team.", skerry.MaxSlug),
	"Project.id":                "Id of the project, prj_….", "Project.accountId": "Id of its team.", "Project.name": "Unique in its team.",
	"projectRequest.name":    fmt.Sprintf("At most %d characters.", skerry.MaxProjectName),
	"memberRequest.user":     fmt.Sprintf("At most %d characters.", skerry.MaxUserName),
	"Member.role":            "Role of the user in the team: viewer, developer or owner.",
	"AccessToken.id":         "Id of the token, tok_….",
	"AccessToken.name":       "Name of the token, for people.",
	"AccessToken.teamId":     "Id of the team that it is for.",
	"AccessToken.projectId":  "Id of the project that it is for; absent if it is for all projects of the team.",
	"AccessToken.userId":     "Id of the user whose token it is; absent if it is a team's.",
	"AccessToken.role":       "What may be done with it: viewer, developer or owner; admin: managing teams.",
	"AccessToken.expiresAt":  "Time at which it expires, in ms since the Unix epoch; absent if it does not.",
	"AccessToken.lastUsedAt": "Time of its last use, to within an hour, in ms since the Unix epoch; absent if it was not used.",
	"membership.role":        "Role of the caller in the team.", "billing.plan": "Always hobby; the public clients expect it.",
	"teamPagination.count": "Teams on this page.", "statusResponse.status": "Always ok.",
}

var (
	envDoc    = fmt.Sprintf("At most %d variables, with at most %d bytes in total.", skerry.MaxEnv, skerry.MaxEnvBytes)
	mountsDoc = fmt.Sprintf("At most %d. System paths such as /etc or /proc are refused. A missing folder is created.", skerry.MaxMounts)
	cidrsDoc  = fmt.Sprintf("At most %d; none may overlap another.", skerry.MaxPolicyCIDRs)
	pathDoc   = fmt.Sprintf("At most %d bytes.", skerry.MaxPathLength-1)
	tagsDoc   = fmt.Sprintf("At most %d, with names and values of at most %d bytes.", skerry.MaxTags, skerry.MaxTagBytes)
	imageDoc  = fmt.Sprintf("At most %d bytes.", skerry.MaxImageReference)
	nameDoc   = fmt.Sprintf("At most %d letters, digits and the characters - _ ., beginning with a letter or digit; not %s.",
		skerry.MaxNameLength, strings.Join(skerry.ReservedNames, ", "))
)

// fieldDoc describes a field of the struct t.
func fieldDoc(t reflect.Type, f reflect.StructField) string {
	return strings.TrimSpace(f.Tag.Get("doc") + " " + fieldDocs[t.Name()+"."+fieldName(f)])
}
