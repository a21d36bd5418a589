package api

import (
	"fmt"
	"maps"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/skerry-dev/skerry"
)

// maxMillis is the longest duration.
const maxMillis = math.MaxInt64 / int64(time.Millisecond)

// bounds are the limits of the fields of requests, in addition to types and tags. They
// are made from the constants by which the service validates. The key is the name of the
// struct and of the field.
func bounds(l skerry.Limits) map[string]object {
	l = l.WithDefaults()
	timeout := object{"minimum": skerry.MinTimeout.Milliseconds(), "maximum": l.MaxTimeout.Milliseconds()}
	expiration := object{"anyOf": []any{object{"const": 0}, object{"minimum": skerry.MinSnapshotExpiration.Milliseconds()}}, "minimum": 0}
	env := object{"maxProperties": skerry.MaxEnv, "propertyNames": object{"pattern": skerry.EnvNamePattern, "maxLength": skerry.MaxEnvName}}
	tags := object{
		"maxProperties": skerry.MaxTags, "propertyNames": merged(object{"minLength": 1}, maxBytes(skerry.MaxTagBytes)),
		"additionalProperties": merged(object{"type": "string"}, maxBytes(skerry.MaxTagBytes)),
	}
	port := object{"type": "integer", "minimum": 1, "maximum": skerry.MaxPort}
	name := object{"pattern": skerry.NamePattern, "not": object{"enum": skerry.ReservedNames}}
	maybeName := object{"anyOf": []any{object{"const": ""}, name}}
	path := maxBytes(skerry.MaxPathLength - 1)
	positive := object{"minimum": 1}
	credential := merged(object{"pattern": `^[^\r\n]*$`}, maxBytes(skerry.MaxCredential))
	page := object{"minimum": 1, "maximum": skerry.MaxPageSize}
	networks := object{"maxItems": skerry.MaxPolicyCIDRs, "uniqueItems": true}
	all := map[string]object{
		"unbuiltFields.networkId":       {"type": "null"},
		"unbuiltFields.region":          {"enum": []string{"", skerry.Region}},
		"unbuiltFields.failoverRegions": {"maxItems": 0},

		"portFields.ports": {"maxItems": l.MaxPorts, "uniqueItems": true, "items": port}, "portFields.privatePorts": {"items": port},

		"stateFields.snapshotExpiration": expiration, "retentionRequest.expiration": expiration, "snapshotRequest.expiration": expiration,
		"retentionRequest.count":       {"minimum": 1, "maximum": skerry.MaxKeepLast},
		"routeTokenRequest.expiration": {"minimum": skerry.MinRouteToken.Milliseconds(), "maximum": skerry.MaxRouteToken.Milliseconds()},

		"tokenFields.oidcAudience": {"maxLength": skerry.MaxAudience, "pattern": skerry.AudiencePattern},

		"sourceRequest.url":         merged(object{"pattern": urlPattern}, maxBytes(skerry.MaxSourceURL)),
		"sourceRequest.depth":       {"maximum": skerry.MaxSourceDepth},
		"sourceRequest.revision":    merged(object{"pattern": skerry.RevisionPattern}, maxBytes(skerry.MaxRevision)),
		"sourceRequest.username":    credential,
		"sourceRequest.password":    credential,
		"sourceRequest.snapshotId":  {"pattern": skerry.IDPattern(skerry.PrefixSnapshot)},
		"driveRequest.region":       {"enum": []string{"", skerry.Region}},
		"driveRequest.maxSizeBytes": {"minimum": skerry.MinDriveSize, "maximum": l.MaxDriveSize},
		"forkDriveRequest.name":     name,
		"extendRequest.duration":    positive,
		"runRequest.command":        maxBytes(skerry.MaxArgBytes),
		"runRequest.env":            env,
		"runRequest.timeout":        positive,
		"runRequest.args":           {"maxItems": skerry.MaxArgs},
		"runRequest.cwd":            path,
		"readRequest.path":          path, "readRequest.cwd": path, "mkdirRequest.path": path, "mkdirRequest.cwd": path,
		"stdinRequest.data":        {"pattern": `^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$`, "contentEncoding": "base64"},
		"listSandboxesQuery.tags":  {"maxItems": skerry.MaxTags, "items": object{"type": "string", "pattern": `^[^:]+:`}},
		"listSandboxesQuery.limit": page, "listSessionsQuery.limit": page, "listSnapshotsQuery.limit": page, "listDrivesQuery.limit": page,
		"listCommandsQuery.limit": page, "treeQuery.limit": page,
		"networkEventsQuery.limit": {"minimum": 1, "maximum": maxEvents},
		"mountRequest.drive":       {"minLength": 1},
		"subnetsRequest.allow":     networks, "subnetsRequest.deny": networks,

		"networkRule.transform": {"maxItems": skerry.MaxRuleHeaders}, "networkRule.forwardURL": {"pattern": forwardPattern, "maxLength": skerry.MaxPattern},
		"headerTransform.headers": {"maxProperties": skerry.MaxRuleHeaders}, "ruleResponse.headers": {"maxProperties": skerry.MaxRuleHeaders},
		"ruleResponse.statusCode": {"minimum": 200, "maximum": 599}, "ruleResponse.body": maxBytes(skerry.MaxRuleBody),
		"requestMatch.method":      {"maxItems": skerry.MaxRuleHeaders, "items": object{"type": "string", "pattern": methodPattern}},
		"requestMatch.queryString": {"maxItems": skerry.MaxRuleHeaders}, "requestMatch.headers": {"maxItems": skerry.MaxRuleHeaders},
		"matcher.exact": maxBytes(skerry.MaxPattern), "matcher.startsWith": maxBytes(skerry.MaxPattern), "matcher.regex": maxBytes(skerry.MaxPattern),
	}
	for _, request := range []string{"createRequest", "forkRequest", "updateRequest"} {
		all[request+".timeout"], all[request+".env"], all[request+".tags"], all[request+".mounts"] = timeout, env, tags, mountBounds()
	}
	all["createRequest.name"], all["forkRequest.name"] = maybeName, maybeName
	printable := `[^\x00-\x1f\x7f]`
	all["tokenRequest.name"] = merged(object{"pattern": "^" + printable + "+$"}, maxBytes(skerry.MaxNameLength))
	all["memberRequest.user"] = object{"pattern": fmt.Sprintf("^[!-~]{1,%d}$", skerry.MaxUserName), "not": object{"pattern": "^[uU][sS][eE][rR]_"}}
	all["teamRequest.slug"] = object{"pattern": fmt.Sprintf("^([a-z0-9]([a-z0-9-]{0,%d}[a-z0-9])?)?$", skerry.MaxSlug-2)}
	all["teamRequest.name"] = merged(object{"pattern": "^" + printable + "*$"}, maxBytes(skerry.MaxNameLength))
	all["projectRequest.name"] = object{"pattern": fmt.Sprintf("^[a-z0-9._-]{1,%d}$", skerry.MaxProjectName), "not": object{"pattern": "^(team|prj)_"}}
	all["listQuery.limit"], all["listTokensQuery.limit"] = page, page
	all["createRequest.image"], all["forkRequest.image"] = maxBytes(skerry.MaxImageReference), maxBytes(skerry.MaxImageReference)
	return all
}

