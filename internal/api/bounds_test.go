package api

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

// TestTagsAreTheLimits: a struct tag cannot name a constant, so this test does.
func TestTagsAreTheLimits(t *testing.T) {
	for _, c := range []struct {
		of       any
		field    string
		tag      string
		constant int
	}{
		{listSandboxesQuery{}, "Limit", "max", skerry.MaxPageSize}, {listSessionsQuery{}, "Limit", "max", skerry.MaxPageSize},
		{listSnapshotsQuery{}, "Limit", "max", skerry.MaxPageSize}, {listDrivesQuery{}, "Limit", "max", skerry.MaxPageSize},
		{listCommandsQuery{}, "Limit", "max", skerry.MaxPageSize}, {treeQuery{}, "Limit", "max", skerry.MaxPageSize},
		{networkEventsQuery{}, "Limit", "max", maxEvents},
		{startFrame{}, "Cols", "max", skerry.MaxWindow}, {startFrame{}, "Rows", "max", skerry.MaxWindow},
		{controlFrame{}, "Cols", "max", skerry.MaxWindow}, {controlFrame{}, "Rows", "max", skerry.MaxWindow},
	} {
		f, _ := reflect.TypeOf(c.of).FieldByName(c.field)
		if got := f.Tag.Get(c.tag); got != strconv.Itoa(c.constant) {
			t.Errorf("%T.%s has %s %q, want %d", c.of, c.field, c.tag, got, c.constant)
		}
	}
	for field, values := range map[string][]string{
		"Runtime": skerry.Runtimes,
	} {
		f, _ := reflect.TypeFor[createRequest]().FieldByName(field)
		if got := strings.Split(f.Tag.Get("enum"), "|"); !slices.Equal(got, values) {
			t.Errorf("%s is one of %q, want %q", field, got, values)
		}
	}
}

// documented is a server whose requests are compared with its document.
type documented struct {
	srv     *Server
	schemas map[string]*jsonschema.Schema // by the component's name
}

