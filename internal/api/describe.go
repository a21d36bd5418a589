package api

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/skerry-dev/skerry"
)

// overview is what the document says of all calls.
func overview(maxUpload int64) string {
	return fmt.Sprintf(`Sandboxes on your own machines. Times are integer milliseconds since the Unix epoch, durations integer milliseconds, sizes of memory MiB, other sizes bytes. Fields that are not described are ignored; a null field counts as absent.

Every call but the public ones needs a bearer token, which belongs to one team and one project. A body or query that names another is refused with 403.

Limits: a JSON body has %d bytes at most, nests %d levels deep, and arrives within %s; headers have %d bytes together; an upload unpacks to %d bytes at most, and beyond %d bytes to %d times its size. %d streams, terminals, uploads and downloads may be open at once in a project. A page of a list has 1 to %d items, %d by default.

Errors have the body {"error":{"code","message","field"?,"requestId"?}}. 429 and 503 say in Retry-After when to try again; 410 sandbox_stopped and 422 sandbox_stopping go away when the sandbox is resumed (getSandbox with resume=true). 501 not_implemented names a field or call that this version does not have; repeating it is of no use. Every answer has its id in the header X-Request-Id.`,
		maxBody, maxDepth, bodyTimeout, maxHeaderBytes, maxUpload, int64(bombFree), bombRatio, maxOpenEach,
		skerry.MaxPageSize, skerry.DefaultPageSize)
}

// codes returns every code that an error can have.
func codes() []skerry.Code { return slices.Sorted(maps.Keys(statusOf)) }

// codesDoc says which status each code comes with.
func codesDoc() string {
	list := make([]string, 0, len(statusOf))
	for _, code := range codes() {
		list = append(list, fmt.Sprintf("%s (%d)", code, statusOf[code]))
	}
	return "What kind of failure it is; clients branch on it. Each comes with one HTTP status: " + strings.Join(list, ", ") +
		". A method that an endpoint does not take is a bad_request with 405."
}

// statuses are the states of a session, in the order of its life.
var statuses = []skerry.SessionStatus{
	skerry.StatusPending, skerry.StatusRunning, skerry.StatusSnapshotting, skerry.StatusStopping,
	skerry.StatusStopped, skerry.StatusFailed, skerry.StatusAborted,
}

const statusDoc = "State of the session: failed never came up, aborted was lost while it ran."