// urlPattern is a URL of a source, with or without credentials and a port. The server
// accepts further URLs, which a pattern cannot describe.
const urlPattern = `^https?://([A-Za-z0-9._~-]+(:[A-Za-z0-9._~-]*)?@)?[A-Za-z0-9.-]+(:[0-9]{1,5})?([/?#]([^\x00-\x20\x7f%]|%[0-9A-Fa-f]{2})*)?$`

const (
	labelPattern = `[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?`
	// methodPattern is a token of RFC 9110.
	methodPattern = "^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$"
	// forwardPattern is the URL of another proxy, without "." and ".." in its path. The
	// last label of the host begins with a letter, so that the host is not an address.
	forwardPattern = `^https://(` + labelPattern + `\.)*[A-Za-z_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(:[1-9][0-9]{0,3})?(/([A-Za-z0-9_~-]+(\.[A-Za-z0-9_~-]+)*/?)*)?$`
)

// domainBounds describe a domain or a pattern of domains.
var domainBounds = object{
	"pattern":   `^(\*|` + labelPattern + `)(\.(\*|` + labelPattern + `))*\.?$`,
	"maxLength": skerry.MaxDomainLength,
	// An address, or a name that a program could take for one.
	"not": object{"pattern": `(^|\.)([0-9]+|0[xX][0-9A-Fa-f]*)\.?$`},
}

// oneOf are the types that must have exactly one, or at least one, of some fields.
var oneOf = map[reflect.Type]object{
	reflect.TypeFor[skerry.NetworkRule](): {"oneOf": required("transform", "forwardURL", "response")},
	reflect.TypeFor[skerry.Matcher]():     {"oneOf": required("exact", "startsWith", "regex")},
	reflect.TypeFor[skerry.PairMatcher](): {"anyOf": required("key", "value")},
}

func required(fields ...string) (list []any) {
	for _, f := range fields {
		list = append(list, object{"required": []string{f}})
	}
	return list
}

// mountBounds are the limits of mounts and their paths.
func mountBounds() object {
	trees := make([]string, len(skerry.SystemTrees))
	for i, tree := range skerry.SystemTrees {
		trees[i] = regexp.QuoteMeta(tree)
	}
	return object{"maxProperties": skerry.MaxMounts, "propertyNames": merged(object{
		"pattern": `^(/([ -.0-~]{1,255}|[^/\x00-\x1f\x7f]{1,63}))+$`,
		"not": object{"anyOf": []any{
			object{"enum": skerry.SystemFolders},
			object{"pattern": "^(" + strings.Join(trees, "|") + ")(/|$)"},
			object{"pattern": `/\.{1,2}(/|$)`},
		}},
	}, maxBytes(skerry.MaxPathLength-1))}
}