func newDocumented(t testing.TB) *documented {
	t.Helper()
	d := &documented{srv: quietServer(t, &stub{err: skerry.Errorf(skerry.CodeConflict, "accepted")}), schemas: map[string]*jsonschema.Schema{}}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(d.srv.document))
	if err != nil {
		t.Fatal(err)
	}
	const url = "https://skerry.invalid/openapi.json"
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource(url, document); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"CreateRequest", "RunRequest", "ReadRequest", "MkdirRequest", "ExtendRequest", "KillRequest"} {
		if d.schemas[name], err = compiler.Compile(url + "#/components/schemas/" + name); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// try returns whether the document allows the body of a request, and whether the
// server accepts it: its service answers with a conflict.
func (d *documented) try(t *testing.T, component, route string, body any) (document, server bool, answer string) {
	t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	method, url, _ := strings.Cut(route, " ")
	status, answer := answerTo(d.srv, method, url, data)
	if status != http.StatusConflict && status != http.StatusBadRequest {
		t.Fatalf("%.200s: %d %s", data, status, answer)
	}
	return d.schemas[component].Validate(tree) == nil, status == http.StatusConflict, answer
}

// FuzzDocument: what the document allows, the server accepts; and for what a schema
// can say exactly, the other way round.
func FuzzDocument(f *testing.F) {
	d := newDocumented(f)
	for _, s := range []string{
		"a", "", "Name-with_all.1", "sessions", "-a", ".", "..", "a b", "a/b", "ü", strings.Repeat("x", 128), strings.Repeat("x", 129), strings.Repeat("x", 256),
		strings.Repeat("x", 257), strings.Repeat("ü", 64), strings.Repeat("日", 86), strings.Repeat("x", 512), strings.Repeat("x", 513), strings.Repeat("x", 4095),
		strings.Repeat("x", 4096), "A=B", "npm_config_a-b.c", "1A", "main", "--help", "a:b", "v1.0~2", "snap_000000000000000000000000", "snap_00000000000000000000000i",
		"https://a:b@example.com:8443/x.git?a=%20#y", "https://example.com/%zz", "http://", "ssh://a/b", "https://example.com/a b", "https://127.0.0.1/",
		"/data", "/data/", "/data/..", "/a/./b", "/proc/1", "/procs", "/etc", "/etc/x", "/", "//", "/vercel/runtimes/x", "/a\nb", "/" + strings.Repeat("x", 256), "/" + strings.Repeat("ü", 127),
		"a.example", "*.a.example.", "a*.example", "1.2.3.4", "a.0x1f", "0x", "a..b", "-a.example", "a-.example", "A_B.example", strings.Repeat("a", 64), "*",
		"https://p.example/in", "https://p.example:65536/", "https://p.example/../x", "https://p.example/?q", "https://0x7f.1/", "https://[::1]/", "https://u@p.example/",
		"GET", "G T", "^/v1", "\r", "\x7f", "\U0001F600", strings.Repeat("\U0001F600", 64), strings.Repeat("\U0001F600", 65),
	} {
		for _, n := range []int64{0, 1} {
			f.Add(s, n)
		}
	}
	for _, n := range []int64{-1, 2, 3, 4, 10, 11, 32, 64, 100, 200, 599, 600, 999, 1000, 59999, 60000, 65535, 65536, 86400000, 86400001, 1 << 30, 1<<30 + 1, 16 << 20, 1 << 40, 1<<40 + 1, 1 << 52} {
		f.Add("a", n)
	}
	git := func(field string, v any) object {
		return object{"source": merged(object{"type": "git", "url": "https://example.com/"}, object{field: v})}
	}
	rule := func(r object) object {
		return object{"networkPolicy": object{"allow": object{"a.example": []any{r}}}}
	}
	refused := object{"statusCode": 403}
	type check struct {
		what  string
		body  object
		exact bool
	}
	f.Fuzz(func(t *testing.T, s string, n int64) {
		if !utf8.ValidString(s) || strings.ContainsRune(s, 0) || len(s) > 8<<10 {
			return
		}
		compare := func(component, route string, checks ...check) {
			for _, c := range checks {
				document, server, answer := d.try(t, component, route, c.body)
				if document && !server || c.exact && document != server {
					t.Errorf("%s: the document allows %.300v: %v, the server: %v %s", c.what, c.body, document, server, answer)
				}
			}
		}
		compare("CreateRequest", "POST /v3/sandboxes", []check{
			{"name", object{"name": s}, true},
			{"variable", object{"env": object{s: "x"}}, true},
			{"value", object{"env": object{"A": s}}, true},
			{"tag", object{"tags": object{s: "x"}}, false},
			{"tag's value", object{"tags": object{"a": s}}, false},
			{"image", object{"image": s}, false},
			{"url", git("url", s), false},
			{"revision", git("revision", s), false},
			{"username", git("username", s), false},
			{"password", git("password", s), false},
			{"depth", git("depth", n), true},
			{"snapshot", object{"source": object{"type": "snapshot", "snapshotId": s}}, true},
			{"mount", object{"mounts": object{s: object{"drive": "d"}}}, false},
			{"drive", object{"mounts": object{"/data": object{"drive": s}}}, true},
			{"domain", object{"networkPolicy": object{"allow": []any{s}}}, false},
			{"ruled domain", object{"networkPolicy": object{"allow": object{s: []any{object{"response": refused}}}}}, false},
			{"forwardURL", rule(object{"forwardURL": s}), false},
			{"method", rule(object{"response": refused, "match": object{"method": []any{s}}}), true},
			{"exact", rule(object{"response": refused, "match": object{"path": object{"exact": s}}}), false},
			{"starts with", rule(object{"response": refused, "match": object{"headers": []any{object{"key": object{"startsWith": s}}}}}), false},
			{"two actions", rule(object{"response": refused, "transform": []any{}}), true},
			{"two ways", rule(object{"response": refused, "match": object{"path": object{"exact": s, "startsWith": s}}}), true},
			{"neither key nor value", rule(object{"response": refused, "match": object{"headers": []any{object{}}}}), true},
			{"status", rule(object{"response": object{"statusCode": n}}), true},
			{"timeout", object{"timeout": n}, true},
			{"vcpus", object{"resources": object{"vcpus": n}}, true},
			{"memory", object{"resources": object{"vcpus": 2, "memory": n}}, true},
			{"expiration", object{"snapshotExpiration": n}, true},
			{"count", object{"keepLastSnapshots": object{"count": n}}, true},
			{"port", object{"ports": []any{n}}, true},
			{"ports", object{"ports": []any{1, n, 3}}, true},
		}...)
		const session = "POST /v2/sandboxes/sessions/s"
		compare("RunRequest", session+"/cmd",
			check{"command", object{"command": s}, true}, check{"argument", object{"command": "a", "args": []any{s}}, true},
			check{"folder", object{"command": "a", "cwd": s}, false}, check{"time limit", object{"command": "a", "timeout": n}, true})
		compare("ReadRequest", session+"/fs/read", check{"path", object{"path": s}, false})
		compare("MkdirRequest", session+"/fs/mkdir", check{"folder", object{"path": "a", "cwd": s}, false})
		compare("ExtendRequest", session+"/extend-timeout", check{"extension", object{"duration": n}, true})
		compare("KillRequest", session+"/cmd/c/kill", check{"signal", object{"signal": n}, true})
	})
}

// TestDocumentHasTheLimits: the limits of the constants are in the document, at the
// limit and one above it.
func TestDocumentHasTheLimits(t *testing.T) {
	d := newDocumented(t)
	entries := func(n int) object {
		o := object{}
		for i := range n {
			o["n"+strconv.Itoa(i)] = "v"
		}
		return o
	}
	list := func(n int, item func(i int) any) []any {
		l := make([]any, n)
		for i := range l {
			l[i] = item(i)
		}
		return l
	}
	text := func(n int) string { return strings.Repeat("x", n) }
	for _, c := range []struct {
		what string
		most int
		body func(n int) object
	}{
		{"variables", skerry.MaxEnv, func(n int) object { return object{"env": entries(n)} }},
		{"tags", skerry.MaxTags, func(n int) object { return object{"tags": entries(n)} }},
		{"bytes of a tag", skerry.MaxTagBytes, func(n int) object { return object{"tags": object{text(n): text(n)}} }},
		{"bytes of a name", skerry.MaxNameLength, func(n int) object { return object{"name": text(n)} }},
		{"bytes of a reference", skerry.MaxImageReference, func(n int) object { return object{"image": text(n)} }},
		{"mounts", skerry.MaxMounts, func(n int) object {
			o := object{}
			for i := range n {
				o["/mnt/"+strconv.Itoa(i)] = object{"drive": "d" + strconv.Itoa(i)}
			}
			return object{"mounts": o}
		}},
		{"ports", skerry.DefaultMaxPorts, func(n int) object { return object{"ports": list(n, func(i int) any { return i + 1 })} }},
		{"snapshots", skerry.MaxKeepLast, func(n int) object { return object{"keepLastSnapshots": object{"count": n}} }},
		{"domains", skerry.MaxPolicyDomains, func(n int) object {
			return object{"networkPolicy": object{"allow": list(n, func(i int) any { return "d" + strconv.Itoa(i) + ".example" })}}
		}},
		{"networks", skerry.MaxPolicyCIDRs, func(n int) object {
			return object{"networkPolicy": object{"subnets": object{"deny": list(n, func(i int) any { return "10.0." + strconv.Itoa(i) + ".0/24" })}}}
		}},
		{"rules", skerry.MaxDomainRules, func(n int) object {
			rules := list(n, func(i int) any {
				return object{"match": object{"path": object{"exact": "/" + strconv.Itoa(i)}}, "response": object{"statusCode": 403}}
			})
			return object{"networkPolicy": object{"allow": object{"a.example": rules}}}
		}},
		{"bytes of a matcher", skerry.MaxPattern, func(n int) object {
			rule := object{"match": object{"path": object{"exact": text(n)}}, "response": object{"statusCode": 403}}
			return object{"networkPolicy": object{"allow": object{"a.example": []any{rule}}}}
		}},
	} {
		for _, n := range []int{c.most, c.most + 1} {
			want := n == c.most
			document, server, answer := d.try(t, "CreateRequest", "POST /v3/sandboxes", c.body(n))
			if document != want || server != want {
				t.Errorf("%d %s: allowed by the document: %v, by the server: %v %s", n, c.what, document, server, answer)
			}
		}
	}
}

// TestKnownSDKRequests: what the public SDKs send by default is allowed by the
// document and by the server.
func TestKnownSDKRequests(t *testing.T) {
	d := newDocumented(t)
	whole := object{
		"projectId": "prj_1", "name": "my-sandbox", "ports": []any{3000}, "timeout": 300000, "resources": object{"vcpus": 2, "memory": 4096},
		"source":  object{"type": "git", "url": "https://user:pw@example.com/x.git", "depth": 1, "revision": "feature/x", "username": "u", "password": "p"},
		"runtime": "node24", "persistent": true, "env": object{"NODE_ENV": "production"}, "tags": object{"team": "web"},
		"snapshotExpiration": 0, "keepLastSnapshots": object{"count": 3, "deleteEvicted": true},
		"mounts": object{"/data": object{"drive": "d", "mode": "read-write"}}, "failoverRegions": []any{},
		"networkPolicy": object{"allow": object{"*.example.com": []any{}, "api.example.com": []any{
			object{"match": object{"path": object{"startsWith": "/v1"}, "method": []any{"GET"}}, "transform": []any{object{"headers": object{"authorization": "x"}}}},
		}}, "subnets": object{"deny": []any{"10.0.0.0/8"}}},
	}
	bodies := map[string]object{"all": whole}
	for field, value := range whole {
		bodies[field] = object{field: value}
	}
	for what, body := range bodies {
		if document, server, answer := d.try(t, "CreateRequest", "POST /v2/sandboxes", body); !document || !server {
			t.Errorf("%s: allowed by the document: %v, by the server: %v %s", what, document, server, answer)
		}
	}
}

// namedService remembers the name that a call was about.
type namedService struct {
	*stub
	name string
}

func (s *namedService) GetSandbox(_ context.Context, _ skerry.Scope, name string, _ bool) (*skerry.Run, error) {
	s.name = name
	return nil, s.err
}

// FuzzNamesReachTheServer: a name that a new sandbox may have is one by which the
// client finds it again.
func FuzzNamesReachTheServer(f *testing.F) {
	svc := &namedService{stub: &stub{err: skerry.Errorf(skerry.CodeConflict, "accepted")}}
	hs := httptest.NewServer(quietServer(f, svc))
	f.Cleanup(hs.Close)
	c, err := client.New(client.Options{URL: hs.URL, Token: testToken})
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range []string{"a", "Name-with_all.1", "a..", "a.", "0", "sessions", "tree", "a%2f", "..", strings.Repeat("x", skerry.MaxNameLength)} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if skerry.ValidateName("name", name) != nil {
			return
		}
		svc.name = ""
		if _, err := c.GetSandbox(t.Context(), name, client.GetOptions{}); !client.IsConflict(err) || svc.name != name {
			t.Errorf("%q reached the server as %q: %v", name, svc.name, err)
		}
	})
}