// fieldDocs describe the fields of answers, and add limits to what the doc
// tags of requests say. The key is the name of the struct and of the field.
var fieldDocs = map[string]string{
	"errorBody.code": codesDoc(),

	"createRequest.name":     fmt.Sprintf("1 to %d bytes, without control characters, slashes, ?, # and %%.", skerry.MaxNameLength),
	"createRequest.timeout":  fmt.Sprintf("%d to %d by default; an installation may allow less.", skerry.MinTimeout.Milliseconds(), skerry.MaxTimeout.Milliseconds()),
	"createRequest.env":      envDoc,
	"createRequest.tags":     fmt.Sprintf("At most %d.", skerry.MaxTags),
	"updateRequest.env":      envDoc,
	"updateRequest.tags":     fmt.Sprintf("At most %d.", skerry.MaxTags),
	"runRequest.env":         envDoc,
	"runRequest.cwd":         pathDoc,
	"readRequest.path":       pathDoc,
	"readRequest.cwd":        pathDoc,
	"mkdirRequest.path":      pathDoc,
	"mkdirRequest.cwd":       pathDoc,
	"resourcesRequest.vcpus": fmt.Sprintf("A power of two, %d by default; the installation sets the largest.", skerry.DefaultVCPUs),
	"createRequest.mounts":   mountsDoc,
	"updateRequest.mounts":   mountsDoc,
	"forkRequest.mounts":     mountsDoc,
	"sourceRequest.url":      pathDoc,

	"driveRequest.maxSizeBytes": fmt.Sprintf("At least %d; %d by default, and %d at the most, unless the installation says otherwise.",
		skerry.MinDriveSize, skerry.DefaultDriveSize, skerry.MaxDriveSize),

	"extendRequest.duration": "The whole may not be longer than the installation allows.",

	"Sandbox.name":                        "Unique in the project.",
	"Sandbox.persistent":                  "Whether the filesystem outlives a session.",
	"Sandbox.region":                      "Where it runs.",
	"Sandbox.vcpus":                       "Virtual CPUs of the next session.",
	"Sandbox.memory":                      "MiB of memory of the next session.",
	"Sandbox.runtime":                     "Runtime of the default image that is first on PATH.",
	"Sandbox.image":                       "The image it starts from, with its digest; absent for the default one.",
	"Sandbox.timeout":                     "How long the next session lives, in ms.",
	"Sandbox.tags":                        "Labels to find it by.",
	"Sandbox.currentSessionId":            "The session that runs or ran last.",
	"Sandbox.statusUpdatedAt":             "When the status last changed, in ms since the Unix epoch.",
	"Sandbox.cwd":                         "Working directory.",
	"Sandbox.expiresAt":                   "When the running session times out, in ms since the Unix epoch.",
	"Sandbox.pausedAt":                    "Since when the running session has been paused, in ms since the Unix epoch. An addition to the public API.",
	"Sandbox.totalDurationMs":             "How long the ended sessions ran, in ms.",
	"Sandbox.totalActiveCpuDurationMs":    "CPU time of the ended sessions, in ms.",
	"Sandbox.totalEgressBytes":            "Bytes that the ended sessions sent, headers included.",
	"Sandbox.totalIngressBytes":           "Bytes that the ended sessions received, headers included.",
	"Sandbox.snapshotExpiration":          "How long its snapshots are kept, in ms; 0 is for ever, absent is 30 days.",
	"Sandbox.keepLastSnapshots":           "Which of its snapshots are kept.",
	"Sandbox.currentSnapshotId":           "What the next session starts from.",
	"Retention.count":                     "How many of the newest are kept.",
	"Retention.expiration":                "How long those are kept, in ms; 0 is for ever.",
	"Retention.deleteEvicted":             "Whether the others are deleted at once; true if absent.",
	"Snapshot.id":                         "Id of the snapshot, snap_….",
	"Snapshot.sourceSessionId":            "The session whose files it has.",
	"Snapshot.sandboxName":                "Name of that session's sandbox.",
	"Snapshot.parentId":                   "The snapshot that the session started from.",
	"Snapshot.region":                     "Where it is.",
	"Snapshot.status":                     "created, or deleted: its files are gone.",
	"Snapshot.sizeBytes":                  "Size of what differs from the image.",
	"Snapshot.creationMethod":             "manual, automatic (at a stop) or fork (of a running sandbox).",
	"Snapshot.memory":                     "Whether it holds what ran too. An addition to the public API.",
	"Snapshot.expiresAt":                  "When it is deleted, in ms since the Unix epoch; absent for never.",
	"Snapshot.lastUsedAt":                 "When a session last started from it, in ms since the Unix epoch.",
	"Sandbox.mounts":                      "The drives of the next session, by path.",
	"Mount.drive":                         "Name of the drive.",
	"Mount.mode":                          "read-write, or snapshot: a copy as of the session's start, for reading.",
	"Drive.id":                            "Id of the drive, drv_….",
	"Drive.name":                          "Unique in the project.",
	"Drive.projectId":                     "Id of the project.",
	"Drive.region":                        "Where it is.",
	"Drive.maxSizeBytes":                  "How large it can become, with what its filesystem needs for itself.",
	"Drive.currentSessionId":              "The session that has it read-write; absent if none has.",
	"Drive.currentSandboxName":            "Name of that session's sandbox.",
	"NetworkPolicySummary.mode":           "allow-all, deny-all, or custom: nothing but what is listed.",
	"NetworkPolicySummary.allowedDomains": "Domains that may be reached by HTTP and HTTPS, with or without rules.",
	"NetworkPolicySummary.allowedCIDRs":   "Networks that may be reached by every protocol.",
	"NetworkPolicySummary.deniedCIDRs":    "Networks that may not be reached, whatever is allowed.",
	"NetworkPolicySummary.injectionRules": "Rules that set headers.",
	"NetworkPolicySummary.forwardRules":   "Rules that send requests to a proxy.",
	"NetworkPolicySummary.responseRules":  "Rules that answer requests. An addition to the public API.",
	"NetworkEvent.time":                   "When, in ms since the Unix epoch.",
	"NetworkEvent.allowed":                "Whether it was let through.",
	"NetworkEvent.protocol":               "tcp, tls (passed through by its name), https (a request in TLS that the proxy ended), http or dns; of packets that their address alone denied tcp, udp, icmp or ip, which is any other.",
	"NetworkEvent.reason":                 "Why, in a few words.",
	"NetworkEvent.domain":                 "The name that was judged.",
	"NetworkEvent.destination":            "Where the sandbox wanted to go, address and port.",
	"NetworkEvent.upstream":               "Where the proxy went.",
	"NetworkEvent.end":                    "What was allowed before has ended; then the bytes are counted.",
	"NetworkEvent.bytesIn":                "Payload that went to the sandbox.",
	"NetworkEvent.bytesOut":               "Payload that came from the sandbox.",
	"NetworkEvent.durationMs":             "How long it lasted, in ms.",
	"NetworkEvent.suppressed":             "How many events before this one were left out, as there were too many.",
	"InjectionRule.domain":                "The domain that the rule is for.",
	"InjectionRule.headerNames":           "The headers that it sets; their values are not shown.",
	"InjectionRule.match":                 "Which requests it is for; what headers are compared with is not shown.",
	"ForwardRule.domain":                  "The domain that the rule is for.",
	"ForwardRule.forwardURL":              "The proxy.",
	"ForwardRule.match":                   "Which requests it is for.",
	"ResponseRule.domain":                 "The domain that the rule is for.",
	"ResponseRule.statusCode":             "Status of the answer.",
	"ResponseRule.match":                  "Which requests it is for.",
	"NetworkRule.match":                   "Which requests the rule is for; all if absent. The first rule of a domain that matches decides; without one the request passes as it is.",
	"NetworkRule.transform":               "Headers to set on the way out, in the place of those that the sandbox sent. Exactly one of transform, forwardURL and response must be given.",
	"NetworkRule.forwardURL":              "https URL, without query and fragment, of the proxy that has the request instead, with the headers vercel-forwarded-host, -scheme, -port and -path and, in vercel-sandbox-oidc-token, a token that says which sandbox it is.",
	"NetworkRule.response":                "The answer, which is given without asking the domain.",
	"HeaderTransform.headers":             fmt.Sprintf("At most %d, of %d bytes each; none about one connection, the body's length or the host.", skerry.MaxRuleHeaders, skerry.MaxHeaderValue),
	"RuleResponse.statusCode":             "200 to 599.",
	"RuleResponse.headers":                "None about the connection or the body's length.",
	"RuleResponse.body":                   fmt.Sprintf("At most %d bytes; needs contentType, and not with 204, 205 or 304.", skerry.MaxRuleBody),
	"RuleResponse.contentType":            "Of the body.",
	"RequestMatch.path":                   "The path of the request.",
	"RequestMatch.method":                 "One of these methods.",
	"RequestMatch.queryString":            "Parameters of the query that must all be there.",
	"RequestMatch.headers":                "Headers that must all be there.",
	"PairMatcher.key":                     "The name; any if absent.",
	"PairMatcher.value":                   "The value; any if absent.",
	"Matcher.exact":                       "The whole text.",
	"Matcher.startsWith":                  "How the text begins.",
	"Matcher.regex":                       fmt.Sprintf("An RE2 expression of at most %d bytes.", skerry.MaxPattern),
	"policyRequest.allow":                 fmt.Sprintf("At most %d domains with %d rules each; a policy has %d bytes at most.", skerry.MaxPolicyDomains, skerry.MaxDomainRules, skerry.MaxPolicyBytes),
	"subnetsRequest.allow":                cidrsDoc,
	"subnetsRequest.deny":                 cidrsDoc,
	"Route.url":                           "How the port is reached from outside.",
	"Route.subdomain":                     "The first label of the URL's host.",
	"Route.port":                          "The port in the sandbox.",
	"Drive.parentDriveId":                 "The drive that it was forked from; not there for one that began empty. It may have been deleted.",
	"Drive.rootDriveId":                   "The first drive of that line.",
	"Route.private":                       "Whether a token is needed. An addition to the public API.",
	"Sandbox.routes":                      "How its published ports are reached. An addition to the public API.",
	"RouteToken.token":                    "The token, skr_….",
	"RouteToken.url":                      "The route's URL with the token.",
	"RouteToken.expiresAt":                "Until when it is good, in ms since the Unix epoch.",

	"Session.id":                  "Id of the session, sbx_….",
	"Session.sandboxName":         "Name of the sandbox that it is a run of.",
	"Session.vcpus":               "Virtual CPUs.",
	"Session.memory":              "MiB of memory.",
	"Session.region":              "Where it runs.",
	"Session.runtime":             "Runtime of the default image that is first on PATH.",
	"Session.image":               "The image it started from, with its digest; absent for the default one.",
	"Session.timeout":             "How long it lives from startedAt on, extensions included, in ms.",
	"Session.cwd":                 "Working directory.",
	"Session.persistent":          "Whether its files are kept when it ends.",
	"Session.pausedAt":            "Since when it has been paused, in ms since the Unix epoch; absent while it is not. An addition to the public API.",
	"Session.imageDigest":         "Digest of the image's file.",
	"Session.sourceSnapshotId":    "The snapshot it started from.",
	"Session.snapshottedAt":       "When its files had been saved, in ms since the Unix epoch.",
	"Session.reason":              "Why it failed or was aborted, for people.",
	"Session.requestedAt":         "When it was asked for, in ms since the Unix epoch.",
	"Session.startedAt":           "When commands could run first, in ms since the Unix epoch.",
	"Session.requestedStopAt":     "When it was asked to stop or timed out, in ms since the Unix epoch.",
	"Session.stoppedAt":           "When it had stopped, in ms since the Unix epoch.",
	"Session.abortedAt":           "When it was found lost, in ms since the Unix epoch.",
	"Session.duration":            "How long it ran, in ms; once it has ended.",
	"Session.activeCpuDurationMs": "CPU time, in ms; once it has ended.",
	"NetworkTransfer.ingress":     "Bytes received, headers included.",
	"NetworkTransfer.egress":      "Bytes sent, headers included.",

	"sessionView.projectId":         "Id of the project.",
	"sessionView.sourceSandboxName": "The same as sandboxName.",
	"sessionView.interactivePort":   "Port of this server, where terminals are served.",

	"Command.id":         "Id of the command, cmd_….",
	"Command.sessionId":  "The session it runs in.",
	"Command.name":       "The program.",
	"Command.args":       "Its arguments.",
	"Command.cwd":        "Directory it runs in.",
	"Command.exitCode":   "Null while it runs; 128 and the signal's number if a signal ended it.",
	"Command.durationMs": "How long it ran, in ms; once it has ended.",
	"Command.startedAt":  "When it started, in ms since the Unix epoch.",
	"logLine.stream":     "Where it was written to.",
	"logLine.data":       "The text; bytes that are not UTF-8 are U+FFFD. A character is never split.",
	"errorLine.stream":   "Marks the end of a stream that failed.",

	"user.id": "Id of the token.", "user.username": "Slug of the token's team.", "user.defaultTeamId": "Id of the token's team.",
	"Team.id": "Id of the team, team_….", "Team.slug": "Its name in URLs.", "Team.name": "Its name for people.",
	"Project.id": "Id of the project, prj_….", "Project.accountId": "Id of its team.", "Project.name": "Unique in its team.",
	"membership.role": "Always OWNER.", "billing.plan": "Always hobby; the public clients look for it.",
	"teamPagination.count": "Teams on this page.", "statusResponse.status": "Always ok.",
}

var (
	envDoc    = fmt.Sprintf("At most %d variables of %d bytes together.", skerry.MaxEnv, skerry.MaxEnvBytes)
	mountsDoc = fmt.Sprintf("At most %d. Paths of the system, such as /etc or /proc, are refused; a folder that is not there is made.", skerry.MaxMounts)
	cidrsDoc  = fmt.Sprintf("At most %d, of which none lies in another.", skerry.MaxPolicyCIDRs)
	pathDoc   = fmt.Sprintf("At most %d bytes.", skerry.MaxPathLength)
)

// fieldDoc describes a field of the struct t.
func fieldDoc(t reflect.Type, f reflect.StructField) string {
	return strings.TrimSpace(f.Tag.Get("doc") + " " + fieldDocs[t.Name()+"."+fieldName(f)])
}