// maxBytes limits the bytes of a string. JSON Schema counts characters, and a
// character may have four bytes.
func maxBytes(n int) object {
	return object{"maxLength": n, "anyOf": []any{object{"pattern": `^[\x00-\x7f]*$`}, object{"maxLength": n / utf8.UTFMax}}}
}

func merged(list ...object) object {
	all := object{}
	for _, o := range list {
		maps.Copy(all, o)
	}
	return all
}

func powersOfTwo(most int) (list []int) {
	for n := 1; n <= most; n *= 2 {
		list = append(list, n)
	}
	return list
}

func lowerFirst(s string) string {
	r := []rune(s)
	if len(r) > 0 {
		r[0] = unicode.ToLower(r[0])
	}
	return string(r)
}

// signalNames returns the names of signals, with and without the prefix SIG.
func signalNames() []string {
	var names []string
	for _, n := range slices.Sorted(maps.Keys(linuxSignals)) {
		names = append(names, n, "SIG"+n)
	}
	return names
}

// pathSchema describes a parameter of a route's path.
func (d *describer) pathSchema(rt *route, name string) object {
	s := object{"type": "string", "minLength": 1, "maxLength": skerry.MaxNameLength}
	switch {
	case name == "port":
		return object{"type": "integer", "minimum": 1, "maximum": skerry.MaxPort}
	case rt.id == "getOrCreateDrive":
		s["pattern"], s["not"] = skerry.NamePattern, object{"enum": skerry.ReservedNames}
	case rt.path == sandboxPath:
		s["not"] = object{"enum": skerry.ReservedNames}
	case rt.path == snapshotsPath+"/{snapshot}":
		s["not"] = object{"enum": []string{"tree"}}
	}
	return s
}

// sizes returns the sizes that a machine can have.
func sizes(l skerry.Limits) (sizes []any) {
	l = l.WithDefaults()
	for _, n := range powersOfTwo(l.MaxVCPUs) {
		if l.MaxMemoryMB > 0 && n*skerry.MemoryPerVCPU > l.MaxMemoryMB {
			break
		}
		sizes = append(sizes, object{"required": []string{"vcpus"}, "properties": object{
			"vcpus":  object{"type": "integer", "const": n, "description": "Number of virtual CPUs."},
			"memory": object{"type": "integer", "const": n * skerry.MemoryPerVCPU, "description": fmt.Sprintf("Memory in MiB: %d for each virtual CPU.", skerry.MemoryPerVCPU)},
		}})
	}
	return append(sizes, object{"maxProperties": 0})
}

// source describes a source. Each type has its own fields.
func (d *describer) source() object {
	properties, required := object{}, []string{}
	d.properties(reflect.TypeFor[sourceRequest](), true, properties, &required)
	kind := func(name string, required []string, fields ...string) object {
		own := object{"type": object{"const": name}}
		for _, f := range fields {
			own[f] = properties[f]
		}
		return object{"type": "object", "required": append(required, "type"), "properties": own}
	}
	return object{"oneOf": []any{
		kind(skerry.SourceGit, []string{"url"}, "url", "depth", "revision", "username", "password"),
		kind(skerry.SourceTarball, []string{"url"}, "url"),
		kind(skerry.SourceSnapshot, []string{"snapshotId"}, "snapshotId"),
	}}
}

// body describes the body of a request.
func (d *describer) body(t reflect.Type) object {
	if t == reflect.TypeFor[policyRequest]() {
		return d.policy("PolicyRequest", object{"projectId": object{"type": "string"}, "teamId": object{"type": "string"}})
	}
	return d.schema(t, true)
}

// needsBody reports whether a body has required fields.
func needsBody(t reflect.Type) bool {
	for i := range t.NumField() {
		if t.Field(i).Tag.Get("required") == "true" {
			return true
		}
	}
	return false
}

// policy describes a network policy: a mode, or lists of what may be reached. more are
// further properties.
func (d *describer) policy(name string, more object) object {
	ref := object{"$ref": "#/components/schemas/" + name}
	if _, ok := d.schemas[name]; ok {
		return ref
	}
	d.schemas[name] = object{} // in case that the schema refers to itself
	properties, required := object{}, []string{}
	d.properties(reflect.TypeFor[policyRequest](), true, properties, &required)
	whole, custom := maps.Clone(more), maps.Clone(properties)
	whole["mode"] = object{"enum": []skerry.NetworkMode{skerry.NetworkAllowAll, skerry.NetworkDenyAll}}
	maps.Copy(custom, more)
	custom["mode"] = object{"const": string(skerry.NetworkCustom)}
	d.schemas[name] = object{
		"description": properties["mode"].(object)["description"],
		"oneOf": []any{
			object{"type": "object", "required": []string{"mode"}, "additionalProperties": false, "properties": whole},
			object{"type": "object", "additionalProperties": false, "properties": custom},
		},
	}
	return ref
}
